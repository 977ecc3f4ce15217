"""Laws of the task classification: its losses, its targets, and the way from images to answers."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from medssl.batch import rows
from medssl.config import Section
from medssl.downstream import FinetuneConfig, compare_encoders, finetune
from medssl.downstream.classification import Classification, finding_loss, grade_loss, measure_loss
from medssl.downstream.classification_config import ClassificationConfig
from medssl.downstream.classification_targets import Told, read_told
from medssl.downstream.classification_task import ClassificationTask
from medssl.downstream.finetuning import train_network
from medssl.downstream.start import Design
from medssl.errors import DataError
from medssl.nets.classifier import Classifier
from medssl.nets.encoder import DynUNetConfig, Encoder, ViTConfig, build_encoder
from medssl.store import Store

from ..labelled_store import write_labelled_store

TASK = ClassificationTask()
SPLITS = ("train",) * 10 + ("validation",) * 4 + ("test",) * 6
NETWORK = DynUNetConfig(channels=(8, 8, 16), features=8)


def _image(brightness: float, seed: int, shape: tuple[int, ...] = (18, 16, 13)) -> Any:
    noise = np.random.default_rng(seed).normal(0.5, 0.05, shape)
    noise[tuple(slice(n // 4, n // 2) for n in shape)] += brightness
    return noise.astype(np.float32)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Volumes in which a block is more or less bright; grade, finding and measure follow from it."""
    grades = [n % 3 for n in range(len(SPLITS))]
    targets: list[dict[str, float]] = [
        {"grade": g, "ill": float(g > 0), "ef": 60.0 - 15 * g + 0.1 * n} for n, g in enumerate(grades)
    ]
    targets[0].pop("ill")
    return write_labelled_store(
        tmp_path_factory.mktemp("classification") / "store",
        [_image(0.4 * g, n) for n, g in enumerate(grades)],
        [None] * len(grades),
        splits=SPLITS,
        spacing_mm=(1.0, 0.5, 2.0),
        targets=targets,
        groups=[{"sex": "mf"[n % 2], "group": "abc"[g]} for n, g in enumerate(grades)],
    )


def _section(steps: int = 2, **knobs: Any) -> FinetuneConfig:
    more = {name: knobs.pop(name) for name in list(knobs) if name in FinetuneConfig.model_fields}
    quick: dict[str, Any] = {"crop": (16, 16, 16), "batch_size": 4, "warmup_steps": 0, "workers": 0, "overlap": 0.0}
    return FinetuneConfig(
        **{**quick, **more},
        steps=steps,
        classification=ClassificationConfig(draws=100, **{"targets": ("ill",), **knobs}),
    )


def _design(encoder: Encoder | None = None, network: Section = NETWORK) -> Design:
    return Design(encoder, encoder if encoder is not None else network)


def _method(store: Store, config: FinetuneConfig) -> tuple[Classification, Any]:
    config = TASK.settle(config, _design(), store)
    images = TASK.images(store, "train", config)
    network = TASK.build(_design(), store, config, images)
    loader = TASK.loader(network, store, config, images)
    return TASK.method(network, store, config, images, loader.facts(2)), loader


KINDS: dict[str, dict[str, Any]] = {
    "binary": {},
    "multiclass": {"targets": ("grade",)},
    "multiclass of a group": {"targets": ("group",)},
    "multilabel": {"targets": ("ill", "ill2")},
    "ordinal, CORN": {"targets": ("grade",), "kind": "ordinal"},
    "ordinal, CORAL": {"targets": ("grade",), "kind": "ordinal", "ordinal": "coral"},
    "regression": {"targets": ("ef", "ill"), "kind": "regression"},
}


@pytest.fixture(scope="module")
def findings(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The same with a second finding that half of the images do not tell."""
    from medssl.store import write_table

    rows_ = [
        replace(row, labels={**row.labels, **({"ill2": float(n % 4 == 0)} if n % 2 == 0 else {})})
        for n, row in enumerate(store.rows)
    ]
    folder = tmp_path_factory.mktemp("findings") / "store"
    folder.mkdir()
    (folder / "arrays").symlink_to(store.folder / "arrays")
    (folder / "preparation.json").write_bytes((store.folder / "preparation.json").read_bytes())
    write_table(folder / "store.parquet", rows_, {})
    return Store.open(folder)


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_loss_of_a_step_is_the_mean_of_its_microbatches(kind: str, findings: Store) -> None:
    method, loader = _method(findings, _section(**KINDS[kind]))
    batch = loader.batch(0)
    whole = method.eval()(method.views(_normal(batch), 0)).total
    parts = [method(method.views(_normal(rows(batch, n, n + 2)), 0)).total for n in (0, 2)]
    torch.testing.assert_close(whole, (parts[0] + parts[1]) / 2)


def _normal(batch: Any) -> Any:
    return {**batch, "image": batch["image"].float()}


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_learns_what_it_is_told(kind: str, findings: Store, tmp_path: Path) -> None:
    config = TASK.settle(_section(40, learning_rate=5e-3, **KINDS[kind]), _design(), findings)
    images = TASK.images(findings, "train", config)
    network, result = train_network(TASK, _design(), findings, config, images, tmp_path / "run")
    first, loader = _method(findings, config)
    batches = [_normal(loader.batch(step)) for step in range(6)]
    after = TASK.method(network, findings, config, images, first.facts)
    losses = [
        float(np.mean([float(method.eval()(method.views(batch, 0)).total.detach()) for batch in batches]))
        for method in (first, after)
    ]
    assert losses[1] < 0.9 * losses[0]
    assert result.steps == 40
    scores = TASK.score(network, findings, config, TASK.images(findings, "test", config))
    table = TASK.table(scores, findings, config)
    assert len(table) == 6
    summary = TASK.summary(scores, findings, config)
    assert summary["overall"]["value"] == pytest.approx(float(np.nanmean(table)))
    assert TASK.lines(summary)[0].startswith(summary["told_by"])
    assert [TASK.score_from(score.to_dict()) for score in scores] == list(scores)


def test_images_without_a_target_are_left_out_and_say_nothing(store: Store) -> None:
    assert "image00" not in TASK.images(store, "train", _section())
    assert "image00" in TASK.images(store, "train", _section(targets=("grade",)))
    with pytest.raises(DataError, match="no image has a target"):
        TASK.images(store, "train", _section(targets=("age",)))
    with pytest.raises(DataError, match="in split 'other'"):
        TASK.images(store, "other", _section())


@pytest.mark.parametrize(
    ("targets", "kind"),
    [(("ill",), "binary"), (("grade",), "multiclass"), (("ef",), "regression"), (("sex",), "multiclass")],
)
def test_the_kind_is_read_from_the_values(targets: tuple[str, ...], kind: str, store: Store) -> None:
    assert read_told(store, ClassificationConfig(targets=targets)).kind == kind


@pytest.mark.parametrize(
    ("targets", "kind"),
    [(("ef",), "binary"), (("sex",), "ordinal"), (("sex",), "regression"), (("ill", "ef"), "multilabel")],
)
def test_a_kind_that_does_not_fit_the_values_is_refused(targets: Any, kind: Any, store: Store) -> None:
    with pytest.raises(DataError, match="cannot be"):
        read_told(store, ClassificationConfig(targets=targets, kind=kind))


def test_values_that_are_no_classes_are_refused_by_name(store: Store) -> None:
    def read(**values: Any) -> Told:
        rows_ = [replace(row, **{k: v[n] for k, v in values.items()}) for n, row in enumerate(store.rows)]
        return read_told(Store(store.folder, rows_, {}, store.preparation), ClassificationConfig(targets=("t",)))

    n = len(store.rows)
    mixed: dict[str, Any] = {"labels": [{"t": 1.0}, *[{}] * (n - 1)], "groups": [{}, *[{"t": "x"}] * (n - 1)]}
    with pytest.raises(DataError, match="t is a number for some images and a word for others"):
        read(**mixed)
    with pytest.raises(DataError, match="all images have the same t"):
        read(groups=[{"t": "x"}] * n)
    assert read(labels=[{"t": 1e6 + k % 2} for k in range(n)]).classes == ("1000000", "1000001")


def test_an_image_to_train_on_without_a_target_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 images have no ill") as caught:
        finetune(
            None,
            store,
            tmp_path / "run",
            _section(),
            task="classification",
            network=NETWORK,
            images=("image00", "image01"),
        )
    assert "image00" in str(caught.value)


def test_targets_of_several_kinds_are_refused_unless_their_kind_is_said(store: Store) -> None:
    with pytest.raises(DataError, match="different kinds"):
        read_told(store, ClassificationConfig())
    assert read_told(store, ClassificationConfig(kind="regression")).targets == ("ef", "grade", "ill")


@given(numbers=st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_balanced_classes_weigh_the_same_together(numbers: list[int]) -> None:
    told = Told("multiclass", ("t",), tuple("abcd"), {str(n): (float(k),) for n, k in enumerate(numbers)})
    weights = np.array(told.class_weights(list(told.truth), 1e9))
    counts = np.bincount(numbers, minlength=4)
    there = counts > 0
    np.testing.assert_allclose((weights * counts)[there], len(numbers) / there.sum())
    assert (weights[~there] == 1).all()


@given(numbers=st.lists(st.integers(0, 3), min_size=1, max_size=40), most=st.floats(1, 4))
def test_no_class_weighs_more_than_it_may_and_the_others_still_weigh_the_same(numbers: list[int], most: float) -> None:
    numbers = [*numbers, *[0] * 30]
    told = Told("multiclass", ("t",), tuple("abcd"), {str(n): (float(k),) for n, k in enumerate(numbers)})
    weights = np.array(told.class_weights(list(told.truth), most))
    counts = np.bincount(numbers, minlength=4)
    assert weights.max() <= most + 1e-9
    assert (weights * counts).sum() == pytest.approx(len(numbers))
    below = (counts > 0) & (weights < most - 1e-6)
    together = (weights * counts)[below]
    np.testing.assert_allclose(together, together[:1].repeat(len(together)))


@given(seed=st.integers(0, 99))
def test_what_is_not_known_counts_for_no_loss_and_gives_no_gradient(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, 3, generator=random, requires_grad=True)
    truth = (torch.rand(4, 3, generator=random) > 0.5).float()
    truth[0] = torch.nan
    truth[1, 1] = torch.nan
    for loss in (
        finding_loss(logits, truth, torch.ones(3, 2)),
        *(measure_loss(logits, truth, name) for name in ("huber", "mse", "mae")),
    ):
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert torch.isfinite(loss).all()
        assert loss[0] == 0
        assert (gradient[torch.isnan(truth)] == 0).all()
        assert (gradient[~torch.isnan(truth)] != 0).all()
    whole = truth.nan_to_num()
    expected = functional.binary_cross_entropy_with_logits(logits, whole, reduction="none").mean(1)
    torch.testing.assert_close(finding_loss(logits, whole, torch.ones(3, 2)), expected)


def test_a_sample_counts_by_the_mean_of_what_is_known_of_it_and_by_the_weight_of_its_class() -> None:
    logits, truth = torch.tensor([[0.3, -1.0, 2.0]]), torch.tensor([[1.0, torch.nan, 0.0]])
    weights = torch.tensor([[0.5, 2.0], [1.0, 1.0], [0.25, 9.0]])
    ill, well = -math.log(1 / (1 + math.exp(-0.3))), -math.log(1 - 1 / (1 + math.exp(-2.0)))
    assert finding_loss(logits, truth, weights).tolist() == pytest.approx([(2.0 * ill + 0.25 * well) / 2])
    errors = {"mae": (0.7 + 2.0) / 2, "mse": (0.49 + 4.0) / 2, "huber": (0.245 + 1.5) / 2}
    for name, expected in errors.items():
        assert measure_loss(logits, truth, name).tolist() == pytest.approx([expected])


@pytest.mark.parametrize("kind", ["multiclass", "ordinal"])
def test_each_image_weighs_as_its_class(kind: Any, store: Store) -> None:
    method, loader = _method(store, _section(targets=("grade",), kind=kind))
    method.eval()
    views = method.views(_normal(loader.batch(0)), 0)
    weights = torch.tensor([0.3, 1.0, 4.0])
    method.weights.copy_(weights)
    grade = views["truth"][:, 0].long()
    logits = method.encoder(views["image"])
    each = functional.cross_entropy(logits, grade, reduction="none") if kind == "multiclass" else None
    each = grade_loss(logits, grade, "corn") if each is None else each
    torch.testing.assert_close(method(views).total, sum(weights[g] * one for g, one in zip(grade, each)) / len(grade))


def _grades_by_loops(logits: Tensor, grades: list[int], ordinal: str) -> list[float]:
    out = []
    for row, grade in zip(logits.sigmoid().tolist(), grades):
        total = 0.0
        for step, chance in enumerate(row):
            if ordinal == "coral" or grade >= step:
                total -= math.log(chance if grade > step else 1 - chance)
        out.append(total / len(row))
    return out


@pytest.mark.parametrize("ordinal", ["corn", "coral"])
def test_grades_are_learned_step_by_step(ordinal: str) -> None:
    logits, grades = torch.randn(5, 3, dtype=torch.float64), [0, 1, 2, 3, 1]
    found = grade_loss(logits, torch.tensor(grades), ordinal)
    assert found.tolist() == pytest.approx(_grades_by_loops(logits, grades, ordinal))


def test_measures_are_learned_over_their_spread_and_told_in_units(store: Store) -> None:
    config = TASK.settle(_section(targets=("ef",)), _design(), store)
    images = TASK.images(store, "train", config)
    network = TASK.build(_design(), store, config, images)
    truth = [store.row(i).labels["ef"] for i in images]
    assert network.spec["mean"] == pytest.approx([np.mean(truth)])
    assert network.spec["spread"] == pytest.approx([np.std(truth)])
    method = TASK.method(network, store, config, images, TASK.loader(network, store, config, images).facts(1))
    assert float(method.truth.mean()) == pytest.approx(0, abs=1e-5)
    assert float(method.truth.std(correction=0)) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(
        network.answer(method.truth)[:, 0], torch.tensor(truth, dtype=torch.float64), rtol=1e-5, atol=0
    )


def test_equal_seeds_give_equal_new_parts_with_and_without_an_encoder(store: Store) -> None:
    torch.manual_seed(7)
    encoder = build_encoder(NETWORK, channels=1, shape=(16, 16, 16), spacing_mm=(1.0, 0.5, 2.0))
    config = TASK.settle(_section(), _design(), store)
    images = TASK.images(store, "train", config)
    one, two = (TASK.build(_design(e), store, config, images) for e in (encoder, None))
    for name in ("net.head.weight", "net.norm.weight"):
        assert torch.equal(one.state_dict()[name], two.state_dict()[name])
    assert torch.equal(
        one.body().state_dict()["bottleneck.conv1.conv.weight"],
        encoder.net.state_dict()["bottleneck.conv1.conv.weight"],
    )
    other = TASK.build(_design(), store, config.model_copy(update={"seed": 1}), images)
    assert not torch.equal(other.state_dict()["net.head.weight"], two.state_dict()["net.head.weight"])


WAYS: dict[str, dict[str, Any]] = {
    "linear": {"train": "linear"},
    "head first": {"train": "head_first", "head_steps": 1},
    "layer decay": {"layer_decay": 0.5},
    "LoRA": {"train": "lora"},
    "two microbatches": {"microbatches": 2},
}


@pytest.mark.parametrize("way", list(WAYS))
def test_every_way_of_training_works_and_moves_what_it_says(way: str, store: Store, tmp_path: Path) -> None:
    torch.manual_seed(7)
    vit = ViTConfig(patch=8, width=24, depth=2, heads=2, mlp=24)
    encoder = build_encoder(vit, channels=1, shape=(16, 16, 16), spacing_mm=(1.0, 0.5, 2.0))
    config = TASK.settle(_section(3, learning_rate=1e-2, **WAYS[way]), _design(encoder), store)
    images = TASK.images(store, "train", config)
    network, _ = train_network(TASK, _design(encoder), store, config, images, tmp_path / "run")
    assert isinstance(network, Classifier)
    before, after = encoder.net.state_dict(), network.body().state_dict()
    assert set(before) == set(after)  # corrections are added to the weights
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    if way == "linear":
        assert not moved
    elif way == "LoRA":
        assert moved
        assert all("attn" in name for name in moved)
    else:
        assert len(moved) > 10


def test_early_stopping_keeps_the_best_look_at_validation_images(store: Store, tmp_path: Path) -> None:
    config = TASK.settle(_section(4, check_steps=1, stop_after=4, targets=("ef",)), _design(), store)
    images = TASK.images(store, "train", config)
    network, result = train_network(TASK, _design(), store, config, images, tmp_path / "run")
    best = result.metrics[f"validation/best_{TASK.measured(store, config)}"]
    seen = TASK.look(network, store, config, TASK.images(store, "validation", config))
    assert seen == pytest.approx(best, abs=1e-6)


def test_slices_of_volumes_are_trained_and_pooled(store: Store, tmp_path: Path) -> None:
    config = _section(2, crop=(16, 16), slice_axis=1, pooling="attentive", windows="features")
    config = TASK.settle(config, _design(), store)
    images = TASK.images(store, "train", config)
    network, _ = train_network(TASK, _design(), store, config, images, tmp_path / "run")
    assert network.shape == (16, 16)
    scores = TASK.score(network, store, config, TASK.images(store, "test", config))
    assert all(0 <= score.answer[0] <= 1 for score in scores)


def test_answers_are_kept_as_a_table_with_names(store: Store, tmp_path: Path) -> None:
    config = TASK.settle(_section(targets=("grade",)), _design(), store)
    network = TASK.build(_design(), store, config, TASK.images(store, "train", config))
    keep = TASK.keeper(tmp_path / "predictions", store)
    images = TASK.images(store, "test", config)
    scores = TASK.score(network, store, config, images, keep=keep)
    lines = (tmp_path / "predictions" / "answers.csv").read_text().splitlines()
    assert lines[0] == "image_id,0,1,2"
    assert [line.split(",")[0] for line in lines[1:]] == list(images)
    assert [float(v) for v in lines[1].split(",")[1:]] == pytest.approx(scores[0].answer, rel=1e-4)
    assert "grade: 0, 1, 2" in TASK.card(network, config)


def test_arms_are_compared_by_shares_of_the_same_patients_and_nothing_is_done_twice(
    store: Store, tmp_path: Path
) -> None:
    torch.manual_seed(7)
    encoder = build_encoder(NETWORK, channels=1, shape=(16, 16, 16), spacing_mm=(1.0, 0.5, 2.0))
    config = _section(2, targets=("ef",))
    arms: dict[str, Any] = {
        "data": store,
        "counts": (3, "all"),
        "seeds": 2,
        "config": config,
        "names": ["own", "scratch"],
    }
    first = compare_encoders([encoder, None], "classification", out=tmp_path / "out", **arms)
    again = compare_encoders([encoder, None], "classification", out=tmp_path / "out", **arms)
    assert (first.computed, again.computed) == (8, 0)
    assert again.to_dict() == {**first.to_dict(), "computed": 0}
    assert first.values["own"][10].shape == (2, 6)
    gap = first.values["own"][10] - first.values["scratch"][10]
    assert first.differences["own"][10].mean == pytest.approx(float(gap.mean()))


def test_a_run_that_was_killed_ends_as_if_it_had_not_been(store: Store, tmp_path: Path) -> None:
    config = _section(4, targets=("grade",), kind="ordinal", checkpoint_steps=2)
    task: dict[str, Any] = {"task": "classification", "network": NETWORK}

    def stop(phase: str, done: int, total: int) -> None:
        if phase == "fine-tune" and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(None, store, tmp_path / "stopped", config, **task, progress=stop)
    resumed = finetune(None, store, tmp_path / "stopped", config, **task, resume=True)
    whole = finetune(None, store, tmp_path / "whole", config, **task)
    assert resumed.training.resumed_from == 2
    assert resumed.scores == whole.scores
    assert resumed.summary == whole.summary
