"""medssl export."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from .terminal import JsonFlag, show


class _To(StrEnum):
    encoder = "encoder"
    monai_bundle = "monai-bundle"


def export(
    run: Annotated[Path, Argument(help="Run of `medssl pretrain` or `medssl finetune`, or a network's own folder.")],
    to: Annotated[
        _To, Option(help="An encoder's folder, or a fine-tuned network as a bundle that runs without medssl.")
    ],
    out: Annotated[Path, Option(help="A new folder.")],
    as_json: JsonFlag = False,
) -> None:
    """Write the network of RUN in the form others use."""
    from medssl.export import export_run

    show(export_run(run, to.value, out), as_json=as_json)
