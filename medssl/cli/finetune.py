"""medssl finetune: one command a task."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

from .own_recipe import find_recipe
from .terminal import JsonFlag, QuietFlag, SetOption, bar, show

app = typer.Typer(help="Train a task network from an encoder, or from scratch.", no_args_is_help=True)

Encoder = Annotated[str, Option(help="Folder of an encoder, or the run that holds it; none for scratch.")]
Data = Annotated[Path, Option(help="Store, index, or datalist (JSON), with what the task learns from.")]
Out = Annotated[Path, Option(help="Folder of the run.", show_default=False)]
Recipe = Annotated[str | None, Option(help="Recipe to follow; that of the encoder's run unless given.")]
Partial = Annotated[bool, Option("--allow-partial", help="Accept an encoder that lacks weights.")]
Export = Annotated[Path | None, Option(metavar="DIR", help="New folder for a MONAI bundle of the network.")]
Resume = Annotated[bool, Option("--resume", help="Go on from the newest checkpoint in the run.")]


@app.command()
def segmentation(
    encoder: Encoder,
    data: Data,
    out: Annotated[Path | None, Option(help="Folder of the run; not needed with --plan.", show_default=False)] = None,
    recipe: Recipe = None,
    set_: SetOption = None,
    allow_partial: Partial = False,
    plan: Annotated[
        bool, Option("--plan", help="Show the crop, spacing and batch size that suit the data; train nothing.")
    ] = False,
    export: Export = None,
    resume: Resume = False,
    quiet: QuietFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Train a segmenter on images with label maps, and score it on other patients, label by label.

    How it is trained says the recipe's section `finetune`, as in --set finetune.train=lora.
    """
    from medssl.downstream import plan_segmentation
    from medssl.errors import UsageError

    if plan:
        config, sections = _sections(recipe, encoder, set_, allow_partial)
        show(plan_segmentation(encoder, data, config, **sections), as_json=as_json)
        return
    if out is None:
        raise UsageError("--out is missing", fix="name a folder for the run")
    _run("segmentation", encoder, data, out, recipe, set_, allow_partial, export, resume, quiet, as_json)


@app.command()
def detection(
    encoder: Encoder,
    data: Data,
    out: Out,
    recipe: Recipe = None,
    set_: SetOption = None,
    allow_partial: Partial = False,
    export: Export = None,
    resume: Resume = False,
    quiet: QuietFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Train a detector on images with boxes or label maps, and score it on other patients: mAP and FROC in mm.

    What is detected, and how, says the recipe's section `finetune.detection`.
    """
    _run("detection", encoder, data, out, recipe, set_, allow_partial, export, resume, quiet, as_json)


@app.command()
def classification(
    encoder: Encoder,
    data: Data,
    out: Out,
    target: Annotated[
        list[str] | None, Option(help="Finding or measure to tell, as `medssl index --targets` names it. Repeatable.")
    ] = None,
    recipe: Recipe = None,
    set_: SetOption = None,
    allow_partial: Partial = False,
    export: Export = None,
    resume: Resume = False,
    quiet: QuietFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Train a classifier of whole images, or a regression of measures in their units, and score it on other patients.

    What is told, and how, says the recipe's section `finetune.classification`.
    """
    if target:
        set_ = [*(set_ or ()), f"finetune.classification.targets={target!r}"]
    _run("classification", encoder, data, out, recipe, set_, allow_partial, export, resume, quiet, as_json)


def _sections(
    recipe: str | None, encoder: str, set_: list[str] | None, allow_partial: bool
) -> tuple[Any, dict[str, Any]]:
    found = find_recipe(recipe, [encoder], set_ or ())
    return found.finetune if found is not None else None, {
        "network": found.encoder if found is not None else None,
        "prepare": found.prepare if found is not None else None,
        "allow_partial": allow_partial,
    }


def _run(
    task: str,
    encoder: str,
    data: Path,
    out: Path,
    recipe: str | None,
    set_: list[str] | None,
    allow_partial: bool,
    export: Path | None,
    resume: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    from dataclasses import replace

    from medssl.downstream import finetune
    from medssl.export import export_run
    from medssl.files import check_new

    config, sections = _sections(recipe, encoder, set_, allow_partial)
    if export is not None:
        check_new(export)  # a bundle that cannot be written is told of before the training
    result = finetune(encoder, data, out, config, task=task, **sections, resume=resume, progress=bar(quiet))
    if export is not None:
        result = replace(result, bundle=export_run(result.out, "monai-bundle", export).out)
    show(result, as_json=as_json)
