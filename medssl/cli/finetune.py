"""medssl finetune: one command a task."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
    out: Annotated[Path | None, Option(help="Folder of the run; not needed with --plan.", show_default=False)] = None,
    recipe: Annotated[str | None, Option(help="Recipe to follow; that of the encoder's run unless given.")] = None,
    set_: SetOption = None,
    allow_partial: Annotated[bool, Option("--allow-partial", help="Accept an encoder that lacks weights.")] = False,
    plan: Annotated[
        bool, Option("--plan", help="Show the crop, spacing and batch size that suit the data; train nothing.")
    ] = False,
    export: Annotated[Path | None, Option(metavar="DIR", help="New folder for a MONAI bundle of the network.")] = None,
    resume: Annotated[bool, Option("--resume", help="Go on from the newest checkpoint in the run.")] = False,
    quiet: QuietFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Train a segmenter on labelled images, and score it on other patients, label by label.

    How it is trained says the recipe's section `finetune`, as in --set finetune.train=lora.
    """
    from dataclasses import replace

    from medssl.downstream import finetune, plan_segmentation
    from medssl.errors import UsageError
    from medssl.export import export_run
    from medssl.files import check_new

    found = find_recipe(recipe, [encoder], set_ or ())
    config = found.finetune if found is not None else None
    sections: dict[str, Any] = {
        "network": found.encoder if found is not None else None,
        "prepare": found.prepare if found is not None else None,
        "allow_partial": allow_partial,
    }
    if plan:
        show(plan_segmentation(encoder, data, config, **sections), as_json=as_json)
        return
    if out is None:
        raise UsageError("--out is missing", fix="name a folder for the run")
    if export is not None:
        check_new(export)  # a bundle that cannot be written is told of before the training
    result = finetune(encoder, data, out, config, **sections, resume=resume, progress=bar(quiet))
    if export is not None:
        result = replace(result, bundle=export_run(result.out, "monai-bundle", export).out)
    show(result, as_json=as_json)
