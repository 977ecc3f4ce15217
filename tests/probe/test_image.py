"""Laws of the frozen probe of whole images."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medssl.errors import DataError
from medssl.index import Index, IndexRow
from medssl.metrics.classification import auroc
from medssl.nets.encoder import DynUNetConfig, Encoder, build_encoder
from medssl.probe import ImageProbeConfig, ProbeConfig, Target, as_encoder, probe_images
from medssl.probe.image import pseudo_values
from medssl.store import Store, write_table

from ..labelled_store import write_labelled_store

IMAGES = 20
CONFIG = ProbeConfig(image=ImageProbeConfig(neighbours=3, steps=20, tokens=16))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Twenty small noisy volumes of twenty patients: half have a bright stripe (`stripe`); `load` is its size."""
    random = np.random.default_rng(0)
    volumes = []
    for i in range(IMAGES):
        volume = random.normal(0.4, 0.05, (12, 12, 8)).astype(np.float32)
        volume[:: 2 + i % 2] += 0.02 * (i % 5)
        volumes.append(volume)
    folder = tmp_path_factory.mktemp("image") / "store"
    splits = ["train"] * 12 + ["test"] * 8
    held = write_labelled_store(folder, volumes, [None] * IMAGES, splits=splits, spacing_mm=(1.0, 1.0, 2.0))
    rows = [
        replace(row, labels={"stripe": float(i % 2), "load": 3.5 * (i % 5) + 0.25}, modality="CT")
        for i, row in enumerate(held.rows)
    ]
    write_table(folder / "store.parquet", rows, {})
    return Store.open(folder)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    """A small convolutional encoder with fresh weights."""
    torch.manual_seed(0)
    config = DynUNetConfig(channels=(8, 8, 8), features=4, strides=(2, 2, 2))
    return build_encoder(config, channels=1, shape=(16, 16, 16), spacing_mm=None)


def test_classes_are_read_by_four_readouts_beside_both_controls(store: Store, encoder: Encoder) -> None:
    result = probe_images(encoder, store, "stripe", CONFIG, seeds=2)
    assert set(result.scores) == {"kNN", "linear", "attentive", "retrieval"}
    for readout, arms in result.scores.items():
        wanted = {"encoder", "random weights"} | (set() if readout == "attentive" else {"no network"})
        assert set(arms) == wanted
        assert set(result.differences[readout]) == wanted - {"encoder"}
        assert all(0 <= value <= 1 for values in arms.values() for value in values)
        assert {len(values) for values in arms.values()} == {2}
    assert result.classes == ("0", "1")
    json.dumps(result.to_dict(), allow_nan=False)
    assert "frozen image probe of stripe" in str(result)


def test_equal_seeds_give_equal_results(store: Store, encoder: Encoder) -> None:
    one, two = (probe_images(encoder, store, "stripe", CONFIG, seeds=1).to_dict() for _ in range(2))
    assert one == two


def test_a_measure_is_judged_by_r2(store: Store, encoder: Encoder) -> None:
    rows = [replace(row, labels={"volume": 1.5 * i + 0.1}) for i, row in enumerate(store.rows)]
    held = Store(store.folder, rows, {}, store.preparation)
    result = probe_images(encoder, held, "volume", CONFIG, seeds=1)
    assert set(result.scores) == {"kNN", "linear", "attentive"}
    assert result.measure("linear") == "R2"
    assert result.classes == ()


def test_features_that_tell_the_classes_apart_are_found_to(store: Store) -> None:
    rows = [replace(row, labels={"bright": float(i % 2)}) for i, row in enumerate(store.rows)]

    class Bright(Store):
        def read(self, image_id: str, start: object = None, size: object = None) -> np.ndarray:
            return np.full((1, 12, 12, 8), 0.2 + 0.5 * (int(image_id[-2:]) % 2), np.float32)

    held = Bright(store.folder, rows, {}, store.preparation)
    result = probe_images(as_encoder(torch.nn.Conv3d(1, 2, 1), shape=(12, 12, 8)), held, "bright", CONFIG, seeds=1)
    assert {readout: arms["encoder"] for readout, arms in result.scores.items()} == dict.fromkeys(
        ("kNN", "linear", "attentive", "retrieval"), (1.0,)
    )
    json.dumps(result.to_dict(), allow_nan=False)


def test_differences_are_corrected_for_how_many_there_are(store: Store, encoder: Encoder) -> None:
    result = probe_images(encoder, store, "stripe", CONFIG, seeds=2)
    found = [interval for arms in result.differences.values() for interval in arms.values()]
    tested = [interval for interval in found if interval.p is not None]
    assert tested
    assert {interval.comparisons for interval in tested} == {len(tested)}
    assert all(interval.p_corrected >= interval.p for interval in tested)


def test_values_of_ones_own_can_be_the_target(store: Store, encoder: Encoder) -> None:
    values = {row.image_id: float(i % 2) for i, row in enumerate(store.rows)}
    own = probe_images(encoder, store, Target("mine", "classes", values, ("0", "1")), CONFIG, seeds=1)
    assert own.scores == probe_images(encoder, store, "stripe", CONFIG, seeds=1).scores
    assert own.target == "mine"


def test_without_a_target_the_rank_alone_is_told(store: Store, encoder: Encoder) -> None:
    result = probe_images(encoder, store, seeds=1)
    assert result.scores == {}
    assert set(result.rank) == {"encoder", "random weights", "no network"}
    assert 1 <= result.rank["encoder"] <= result.largest_rank == 8
    assert "RankMe" in str(result)


def test_the_control_has_weights_of_its_own(store: Store, encoder: Encoder) -> None:
    empty = copy.deepcopy(encoder)
    with torch.no_grad():
        for parameter in empty.parameters():
            parameter.zero_()
    result = probe_images(empty, store, "stripe", CONFIG, seeds=2)
    assert result.rank["encoder"] == 1
    assert result.rank["random weights"] > 1
    assert result.scores["linear"]["encoder"] == (0.5, 0.5)
    assert len(set(result.scores["linear"]["random weights"])) == 2  # drawn anew for each seed


def test_every_seed_draws_its_own_labelled_images(store: Store, encoder: Encoder) -> None:
    few = ProbeConfig(image=ImageProbeConfig(images=5, neighbours=2, steps=1, tokens=4))
    result = probe_images(encoder, store, "load", few, seeds=3)
    assert result.labelled == 5
    for arm in ("encoder", "no network"):  # the same features for every seed
        assert len(set(result.scores["linear"][arm])) == 3


def test_a_group_of_the_index_can_be_the_target(store: Store, encoder: Encoder, tmp_path: Path) -> None:
    rows = [
        IndexRow(
            image_id=row.image_id,
            subject_id=row.subject_id,
            modality="CT",
            kind="volume",
            format="nifti",
            shape=row.shape,
            spacing_mm=row.spacing_mm,
            affine=None,
            orientation="RAS",
            channels=1,
            dtype="float32",
            content_hash="",
            split=row.split,
            groups={"sex": "FM"[i % 2]},
        )
        for i, row in enumerate(store.rows)
    ]
    index = Index.write(tmp_path, rows, {})
    result = probe_images(encoder, store, "sex", CONFIG, index=index, seeds=1)
    assert result.classes == ("F", "M")


@pytest.mark.parametrize(
    ("target", "says"), [("weight", "there are: load, modality, stripe"), ("modality", "have the same modality")]
)
def test_a_target_that_says_nothing_is_one_clear_line(store: Store, encoder: Encoder, target: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        probe_images(encoder, store, target)


def test_more_labelled_images_than_there_are_is_one_clear_line(store: Store, encoder: Encoder) -> None:
    with pytest.raises(DataError, match="12 labelled training images, 13 wanted"):
        probe_images(encoder, store, "stripe", ProbeConfig(image=ImageProbeConfig(images=13)))


@given(seed=st.integers(0, 50))
def test_the_shares_of_auroc_average_to_auroc_whatever_classes_a_patient_is_alone_in(seed: int) -> None:
    random = np.random.default_rng(seed)
    truth = np.array([0, 1, 2, *random.integers(0, 2, 9)])  # one patient alone has class 2
    scores = random.normal(size=(12, 4))  # nobody has class 3

    def metric(kept: np.ndarray) -> np.ndarray:
        return np.array([auroc(scores[kept, k], (truth[kept] == k).astype(float)) for k in range(4)])

    table = pseudo_values([metric], [f"p{i // 2}" for i in range(12)])
    assert table.shape == (1, 6)
    whole = np.mean([auroc(scores[:, k], (truth == k).astype(float)) for k in range(3)])
    np.testing.assert_allclose(table.mean(), whole)


def test_a_class_that_one_patient_alone_has_weighs_on_no_share_of_the_others() -> None:
    random = np.random.default_rng(0)
    truth, right = np.array([0] * 9 + [1] * 10 + [2]), np.eye(3)[[0] * 9 + [1] * 10 + [2]]
    scores = right + random.normal(0, 0.1, (20, 3))
    scores[-1, 2] = scores[:, 2].min() - 1  # that one is found last

    def metric(kept: np.ndarray) -> np.ndarray:
        return np.array([auroc(scores[kept, k], (truth[kept] == k).astype(float)) for k in range(3)])

    table = pseudo_values([metric], [f"p{i:02d}" for i in range(20)])
    np.testing.assert_allclose(metric(np.ones(20, bool)), [1, 1, 0], atol=0.02)
    np.testing.assert_allclose(table, 2 / 3, atol=0.05)


@given(seed=st.integers(0, 20))
def test_a_difference_is_the_difference_of_the_scores_beside_it(seed: int) -> None:
    random = np.random.default_rng(seed)
    truth = random.normal(size=9)
    tables, scores = [], []
    for _ in range(2):
        found = truth + random.normal(0, 1, 9)

        def r2(kept: np.ndarray, found: np.ndarray = found) -> np.ndarray:
            return np.array([1 - ((found - truth)[kept] ** 2).sum() / ((truth[kept] - truth[kept].mean()) ** 2).sum()])

        tables.append(pseudo_values([r2], list("abcdefghi")))
        scores.append(r2(np.ones(9, bool))[0])
    np.testing.assert_allclose((tables[0] - tables[1]).mean(), scores[0] - scores[1])


def test_pseudo_values_of_a_mean_are_the_patients_own() -> None:
    values = np.array([0.1, 0.5, 0.3, 0.7])
    table = pseudo_values([lambda kept: values[kept].mean(keepdims=True)], ["a", "b", "c", "d"])
    np.testing.assert_allclose(table[0], values)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_whose_images_all_have_the_same_is_one_clear_line(store: Store, encoder: Encoder, split: str) -> None:
    values = {row.image_id: float(i % 2 and row.split != split) for i, row in enumerate(store.rows)}
    with pytest.raises(DataError, match=f"images in split '{split}' have the same mine"):
        probe_images(encoder, store, Target("mine", "classes", values, ("0", "1")), CONFIG, seeds=1)
