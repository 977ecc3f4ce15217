"""Every problem code is raised somewhere, and every code raised is known."""

from __future__ import annotations

import re
from pathlib import Path

import medssl
from medssl.problems import PROBLEMS

SOURCES = [
    path
    for name in ("reading", "ingest", "prepare")
    for path in sorted((Path(medssl.__file__).parent / name).glob("*.py"))
]


def test_codes_in_the_sources_and_in_the_table_are_the_same() -> None:
    text = "\n".join(path.read_text() for path in SOURCES)
    prefixes = "|".join(sorted({code.split("-")[0] for code in PROBLEMS}))
    used = set(re.findall(rf'"((?:{prefixes})-[a-z0-9-]+[a-z])"', text))
    assert used == set(PROBLEMS)


def test_severities_are_three() -> None:
    assert {problem.severity for problem in PROBLEMS.values()} == {"error", "warning", "note"}
