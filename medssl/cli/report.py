"""medssl report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from .terminal import JsonFlag, show


def report(
    run: Annotated[Path, Argument(help="Folder of a pretraining run.")],
    probe: Annotated[Path | None, Option(help="Result of `medssl probe`, a JSON file.")] = None,
    compare: Annotated[Path | None, Option(help="Folder written by `medssl compare`.")] = None,
    out: Annotated[Path | None, Option(help="HTML file; by default RUN/report.html.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Write one self-contained page: data, curves, pictures, the gain with its interval, provenance."""
    from medssl.report import write_report

    show(write_report(run, probe=probe, compare=compare, out=out), as_json=as_json)
