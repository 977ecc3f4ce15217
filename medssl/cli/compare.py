"""medssl compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from .own_recipe import find_recipe
from .terminal import JsonFlag, QuietFlag, SetOption, bar, show


def compare(
    encoder: Annotated[
        list[str], Option(help="Folder of an encoder, or the run that holds it; none for scratch. May be repeated.")
    ],
    data: Annotated[Path, Option(help="Store, index, or datalist (JSON), with what the task learns from.")],
    out: Annotated[Path, Option(help="Folder for the results; run again, only what is missing is trained.")],
    task: Annotated[str, Option(help="segmentation, detection or classification.")] = "segmentation",
    counts: Annotated[str, Option(help="Numbers of labelled images, with commas between; all is one too.")] = "2,4,8",
    seeds: Annotated[int, Option(min=1, help="Paired seeds.")] = 3,
    scratch_longer: Annotated[
        int, Option(min=1, help="An arm more: scratch with so many times the steps; 1 for none.")
    ] = 1,
    predictions: Annotated[bool, Option(help="Keep what was found in scored images beside the scores.")] = True,
    recipe: Annotated[str | None, Option(help="Recipe to follow; that of the encoder's run unless given.")] = None,
    set_: SetOption = None,
    quiet: QuietFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Measure what encoders gain over training from scratch with few labels, with an interval."""
    from medssl.downstream import compare_encoders
    from medssl.downstream.comparison import parse_counts

    found = find_recipe(recipe, encoder, set_ or ())
    result = compare_encoders(
        encoder,
        task,
        data=data,
        counts=parse_counts(counts),
        seeds=seeds,
        out=out,
        config=found.finetune if found is not None else None,
        network=found.encoder if found is not None else None,
        prepare=found.prepare if found is not None else None,
        scratch_longer=scratch_longer,
        predictions=predictions,
        progress=bar(quiet),
    )
    show(result, as_json=as_json)
