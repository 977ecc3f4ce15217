"""Boxes, targets and groups go with their image into the store, wherever its voxels go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from medssl.errors import DataError
from medssl.index import Index, IndexRow, Location
from medssl.prepare import PrepareConfig, TransformConfig, build_store, build_store_from_datalist
from medssl.prepare.voxels import ToPrepare, prepare_image
from medssl.store import Store

TURNED = np.array([[0.0, -2, 0, 10], [1.5, 0, 0, -20], [0, 0, -3, 5], [0, 0, 0, 1]])
OBLIQUE = np.array([[0.995, -0.0998, 0, 1], [0.0998, 0.995, 0, 2], [0, 0, 2, 0], [0, 0, 0, 1]])


def named(**transforms: Any) -> dict[str, Any]:
    return {"transforms": [TransformConfig(name=f"monai.transforms.{k}", arguments=v) for k, v in transforms.items()]}


RECIPES: dict[str, dict[str, Any]] = {
    "as it is": {"orientation": None},
    "turned": {},
    "finer": {"spacing_mm": (1, 1, 1)},
    "coarser": {"spacing_mm": (2.3, 1.1, 4)},
    "cropped to the foreground": named(CropForeground={}),
    "resized": named(Resize={"spatial_size": [20, 31, 17]}),
    "zoomed": named(Zoom={"zoom": 0.7, "keep_size": False}),
    "flipped and rotated": named(Flip={"spatial_axis": [0, 2]}, Rotate90={"k": 1, "spatial_axes": [0, 1]}),
    "cropped and padded": named(CenterSpatialCrop={"roi_size": [20] * 3}, SpatialPad={"spatial_size": [40] * 3}),
}


@pytest.mark.parametrize("affine", [np.eye(4), TURNED, OBLIQUE], ids=["straight", "turned", "oblique"])
@pytest.mark.parametrize("recipe", list(RECIPES))
def test_a_box_covers_the_voxels_its_mask_becomes_to_one_voxel(tmp_path: Path, recipe: str, affine: Any) -> None:
    low, high = (4, 9, 3), (17, 24, 20)
    mask = np.zeros((30, 41, 27), np.uint8)
    mask[tuple(slice(a, b) for a, b in zip(low, high))] = 1
    image = np.random.default_rng(0).normal(size=mask.shape).astype(np.float32) + 10 * mask
    for name, array in (("image", image), ("label", mask)):
        nib.save(nib.Nifti1Image(array, affine), tmp_path / f"{name}.nii")
    where = {name: Location((str(tmp_path / f"{name}.nii"),), "nifti") for name in ("image", "label")}
    item = ToPrepare(
        "i", "s", "volume", mask.shape, where["image"], where["label"], boxes=(("a", (*map(float, low + high),)),)
    )
    prepared = prepare_image(item, PrepareConfig(**RECIPES[recipe]))
    assert prepared.row.boxes is not None
    assert prepared.label is not None
    at = np.argwhere(prepared.label[0])
    [(name, corners)] = prepared.row.boxes
    assert name == "a"
    assert np.abs(np.array(corners) - [*at.min(0), *(at.max(0) + 1)]).max() <= 1
    if recipe in ("as it is", "turned", "flipped and rotated", "cropped and padded"):
        np.testing.assert_allclose(corners, [*at.min(0), *(at.max(0) + 1)], atol=1e-6)


def test_a_picture_has_no_place_and_its_boxes_move_all_the_same(tmp_path: Path) -> None:
    mask = np.zeros((30, 41), np.uint8)
    mask[4:17, 9:24] = 200
    Image.fromarray(mask).save(tmp_path / "a.png")
    item = ToPrepare(
        "i", "s", "image2d", (30, 41), Location((str(tmp_path / "a.png"),), "png"), boxes=(("a", (4.0, 9, 17, 24)),)
    )
    transforms = named(Flip={"spatial_axis": 0}, Rotate90={"k": 1}, Resize={"spatial_size": [82, 60]})
    prepared = prepare_image(item, PrepareConfig(**transforms))
    at = np.argwhere(prepared.image[0] > 100)
    assert prepared.row.boxes is not None
    np.testing.assert_allclose(prepared.row.boxes[0][1], [*at.min(0), *(at.max(0) + 1)], atol=0.5)


def test_what_an_index_knows_of_an_image_stands_in_the_store(tmp_path: Path) -> None:
    rows, places = [], {}
    for n, boxes in enumerate([None, (), (("a", (1.0, 1.0, 1.0, 3.0, 3.0, 3.0)), ("b", (7.0,) * 3 + (8.0,) * 3))]):
        path = tmp_path / f"{n}.nii"
        nib.save(
            nib.Nifti1Image(np.random.default_rng(n).integers(0, 99, (8, 9, 10)).astype(np.int16), np.eye(4)), path
        )
        name = f"image{n}"
        places[name] = Location((str(path),), "nifti")
        identity = tuple(tuple(line) for line in np.eye(4).tolist())
        row = IndexRow(
            name, "s", "MR", "volume", "nifti", (8, 9, 10), (1, 1, 1), identity, "RAS", 1, "int16", "", "train"
        )
        rows.append(IndexRow(**{**vars(row), "boxes": boxes, "labels": {"EF": 0.1 * n}, "groups": {"site": "two"}}))
    (tmp_path / "index").mkdir()
    Index.write(tmp_path / "index", rows, places)
    index = Index.open(tmp_path / "index")
    assert [row.boxes for row in index.rows] == [row.boxes for row in rows]
    crop = named(SpatialCrop={"roi_start": [0, 0, 0], "roi_end": [6, 6, 6]})
    store = Store.open(build_store(index, PrepareConfig(orientation=None, **crop), tmp_path / "store"))
    assert [dict(row.labels) for row in store.rows] == [{"EF": 0.1 * n} for n in range(3)]
    assert [row.groups for row in store.rows] == [{"site": "two"}] * 3
    assert [row.boxes for row in store.rows] == [None, (), (("a", (1.0, 1.0, 1.0, 3.0, 3.0, 3.0)),)]
    assert "image2,box-outside," in (tmp_path / "store" / "problems.csv").read_text()


def datalist(folder: Path, *entries: dict[str, Any], **stated: Any) -> Path:
    for n in range(3):
        array = np.random.default_rng(n).integers(0, 99, (8, 9, 10)).astype(np.int16)
        nib.save(nib.Nifti1Image(array, TURNED), folder / f"scan{n}.nii")
    path = folder / "datalist.json"
    path.write_text(json.dumps({**stated, "training": entries}))
    return path


def test_a_datalist_gives_boxes_targets_and_groups(tmp_path: Path) -> None:
    boxed = {"image": "scan0.nii", "box": [[1, 2, 3, 4, 5, 6]], "label": [1], "targets": {"EF": 0.5, "age": None}}
    path = datalist(
        tmp_path,
        boxed,
        {"image": "scan1.nii", "box": [], "label": [], "groups": {"site": "two"}},
        {"image": "scan2.nii"},
        box_space="voxel",
        labels={"1": "nodule"},
    )
    store = Store.open(build_store_from_datalist(path, PrepareConfig(orientation=None), tmp_path / "store"))
    known = {(row.boxes, tuple(row.labels.items()), tuple(row.groups.items())) for row in store.rows}
    assert known == {
        ((("nodule", (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)),), (("EF", 0.5),), ()),
        ((), (), (("site", "two"),)),
        (None, (), ()),
    }
    assert store.box_names == ("nodule",)
    # Other boxes are another store: the finished one is not taken for it.
    path = datalist(tmp_path, {**boxed, "box": [[1, 2, 3, 4, 5, 7]]}, box_space="voxel", labels={"1": "nodule"})
    with pytest.raises(Exception, match="of another index"):
        build_store_from_datalist(path, PrepareConfig(orientation=None), tmp_path / "store")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"box": [[1, 2, 3, 4, 5, 6]], "label": [1]}, "voxels or in mm"),
        ({"label": [1]}, "a list of labels, and no box"),
        ({"targets": {"EF": "high"}}, "target EF is no number"),
        ({"targets": {"EF": True}}, "target EF is no number"),
        ({"targets": {"EF": 10**400}}, "target EF is no number"),
        ({"targets": {"EF": float("nan")}}, "target EF is no number"),
        ({"targets": {"EF": float("-inf")}}, "target EF is no number"),
        ({"targets": [1]}, "must be objects"),
        ({"groups": {"site": 2}}, "group site is no word"),
    ],
)
def test_a_datalist_that_says_it_unclearly_is_refused(tmp_path: Path, entry: dict[str, Any], message: str) -> None:
    path = datalist(tmp_path, {"image": "scan0.nii", **entry})
    with pytest.raises(DataError, match=message):
        build_store_from_datalist(path, PrepareConfig(), tmp_path / "store")


def test_groups_of_a_datalist_are_no_identifiers(tmp_path: Path) -> None:
    path = datalist(tmp_path)
    (tmp_path / "many").mkdir()
    entries = []
    for n in range(21):
        array = np.full((3, 3, 3), n, np.int16)
        nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "many" / f"{n}.nii")
        entries.append({"image": f"many/{n}.nii", "groups": {"name": f"word{n}"}})
    path.write_text(json.dumps({"training": entries}))
    with pytest.raises(DataError, match="group name has 21 different words"):
        build_store_from_datalist(path, PrepareConfig(), tmp_path / "store")
