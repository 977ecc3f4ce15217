"""Laws of the planner: nnU-Net's rules for spacing, crop and batch, and memory that is counted and not guessed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from medssl.downstream import FinetuneConfig, finetune, plan_segmentation
from medssl.downstream.plan import kept_for_gradient, planned_preparation, target_spacing
from medssl.errors import RecipeError, UsageError
from medssl.ingest import build_index
from medssl.ingest.subjects import Fractions
from medssl.nets.config import DynUNetConfig, SegResNetConfig, ViTConfig
from medssl.nets.encoder import Encoder
from medssl.nets.segmenter import segmenter_for
from medssl.prepare import PrepareConfig
from medssl.store import Store

from ..labelled_store import ellipsoids, write_labelled_store

NETWORKS = {
    "dynunet": DynUNetConfig(channels=(8, 8, 8), features=8, strides=(1, 2, 2)),
    "segresnet": SegResNetConfig(channels=8, features=8, blocks_down=(1, 1, 1), blocks_up=(1, 1)),
    "vit": ViTConfig(patch=16, width=24, depth=12, heads=2, mlp=24),
}


def test_spacing_is_the_median_where_axes_are_alike() -> None:
    spacings = np.array([[1.0, 1.0, 2.0], [1.0, 0.8, 2.5], [0.9, 0.9, 3.0]])
    assert target_spacing(spacings, np.full((3, 3), 100.0)) == (1.0, 0.9, 2.5)


def test_thick_and_few_slices_are_resampled_to_the_thinner_ones_and_never_finer_than_in_plane() -> None:
    shapes = np.array([[200.0, 200.0, 10.0]] * 11)
    thick = np.array([[1.5, 1.5, 5.0 + i] for i in range(11)])  # 5 to 15 mm
    assert target_spacing(thick, shapes) == (1.5, 1.5, 6.0)
    thick[:3, 2] = 1.0  # so that a tenth of the images is finer than in plane
    assert target_spacing(thick, shapes) == (1.5, 1.5, 1.5)
    many = shapes.copy()
    many[:, 2] = 100
    assert target_spacing(thick, many)[2] == 10.0


@pytest.mark.parametrize("name", NETWORKS)
def test_memory_counted_without_computing_equals_what_a_real_step_keeps(name: str) -> None:
    crop = (32, 32)
    real = segmenter_for(NETWORKS[name], 3, shape=crop, channels=1)
    with torch.device("meta"):
        shapes_only = segmenter_for(NETWORKS[name], 3, shape=crop, channels=1)
    kept = kept_for_gradient(shapes_only, crop, batch=2)
    assert sum(kept_for_gradient(real, crop, batch=2)) == pytest.approx(sum(kept), rel=0.02)
    assert sum(kept_for_gradient(shapes_only, crop, batch=4)) == pytest.approx(2 * sum(kept), rel=0.05)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_plan_keeps_to_the_memory_and_fits_the_network(name: str, tmp_path: Path) -> None:
    store = _store(tmp_path, (70, 50, 40), count=3)
    crops = []
    for gb in (8.0, 0.25, 0.15):
        plan = plan_segmentation(None, store, FinetuneConfig(memory_gb=gb), network=NETWORKS[name])
        assert plan.memory_gb <= gb
        assert plan.batch_size >= 2
        segmenter_for(NETWORKS[name], 3, shape=plan.crop, channels=1)
        crops.append(int(np.prod(plan.crop)))
    assert crops == sorted(crops, reverse=True)
    assert plan.to_dict()["settings"] == list(plan.settings)
    json.dumps(plan.to_dict(), allow_nan=False)


def test_with_memory_enough_the_crop_is_the_images_middle_size_in_whole_strides(tmp_path: Path) -> None:
    store = _store(tmp_path, (30, 21, 14), count=3)
    plan = plan_segmentation(None, store, network=NETWORKS["dynunet"])
    assert plan.median_shape == (30, 21, 14)
    assert plan.crop == (32, 24, 16)
    assert plan.batch_size == 2  # a twentieth of three images is less than a crop


def test_a_batch_shows_no_more_than_a_twentieth_of_all_voxels(tmp_path: Path) -> None:
    store = _store(tmp_path, (16, 16, 16), count=80)
    assert plan_segmentation(None, store, network=NETWORKS["dynunet"]).batch_size == 4


def test_too_little_memory_is_told_with_what_would_be_needed(tmp_path: Path) -> None:
    store = _store(tmp_path, (30, 21, 14), count=2)
    with pytest.raises(RecipeError, match=r"2 crops of \(8, 8, 8\) voxels takes about 0.00\d+ GB"):
        plan_segmentation(None, store, FinetuneConfig(memory_gb=1e-4), network=NETWORKS["dynunet"])


def test_a_network_of_slices_is_planned_in_two_axes(tmp_path: Path) -> None:
    store = _store(tmp_path, (30, 21, 14), count=2)
    config = FinetuneConfig(crop=(16, 16), slice_axis=1)
    assert plan_segmentation(None, store, config, network=NETWORKS["dynunet"]).crop == (32, 16)


@pytest.mark.parametrize("decided", [False, True], ids=["kept as they were", "resampled"])
def test_a_spacing_is_planned_for_a_store_of_mixed_ones_unless_its_preparation_decided(
    decided: bool, tmp_path: Path
) -> None:
    store = _store(tmp_path, (40, 40, 6), count=11)
    rows = [replace(row, spacing_mm=(1.0, 1.0, 5.0 + i)) for i, row in enumerate(store.rows)]
    preparation = {"prepare": {"spacing_mm": [1.0, 1.0, 10.0] if decided else None}}
    plan = plan_segmentation(None, Store(store.folder, rows, {}, preparation), network=NETWORKS["dynunet"])
    assert plan.median_spacing_mm == (1.0, 1.0, 10.0)
    assert plan.spacing_mm == (1.0, 1.0, 10.0 if decided else 6.0)
    assert plan.median_shape == (40, 40, 6 if decided else 10)
    assert any("prepare.spacing_mm" in setting for setting in plan.settings) is not decided


def test_an_encoders_spacing_is_kept(store: Store, encoder: Encoder) -> None:
    plan = plan_segmentation(encoder, store)
    assert plan.spacing_mm == plan.median_spacing_mm == (1.0, 0.5, 2.0)
    assert not plan.resamples
    assert "finetune.crop" in plan.settings[0]


def test_an_index_is_planned_in_the_axes_it_will_be_turned_to(tmp_path: Path) -> None:
    import nibabel

    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for i in range(3):
        image, label = ellipsoids((24, 30, 36), i)
        # Axes run to the Posterior, Superior, Left: in RAS order they are k, i, j.
        affine = np.array([[0, 0, -3.0, 0], [-1.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 0, 1]])
        for folder, array in (("images", (1000 * image).astype(np.int16)), ("labels", label)):
            nibabel.save(nibabel.Nifti1Image(array, affine), tmp_path / folder / f"case{i}.nii")
    fractions = Fractions(1.0, 0.0, 0.0)
    build_index([tmp_path / "images"], tmp_path / "index", labels=tmp_path / "labels", fractions=fractions)
    plan = plan_segmentation(None, tmp_path / "index", network=NETWORKS["dynunet"])
    assert plan.spacing_mm == (3.0, 1.0, 2.0)
    assert plan.median_shape == (36, 24, 30)
    assert planned_preparation(tmp_path / "index", PrepareConfig()).spacing_mm == (3.0, 1.0, 2.0)
    named = PrepareConfig(spacing_mm=(1, 1, 1))
    assert planned_preparation(tmp_path / "index", named) == named
    finer = plan_segmentation(None, tmp_path / "index", network=NETWORKS["dynunet"], prepare=named)
    assert finer.median_shape == (108, 24, 60)
    assert finer.settings[0] == "prepare.spacing_mm=[1.0, 1.0, 1.0]"
    (tmp_path / "datalist.json").write_text("{}")
    with pytest.raises(UsageError, match="a datalist cannot be planned for"):
        plan_segmentation(None, tmp_path / "datalist.json")


def test_a_run_that_asks_for_a_plan_trains_by_the_one_that_is_shown(
    store: Store, network: DynUNetConfig, quick: FinetuneConfig, tmp_path: Path
) -> None:
    config = quick.model_copy(update={"plan": True, "crop": None, "steps": 2})
    plan = plan_segmentation(None, store, config, network=network)
    assert plan.crop == (20, 16, 16)
    result = finetune(None, store, tmp_path / "run", config, network=network)
    known = json.loads((result.out / "finetune.json").read_text())["finetune"]
    assert (known["crop"], known["batch_size"]) == (list(plan.crop), plan.batch_size)
    shown = str(plan)
    assert "crop (voxels)" in shown
    assert "20 x 16 x 16" in shown


def _store(folder: Path, shape: tuple[int, ...], *, count: int) -> Store:
    """Labelled training images of one shape and 1 mm; voxels do not matter here."""
    image, label = ellipsoids(shape, 0)
    return write_labelled_store(
        folder / "store", [image] * count, [label] * count, splits=("train",) * count, spacing_mm=(1, 1, 1)
    )
