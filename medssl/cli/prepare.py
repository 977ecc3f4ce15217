"""medssl prepare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from .terminal import JsonFlag, QuietFlag, SetOption, bar, show


def prepare(
    index: Annotated[Path, Argument(help="Folder written by `medssl index`.")],
    recipe: Annotated[str, Option(help="Recipe whose `prepare` section to follow, by name or as a YAML file.")],
    out: Annotated[Path, Option(help="Folder for the store; an interrupted one goes on, a finished one stays.")],
    set_: SetOption = None,
    quiet: QuietFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Turn and resample every image of INDEX into a store of voxels."""
    from medssl.prepare import build_store
    from medssl.recipe import load_recipe

    config = load_recipe(recipe, set_ or ()).prepare
    show(build_store(index, config, out, progress=bar(quiet)), as_json=as_json)
