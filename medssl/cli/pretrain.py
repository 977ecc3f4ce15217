"""medssl pretrain."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from .terminal import JsonFlag, QuietFlag, SetOption, bar, show


def pretrain(
    recipe: Annotated[str, Argument(help="Recipe, by name (see `medssl recipes`) or as a YAML file.")],
    data: Annotated[
        list[str], Option(metavar="[NAME=]STORE", help="Store, or index; once a stream where the recipe names streams.")
    ],
    out: Annotated[Path, Option(help="Folder of the run.")],
    set_: SetOption = None,
    resume: Annotated[bool, Option("--resume", help="Go on from the newest checkpoint in the run.")] = False,
    quiet: QuietFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Train an encoder on unlabelled images."""
    from medssl.pretrain import named_data, pretrain_encoder
    from medssl.recipe import load_recipe

    loaded = load_recipe(recipe, set_ or ())
    show(pretrain_encoder(loaded, named_data(data), out, resume=resume, progress=bar(quiet)), as_json=as_json)
