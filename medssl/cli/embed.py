"""medssl embed."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from .terminal import JsonFlag, QuietFlag, bar, show


class Per(StrEnum):
    """What a vector stands for."""

    image = "image"
    slice = "slice"
    region = "region"


def embed(
    encoder: Annotated[Path, Argument(help="Folder of an encoder, or the run that holds it.")],
    paths: Annotated[list[Path], Argument(metavar="PATH", help="Scans: NIfTI, DICOM, PNG; or an index, or a store.")],
    out: Annotated[Path, Option(help="A new Parquet file.")],
    per: Annotated[
        Per, Option(help="What a vector stands for: an image, a slice, or a region of its label map.")
    ] = Per.image,
    labels: Annotated[list[Path] | None, Option(help="Folder of label maps, each named as its scan.")] = None,
    quiet: QuietFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Turn scans into vectors by an encoder's frozen features, in a table without paths or names.

    Rows bear the image ids that `medssl index` gives at this site: its private/ folder says which file each one is.
    """
    from medssl.embed import embed_images

    show(embed_images(encoder, list(paths), out, per=per.value, labels=labels, progress=bar(quiet)), as_json=as_json)
