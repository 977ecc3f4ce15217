"""Boxes reach the image they were drawn on, in its voxels; every box that does not is named."""

from __future__ import annotations

import csv
import json
import shutil
import tarfile
import xml.etree.ElementTree as ElementTree
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from medssl.errors import DataError, UsageError
from medssl.index import Index
from medssl.ingest import build_index
from medssl.ingest.boxes import joined

KEY = b"key of the tests"
XML = "<annotation><size><width>{w}</width><height>{h}</height></size>{objects}</annotation>"


def voc(path: Path, *boxes: tuple[str, int, int, int, int], size: tuple[int, int] = (30, 20)) -> Path:
    """Write a VOC file of boxes (name, xmin, ymin, xmax, ymax) for a picture of `size` (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = ("xmin", "ymin", "xmax", "ymax")
    objects = "".join(
        f"<object><name>{name}</name><bndbox>{''.join(f'<{k}>{v}</{k}>' for k, v in zip(keys, box))}</bndbox></object>"
        for name, *box in boxes
    )
    path.write_text(XML.format(w=size[0], h=size[1], objects=objects))
    return path


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(list(str(path).encode())).integers(0, 255, (20, 30)).astype(np.uint8)
    Image.fromarray(array).save(path)
    return path


def by_case(index: Index) -> dict[str, Any]:
    return {Path(index.location(row.image_id).paths[0]).name.split(".")[0]: row for row in index.rows}


def codes_of(index: Index) -> list[str]:
    with (index.folder / "private" / "problems.csv").open(encoding="utf-8", newline="") as file:
        return sorted(line["code"] for line in csv.DictReader(file) if line["code"].startswith("box-"))


def test_every_blood_cell_with_an_area_is_found_where_its_file_says(shared: Path, tmp_path: Path) -> None:
    source = shared / "bccd-detection"
    index = Index.open(build_index(source / "images", tmp_path / "out", boxes=source / "annotations", key=KEY))
    assert codes_of(index) == ["box-without-area"]
    counts = Counter(name for row in index.rows for name, _ in row.boxes or ())
    assert counts == {"RBC": 1121, "WBC": 101, "Platelets": 109}
    for case, row in by_case(index).items():
        root = ElementTree.parse(source / "annotations" / f"{case}.xml").getroot()
        drawn = [[int(box.findtext(k, "")) for k in ("ymin", "xmin", "ymax", "xmax")] for box in root.iter("bndbox")]
        drawn = [box for box in drawn if box[0] < box[2] and box[1] < box[3]]
        assert np.abs(np.array(drawn) - np.array([corners for _, corners in row.boxes])).max() <= 1


@pytest.fixture(scope="module")
def lungs(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two real chest CTs with a box in each slice of a tumour."""
    folder = tmp_path_factory.mktemp("lungs")
    with tarfile.open(shared / "lung-ct-boxes" / "dicoms.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def test_boxes_of_real_slices_become_the_box_around_their_connected_mask(
    shared: Path, lungs: Path, tmp_path: Path
) -> None:
    source = shared / "lung-ct-boxes" / "annotations"
    index = Index.open(build_index(lungs, tmp_path / "out", boxes=source, key=KEY))
    assert codes_of(index) == []
    for row in index.rows:
        mask = np.zeros(row.shape, bool)
        for k, path in enumerate(index.location(row.image_id).paths):
            uid = pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID
            for file in source.rglob(f"{uid}.xml"):
                for box in ElementTree.parse(file).getroot().iter("bndbox"):
                    a, b, c, d = (int(box.findtext(key, "")) for key in ("xmin", "ymin", "xmax", "ymax"))
                    mask[a:c, b:d, k] = True
        parts, count = ndimage.label(mask)
        [where] = ndimage.find_objects(parts)
        assert count == 1
        assert row.boxes == (("A", (*(s.start for s in where), *(s.stop for s in where))),)


def test_slices_whose_files_disagree_or_cannot_be_read_leave_the_series_out(
    shared: Path, lungs: Path, tmp_path: Path
) -> None:
    boxes = tmp_path / "boxes"
    shutil.copytree(shared / "lung-ct-boxes" / "annotations" / "A0002", boxes)
    next(boxes.iterdir()).write_text("<annotation>")
    voc(boxes / "1.2.3.xml")
    index = Index.open(build_index(lungs / "A0002", tmp_path / "out", boxes=boxes, key=KEY))
    assert [(row.boxes, row.problems) for row in index.rows] == [(None, ("box-unreadable",))]
    assert codes_of(index) == ["box-unreadable", "box-without-image"]


@given(data=st.data())
def test_findings_that_lie_apart_come_back_as_the_components_of_their_mask(data: st.DataObject) -> None:
    # Each finding keeps to its own corner of the plane and drifts by little: its slices overlap by more than half.
    slices: dict[int, list[Any]] = defaultdict(list)
    mask = np.zeros((2, 40, 40, 12), np.uint8)
    for corner in range(data.draw(st.integers(1, 4))):
        x, y = 20 * (corner % 2) + 2, 20 * (corner // 2) + 2
        for k in data.draw(st.sets(st.integers(0, 11), min_size=1)):
            a, b = x + data.draw(st.integers(0, 2)), y + data.draw(st.integers(0, 2))
            box = (a, b, a + 10 + data.draw(st.integers(0, 2)), b + 12)
            slices[k].append((f"class{corner % 2}", tuple(map(float, box))))
            mask[corner % 2, box[0] : box[2], box[1] : box[3], k] = 1
    wanted = []
    for number, one in enumerate(mask):
        for where in ndimage.find_objects(ndimage.label(one)[0]):
            wanted.append((f"class{number}", (*(s.start for s in where), *(s.stop for s in where))))
    assert list(joined(slices)) == sorted(wanted)


def test_a_box_joins_the_one_it_overlaps_most_and_no_other() -> None:
    one, near, far = (0.0, 0.0, 10.0, 10.0), (1.0, 0.0, 11.0, 10.0), (4.0, 0.0, 14.0, 10.0)
    found = joined({3: [("a", one)], 4: [("a", far), ("a", near)]})
    assert found == (("a", (0.0, 0.0, 3.0, 11.0, 10.0, 5.0)), ("a", (4.0, 0.0, 4.0, 14.0, 10.0, 5.0)))
    touching = (6.0, 0.0, 16.0, 10.0)
    assert len(joined({3: [("a", one)], 4: [("a", touching)]})) == 2, "less than half of it lies in the other"
    assert len(joined({3: [("a", one)], 4: [("b", one)]})) == 2, "another class is another finding"
    assert len(joined({3: [("a", one)], 5: [("a", one)]})) == 2, "a slice without a box ends a finding"


def test_what_matches_no_image_or_two_or_another_picture_is_named(tmp_path: Path) -> None:
    for name in ("one/a", "one/b", "two/b", "one/c", "one/d", "one/e", "one/f"):
        picture(tmp_path / "in" / f"{name}.png")
    nib.save(nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4)), tmp_path / "in" / "v.nii.gz")
    cell = ("cell", 2, 3, 12, 13)
    boxes = tmp_path / "boxes"
    voc(boxes / "a.xml", cell, ("cell", 5, 5, 5, 9), ("cell", 25, 3, 40, 9), ("cell", 31, 3, 40, 9))
    voc(boxes / "b.xml", cell)
    voc(boxes / "c.xml", cell, size=(20, 30))
    voc(boxes / "d.xml")
    voc(boxes / "x" / "e.xml", cell)
    voc(boxes / "y" / "e.xml", cell)
    voc(boxes / "nobody.xml", cell)
    voc(boxes / "v.xml", cell, size=(3, 4))
    index = Index.open(build_index(tmp_path / "in", tmp_path / "out", boxes=boxes, key=KEY))
    found = {case: row.boxes for case, row in by_case(index).items()}
    assert found.pop("a") == (("cell", (3.0, 2.0, 13.0, 12.0)), ("cell", (3.0, 25.0, 9.0, 30.0)))
    assert found.pop("d") == (), "looked at, and none there"
    assert found == dict.fromkeys("bcefv"), "nobody looked, or what they saw cannot be used"
    assert codes_of(index) == sorted(
        ["box-without-area", "box-cut", "box-outside", "box-without-image"]
        + ["box-ambiguous"] * 3
        + ["box-dimensions"] * 2
    )


def datalist(path: Path, *entries: dict[str, Any], **stated: Any) -> Path:
    path.write_text(json.dumps({**stated, "training": entries}))
    return path


def test_a_datalist_in_millimetres_gives_the_voxels_of_a_turned_scan(tmp_path: Path) -> None:
    affine = np.array([[0.0, -2, 0, 10], [1.5, 0, 0, -20], [0, 0, -3, 5], [0, 0, 0, 1]])
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        array = np.random.default_rng(list(name.encode())).integers(0, 99, (20, 24, 28)).astype(np.int16)
        nib.save(nib.Nifti1Image(array, affine), tmp_path / "in" / f"{name}.nii.gz")
    # Voxels [2, 5) x [4, 10) x [6, 7), in LPS mm as centre and size, as MONAI's LUNA16 example has boxes.
    centre = affine @ [3, 6.5, 6, 1]
    box = [-centre[0], -centre[1], centre[2], 6 * 2, 3 * 1.5, 1 * 3]
    entries = [
        {"image": "a.nii.gz", "box": [box], "label": [0]},
        {"image": "elsewhere/b.nii.gz", "box": [], "label": []},
    ]
    path = datalist(tmp_path / "boxes.json", *entries, {"image": "none.nii.gz", "box": [], "label": []}, {"image": "b"})
    terms = {"box_mode": "cccwhd", "box_space": "lps"}
    index = Index.open(build_index(tmp_path / "in", tmp_path / "out", boxes=path, **terms, key=KEY))
    rows = by_case(index)
    [(name, corners)] = rows["a"].boxes
    assert name == "0"
    np.testing.assert_allclose(corners, (2, 4, 6, 5, 10, 7), atol=1e-9)
    assert rows["b"].boxes == ()
    assert codes_of(index) == ["box-without-image"]
    with pytest.raises(DataError, match="voxels or in mm"):
        build_index(tmp_path / "in", tmp_path / "other", boxes=path, key=KEY)


def test_boxes_that_cannot_be_meant_are_refused_in_one_line(tmp_path: Path) -> None:
    picture(tmp_path / "in" / "a.png")
    (tmp_path / "empty").mkdir()
    many = [[f"c{n}", 1, 1, 5, 5] for n in range(101)]
    cases = (
        (tmp_path / "none", {}, UsageError, "does not exist"),
        (tmp_path / "empty", {}, DataError, "no XML file"),
        (datalist(tmp_path / "a.json", {"image": "a.png"}), {}, DataError, "no entry of the datalist has a box"),
        (voc(tmp_path / "b" / "a.xml"), {"box_space": "lps"}, UsageError, "are a datalist's"),
        (voc(tmp_path / "c" / "a.xml", *map(tuple, many)), {}, DataError, "101 classes"),
    )
    for path, more, kind, message in cases:
        with pytest.raises(kind, match=message) as caught:
            build_index(tmp_path / "in", tmp_path / "out", boxes=path, **more, key=KEY)
        assert "\n" not in str(caught.value)
