"""Words and tables that every section of RESULTS.md uses."""

from __future__ import annotations

from typing import Any


def interval_words(value: dict[str, Any]) -> str:
    """Return mean and interval, and the verdict where there is one."""
    verdict = value.get("verdict", "")
    return f"{value['mean']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]" + (f" {verdict}" if verdict else "")


def machine_words(value: dict[str, Any]) -> str:
    """Return where a number was measured."""
    versions = ", ".join(f"{name} {version}" for name, version in value["versions"].items())
    where = f"{value['cpus']} CPU cores, {value['threads']} threads, accelerator {value['accelerator']}"
    return f"{where}; commit {value['commit']}; {versions}."


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines) + "\n"
