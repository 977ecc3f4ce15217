"""A datalist is read as editors and other programs write it, and refused in one line where it is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from medssl.errors import DataError
from medssl.reading.datalist import read_datalist


def test_a_datalist_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "datalist.json"
    path.write_bytes(b'\xef\xbb\xbf{"training": ["a.nii"], "test": [{"image": "b.nii"}]}')
    assert read_datalist(path)[1] == [("train", {"image": "a.nii"}), ("test", {"image": "b.nii"})]


@pytest.mark.parametrize(
    "text",
    [
        '{"training": ["a.nii"], "test": "b.nii"}',
        '{"training": ["a.nii"], "test": 5}',
        '{"training": ["a.nii"], "test": {"image": "b.nii"}}',
        '{"training": [5]}',
        '{"training": "a.nii"}',
        '["a.nii"]',
        "[" * 200_000,
        '{"training": ["a.nii"], "n": ' + "1" * 5000 + "}",
        "",
    ],
    ids=["a word", "a number", "an object", "no image", "one word", "a list", "deep", "a long number", "empty"],
)
def test_a_file_that_is_no_datalist_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "datalist.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_datalist(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
