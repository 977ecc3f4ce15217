"""The store gives back any box of what was written, and says what is wrong with a store that is not whole."""

from __future__ import annotations

import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medssl.errors import DataError
from medssl.files import write_json
from medssl.store import Store, StoreRow, array_path, read_table, table_source, write_array, write_table

EYE = tuple(tuple(line) for line in np.eye(4).tolist())
BOXES = {
    "volume": (("nodule", (1.0, 2.0, 3.0, 4.0, 5.5, 6.0)), ("cyst", (0.0, 0.0, 0.0, 9.0, 9.0, 9.0))),
    "slab": (),
    "picture": None,
}
SHAPES = {"volume": (1, 70, 33, 41), "slab": (2, 90, 20, 1), "picture": (3, 130, 77)}


@pytest.fixture(scope="module")
def voxels() -> dict[str, np.ndarray]:
    """Random voxels of a volume longer than a chunk, of a slab one voxel thick and of a colour picture."""
    numbers = np.random.default_rng(0)
    return {
        "volume": numbers.integers(-1000, 1000, SHAPES["volume"]).astype(np.int16),
        "slab": numbers.normal(size=SHAPES["slab"]).astype(np.float32),
        "picture": numbers.integers(0, 255, SHAPES["picture"]).astype(np.uint8),
    }


@pytest.fixture(scope="module")
def folder(voxels: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of those three; the volume is labelled."""
    path = tmp_path_factory.mktemp("store")
    (path / "arrays").mkdir()
    rows = []
    for name, array in voxels.items():
        write_array(array_path(path, name), array)
        nd = array.ndim - 1
        rows.append(
            StoreRow(
                image_id=name,
                subject_id="s",
                kind="volume" if nd == 3 else "rgb2d",
                shape=array.shape[1:],
                channels=array.shape[0],
                dtype=array.dtype.name,
                affine=EYE if nd == 3 else None,
                spacing_mm=(1.0, 1.0, 1.0) if nd == 3 else None,
                foreground_box=((0,) * nd, array.shape[1:]),
                intensity=(0.0, 1.0, 0.0, 1.0),
                split="train" if name == "volume" else "test",
                labelled=name == "volume",
                label_dtype="uint8" if name == "volume" else "",
                classes=(1, 7) if name == "volume" else (),
                labels={"nodule": 1.0} if name == "slab" else {},
                groups={"sex": "F", "site": "two"} if name == "volume" else {},
                boxes=BOXES[name],
                content=name,
            )
        )
    write_array(array_path(path, "volume", label=True), (voxels["volume"] > 0).astype(np.uint8))
    write_table(path / "store.parquet", rows, {"volume": np.array([[1, 2, 3, 4], [7, 0, 0, 0]])}, source="abc")
    write_json(path / "preparation.json", {"fingerprint": "f"})
    return path


@given(data=st.data(), name=st.sampled_from(sorted(SHAPES)))
def test_any_box_equals_the_slice_of_the_whole(
    data: st.DataObject, name: str, folder: Path, voxels: dict[str, np.ndarray]
) -> None:
    spatial = SHAPES[name][1:]
    start = [data.draw(st.integers(0, n - 1)) for n in spatial]
    size = [data.draw(st.integers(1, n - a)) for n, a in zip(spatial, start)]
    box = (slice(None), *(slice(a, a + n) for a, n in zip(start, size)))
    np.testing.assert_array_equal(Store.open(folder).read(name, start, size), voxels[name][box])


def test_reading_without_a_box_gives_the_whole_image_and_label(folder: Path, voxels: dict[str, np.ndarray]) -> None:
    store = Store.open(folder)
    for name, array in voxels.items():
        assert store.read(name).dtype == array.dtype
        np.testing.assert_array_equal(store.read(name), array)
    np.testing.assert_array_equal(store.label("volume"), voxels["volume"] > 0)


@pytest.mark.parametrize(
    ("start", "size"), [((-1, 0, 0), (4, 4, 4)), ((68, 0, 0), (4, 4, 4)), ((0, 0, 0), (4, 0, 4)), ((0, 0), (4, 4))]
)
def test_a_box_that_leaves_the_image_is_refused(folder: Path, start: tuple[int, ...], size: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"leaves the image|need 3 numbers"):
        Store.open(folder).read("volume", start, size)


def test_rows_come_back_as_they_were_written(folder: Path, tmp_path: Path) -> None:
    rows, points = read_table(folder / "store.parquet")
    write_table(tmp_path / "again.parquet", rows, points, source="abc")
    again, points_again = read_table(tmp_path / "again.parquet")
    assert again == rows
    assert points_again["volume"].tolist() == [[1, 2, 3, 4], [7, 0, 0, 0]]
    assert table_source(tmp_path / "again.parquet") == "abc"


def test_ids_are_sorted_and_splits_share_them_out(folder: Path) -> None:
    store = Store.open(folder)
    assert store.ids == ("picture", "slab", "volume")
    assert store.ids_of("train") + store.ids_of("test") == ("volume", "picture", "slab")
    assert store.classes == (1, 7)


def test_the_fingerprint_follows_content_and_split_and_not_the_place(folder: Path, tmp_path: Path) -> None:
    first = Store.open(folder).fingerprint
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert Store.open(copy).fingerprint == first
    rows, points = read_table(copy / "store.parquet")
    for change in ({"split": "validation"}, {"content": "other"}, {"subject_id": "t"}):
        write_table(copy / "store.parquet", [replace(rows[0], **change), *rows[1:]], points)
        assert Store.open(copy).fingerprint != first


def test_a_store_without_its_table_is_called_unfinished(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "store.parquet").unlink()
    with pytest.raises(DataError, match=r"not finished .* run `medssl prepare` again"):
        Store.open(copy)
    with pytest.raises(DataError, match="there is no store here"):
        Store.open(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="asks the file's flags by fcntl")
def test_an_array_is_flushed_through_a_handle_that_may_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows refuses to flush any other."""
    import fcntl

    modes = []
    monkeypatch.setattr(os, "fsync", lambda handle: modes.append(fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE))
    write_array(tmp_path / "a.b2nd", np.zeros((1, 3, 4, 5), np.uint8))
    assert modes == [os.O_RDWR]


@pytest.mark.parametrize("damage", ["gone", "truncated", "scrambled"])
def test_a_damaged_array_is_an_error_that_names_its_image(folder: Path, tmp_path: Path, damage: str) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    path = array_path(copy, "volume")
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.write_bytes(data[:2000] + b"\xff" * (len(data) - 3000) + data[-1000:])
    with pytest.raises(DataError, match="image volume"):
        Store.open(copy).read("volume")


def test_threads_that_read_at_once_get_what_one_gets(folder: Path, voxels: dict[str, np.ndarray]) -> None:
    store = Store.open(folder)
    with ThreadPoolExecutor(4) as pool:
        for start, crop in pool.map(lambda a: (a, store.read("volume", (a, 0, 0), (8, 33, 41))), list(range(62)) * 4):
            np.testing.assert_array_equal(crop, voxels["volume"][:, start : start + 8])


def test_an_image_without_a_label_map_says_so(folder: Path) -> None:
    with pytest.raises(DataError, match="no label map"):
        Store.open(folder).label("slab")


def test_boxes_come_with_their_classes_and_tell_none_from_not_looked_for(folder: Path) -> None:
    store = Store.open(folder)
    corners, classes = store.boxes("volume")
    assert corners.dtype == np.float64
    assert classes.dtype == np.int64
    assert [(store.box_names[k], tuple(c)) for k, c in zip(classes, corners.tolist())] == list(BOXES["volume"])
    corners, classes = store.boxes("slab")
    assert corners.shape == (0, 6)
    assert classes.shape == (0,)
    with pytest.raises(DataError, match=r"image picture.*--boxes"):
        store.boxes("picture")


def test_the_fingerprint_follows_boxes_labels_and_groups(folder: Path) -> None:
    store = Store.open(folder)
    row = store.row("volume")
    changed = (
        replace(row, boxes=None),
        replace(row, boxes=()),
        replace(row, boxes=row.boxes[:1]),
        replace(row, labels={"nodule": 0.0}),
        replace(row, groups={"sex": "F"}),
    )
    found = {Store(folder, [each], {}, store.preparation).fingerprint for each in (row, *changed)}
    assert len(found) == 6


def test_a_store_from_before_boxes_opens_with_the_fingerprint_it_had(folder: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    from medssl.config import fingerprint

    copy = tmp_path / "old"
    shutil.copytree(folder, copy)
    rows, points = read_table(folder / "store.parquet")
    write_table(copy / "store.parquet", [replace(row, labels={}) for row in rows], points)
    table = pq.read_table(copy / "store.parquet").drop_columns(["groups", "boxes"])
    pq.write_table(table, copy / "store.parquet")
    store = Store.open(copy)
    assert all(row.groups == {} and row.boxes is None for row in store.rows)
    assert store.fingerprint == fingerprint(["f", [[r.image_id, r.subject_id, r.split, r.content] for r in store.rows]])
