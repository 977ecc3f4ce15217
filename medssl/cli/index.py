"""medssl index."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from .terminal import JsonFlag, QuietFlag, bar, show


def index(
    paths: Annotated[list[Path], Argument(metavar="PATH", help="Folders and files: NIfTI, DICOM, PNG, any mixture.")],
    out: Annotated[Path, Option(help="A new folder for the index.")],
    labels: Annotated[list[Path] | None, Option(help="Folder of label maps, each named as its image.")] = None,
    subjects: Annotated[Path | None, Option(help="Table (TSV or CSV) of case and patient.")] = None,
    seed: Annotated[int, Option(help="Seed of the splits, which are by subject.")] = 0,
    check: Annotated[bool, Option("--check", help="Read every voxel too, not only the headers.")] = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Find every image under PATH, name every problem, and split by subject."""
    from medssl import build_index

    result = build_index(paths, out, labels=labels, subjects=subjects, seed=seed, check=check, progress=bar(quiet))
    show(result, as_json=as_json)
