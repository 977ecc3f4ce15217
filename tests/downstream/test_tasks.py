"""Comparison and fine-tuning of every task, by its name: the same laws whatever is measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medssl.downstream import FinetuneConfig, compare_encoders, finetune
from medssl.downstream.tasks import task_named
from medssl.errors import DataError, UsageError
from medssl.nets.encoder import DynUNetConfig, Encoder
from medssl.store import Store

MEASURES = {"segmentation": "Dice", "detection": "mAP", "classification": "AUROC"}


@pytest.fixture(scope="module")
def told(store: Store) -> Store:
    """The volumes with a finding each, four of them to be scored."""
    splits = ("train", "train", "validation", "test", "test", "test", "test")
    rows = [
        replace(row, labels={"finding": float(i % 2)}, split=split)
        for i, (row, split) in enumerate(zip(store.rows, splits, strict=True))
    ]
    return Store(
        store.folder, rows, {row.image_id: store.label_points(row.image_id) for row in rows}, store.preparation
    )


@pytest.mark.parametrize("task", MEASURES)
def test_an_interrupted_comparison_of_any_task_goes_on_to_the_same_numbers(
    task: str, told: Store, encoder: Encoder, network: DynUNetConfig, quick: FinetuneConfig, tmp_path: Path
) -> None:
    def run(out: Path, counts: tuple[int, ...]) -> dict[str, object]:
        arms = [encoder, None]
        result = compare_encoders(arms, task, data=told, counts=counts, seeds=2, out=out, config=quick, network=network)
        assert result.measure == MEASURES[task]
        return json.loads(json.dumps(result.to_dict(), allow_nan=False))  # type: ignore[no-any-return]

    whole = run(tmp_path / "whole", (1, 2))
    assert run(tmp_path / "parts", (1,))["computed"] == 4
    resumed = run(tmp_path / "parts", (1, 2))
    assert resumed["computed"] == 4
    for key in ("values", "patient_values", "further", "pairs", "sentences"):
        assert resumed[key] == whole[key]
    assert (tmp_path / "parts" / "compare.svg").is_file()
    assert MEASURES[task] in (tmp_path / "parts" / "compare.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("task", MEASURES)
def test_knobs_of_other_tasks_decide_nothing(task: str, quick: FinetuneConfig) -> None:
    doing = task_named(task)
    for other in {"detection", "classification"} - {task}:
        section = getattr(quick, other)
        changed = section.model_copy(update={"levels": 1} if other == "detection" else {"bins": 3})
        assert doing.decides(quick.model_copy(update={other: changed})) == doing.decides(quick)
    if task == "detection":
        changed = quick.detection.model_copy(update={"levels": 1})
        assert doing.decides(quick.model_copy(update={"detection": changed})) != doing.decides(quick)


def test_the_mean_of_a_table_is_the_measure_of_the_group(told: Store, quick: FinetuneConfig) -> None:
    """Three of the four pairs of a finding and none are in order."""
    from medssl.downstream.classification_scores import ImageAnswer

    task = task_named("classification")
    truths, answers = (0, 1, 0, 1), (0.1, 0.9, 0.6, 0.5)
    scores = [
        ImageAnswer(f"i{k}", f"p{k}", (a,), (float(t),), "binary") for k, (t, a) in enumerate(zip(truths, answers))
    ]
    assert np.nanmean(task.table(scores, told, quick)) == pytest.approx(3 / 4)


def test_a_group_too_small_for_its_measure_is_refused_in_words(
    store: Store, network: DynUNetConfig, quick: FinetuneConfig, tmp_path: Path
) -> None:
    rows = [replace(row, labels={"finding": float(i % 2)}) for i, row in enumerate(store.rows)]  # two to be scored
    small = Store(store.folder, rows, {}, store.preparation)
    with pytest.raises(DataError, match="AUROC cannot be told apart on 2 test patients"):
        compare_encoders(
            [None], "classification", data=small, counts=(4,), seeds=2, out=tmp_path, config=quick, network=network
        )


def test_validation_images_that_tell_nothing_choose_neither_rate_nor_weights(
    told: Store, network: DynUNetConfig, quick: FinetuneConfig, tmp_path: Path
) -> None:
    """One validation image has no AUROC."""
    with pytest.raises(DataError, match="AUROC cannot be told apart on 1 validation patients"):
        compare_encoders(
            [None],
            "classification",
            data=told,
            counts=(2,),
            seeds=1,
            out=tmp_path / "out",
            config=quick,
            network=network,
            learning_rates=(1e-3, 1e-2),
        )
    assert len(list((tmp_path / "out" / "cells").iterdir())) == 1  # said after the first training, not the last
    looking = quick.model_copy(update={"check_steps": 1, "stop_after": 2})
    with pytest.raises(DataError, match="AUROC cannot be told on the 1 validation images"):
        finetune(None, told, tmp_path / "run", looking, task="classification", network=network)


def test_no_patient_is_both_trained_on_and_judged(
    told: Store, network: DynUNetConfig, quick: FinetuneConfig, tmp_path: Path
) -> None:
    def of_one_patient(a: int, b: int) -> Store:
        rows = list(told.rows)
        rows[b] = replace(rows[b], subject_id=rows[a].subject_id)
        return Store(told.folder, rows, {}, told.preparation)

    looking = quick.model_copy(update={"stop_after": 1})
    arms = {"counts": (1,), "seeds": 1, "network": network, "out": tmp_path / "out"}
    for a, b, config, rates, words in (
        (0, 3, quick, None, "that are scored"),
        (0, 2, quick, (1e-3, 1e-2), "that validation looks at"),
        (0, 2, looking, None, "that validation looks at"),
    ):
        store = of_one_patient(a, b)
        with pytest.raises(DataError, match=f"1 of the images to train on are of patients {words}"):
            compare_encoders([None], "classification", data=store, config=config, learning_rates=rates, **arms)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="that validation looks at"):
        finetune(None, of_one_patient(0, 2), tmp_path / "run", looking, task="classification", network=network)
    with pytest.raises(DataError, match="not in the store, such as 'other'"):
        finetune(None, told, tmp_path / "run", quick, task="classification", network=network, images=("other",))


def test_an_unknown_task_is_refused_by_name(told: Store, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no task 'segment'") as caught:
        compare_encoders([None], "segment", data=told, out=tmp_path / "out")
    assert "segmentation, detection, classification" in str(caught.value)
