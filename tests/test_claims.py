"""Every promise has its proof: what README.md marks as a claim stands in claims.toml with a test or a benchmark."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
CLAIMS: list[dict[str, Any]] = tomllib.loads((ROOT / "tests" / "claims.toml").read_text(encoding="utf-8"))["claim"]
IDS = [claim["id"] for claim in CLAIMS]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def marked() -> set[str]:
    return {name for path in DOCUMENTS for name in re.findall(r"<!-- claim: ([\w-]+) -->", path.read_text("utf-8"))}


def test_every_marked_promise_is_known_and_every_known_one_of_the_readme_is_marked() -> None:
    assert len(IDS) == len(set(IDS))
    assert marked() <= set(IDS)
    assert {claim["id"] for claim in CLAIMS if claim.get("where") == "README.md"} == marked()


@pytest.mark.parametrize("claim", CLAIMS, ids=IDS)
def test_a_claim_says_what_it_promises_and_has_proof(claim: dict[str, Any]) -> None:
    assert claim["promise"]
    assert claim.get("tests") or claim.get("benchmarks")


def functions(path: Path) -> dict[str, ast.FunctionDef]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("claim", CLAIMS, ids=IDS)
def test_the_tests_of_a_claim_exist_and_are_not_skipped(claim: dict[str, Any]) -> None:
    for name in claim.get("tests", []):
        file, _, function = name.partition("::")
        found = functions(ROOT / file)
        assert function in found, f"{name} is not there"
        marks = " ".join(ast.unparse(mark) for mark in found[function].decorator_list)
        assert not re.search(r"\b(skip|skipif|xfail)\b", marks), f"{name} is marked {marks}"


@pytest.mark.parametrize("claim", CLAIMS, ids=IDS)
def test_the_benchmarks_of_a_claim_exist_and_have_a_result(claim: dict[str, Any]) -> None:
    for name in claim.get("benchmarks", []):
        assert (ROOT / "benchmarks" / f"{name}.py").is_file()
        result = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))
        assert result["command"]


def test_results_are_what_the_benchmarks_wrote() -> None:
    from benchmarks.render import render

    assert (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8") == render(ROOT / "benchmarks" / "results")
