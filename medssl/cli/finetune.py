"""medssl finetune: one command a task."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from .own_recipe import find_recipe
from .terminal import JsonFlag, QuietFlag, SetOption, bar, show

app = typer.Typer(help="Train a task network from an encoder, or from scratch.", no_args_is_help=True)


@app.callback()
def _tasks() -> None:
    # With a callback, a single command keeps its name: `medssl finetune segmentation`.
    pass


@app.command()
def segmentation(
    encoder: Annotated[str, Option(help="Folder of an encoder, or the run that holds it; none for scratch.")],
    data: Annotated[Path, Option(help="Store, index, or datalist (JSON), with label maps.")],
    out: Annotated[Path, Option(help="Folder of the run.")],
    recipe: Annotated[str | None, Option(help="Recipe to follow; that of the encoder's run unless given.")] = None,
    set_: SetOption = None,
    allow_partial: Annotated[bool, Option("--allow-partial", help="Accept an encoder that lacks weights.")] = False,
    resume: Annotated[bool, Option("--resume", help="Go on from the newest checkpoint in the run.")] = False,
    quiet: QuietFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Train a segmenter on labelled images, and score it by Dice and 95% Hausdorff distance on other patients."""
    from medssl.downstream import finetune

    found = find_recipe(recipe, [encoder], set_ or ())
    result = finetune(
        encoder,
        data,
        out,
        found.finetune if found is not None else None,
        network=found.encoder if found is not None else None,
        prepare=found.prepare if found is not None else None,
        allow_partial=allow_partial,
        resume=resume,
        progress=bar(quiet),
    )
    show(result, as_json=as_json)
