"""What is written is read back; what is no index is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from medssl.errors import DataError
from medssl.index import Index, IndexRow, Location, ProblemRow

VOLUME = IndexRow(
    image_id="b" * 16,
    subject_id="s" * 16,
    modality="MR",
    kind="volume",
    format="nifti",
    shape=(3, 4, 5),
    spacing_mm=(0.1, 1 / 3, 2.0),
    affine=((0.1, 0.0, 0.0, -1.5), (0.0, 1 / 3, 0.0, 2.0), (0.0, 0.0, 2.0, 3.0), (0.0, 0.0, 0.0, 1.0)),
    orientation="RAS",
    channels=1,
    dtype="int16",
    content_hash="c" * 16,
    split="train",
    label_path="l" * 16,
    labels={"volume_ml": 3.5, "age": 61.0},
    groups={"sex": "F"},
    problems=("dicom-lossy",),
)
PICTURE = IndexRow(
    image_id="a" * 16,
    subject_id="t" * 16,
    modality="",
    kind="rgb2d",
    format="png",
    shape=(3, 4),
    spacing_mm=None,
    affine=None,
    orientation="",
    channels=3,
    dtype="uint8",
    content_hash="d" * 16,
    split="test",
    frame_time_ms=12.5,
)
PLACES = {
    "b" * 16: Location(("/x/ü.nii",), "nifti"),
    "l" * 16: Location(("/y/1", "/y/2"), "dicom", {"part": "2"}),
    "a" * 16: Location(("/z",), "png"),
}


def written(folder: Path, rows: list[IndexRow]) -> Index:
    folder.mkdir()
    return Index.write(folder, rows, PLACES, [ProblemRow("error", "file-empty", "/x,y", 'says "no"')], "card")


def test_rows_and_locations_come_back_as_they_were(tmp_path: Path) -> None:
    index = written(tmp_path / "i", [VOLUME, PICTURE])
    again = Index.open(tmp_path / "i")
    assert again.rows == index.rows == (PICTURE, VOLUME)
    assert again.row(VOLUME.image_id) == VOLUME
    assert again.location("b" * 16) == PLACES["b" * 16]
    assert again.label_location(VOLUME.image_id) == PLACES["l" * 16]
    assert again.label_location(PICTURE.image_id) is None
    assert again.fingerprint == index.fingerprint


def test_boxes_come_back_and_tell_none_from_not_looked_for(tmp_path: Path) -> None:
    for boxes in (None, (), (("a", (0.0, 1.5, 2.0, 3.0)), ("b", (0.0, 1.0, 2.0, 3.0)))):
        index = written(tmp_path / str(boxes)[:4], [replace(PICTURE, boxes=boxes)])
        again = Index.open(index.folder)
        assert again.rows[0].boxes == boxes
        assert again.fingerprint == index.fingerprint
    found = {Index(tmp_path, (replace(PICTURE, boxes=b),), {}).fingerprint for b in (None, (), (("a", (0.0,) * 4),))}
    assert len(found) == 3


def test_an_index_from_before_boxes_opens_with_the_fingerprint_it_had(tmp_path: Path) -> None:
    index = written(tmp_path / "i", [VOLUME, PICTURE])
    assert index.fingerprint == "032ca85f8f8afa69", "as the version before boxes computed it"
    table = pq.read_table(tmp_path / "i" / "index.parquet").drop_columns(["boxes"])
    pq.write_table(table, tmp_path / "i" / "index.parquet")
    assert Index.open(tmp_path / "i").fingerprint == index.fingerprint


def test_the_order_of_rows_does_not_matter_and_their_content_does(tmp_path: Path) -> None:
    one = written(tmp_path / "1", [VOLUME, PICTURE])
    two = written(tmp_path / "2", [PICTURE, VOLUME])
    three = written(tmp_path / "3", [VOLUME])
    assert one.fingerprint == two.fingerprint != three.fingerprint
    assert (tmp_path / "1" / "index.parquet").read_bytes() == (tmp_path / "2" / "index.parquet").read_bytes()


def test_a_folder_that_is_no_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no index"):
        Index.open(tmp_path)
    (tmp_path / "index.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError, match="cannot be read"):
        Index.open(tmp_path)
