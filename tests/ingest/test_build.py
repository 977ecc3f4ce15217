"""An index tells what is there, names what is wrong, keeps subjects together, and gives no patient away."""

from __future__ import annotations

import csv
import math
import os
import re
import shutil
import struct
import sys
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest
from PIL import Image
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement

from medssl.demo_data import demo_folder
from medssl.errors import DataError, MedsslError
from medssl.index import Index
from medssl.ingest import IndexResult, build_index
from medssl.ingest.subjects import Names
from medssl.problems import PROBLEMS
from medssl.reading import read_voxels

KEY = b"key of the tests"
DEMO = demo_folder()
HIPPOCAMPUS = DEMO / "hippocampus"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """The index of all that ships."""
    out = tmp_path_factory.mktemp("demo") / "index"
    result = build_index(DEMO, out, labels=HIPPOCAMPUS / "labels", subjects=HIPPOCAMPUS / "patients.tsv", key=KEY)
    return Index.open(result)


def nifti(path: Path, array: np.ndarray | None = None, affine: np.ndarray | None = None) -> Path:
    """A NIfTI of its own content, decided by its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if array is None:
        array = np.random.default_rng(list(path.name.encode())).integers(0, 99, (3, 4, 5)).astype(np.int16)
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def problems_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "private" / "problems.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_shipped_data_is_seventy_labelled_volumes_and_one_ct(demo: Index) -> None:
    assert len(demo) == 71
    assert sum(row.labelled for row in demo.rows) == 70
    assert len({row.subject_id for row in demo.rows}) == 47
    [ct] = [row for row in demo.rows if row.format == "dicom"]
    assert (ct.modality, ct.shape, ct.spacing_mm, ct.orientation) == (
        "CT",
        (512, 512, 20),
        (0.9765625, 0.9765625, 2.0),
        "LPS",
    )


def test_each_label_is_the_file_of_its_images_name_and_place(demo: Index) -> None:
    for row in demo.rows:
        label = demo.label_location(row.image_id)
        if label is not None:
            image = Path(demo.location(row.image_id).paths[0])
            assert Path(label.paths[0]) == image.parents[1] / "labels" / image.name
            assert read_voxels(label).array.shape == row.shape


def test_rows_tell_what_reading_the_voxels_finds(demo: Index) -> None:
    for row in demo.rows:
        voxels = read_voxels(demo.location(row.image_id))
        assert voxels.array.shape == row.shape
        np.testing.assert_array_equal(voxels.affine, row.affine)


def test_no_patient_stands_on_both_sides_of_a_split(demo: Index) -> None:
    patients = dict(line.split("\t") for line in (HIPPOCAMPUS / "patients.tsv").read_text().splitlines()[1:])
    splits, subjects = defaultdict(set), defaultdict(set)
    for row in demo.rows:
        if row.format == "nifti":
            case = Path(demo.location(row.image_id).paths[0]).name.removesuffix(".nii.gz")
            splits[patients[case]].add(row.split)
            subjects[patients[case]].add(row.subject_id)
    assert len(splits) == 46
    assert all(len(found) == 1 for found in (*splits.values(), *subjects.values()))


def test_adding_data_moves_nobody_and_changes_no_id(tmp_path: Path) -> None:
    few = build_index(nifti(tmp_path / "a" / "s1.nii.gz").parent, tmp_path / "one", key=KEY)
    for n in range(2, 30):
        nifti(tmp_path / "a" / f"s{n}.nii.gz")
    many = build_index(tmp_path / "a", tmp_path / "two", key=KEY)
    [row] = Index.open(few).rows
    assert Index.open(many).row(row.image_id) == row


def test_one_subject_in_two_formats_stays_in_one_split(tmp_path: Path) -> None:
    for path in sorted((DEMO / "ct").glob("CT*")):
        dataset = pydicom.dcmread(path)
        dataset.PatientID = "K-017"
        (tmp_path / "d").mkdir(exist_ok=True)
        dataset.save_as(tmp_path / "d" / path.name)
    nifti(tmp_path / "n" / "K-017.nii.gz")
    index = Index.open(build_index([tmp_path / "d", tmp_path / "n"], tmp_path / "out", key=KEY))
    assert {row.format for row in index.rows} == {"dicom", "nifti"}
    assert len({(row.subject_id, row.split) for row in index.rows}) == 1


def test_the_same_folder_gives_the_same_index_wherever_it_lies(tmp_path: Path) -> None:
    nifti(tmp_path / "a" / "x.nii.gz")
    nifti(tmp_path / "a" / "y.nii.gz")
    shutil.copytree(tmp_path / "a", tmp_path / "moved" / "b")
    one, two = (build_index(tmp_path / name, tmp_path / f"out-{name[0]}", key=KEY) for name in ("a", "moved"))
    assert Index.open(one).fingerprint == Index.open(two).fingerprint
    assert (one.folder / "index.parquet").read_bytes() == (two.folder / "index.parquet").read_bytes()
    other = build_index(tmp_path / "a", tmp_path / "other", key=KEY[::-1])
    assert Index.open(other).rows[0].subject_id != Index.open(one).rows[0].subject_id


HEADER_WORDS = {
    "PatientName": "Quux^Zacharias",
    "PatientID": "PID-4711-XY",
    "PatientBirthDate": "19370501",
    "AccessionNumber": "ACC998877",
    "InstitutionName": "Sanatorium Waldesruh",
    "ReferringPhysicianName": "Frobnitz^Hedwig",
    "StudyDescription": "kidney of Mr Quux",
    "SeriesDescription": "for Dr Frobnitz",
    "StationName": "STATION77",
    "StudyID": "STUDY5566",
    "StudyInstanceUID": "1.2.3.4.555.666",
    "SeriesInstanceUID": "1.2.3.4.555.777",
    "FrameOfReferenceUID": "1.2.3.4.555.888",
    "StudyDate": "20190203",
    "DeviceSerialNumber": "SN31415926",
    "ManufacturerModelName": "Model Quux Special",
    "PatientComments": "lives at Elm Street 13",
}


def test_no_identifier_of_a_header_and_no_path_leaves(tmp_path: Path) -> None:
    folder = tmp_path / "Quux_Zacharias"
    folder.mkdir()
    for n, path in enumerate(sorted((DEMO / "ct").glob("CT*"))):
        dataset = pydicom.dcmread(path)
        for keyword, value in HEADER_WORDS.items():
            setattr(dataset, keyword, value)
        dataset.PatientAge, dataset.PatientSex = "081Y", "M"
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.4.555.999.{n}"
        dataset.save_as(folder / f"{n}.dcm")
    nifti(folder / "Quux_Zacharias_kidney.nii.gz")
    (folder / "Quux_broken.nii.gz").write_bytes(b"\x1f\x8b")
    result = build_index(folder, tmp_path / "out", key=KEY)
    public = [path for path in result.folder.rglob("*") if path.is_file() and "private" not in path.parts]
    table = pq.read_table(result.folder / "index.parquet").to_pylist()
    text = b"".join(path.read_bytes() for path in public).decode("latin-1") + str(table)
    words = {word for value in HEADER_WORDS.values() for word in re.split(r"[\^ ]", value) if len(word) > 4}
    for word in (*words, "1.2.3.4", "Quux", "kidney", str(tmp_path), "dcm"):
        assert word.lower() not in text.lower(), word
    [row] = [row for row in Index.open(result).rows if row.format == "dicom"]
    assert row.groups["age"] == "80-89"
    assert row.groups["sex"] == "M"


def test_private_is_for_its_owner_alone(demo: Index) -> None:
    assert (demo.folder / "private").stat().st_mode & 0o777 == 0o700
    assert {path.name for path in demo.folder.iterdir()} == {"index.parquet", "card.md", "private"}


def test_a_copied_index_without_private_has_rows_but_no_paths(demo: Index, tmp_path: Path) -> None:
    shutil.copytree(demo.folder, tmp_path / "copy", ignore=shutil.ignore_patterns("private"))
    copy = Index.open(tmp_path / "copy")
    assert copy.rows == demo.rows
    assert copy.fingerprint == demo.fingerprint
    with pytest.raises(DataError, match=r"no private/locations"):
        copy.location(copy.rows[0].image_id)


def test_everything_broken_is_a_row_of_problems_and_the_rest_is_indexed(tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    good = nifti(folder / "good.nii.gz")
    content = good.read_bytes()
    (folder / "cut.nii.gz").write_bytes(content[:-12])
    (folder / "empty.nii.gz").write_bytes(b"")
    nifti(folder / "four.nii.gz", np.zeros((2, 2, 2, 3), np.int16))
    lost = np.eye(4)
    lost[0, 3] = np.nan
    nifti(folder / "nan.nii.gz", affine=lost)
    shutil.copyfile(good, folder / "twin.nii.gz")
    (folder / "page.png").write_text("<html>not found</html>" * 30)
    (folder / "notes.txt").write_text("hello")
    slices = sorted((DEMO / "ct").glob("CT*"))
    (folder / "ct").mkdir()
    for path in (*slices[:5], *slices[7:]):
        shutil.copyfile(path, folder / "ct" / path.name)
    result = build_index(folder, tmp_path / "out", key=KEY)
    assert result.images == 1
    found = {(Path(row["path"]).name, row["code"]) for row in problems_of(result.folder)}
    assert found == {
        ("good.nii.gz", "subject-by-name"),
        ("cut.nii.gz", "file-truncated"),
        ("empty.nii.gz", "file-empty"),
        ("four.nii.gz", "nifti-dimensions"),
        ("nan.nii.gz", "affine-not-finite"),
        ("twin.nii.gz", "image-duplicate"),
        ("page.png", "file-not-as-named"),
        ("ct", "dicom-slices-missing"),
    }
    assert all(row["severity"] == PROBLEMS[row["code"]].severity for row in problems_of(result.folder))
    card = (result.folder / "card.md").read_text()
    assert all(code in card for _, code in found)
    assert result.to_dict()["problems"] == {code: 1 for _, code in sorted(found, key=lambda pair: pair[1])}


def test_check_reads_the_voxels_too(tmp_path: Path) -> None:
    array = np.zeros((3, 4, 5), np.float32)
    nifti(tmp_path / "a" / "flat.nii.gz", array)
    array[0, 0, 0] = np.nan
    nifti(tmp_path / "a" / "nan.nii.gz", array)
    assert build_index(tmp_path / "a", tmp_path / "one", key=KEY).images == 2
    checked = build_index(tmp_path / "a", tmp_path / "two", key=KEY, check=True)
    assert checked.problems == {"subject-by-name": 1, "voxels-constant": 1, "voxels-not-finite": 1}
    assert Index.open(checked).rows[0].problems == ("subject-by-name", "voxels-constant")


def test_labels_that_do_not_fit_are_left_out_by_name(tmp_path: Path) -> None:
    moved = np.eye(4)
    moved[0, 3] = 0.5
    label = np.ones((3, 4, 5), np.uint8)
    for name in ("good", "size", "place", "halves", "cut", "bare"):
        nifti(tmp_path / "images" / "sub-1" / f"{name}.nii.gz")
    nifti(tmp_path / "labels" / "good.nii", label)
    nifti(tmp_path / "labels" / "size.nii.gz", np.ones((3, 4, 6), np.uint8))
    nifti(tmp_path / "labels" / "place.nii.gz", label, moved)
    nifti(tmp_path / "labels" / "halves.nii.gz", label * np.float32(0.5))
    nifti(tmp_path / "labels" / "stray.nii.gz", label)
    cut = nifti(tmp_path / "labels" / "cut.nii.gz", label)
    cut.write_bytes(cut.read_bytes()[:-9])
    result = build_index(tmp_path, tmp_path / "out", labels=tmp_path / "labels", key=KEY)
    assert (result.images, result.labelled) == (6, 1)
    found = {(Path(row["path"]).name, row["code"]) for row in problems_of(result.folder)}
    assert found == {
        ("size.nii.gz", "label-shape"),
        ("place.nii.gz", "label-affine"),
        ("halves.nii.gz", "label-values"),
        ("cut.nii.gz", "label-unreadable"),
        ("stray.nii.gz", "label-without-image"),
    }


def test_pictures_and_their_labels_are_indexed(tmp_path: Path) -> None:
    for folder, mode in (("images", "RGB"), ("labels", "L")):
        (tmp_path / folder).mkdir()
        Image.new(mode, (7, 5), 1).save(tmp_path / folder / "x.png")
    result = build_index(tmp_path / "images", tmp_path / "out", labels=tmp_path / "labels", key=KEY)
    [row] = Index.open(result).rows
    assert (row.kind, row.shape, row.channels, row.spacing_mm, row.labelled) == ("rgb2d", (5, 7), 3, None, True)


def test_jpegs_are_images_and_no_label_maps(tmp_path: Path) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.arange(120, dtype=np.uint8).reshape(10, 12)).save(tmp_path / folder / "a.jpeg")
    index = Index.open(build_index(tmp_path / "images", tmp_path / "out", labels=tmp_path / "labels", key=KEY))
    assert [(row.format, row.kind, row.shape, row.labelled) for row in index.rows] == [
        ("jpeg", "image2d", (10, 12), False)
    ]
    assert {row["code"] for row in problems_of(tmp_path / "out")} == {"format-unsupported", "subject-by-name"}


def test_a_series_kept_in_two_folders_is_one_image(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for path in sorted((DEMO / "ct").glob("CT*")):
            dataset = pydicom.dcmread(path)
            dataset.SeriesInstanceUID = "1.2.3"
            dataset.save_as(tmp_path / name / path.name)
    result = build_index([tmp_path / "a", tmp_path / "b"], tmp_path / "out", key=KEY)
    assert result.images == 1
    assert result.problems == {"dicom-patient-unnamed": 1, "image-duplicate": 1}


def test_an_unreadable_neighbour_is_a_warning_on_the_series(tmp_path: Path) -> None:
    for path in sorted((DEMO / "ct").glob("CT*")):
        shutil.copyfile(path, tmp_path / path.name)
    (tmp_path / "bad").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 40)
    result = build_index(tmp_path, tmp_path.parent / "out-neighbour", key=KEY)
    assert result.images == 1
    assert result.problems["dicom-neighbour-unreadable"] == 1
    [row] = Index.open(result).rows
    assert "dicom-neighbour-unreadable" in row.problems


def damaged(path: Path, changes: dict[int, bytes]) -> Path:
    """A NIfTI file with bytes of its header changed; offsets are those of nifti1.h."""
    raw = bytearray(nifti(path).read_bytes())
    for offset, value in changes.items():
        raw[offset : offset + len(value)] = value
    path.write_bytes(raw)
    return path


QFORM_ALONE = {252: struct.pack("<hh", 1, 0)}


def test_headers_that_no_reader_foresaw_leave_the_other_images_indexed(tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    nifti(folder / "good.nii")
    damaged(folder / "qfac.nii", QFORM_ALONE | {76: struct.pack("<f", 7)})
    damaged(folder / "offset.nii", {108: struct.pack("<f", math.nan)})
    for n, path in enumerate(sorted((DEMO / "ct").glob("CT*"))):
        dataset = pydicom.dcmread(path)
        element = dataset["RescaleSlope"]
        dataset["RescaleSlope"] = DataElement(element.tag, "DS", "nan", validation_mode=pydicom.config.IGNORE)
        (folder / "ct").mkdir(exist_ok=True)
        with warnings.catch_warnings(action="ignore"):
            dataset.save_as(folder / "ct" / f"{n}.dcm")
    result = build_index(folder, tmp_path / "out", key=KEY)
    assert result.images == 1
    assert result.problems == {"dicom-rescale-missing": 1, "file-corrupt": 2, "subject-by-name": 1}


@pytest.mark.parametrize(
    ("keyword", "value"), [("PixelSpacing", ["1e-200", "1"]), ("PixelSpacing", ["1e200", "1"]), ("PatientAge", "²²²Y")]
)
def test_no_value_of_a_dicom_header_ends_an_index(tmp_path: Path, keyword: str, value: Any) -> None:
    folder = tmp_path / "scans"
    nifti(folder / "sub-1.nii")
    for n, path in enumerate(sorted((DEMO / "ct").glob("CT*"))):
        with warnings.catch_warnings(action="ignore"):
            dataset = pydicom.dcmread(path)
            dataset.add(DataElement(keyword, dictionary_VR(keyword), value, validation_mode=pydicom.config.IGNORE))
            dataset.save_as(folder / f"{n}.dcm")
    result = build_index(folder, tmp_path / "out", key=KEY)
    assert {row.format for row in Index.open(result).rows} >= {"nifti"}


def test_a_label_map_that_no_reader_foresaw_is_left_out(tmp_path: Path) -> None:
    nifti(tmp_path / "images" / "x.nii")
    damaged(tmp_path / "labels" / "x.nii", {108: struct.pack("<f", math.nan)})
    result = build_index(tmp_path / "images", tmp_path / "out", labels=tmp_path / "labels", key=KEY)
    assert (result.images, result.labelled, result.problems["label-unreadable"]) == (1, 0, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux alone")
def test_a_name_that_is_no_text_is_a_problem_and_the_rest_is_indexed(tmp_path: Path) -> None:
    good = nifti(tmp_path / "a" / "good.nii.gz")
    shutil.copyfile(good, os.fsdecode(bytes(tmp_path / "a") + b"/caf\xe9.nii.gz"))
    result = build_index(tmp_path / "a", tmp_path / "out", key=KEY)
    assert (result.images, result.problems["file-name-encoding"]) == (1, 1)
    assert r"caf\udce9" in (tmp_path / "out" / "private" / "problems.csv").read_text("utf-8")


def subjects_of(result: IndexResult) -> dict[str, str]:
    """Subject ids by path below the test's folder of scans."""
    index = Index.open(result)
    names = {row.image_id: Path(index.location(row.image_id).paths[0]) for row in index.rows}
    return {str(names[row.image_id]).partition("/scans/")[2]: row.subject_id for row in index.rows}


@pytest.mark.parametrize(
    ("one", "two"),
    [
        pytest.param("sub-01_ses-1_T1w.nii.gz", "sub-01_ses-2_T1w.nii.gz", id="in the name"),
        pytest.param("sub-01/ses-1/T1w.nii.gz", "sub-01/ses-2/T1w.nii.gz", id="in a folder above"),
        pytest.param("sub-01/anat/T1w.nii.gz", "raw_sub-01_T2w.nii.gz", id="once in a folder, once in the name"),
        pytest.param("sub-02/sub-01_T1w.nii.gz", "sub-01.nii.gz", id="the name before the folder"),
    ],
)
def test_a_bids_subject_names_the_patient(tmp_path: Path, one: str, two: str) -> None:
    scans = tmp_path / "scans"
    affine = np.eye(4)
    for n, name in enumerate((one, two, "sub-03/T1w.nii.gz")):
        nifti(scans / name, np.full((3, 4, 5), n, np.int16), affine)
    result = build_index(scans, tmp_path / "out", key=KEY)
    found = subjects_of(result)
    assert found[one] == found[two] == Names(KEY).of("subject", "sub-01")
    assert found["sub-03/T1w.nii.gz"] == Names(KEY).of("subject", "sub-03")
    assert result.problems == {}


def test_a_subject_known_by_its_files_name_alone_is_a_warning(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nii.gz"):
        nifti(tmp_path / "scans" / name)
    result = build_index(tmp_path / "scans", tmp_path / "out", key=KEY)
    assert result.subjects == 2
    assert {row.problems for row in Index.open(result).rows} == {("subject-by-name",)}
    assert str(result).count("subject-by-name") == 1


def test_one_name_in_several_folders_is_one_subject_and_a_warning(tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    for n in range(4):
        nifti(scans / f"sub{n}" / "T1w.nii.gz", np.full((3, 4, 5), n, np.int16))
    nifti(scans / "sub0" / "T2w.nii.gz")
    result = build_index(scans, tmp_path / "out", key=KEY)
    assert (result.images, result.subjects, result.problems["subject-shared"]) == (5, 2, 4)
    rows = [row for row in Index.open(result).rows if "subject-shared" in row.problems]
    assert len({(row.subject_id, row.split) for row in rows}) == 1
    table = tmp_path / "patients.tsv"
    table.write_text("case\tpatient\nT1w\tP1\n")
    named = build_index(scans, tmp_path / "named", subjects=table, key=KEY)
    assert named.problems == {"subject-missing": 1}


def test_indexes_of_different_keys_can_be_told_apart(tmp_path: Path) -> None:
    nifti(tmp_path / "a" / "x.nii.gz")
    checks = []
    for n, key in enumerate((KEY, KEY, KEY[::-1])):
        checks.append(Index.open(build_index(tmp_path / "a", tmp_path / str(n), key=key)).key_check)
    assert checks[0] == checks[1] != checks[2]
    assert all(re.fullmatch("[0-9a-f]{16}", check) for check in checks)


def test_an_empty_folder_is_one_clear_error_and_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image was found"):
        build_index(tmp_path / "empty", tmp_path / "out", key=KEY)
    (tmp_path / "empty" / "x.nii.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"no image can be used.*file-empty"):
        build_index(tmp_path / "empty", tmp_path / "out", key=KEY)
    assert {path.name for path in tmp_path.iterdir()} == {"empty"}


def test_a_filled_output_is_refused_and_left_alone(tmp_path: Path) -> None:
    nifti(tmp_path / "a" / "x.nii.gz")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("kept")
    with pytest.raises(MedsslError, match="already there"):
        build_index(tmp_path / "a", tmp_path / "out", key=KEY)
    assert (tmp_path / "out" / "precious").read_text() == "kept"
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_an_output_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    nifti(tmp_path / "a" / "x.nii.gz")
    (tmp_path / "file").write_text("")
    with pytest.raises(MedsslError):
        build_index(tmp_path / "a", tmp_path / "file" / "out", key=KEY)


def test_progress_ends_at_its_total(tmp_path: Path) -> None:
    nifti(tmp_path / "a" / "x.nii.gz")
    calls: list[tuple[str, int, int]] = []
    build_index(tmp_path / "a", tmp_path / "out", key=KEY, progress=lambda *call: calls.append(call))
    assert calls[-1] == ("reading headers", 1, 1)
