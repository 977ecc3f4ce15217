"""Sample n is the same whoever cuts it, and every crop is the piece of the image it says it is."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from medssl.batch import hash64
from medssl.errors import DataError, RecipeError
from medssl.files import write_json
from medssl.loading import Loader, LoaderConfig, StreamConfig
from medssl.matches import Matches
from medssl.store import Store, StoreRow, array_path, write_array, write_table

AFFINE = np.array([[0.0, -2, 0, 10], [1.5, 0, 0, -20], [0, 0, 3, 5], [0, 0, 0, 1]])
"""Axes swapped, one of them flipped, three spacings: a crop's affine that forgets any of these is wrong."""


def write_store(folder: Path, shapes: list[tuple[int, ...]], *, labelled: bool = True, dtype: str = "int16") -> Store:
    """Write a store whose voxels tell where they come from: image number, then a hash of the index."""
    (folder / "arrays").mkdir(parents=True)
    rows, points = [], {}
    for number, shape in enumerate(shapes):
        name = f"image{number}"
        image = np.random.default_rng(number).integers(-900, 900, (1, *shape)).astype(dtype)
        label = np.zeros((1, *shape), np.uint8)
        label[(0, *(slice(n // 2, n // 2 + 2) for n in shape))] = 1 + number % 2
        write_array(array_path(folder, name), image)
        write_array(array_path(folder, name, label=True), label)
        at = np.argwhere(label[0])
        points[name] = np.concatenate([np.full((len(at), 1), 1 + number % 2), at], axis=1).astype(np.int32)
        rows.append(
            StoreRow(
                image_id=name,
                subject_id=name,
                kind="volume" if len(shape) == 3 else "image2d",
                shape=shape,
                channels=1,
                dtype=dtype,
                affine=tuple(tuple(line) for line in AFFINE.tolist()) if len(shape) == 3 else None,
                spacing_mm=(1.5, 2.0, 3.0) if len(shape) == 3 else None,
                foreground_box=(tuple(n // 2 for n in shape), tuple(n // 2 + 3 for n in shape)),
                intensity=(-901.5, 899.0, 0.0, 900.0),
                labelled=labelled,
                label_dtype="uint8",
                classes=(1 + number % 2,),
                content=name,
            )
        )
    write_table(folder / "store.parquet", rows, points)
    write_json(folder / "preparation.json", {"fingerprint": "f"})
    return Store.open(folder)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Seven labelled volumes of different shapes, some smaller than the crops below along an axis."""
    shapes = [(20, 24, 28), (17, 40, 9), (30, 30, 30), (65, 12, 20), (21, 22, 23), (16, 16, 16), (9, 50, 33)]
    return write_store(tmp_path_factory.mktemp("loader") / "volumes", shapes)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Five pictures without geometry."""
    return write_store(tmp_path_factory.mktemp("loader") / "pictures", [(40, 50)] * 5)


CASES: dict[str, dict[str, Any]] = {
    "crops": {},
    "views": {"views": 3},
    "overlapping pairs": {"pairs": "overlap"},
    "slices along i": {"crop": (20, 14), "slices": 0},
    "slices along j in views": {"crop": (20, 14), "slices": 1, "views": 2},
    "slices along k": {"crop": (20, 14), "slices": 2},
    "foreground": {"sampling": "foreground"},
    "labels": {"label_fraction": 0.5},
}
cases = pytest.mark.parametrize("case", list(CASES))


def config(case: str = "crops", **more: Any) -> LoaderConfig:
    return LoaderConfig(**{"crop": (16, 20, 12), "batch_size": 4, "workers": 0} | CASES[case] | more)


def same(one: Any, other: Any) -> bool:
    return one == other if isinstance(one, list) else bool(np.array_equal(np.asarray(one), np.asarray(other)))


@cases
@pytest.mark.parametrize("workers", [1, 3])
def test_batches_are_the_same_for_any_workers_start_and_ranks(volumes: Store, case: str, workers: int) -> None:
    whole = list(Loader(volumes, config(case), 5, labels=True).stream(0, 6))
    with Loader(volumes, config(case, workers=workers, ahead=2), 5, labels=True) as loader:
        halves = [list(loader.stream(2, 6, rank=rank, ranks=2)) for rank in (0, 1)]
    assert [len(half) for half in halves] == [4, 4]
    for batch, first, second in zip(whole[2:], *halves):
        for key in batch:
            assert same(batch[key][:2], first[key]), key
            assert same(batch[key][2:], second[key]), key


@cases
def test_a_batch_is_its_samples_one_by_one(volumes: Store, case: str) -> None:
    loader = Loader(volumes, config(case), 5, labels=True)
    batch = loader.batch(3)
    for place in range(4):
        sample = loader.sample(12 + place)
        assert sample.keys() == batch.keys()
        assert all(same(sample[key], batch[key][place]) for key in sample)
    part = loader.batch(3, range(1, 3))
    assert all(same(batch[key][1:3], part[key]) for key in batch)


def whole_start(start: Any, axis: Any) -> Any:
    """Return a crop's first voxel in its image's axis order; in `start` a slice's number comes last."""
    return start if axis == "none" else np.insert(start[:2], axis, start[2])


@cases
def test_every_crop_is_the_padded_piece_of_its_image(volumes: Store, case: str) -> None:
    loader = Loader(volumes, config(case), 1, labels=True)
    stream = loader.streams["main"]
    for n in range(20):
        sample = loader.sample(n)
        image, label = volumes.read(sample["image_id"]), volumes.label(sample["image_id"])
        for v in range(stream.config.crops):
            at: Any = v if stream.config.stacked else ...
            start = whole_start(sample["start"][at], stream.config.slices)
            box = tuple(slice(a, a + size) for a, size in zip(start, stream.size))
            for key, whole, fill in (("image", image, -902), ("label", label, 0)):
                piece = whole[(slice(None), *box)]
                pad = [(0, 0), *((0, size - got) for size, got in zip(stream.size, piece.shape[1:]))]
                wanted = np.pad(piece, pad, constant_values=fill).reshape(sample[key][at].shape)
                np.testing.assert_array_equal(sample[key][at], wanted)
            inside = np.zeros(sample["image"][at].shape[1:], bool)
            inside[tuple(slice(low, high) for low, high in zip(*sample["box"][at]))] = True
            np.testing.assert_array_equal(sample["image"][at][0] == -902, ~inside)


@cases
def test_the_affine_of_a_crop_leads_to_the_same_millimetres(volumes: Store, case: str) -> None:
    loader = Loader(volumes, config(case), 1)
    axis = loader.streams["main"].config.slices
    for n in range(10):
        sample = loader.sample(n)
        for affine, start in zip(sample["affine"].reshape(-1, 4, 4), sample["start"].reshape(-1, 3)):
            crop = np.array([3.0, 5.0, 2.0 if axis == "none" else 0.0])
            whole = crop if axis == "none" else np.insert(crop[:2], axis, 0.0)
            first = whole_start(start, axis)
            np.testing.assert_allclose(affine @ [*crop, 1], AFFINE @ [*(whole + first), 1], atol=1e-4)


@pytest.mark.parametrize("least", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("views", [2, 4])
def test_pairs_overlap_at_least_as_asked(volumes: Store, least: float, views: int) -> None:
    loader = Loader(volumes, config("overlapping pairs", overlap_min=least, views=views), 2)
    seen = []
    for n in range(40):
        start = loader.sample(n)["start"]
        for other in start[1:]:
            shared = np.prod(np.maximum(0, np.array([16, 20, 12]) - np.abs(other - start[0]))) / (16 * 20 * 12)
            assert shared >= least
            seen.append(shared)
    assert least == 1.0 or min(seen) < 1


def test_a_crop_centred_on_a_label_holds_it(volumes: Store) -> None:
    loader = Loader(volumes, config("labels", crop=(4, 4, 4), label_fraction=1.0), 2, labels=True)
    assert all(loader.sample(n)["label"].any() for n in range(30))
    away = Loader(volumes, config(crop=(4, 4, 4)), 2, labels=True)
    assert not all(away.sample(n)["label"].any() for n in range(30))


def test_crops_are_centred_on_given_points_of_all_classes_alike_without_label_maps(volumes: Store) -> None:
    # One class has a single point, the other many: each class still gets half of the crops.
    few, many = np.array([[0, 3, 3, 3]]), np.array([[1, 7, 7, 7]] * 9)
    points = {name: np.concatenate([few, many]) for name in volumes.ids[:-1]}
    config = LoaderConfig(crop=(3, 3, 3), label_fraction=1.0)
    loader = Loader(volumes, config, 0, points=points)
    found = {name: [] for name in volumes.ids}
    for n in range(300):
        sample = loader.sample(n)
        found[str(sample["image_id"])].append(tuple(int(v) for v in sample["start"]))
    assert "label" not in loader.sample(0)
    for name in volumes.ids[:-1]:
        assert set(found[name]) == {(2, 2, 2), (6, 6, 6)}
        assert 0.3 < np.mean([start == (2, 2, 2) for start in found[name]]) < 0.7
    assert len(set(found[volumes.ids[-1]])) > 20, "an image without points is cropped anywhere"


@pytest.mark.parametrize(
    "points", [np.zeros((1, 3), int), np.zeros((1, 4)), np.array([[0, 0, 0, 999]]), np.array([[0, -1, 0, 0]])]
)
def test_points_that_are_no_voxels_of_their_image_are_refused(volumes: Store, points: np.ndarray) -> None:
    with pytest.raises(ValueError, match="points of image image0"):
        Loader(volumes, LoaderConfig(crop=(3, 3, 3)), 0, points={"image0": points})


def test_foreground_crops_are_centred_in_the_box(volumes: Store) -> None:
    loader = Loader(volumes, config("foreground", crop=(3, 3, 3)), 2)
    for n in range(30):
        sample = loader.sample(n)
        low, high = volumes.row(sample["image_id"]).foreground_box
        centre = sample["start"] + 1
        assert (centre >= low).all()
        assert (centre < high).all()


def test_index_and_key_name_the_sample(volumes: Store) -> None:
    loader = Loader(volumes, config(), 9)
    seen = [loader.sample(n) for n in range(7)]
    assert sorted(int(sample["index"]) for sample in seen) == list(range(7))
    assert {volumes.ids[int(sample["index"])] == sample["image_id"] for sample in seen} == {True}
    assert [int(sample["key"]) for sample in seen] == [hash64(9, "main", n) for n in range(7)]


def test_streams_come_in_every_step_in_their_shares(volumes: Store, pictures: Store) -> None:
    streams = {
        "volume": StreamConfig(crop=(8, 8, 8), weight=3),
        "picture": StreamConfig(crop=(16, 16), weight=1),
    }
    settings = LoaderConfig(batch_size=8, streams=streams, workers=2)
    with Loader({"volume": volumes, "picture": pictures}, settings, 0) as loader:
        batches = list(loader.stream(0, 3))
        half = loader.batch(1, range(4, 8))
    assert [batch["volume"]["image"].shape for batch in batches] == [(6, 1, 8, 8, 8)] * 3
    assert [batch["picture"]["image"].shape for batch in batches] == [(2, 1, 16, 16)] * 3
    assert torch.equal(half["volume"]["key"], batches[1]["volume"]["key"][3:])
    assert torch.equal(half["picture"]["key"], batches[1]["picture"]["key"][1:])
    facts = loader.facts(10)
    assert (facts.streams["volume"].kind, facts.streams["picture"].kind) == ("volume", "image2d")
    assert (facts.streams["volume"].batch, facts.streams["picture"].items) == (6, 5)


def test_a_batch_that_is_not_shared_out_in_whole_samples_is_refused() -> None:
    with pytest.raises(ValidationError, match="whole samples"):
        LoaderConfig(batch_size=5, streams={"a": StreamConfig(weight=3), "b": StreamConfig()})


def test_facts_tell_shape_items_and_spacing(volumes: Store) -> None:
    facts = Loader(volumes, config("slices along j in views"), 0).facts(50)
    assert (facts.steps, facts.shape, facts.channels, facts.items, facts.batch) == (50, (20, 14), 1, 7, 4)
    assert facts.spacing_mm == (1.5, 3.0)


def test_matched_crops_hold_the_matched_points(volumes: Store) -> None:
    voxels = {"image0": [[5.0, 6, 7], [15, 20, 3]], "image2": [[10.0, 11, 12], [25, 2, 28]]}
    points = {name: np.array([(AFFINE @ [*p, 1])[:3] for p in found]) for name, found in voxels.items()}
    matches = Matches(
        image_id=("image0", "image0"),
        point_mm=points["image0"],
        partner_id=("image2", "image2"),
        partner_mm=points["image2"],
        score=np.ones(2),
        cycle_mm=np.zeros(2),
    )
    loader = Loader(volumes, config(pairs="matches", crop=(8, 8, 8)), 0, matches=matches)
    assert loader.items == 1
    seen = set()
    for n in range(12):
        sample = loader.sample(n)
        assert (sample["image_id"], sample["partner_id"]) == ("image0", "image2")
        at = (sample["point"] + sample["start"]).round(4)
        assert ((sample["point"] >= 0) & (sample["point"] <= 7)).all()
        assert at.tolist() in [[a, b] for a, b in zip(voxels["image0"], voxels["image2"])]
        seen.add(tuple(at[0]))
    assert len(seen) == 2


def test_an_unreadable_image_is_replaced_and_named_once(
    volumes: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = shutil.copytree(volumes.folder, tmp_path / "copy")
    array_path(copy, "image3").write_bytes(b"no array")
    with caplog.at_level(logging.WARNING):
        damaged = [list(Loader(Store.open(copy), config(workers=w), 0).stream(0, 6)) for w in (0, 2)]
    assert all("image3" not in batch["image_id"] for batches in damaged for batch in batches)
    assert sum("image image3" in message for message in caplog.messages) == 2
    whole = Loader(volumes, config(), 0)
    for n in range(24):
        for batches in damaged:
            sample, wanted = {k: v[n % 4] for k, v in batches[n // 4].items()}, whole.sample(n)
            if wanted["image_id"] != "image3":
                assert all(same(sample[key], wanted[key]) for key in wanted)


def test_an_error_in_a_worker_reaches_the_caller_with_the_image(volumes: Store, tmp_path: Path) -> None:
    copy = shutil.copytree(volumes.folder, tmp_path / "copy")
    rows = [StoreRow(**{**vars(row), "foreground_box": ((0,), (9,))}) for row in volumes.rows]  # one axis of three
    write_table(copy / "store.parquet", rows, {})
    with (
        Loader(Store.open(copy), config("foreground", workers=2), 0) as loader,
        pytest.raises(RuntimeError, match=r"sample 0 of stream main, image image\d: ."),
    ):
        next(loader.stream(0, 2))


def test_a_store_of_damaged_images_only_ends_in_an_error(volumes: Store, tmp_path: Path) -> None:
    copy = shutil.copytree(volumes.folder, tmp_path / "copy")
    for path in (copy / "arrays").glob("*.b2nd"):
        path.write_bytes(b"no array")
    with pytest.raises(DataError, match="image image"):
        Loader(Store.open(copy), config(), 0).batch(0)


def test_what_does_not_fit_is_refused_before_the_first_sample(volumes: Store, pictures: Store, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="the crop has 2 numbers, the images have 3 axes"):
        Loader(volumes, config(crop=(8, 8)), 0)
    with pytest.raises(RecipeError, match=r"does not divide by 3 ranks"):
        Loader(volumes, config(), 0).stream(0, 2, rank=0, ranks=3)
    with pytest.raises(DataError, match="no images in split test"):
        Loader(volumes, config(split="test"), 0)
    with pytest.raises(DataError, match="no labelled images"):
        Loader(write_store(tmp_path / "bare", [(9, 9, 9)], labelled=False), config(), 0, labels=True)
    with pytest.raises(RecipeError, match="streams are"):
        Loader({"a": volumes, "b": pictures}, config(), 0)


def test_images_of_two_dtypes_stand_in_one_batch(tmp_path: Path) -> None:
    store = write_store(tmp_path / "a", [(16, 20, 12), (16, 20, 12)])
    other = store.read("image1").astype(np.float32) + 0.5
    write_array(array_path(store.folder, "image1"), other)
    rows = [store.row("image0"), StoreRow(**{**vars(store.row("image1")), "dtype": "float32"})]
    write_table(store.folder / "store.parquet", rows, {})
    loader = Loader(Store.open(store.folder), config(), 0)
    for n in range(2):
        sample = loader.sample(n)
        assert sample["image"].dtype == np.float32
        wanted = other if sample["image_id"] == "image1" else store.read("image0")
        np.testing.assert_array_equal(sample["image"], wanted)


def test_stopping_early_leaves_no_thread_behind(volumes: Store) -> None:
    import threading

    before = threading.active_count()
    loader = Loader(volumes, config(workers=3), 0)
    stream = loader.stream(0, 1000)
    next(stream)
    stream.close()
    loader.close()
    assert threading.active_count() == before
