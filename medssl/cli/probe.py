"""medssl probe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from .own_recipe import find_recipe
from .terminal import JsonFlag, QuietFlag, SetOption, bar, show


def probe(
    encoder: Annotated[Path, Argument(help="Folder of an encoder, or the run that holds it.")],
    data: Annotated[Path, Option(metavar="STORE", help="Prepared images with label maps.")],
    recipe: Annotated[
        str | None, Option(help="Recipe whose `probe` section to follow; that of the encoder's run unless given.")
    ] = None,
    set_: SetOption = None,
    seeds: Annotated[int, Option(min=1, help="Draws of labelled images, voxels and random weights.")] = 3,
    quiet: QuietFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Judge frozen features by one linear layer, beside random weights and no network at all."""
    from medssl.probe import probe_encoder

    found = find_recipe(recipe, [encoder], set_ or ())
    config = found.probe if found is not None else None
    show(probe_encoder(encoder, data, config, seeds=seeds, progress=bar(quiet)), as_json=as_json)
