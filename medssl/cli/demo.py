"""medssl demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from .terminal import JsonFlag, QuietFlag, bar, show


def demo(
    out: Annotated[Path, Option(help="Folder for everything the demo makes.")] = Path("demo-out"),
    quiet: QuietFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Go the whole way on the shipped scans: index to report and bundle, in a few minutes on a laptop's CPU."""
    from medssl.demo import run_demo

    show(run_demo(out, progress=bar(quiet)), as_json=as_json)
