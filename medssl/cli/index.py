"""medssl index."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from .terminal import JsonFlag, QuietFlag, bar, show


def index(
    paths: Annotated[
        list[Path], Argument(metavar="PATH", help="Folders and files: NIfTI, DICOM, PNG, JPEG, any mixture.")
    ],
    out: Annotated[Path, Option(help="A new folder for the index.")],
    labels: Annotated[list[Path] | None, Option(help="Folder of label maps, each named as its image.")] = None,
    subjects: Annotated[Path | None, Option(help="Table (TSV or CSV) of case and patient.")] = None,
    targets: Annotated[Path | None, Option(help="Table of case and numbers, a target in each column.")] = None,
    groups: Annotated[Path | None, Option(help="Table of case and words such as site, a group in each column.")] = None,
    boxes: Annotated[Path | None, Option(help="Folder of Pascal VOC's XML files, or a MONAI datalist.")] = None,
    box_mode: Annotated[str | None, Option(help="Of a datalist's boxes, as MONAI has it (cccwhd, ...).")] = None,
    box_space: Annotated[str | None, Option(help="What a datalist's boxes count: voxel, or mm as ras or lps.")] = None,
    seed: Annotated[int, Option(help="Seed of the splits, which are by subject.")] = 0,
    modality: Annotated[str, Option(help="Modality of files that do not state theirs, such as CT or MR.")] = "",
    check: Annotated[bool, Option("--check", help="Read every voxel too, not only the headers.")] = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Find every image under PATH, name every problem, and split by subject."""
    from medssl import build_index

    options: dict[str, Any] = {
        "labels": labels,
        "subjects": subjects,
        "targets": targets,
        "groups": groups,
        "boxes": boxes,
        "box_mode": box_mode,
        "box_space": box_space,
        "seed": seed,
        "modality": modality,
        "check": check,
    }
    show(build_index(paths, out, **options, progress=bar(quiet)), as_json=as_json)
