"""medssl report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from .terminal import JsonFlag, QuietFlag, show


def report(
    run: Annotated[Path, Argument(help="Folder of a pretraining run.")],
    store: Annotated[Path | None, Option(help="The run's store, for the part on data.")] = None,
    probe: Annotated[
        list[Path] | None,
        Option(
            help="What `medssl probe --json` printed, as a file; for several probes again. By default RUN/probe*.json."
        ),
    ] = None,
    compare: Annotated[Path | None, Option(help="Folder written by `medssl compare`.")] = None,
    bundle: Annotated[Path | None, Option(help="Exported bundle, to be named.")] = None,
    out: Annotated[Path | None, Option(help="HTML file; by default RUN/report.html.")] = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Write one self-contained page: data, curves, pictures, the gain with its interval, provenance."""
    del quiet  # it is quick, and shows no progress
    from medssl.report import write_report

    show(write_report(run, store=store, probe=probe or None, compare=compare, bundle=bundle, out=out), as_json=as_json)
