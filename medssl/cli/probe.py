"""medssl probe."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from .own_recipe import find_recipe
from .terminal import JsonFlag, QuietFlag, SetOption, bar, show


class Kind(StrEnum):
    """What is asked of the features."""

    dense = "dense"
    image = "image"
    stability = "stability"


def probe(
    encoder: Annotated[Path, Argument(help="Folder of an encoder, or the run that holds it.")],
    data: Annotated[Path, Option(metavar="STORE", help="Prepared images; for the dense probe with label maps.")],
    kind: Annotated[
        Kind,
        Option(
            help="dense: Dice by a linear layer; image: a target of whole images by kNN, a linear layer, attentive "
            "pooling and retrieval, and the rank; stability: under noise, shift and gamma."
        ),
    ] = Kind.dense,
    target: Annotated[
        str, Option(help="Of the image probe: a finding or measure, modality, view, or a group such as sex.")
    ] = "",
    index: Annotated[Path | None, Option(help="Index that has the target, where the store does not.")] = None,
    recipe: Annotated[
        str | None, Option(help="Recipe whose `probe` section to follow; that of the encoder's run unless given.")
    ] = None,
    set_: SetOption = None,
    seeds: Annotated[int, Option(min=1, help="Draws of labelled images, voxels and random weights.")] = 3,
    quiet: QuietFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Judge frozen features, beside random weights and no network at all."""
    from medssl.errors import UsageError
    from medssl.probe import probe_encoder, probe_images, probe_stability

    if kind is not Kind.image and (target or index):
        raise UsageError("--target and --index belong to the image probe", fix="add --kind image")
    found = find_recipe(recipe, [encoder], set_ or ())
    config = found.probe if found is not None else None
    progress = bar(quiet)
    if kind is Kind.dense:
        show(probe_encoder(encoder, data, config, seeds=seeds, progress=progress), as_json=as_json)
    elif kind is Kind.image:
        told = probe_images(encoder, data, target, config, index=index, seeds=seeds, progress=progress)
        show(told, as_json=as_json)
    else:
        show(probe_stability(encoder, data, config, seeds=seeds, progress=progress), as_json=as_json)
