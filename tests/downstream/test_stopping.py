"""Laws of early stopping: the best weights on validation images, whatever happens to the run."""

from __future__ import annotations

from pathlib import Path

import pytest

from medssl.downstream import FinetuneConfig, FinetuneResult, finetune
from medssl.downstream.scoring import dice_on, patient_dice, score_images
from medssl.errors import DataError
from medssl.nets.encoder import Encoder, load_network
from medssl.store import Store
from medssl.train import read_metrics

from ..labelled_store import ellipsoids, write_labelled_store


@pytest.fixture(scope="module")
def config(quick: FinetuneConfig) -> FinetuneConfig:
    """A rate so high that training soon gets worse, looked at after each step."""
    return quick.model_copy(
        update={"steps": 12, "learning_rate": 0.3, "head_learning_rate": 0.3, "check_steps": 1, "stop_after": 3}
    )


@pytest.fixture(scope="module")
def whole(
    store: Store, encoder: Encoder, config: FinetuneConfig, tmp_path_factory: pytest.TempPathFactory
) -> FinetuneResult:
    """A run that stopped early."""
    return finetune(encoder, store, tmp_path_factory.mktemp("stopping") / "run", config)


def test_a_run_stops_after_that_many_looks_without_a_better_one(whole: FinetuneResult, config: FinetuneConfig) -> None:
    looks = {line["step"]: line["validation/Dice"] for line in read_metrics(whole.out)}
    assert whole.best_step is not None
    assert whole.training.steps == whole.best_step + config.stop_after < config.steps
    assert "the best on validation images" in str(whole)
    assert whole.to_dict()["best_step"] == whole.best_step
    assert looks  # metrics.jsonl tells the last look of each line


def test_the_weights_that_are_kept_are_those_of_the_best_look(whole: FinetuneResult, store: Store) -> None:
    segmenter = load_network(whole.network)
    images = store.ids_of("validation")
    found = dice_on(segmenter, store, images)  # type: ignore[arg-type]
    assert found == whole.training.metrics["validation/best_Dice"]
    assert found == patient_dice(score_images(segmenter, store, images)).mean()  # type: ignore[arg-type]


@pytest.mark.parametrize("at", ["before", "after"])
def test_a_run_killed_before_or_after_its_best_look_ends_as_if_it_had_not_been(
    at: str, store: Store, encoder: Encoder, config: FinetuneConfig, whole: FinetuneResult, tmp_path: Path
) -> None:
    assert whole.best_step is not None
    end = whole.best_step if at == "before" else whole.training.steps

    def stop(phase: str, done: int, total: int) -> None:
        if phase == "fine-tune" and done == end:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(encoder, store, tmp_path / "run", config, progress=stop)
    resumed = finetune(encoder, store, tmp_path / "run", config, resume=True)
    assert (resumed.training.steps, resumed.best_step) == (whole.training.steps, whole.best_step)
    names = ("segmenter/model.safetensors", "metrics.jsonl")
    assert [(resumed.out / n).read_bytes() for n in names] == [(whole.out / n).read_bytes() for n in names]
    assert resumed.scores == whole.scores


def test_where_no_look_is_asked_for_validation_images_are_not_needed(
    encoder: Encoder, quick: FinetuneConfig, tmp_path: Path
) -> None:
    volumes = [ellipsoids((16, 16, 16), seed) for seed in range(2)]
    images, labels = zip(*volumes)
    store = write_labelled_store(tmp_path / "store", images, labels, splits=("train", "test"), spacing_mm=(1, 1, 1))
    assert finetune(encoder, store, tmp_path / "run", quick).best_step is None
    looking = quick.model_copy(update={"stop_after": 1})
    with pytest.raises(DataError, match="no labelled images in split 'validation'"):
        finetune(encoder, store, tmp_path / "other", looking)


def test_a_score_on_the_images_that_chose_the_weights_says_so(
    store: Store, encoder: Encoder, quick: FinetuneConfig, tmp_path: Path
) -> None:
    config = quick.model_copy(update={"split": "validation", "stop_after": 1, "check_steps": 3})
    assert "these images chose the weights" in str(finetune(encoder, store, tmp_path / "run", config))
