"""Images are found by content, in any mixture; what is none is passed by, what is broken is named."""

from __future__ import annotations

import gzip
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from medssl.demo_data import demo_folder
from medssl.errors import UsageError
from medssl.ingest.scan import case_name, find_images

NIFTI = demo_folder() / "hippocampus" / "images" / "hippocampus_001.nii.gz"
SLICE = sorted((demo_folder() / "ct").glob("CT*"))[0]


def test_names_and_compression_do_not_matter(tmp_path: Path) -> None:
    shutil.copyfile(NIFTI, tmp_path / "no suffix")
    (tmp_path / "plain.txt").write_bytes(gzip.decompress(NIFTI.read_bytes()))
    shutil.copyfile(SLICE, tmp_path / "slice.nii.gz")
    Image.new("L", (4, 4)).save(tmp_path / "picture", format="PNG")
    Image.new("L", (4, 4)).save(tmp_path / "photo.png", format="JPEG")
    found = find_images([tmp_path])
    assert {path.name: kind for path, kind in found.files} == {
        "no suffix": "nifti",
        "plain.txt": "nifti",
        "picture": "png",
        "photo.png": "jpeg",
    }
    assert [path.name for path in found.dicom] == ["slice.nii.gz"]
    assert not found.problems


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        pytest.param("a.nii.gz", b"", "file-empty", id="empty image"),
        pytest.param("a.nii.gz", b"\x1f\x8b\x08\0\0\0", "file-truncated", id="gzip cut in its header"),
        pytest.param("a.nii.gz", gzip.compress(b"a page, no image" * 90), "file-not-as-named", id="gzip of text"),
        pytest.param("a.nii.gz", gzip.compress(bytes(5000)), "file-not-as-named", id="gzip of zeros"),
        pytest.param("a.nii.gz", gzip.compress(b"short"), "file-not-as-named", id="gzip of little, and whole"),
        pytest.param("a.nii.gz", gzip.compress(os.urandom(300))[:99], "file-truncated", id="gzip cut early"),
        pytest.param("a.nii", b"not found", "file-not-as-named", id="a message named nii"),
        pytest.param("a.nii", b"\x5c\x01\0\0" + bytes(90), "file-truncated", id="a header cut off"),
        pytest.param("a.png", b"<html>" + b" " * 500, "file-not-as-named", id="a web page named png"),
        pytest.param("a", b"\x08\0\x05\0CS\x0a\0ISO_IR 100" + b"\0" * 200, "dicom-no-preamble", id="bare DICOM"),
        pytest.param("a.jpg", b"<html>" + b" " * 500, "file-not-as-named", id="a web page named jpg"),
        pytest.param("a.gif", b"GIF89a" + b"\0" * 200, "format-unsupported", id="GIF"),
        pytest.param("a.mha", b"ObjectType = Image\n", "format-unsupported", id="MetaImage"),
        pytest.param("a.xyz", b"\x01\x02\0\x03" * 100, "format-unknown", id="unknown binary"),
    ],
)
def test_what_may_have_been_meant_as_an_image_is_named(tmp_path: Path, name: str, content: bytes, code: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert [problem.code for problem in find_images([tmp_path]).problems] == [code]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        pytest.param("README.md", "Größe\n".encode(), id="text"),
        pytest.param("LICENSE", b"terms", id="text without suffix"),
        pytest.param("a.tar.gz", gzip.compress(b"\0" * 600), id="archive"),
        pytest.param("scores.parquet", b"PAR1\0\0", id="table"),
        pytest.param(".a.nii.gz", b"\x1f\x8b\0", id="hidden file"),
        pytest.param("._a.nii.gz", b"\0\x05\x16\x07", id="companion file of macOS"),
        pytest.param("notes", b"", id="empty file of no promise"),
    ],
)
def test_what_is_known_to_be_no_image_is_passed_by(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    found = find_images([tmp_path])
    assert [*found.files, *found.dicom, *found.problems] == []


def test_each_file_is_found_once_through_links_and_overlapping_paths(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    shutil.copyfile(NIFTI, tmp_path / "a" / "b" / "x.nii.gz")
    (tmp_path / "a" / "loop").symlink_to(tmp_path / "a")
    (tmp_path / "link.nii.gz").symlink_to(tmp_path / "a" / "b" / "x.nii.gz")
    assert len(find_images([tmp_path, tmp_path / "a", tmp_path / "a" / "b" / "x.nii.gz"]).files) == 1


def test_a_broken_link_is_named(tmp_path: Path) -> None:
    (tmp_path / "gone.nii.gz").symlink_to(tmp_path / "nowhere")
    assert [problem.code for problem in find_images([tmp_path]).problems] == ["file-unreadable"]


def test_a_path_that_does_not_exist_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        find_images([tmp_path / "scnas"])


@pytest.mark.parametrize("name", ["case_01.nii.gz", "case_01.nii", "case_01.png", "case_01.JPG", "case_01"])
def test_a_cases_name_has_no_extension(name: str) -> None:
    assert case_name(Path("folder") / name) == "case_01"
