"""Boxes mean the same voxels in every mode, space and file they can be written in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from medssl import geometry
from medssl.errors import DataError
from medssl.reading import Header, ReadError
from medssl.reading.boxes import MODES, BoxTerms, corners_of, fitted, in_grid, moved, read_entry, read_voc, terms_of

TURNED = np.array([[0.0, -2, 0, 10], [1.5, 0, 0, -20], [0, 0, -3, 5], [0, 0, 0, 1]])
"""Axes swapped, two of them flipped, three spacings."""


def header(affine: NDArray[np.float64] | None, shape: tuple[int, ...] = (20, 24, 28)) -> Header:
    kind = "volume" if len(shape) == 3 else "image2d"
    return Header("nifti", kind, shape, None, affine, 1, "int16")


@pytest.mark.parametrize("mode", [mode for modes in MODES.values() for mode in modes])
def test_each_mode_is_monais(mode: str) -> None:
    from monai.data.box_utils import convert_box_mode

    n = 2 if mode in MODES[4] else 3
    low = np.random.default_rng(0).uniform(0, 9, (7, n))
    corners = np.concatenate([low, low + np.random.default_rng(1).uniform(1, 9, (7, n))], 1)
    written = convert_box_mode(corners, src_mode=MODES[2 * n][0], dst_mode=mode)
    np.testing.assert_allclose(corners_of(np.asarray(written, dtype=np.float64), mode), corners, atol=1e-5)


@given(data=st.data(), space=st.sampled_from(["ras", "lps"]))
def test_a_box_in_millimetres_is_the_voxels_whose_corners_it_was_drawn_around(data: st.DataObject, space: str) -> None:
    low = [data.draw(st.integers(0, n - 2)) for n in (20, 24, 28)]
    high = [data.draw(st.integers(a + 1, n)) for a, n in zip(low, (20, 24, 28))]
    # In mm the box's edges are the outer faces of its voxels, half a voxel from their centres.
    ends = geometry.to_mm(TURNED, np.array([low, high]) - 0.5)
    if space == "lps":
        ends = ends * [-1, -1, 1]
    box = (("a", (*ends.min(0).tolist(), *ends.max(0).tolist())),)
    [(name, corners)] = in_grid(box, space, header(TURNED))
    assert name == "a"
    np.testing.assert_allclose(corners, [*low, *high], atol=1e-9)


def test_boxes_of_a_picture_are_turned_from_x_first_to_row_first() -> None:
    box = (("a", (1.0, 2.0, 30.0, 40.0)),)
    assert in_grid(box, "voxel", header(None, (50, 60))) == (("a", (2.0, 1.0, 40.0, 30.0)),)
    for wrong, space in ((box, "voxel"), ((("a", (0.0,) * 6),), "lps")):
        shape = (20, 24, 28) if space == "voxel" else (50, 60)
        with pytest.raises(ReadError) as caught:
            in_grid(wrong, space, header(None, shape))
        assert caught.value.code == "box-dimensions"


@given(data=st.data())
def test_moving_there_and_back_changes_nothing_and_moving_twice_is_moving_once(data: st.DataObject) -> None:
    low = [data.draw(st.floats(-5, 20)) for _ in range(3)]
    box = (("a", (*low, *(v + data.draw(st.floats(0.5, 20)) for v in low))),)
    there = moved(box, TURNED, 3)
    np.testing.assert_allclose(moved(there, np.linalg.inv(TURNED), 3)[0][1], box[0][1], atol=1e-8)
    np.testing.assert_allclose(moved(there, TURNED, 3)[0][1], moved(box, TURNED @ TURNED, 3)[0][1], atol=1e-8)


@given(low=st.lists(st.integers(-9, 15), min_size=2, max_size=2), size=st.lists(st.integers(-2, 9), min_size=2))
def test_what_is_kept_of_a_box_is_its_voxels_in_the_image(low: list[int], size: list[int]) -> None:
    high = [a + n for a, n in zip(low, size)]
    voxels = np.stack(np.meshgrid(np.arange(10), np.arange(7), indexing="ij"), -1)
    inside = ((voxels >= low) & (voxels < high)).all(-1)
    kept, problems = fitted([("a", (*map(float, low), *map(float, high)))], (10, 7))
    if not inside.any():
        assert not kept
        assert [code for code, _ in problems] == [
            "box-without-area" if min(size[:2]) <= 0 else "box-outside",
        ]
        return
    at = np.argwhere(inside)
    assert kept == (("a", (*at.min(0), *(at.max(0) + 1))),)
    assert [code for code, _ in problems] == (["box-cut"] if inside.sum() < np.prod(size[:2]) else [])


VOC = "<annotation><size><width>9</width><height>7</height></size>{}</annotation>"
OBJECT = "<object><name>cell</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>5</xmax><ymax>{}</ymax></bndbox></object>"


def test_a_voc_file_gives_size_and_edges_with_one_for_the_border(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_text(VOC.format(OBJECT.format(6) * 2))
    assert read_voc(path) == ((7, 9), (("cell", (0.0, 2.0, 5.0, 6.0)),) * 2)
    path.write_text(VOC.format(""))
    assert read_voc(path) == ((7, 9), ())


@pytest.mark.parametrize(
    "text",
    [
        "<annotation>",
        "<html></html>",
        VOC.format(OBJECT.format("six")),
        VOC.format(OBJECT.format("nan")),
        VOC.format(OBJECT.format("1_0")),
        VOC.format(OBJECT.format(6).replace("cell", "")),
        VOC.format(OBJECT.format(6).replace("<ymin>2</ymin>", "")),
        '<!DOCTYPE a [<!ENTITY b "c">]>' + VOC.format(OBJECT.format(6)),
    ],
    ids=["cut off", "web page", "word", "nan", "underscore", "no name", "three numbers", "entity"],
)
def test_a_voc_file_that_lacks_something_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.xml"
    path.write_text(text)
    with pytest.raises(ReadError) as caught:
        read_voc(path)
    assert caught.value.code == "box-unreadable"


@pytest.mark.parametrize(
    ("encoding", "written", "head"),
    [
        ("UTF-16", "utf-16", '<!DOCTYPE annotation [<!ENTITY b "cell"><!ENTITY c "&b;&b;&b;&b;">]>'),
        ("UTF-8", "utf-8", '<!DOCTYPE annotation [<!ENTITY b "cell"><!ENTITY c "&b;&b;&b;&b;">]>'),
        ("none-such", "utf-8", ""),
        ("hex", "utf-8", ""),
        ("gb2312", "utf-8", ""),
    ],
)
def test_entities_and_encodings_that_are_none_are_refused(
    tmp_path: Path, encoding: str, written: str, head: str
) -> None:
    path = tmp_path / "a.xml"
    text = VOC.format(OBJECT.format(6))
    text = text.replace("cell", "&c;") if head else text
    path.write_bytes(f'<?xml version="1.0" encoding="{encoding}"?>{head}{text}'.encode(written))
    with pytest.raises(ReadError) as caught:
        read_voc(path)
    assert caught.value.code == "box-unreadable"
    assert str(path) in str(caught.value)


def test_a_voc_file_in_utf_16_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_bytes(f'<?xml version="1.0" encoding="UTF-16"?>{VOC.format(OBJECT.format(6))}'.encode("utf-16"))
    assert len(read_voc(path)[1]) == 1


@pytest.mark.parametrize(
    ("entry", "terms", "message"),
    [
        ({"box": [[0, 0, 0, 1, 1, 1]], "label": [0]}, {}, "voxels or in mm"),
        ({"box": [[0, 0, 0, 1, 1, 1]], "label": []}, {"space": "ras"}, "lists of one length"),
        ({"box": [[0, 0, 0, 1, 1]], "label": [0]}, {"space": "ras"}, "4 or 6 numbers"),
        ({"box": [[0, 0, 1, 1]], "label": [0]}, {"space": "voxel", "mode": "cccwhd"}, "6 numbers as cccwhd"),
        ({"box": [[0, 0, 1, None]], "label": [0]}, {"space": "voxel"}, "4 numbers as xyxy"),
        ({"box": [[0, 0, 1, 10**400]], "label": [0]}, {"space": "voxel"}, "4 numbers as xyxy"),
        ({"box": [[0, 0, 1, 1]], "label": [1.5]}, {"space": "voxel"}, "neither a whole number nor a name"),
    ],
)
def test_an_entry_that_leaves_doubt_is_refused(entry: dict[str, object], terms: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_entry(entry, BoxTerms(**terms), "here")


def test_a_datalist_and_its_reader_must_agree_on_the_terms() -> None:
    stated = {"box_mode": "cccwhd", "box_space": "lps", "labels": {"0": "background", "1": "nodule"}}
    terms = terms_of(stated, Path("a.json"), mode=None, space="lps")
    entry = {"box": [[5, 5, 5, 2, 4, 6], [1, 1, 1, 2, 2, 2]], "label": [1, 7]}
    assert read_entry(entry, terms, "") == (("nodule", (4, 3, 2, 6, 7, 8)), ("7", (0, 0, 0, 2, 2, 2)))
    for wrong in ({"mode": "xyzxyz"}, {"space": "voxel"}):
        with pytest.raises(DataError, match="states another"):
            terms_of(stated, Path("a.json"), **{"mode": None, "space": None, **wrong})
    with pytest.raises(DataError, match="none of voxel, ras, lps"):
        terms_of({}, Path("a.json"), mode=None, space="mm")
