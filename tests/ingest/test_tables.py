"""Targets and groups reach the images they are said of, and nothing that could tell who somebody is."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest

from medssl.demo_data import demo_folder
from medssl.errors import DataError
from medssl.index import Index
from medssl.ingest import build_index
from medssl.ingest.tables import read_groups

KEY = b"key of the tests"


def nifti(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(list(str(path).encode())).integers(0, 99, (3, 4, 5)).astype(np.int16)
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    return path


def written(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def rows_by_case(index: Index) -> dict[str, Any]:
    return {Path(index.location(row.image_id).paths[0]).name.split(".")[0]: row for row in index.rows}


def codes_of(index: Index) -> list[str]:
    with (index.folder / "private" / "problems.csv").open(encoding="utf-8", newline="") as file:
        return sorted(line["code"] for line in csv.DictReader(file) if line["code"] != "subject-by-name")


def test_each_image_gets_its_own_line_and_missing_numbers_stay_missing(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        nifti(tmp_path / "in" / f"{name}.nii.gz")
    targets = written(tmp_path / "t.tsv", "case\tEF\tage", "a\t.55\t", "b\tn/a\t-1e1", "nobody\t1\t2")
    groups = written(tmp_path / "g.csv", "case,site,sex", "b,two,F", "c,one,")
    index = Index.open(build_index(tmp_path / "in", tmp_path / "out", targets=targets, groups=groups, key=KEY))
    rows = rows_by_case(index)
    assert {name: dict(row.labels) for name, row in rows.items()} == {"a": {"EF": 0.55}, "b": {"age": -10.0}, "c": {}}
    assert {name: dict(row.groups) for name, row in rows.items()} == {
        "a": {},
        "b": {"site": "two", "sex": "F"},
        "c": {"site": "one"},
    }
    assert codes_of(index) == ["table-without-image"]
    card = (index.folder / "card.md").read_text()
    assert "| EF | 1 | 0.55, 0.55, 0.55 |" in card
    assert "- site: one 1, two 1" in card
    assert "nobody" not in card


def test_a_name_of_two_images_is_used_for_neither(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        nifti(tmp_path / "in" / folder / "scan.nii.gz")
    targets = written(tmp_path / "t.csv", "case,EF", "scan,1")
    index = Index.open(build_index(tmp_path / "in", tmp_path / "out", targets=targets, key=KEY))
    assert [dict(row.labels) for row in index.rows] == [{}, {}]
    assert "table-ambiguous" in codes_of(index)


def test_a_dicom_patient_shares_its_line_and_a_series_folder_overrides_it(tmp_path: Path) -> None:
    for number, folder in enumerate(("early", "late")):
        (tmp_path / "in" / folder).mkdir(parents=True)
        for path in sorted((demo_folder() / "ct").glob("CT*"))[:4]:
            dataset = pydicom.dcmread(path)
            dataset.PatientID, dataset.SeriesInstanceUID = "P7", f"1.2.3.{number}"
            dataset.RescaleIntercept = -1024 - number
            dataset.save_as(tmp_path / "in" / folder / path.name)
    targets = written(tmp_path / "t.csv", "case,age,volume", "P7,61,1", "late,,2")
    groups = written(tmp_path / "g.csv", "case,sex", "P7,declared")
    index = Index.open(build_index(tmp_path / "in", tmp_path / "out", targets=targets, groups=groups, key=KEY))
    found = {Path(index.location(row.image_id).paths[0]).parent.name: dict(row.labels) for row in index.rows}
    assert found == {"early": {"age": 61, "volume": 1}, "late": {"age": 61, "volume": 2}}
    assert [row.groups["sex"] for row in index.rows] == ["declared"] * 2
    assert codes_of(index) == []


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("case,EF", "a,high"), "line 2, column EF"),
        (("case,EF", "a,1_000"), "no number"),
        (("case,EF", "a,nan"), "no number"),
        (("case,EF", "a,inf"), "no number"),
        (("case,EF", "a,1e999"), "no number"),
        (("case,EF", "a,1", "a,2"), "two values in column EF"),
        (("case,EF", ",1"), "names no case"),
        (("case,EF", "a,1,2"), "more fields than the head"),
        (("case,EF,EF", "a,1,2"), "line 1"),
        (("case,", "a,1"), "line 1"),
        (("case", "a"), "no column behind the case"),
        (("case,EF",), "no lines"),
        (("case,EF", "a,1", 'b,"2', "c,3"), "line 3"),
    ],
)
def test_a_table_of_targets_that_leaves_doubt_is_refused_in_one_line(
    tmp_path: Path, lines: tuple[str, ...], message: str
) -> None:
    nifti(tmp_path / "in" / "a.nii.gz")
    with pytest.raises(DataError, match=message) as caught:
        build_index(tmp_path / "in", tmp_path / "out", targets=written(tmp_path / "t.csv", *lines), key=KEY)
    assert "\n" not in str(caught.value)
    assert "high" not in str(caught.value), "a field may be a name"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("count", "fits"), [(20, True), (21, False)])
def test_groups_of_more_than_twenty_words_could_be_identifiers(tmp_path: Path, count: int, fits: bool) -> None:
    nifti(tmp_path / "in" / "a.nii.gz")
    lines = [f"c{n},word{n % count}" for n in range(3 * count)]
    table = written(tmp_path / "g.csv", "case,surname", *lines)
    if fits:
        assert build_index(tmp_path / "in", tmp_path / "out", groups=table, key=KEY).images == 1
        return
    with pytest.raises(DataError, match=r"column surname .* 21 different words") as caught:
        build_index(tmp_path / "in", tmp_path / "out", groups=table, key=KEY)
    assert "word1" not in str(caught.value)


def test_groups_that_are_all_different_are_a_warning(tmp_path: Path) -> None:
    nifti(tmp_path / "in" / "a.nii.gz")
    table = written(tmp_path / "g.csv", "case,name,site", *[f"c{n},word{n},one" for n in range(6)])
    result = build_index(tmp_path / "in", tmp_path / "out", groups=table, key=KEY)
    assert result.problems["group-all-different"] == 1


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_table_is_the_same_as_any_spreadsheet_writes_it(tmp_path: Path, separator: str, end: str) -> None:
    lines = [["case", "site"], ["a", '"two\nlines"'], [], ["b", "x\x0by"], ["c", '"say ""z"""']]
    text = "\ufeff" + "".join(separator.join(line) + end for line in lines)
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode())
    table = read_groups(path)
    assert table.rows == {"a": {"site": "two\nlines"}, "b": {"site": "x\x0by"}, "c": {"site": 'say "z"'}}
    assert table.lines == {"a": 2, "b": 5, "c": 6}
