"""NIfTI is read as nibabel reads it, and refused where its place or its voxels cannot be trusted."""

from __future__ import annotations

import contextlib
import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medssl.demo_data import demo_folder
from medssl.index import Location
from medssl.reading import ReadError, read_header, read_label, read_voxels
from medssl.reading.nifti import nifti_digest, read_nifti, read_nifti_header

SHIPPED = sorted((demo_folder() / "hippocampus").rglob("*.nii.gz"))
ONE = SHIPPED[0]


def location(path: Path) -> Location:
    return Location((str(path),), "nifti")


def test_shipped_volumes_and_affines_are_nibabels() -> None:
    for path in SHIPPED:
        voxels, reference = read_voxels(location(path)), nib.load(path)
        np.testing.assert_array_equal(voxels.array, np.asanyarray(reference.dataobj))
        np.testing.assert_array_equal(voxels.affine, reference.affine)
        header = read_header(location(path))
        assert header.shape == reference.shape
        np.testing.assert_array_equal(header.affine, reference.affine)


@pytest.mark.parametrize("folder", ["spinal-cord-multicontrast", "totalsegmentator", "open-ms-lesions"])
def test_other_volumes_are_nibabels_or_refused_by_name(shared: Path, folder: str) -> None:
    read = 0
    for path in sorted((shared / folder).rglob("*.nii.gz")):
        try:
            voxels = read_voxels(location(path))
        except ReadError as error:
            if error.code not in {"nifti-dimensions", "voxels-not-finite", "voxels-not-numbers"}:
                raise
            continue
        reference = nib.load(path)
        np.testing.assert_allclose(voxels.array, reference.get_fdata().reshape(voxels.array.shape), rtol=1e-6)
        np.testing.assert_array_equal(voxels.affine, reference.affine)
        read += 1
    assert read > 0


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("dtype", ["u1", "i1", "<i2", ">i2", "u2", "i4", ">f4", "f8"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_every_number_type_and_byte_order_gives_nibabels_values(
    tmp_path: Path, kind: Any, dtype: str, suffix: str
) -> None:
    array = np.random.default_rng(0).integers(0, 100, (3, 4, 5)).astype(dtype)
    header = kind.header_class(endianness=">" if dtype.startswith(">") else "<")
    header.set_data_dtype(dtype)
    nib.save(kind(array, np.diag([2.0, 3.0, 4.0, 1.0]), header), tmp_path / f"x{suffix}")
    voxels = read_voxels(location(tmp_path / f"x{suffix}"))
    np.testing.assert_array_equal(voxels.array, array)
    np.testing.assert_array_equal(voxels.affine, np.diag([2.0, 3.0, 4.0, 1.0]))
    assert voxels.array.dtype in (np.uint8, np.int16, np.int32, np.float32)


@pytest.mark.parametrize(
    ("slope", "intercept", "dtype"),
    [(1.0, -1024.0, np.int16), (1000.0, 0.0, np.int32), (0.5, 0.0, np.float32), (0.0, 7.0, np.int16)],
)
def test_voxels_are_rescaled_once_and_stay_integers_where_the_scale_is_whole(
    tmp_path: Path, slope: float, intercept: float, dtype: type
) -> None:
    stored = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    path = patched(tmp_path, lambda raw: raw.__setitem__(slice(112, 120), struct.pack("<ff", slope, intercept)), stored)
    array = read_voxels(location(path)).array
    assert array.dtype == dtype
    np.testing.assert_array_equal(array, nib.load(path).get_fdata())


def patched(folder: Path, change: Callable[[bytearray], None], array: Any = None) -> Path:
    """A NIfTI-1 file of nibabel's with some header bytes changed; offsets are those of nifti1.h."""
    array = np.arange(60, dtype=np.int16).reshape(3, 4, 5) if array is None else array
    raw = bytearray(nib.Nifti1Image(array, np.diag([1.0, 1.0, 1.0, 1.0])).to_bytes())
    change(raw)
    path = folder / "patched.nii"
    path.write_bytes(raw)
    return path


def put(offset: int, form: str, *values: float) -> Callable[[bytearray], None]:
    return lambda raw: raw.__setitem__(slice(offset, offset + struct.calcsize(form)), struct.pack(form, *values))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        pytest.param(put(280, "<4f", np.nan, 0, 0, 0), "affine-not-finite", id="nan in srow_x"),
        pytest.param(put(296, "<4f", 1, 0, 0, 0), "affine-singular", id="srow_y equals srow_x"),
        pytest.param(put(280, "<4f", 0, 0, 0, 0), "affine-singular", id="axis without length"),
        pytest.param(put(280, "<4f", 1, 0.2, 0, 0), "affine-sheared", id="sheared srow_x"),
        pytest.param(put(252, "<hh", 0, 0), "nifti-orientation-unknown", id="no form code"),
        pytest.param(put(40, "<8h", 4, 3, 4, 1, 5, 1, 1, 1), "nifti-dimensions", id="four dimensions"),
        pytest.param(put(40, "<8h", 2, 12, 5, 1, 1, 1, 1, 1), "nifti-dimensions", id="two dimensions"),
        pytest.param(put(40, "<8h", 3, 3, 4, 0, 1, 1, 1, 1), "shape-empty", id="no slices"),
        pytest.param(put(40, "<8h", 3, 3, -4, 5, 1, 1, 1, 1), "file-corrupt", id="negative size"),
        pytest.param(put(40, "<8h", 3, 3, 4, 6, 1, 1, 1, 1), "file-truncated", id="more slices than bytes"),
        pytest.param(put(40, "<8h", 3, 30000, 30000, 30000, 1, 1, 1, 1), "file-truncated", id="terabytes claimed"),
        pytest.param(put(123, "<b", 1), "nifti-units", id="metres"),
        pytest.param(put(70, "<hh", 128, 24), "voxels-not-numbers", id="colours"),
        pytest.param(put(70, "<hh", 32, 64), "voxels-not-numbers", id="complex numbers"),
        pytest.param(put(70, "<hh", 77, 16), "file-corrupt", id="unknown type"),
        pytest.param(put(70, "<hh", 4, 8), "file-corrupt", id="type and bitpix disagree"),
        pytest.param(put(108, "<f", 0), "file-corrupt", id="voxels within the header"),
        pytest.param(put(344, "<4s", b"ni1\0"), "nifti-pair", id="header of a pair"),
    ],
)
def test_a_header_that_cannot_be_trusted_is_refused(
    tmp_path: Path, change: Callable[[bytearray], None], code: str
) -> None:
    path = patched(tmp_path, change)
    for refuse in (read_voxels, lambda place: (read_header(place), nifti_digest(place.paths[0]))):
        with pytest.raises(ReadError) as caught:
            refuse(location(path))
        assert caught.value.code == code
        assert str(path) not in caught.value.message


def test_pixdim_that_contradicts_the_affine_is_a_warning(tmp_path: Path) -> None:
    path = patched(tmp_path, put(80, "<3f", 1, 1, 2))
    assert "nifti-spacing-differs" in read_header(location(path)).warnings


def test_a_qform_elsewhere_than_the_sform_is_a_warning(tmp_path: Path) -> None:
    path = patched(tmp_path, put(268, "<3f", 50, 0, 0))
    raw = bytearray(path.read_bytes())
    raw[252:254] = struct.pack("<h", 1)
    path.write_bytes(raw)
    assert read_header(location(path)).warnings == ("nifti-forms-differ",)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9, 0.999])
def test_a_truncated_gzip_is_refused_wherever_it_ends(tmp_path: Path, share: float) -> None:
    content = ONE.read_bytes()
    path = tmp_path / "cut.nii.gz"
    path.write_bytes(content[: int(len(content) * share)])
    for read in (nifti_digest, lambda name: read_voxels(location(Path(name)))):
        with pytest.raises(ReadError) as caught:
            read(str(path))
        assert caught.value.code == "file-truncated"


def test_a_flipped_byte_in_a_gzip_is_refused(tmp_path: Path) -> None:
    content = bytearray(ONE.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path = tmp_path / "flipped.nii.gz"
    path.write_bytes(content)
    for read in (nifti_digest, lambda name: read_voxels(location(Path(name)))):
        with pytest.raises(ReadError) as caught:
            read(str(path))
        assert caught.value.code in {"file-corrupt", "file-truncated"}


def test_voxels_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    array = np.zeros((3, 4, 5), np.float32)
    array[1, 2, 3] = np.inf
    with pytest.raises(ReadError) as caught:
        read_voxels(location(patched(tmp_path, lambda raw: None, array)))
    assert caught.value.code == "voxels-not-finite"


def test_the_digest_is_blind_to_compression(tmp_path: Path) -> None:
    plain = tmp_path / "plain.nii"
    plain.write_bytes(gzip.decompress(ONE.read_bytes()))
    assert nifti_digest(str(plain)) == nifti_digest(str(ONE))


def test_labels_are_small_whole_numbers_or_refused(tmp_path: Path) -> None:
    whole = patched(tmp_path, lambda raw: None, np.arange(60, dtype=np.float32).reshape(3, 4, 5))
    assert read_label(location(whole)).array.dtype == np.uint8
    for bad in (np.full((3, 4, 5), 0.5, np.float32), np.full((3, 4, 5), -1, np.int16)):
        with pytest.raises(ReadError) as caught:
            read_label(location(patched(tmp_path, lambda raw: None, bad)))
        assert caught.value.code == "label-values"


def by_qform(folder: Path, *changes: Callable[[bytearray], None], sform_code: int = 0) -> Path:
    """A file placed by its qform, with the bytes of `changes`; the quaternion is the identity."""

    def change(raw: bytearray) -> None:
        raw[252:256] = struct.pack("<hh", 1, sform_code)
        for one in changes:
            one(raw)

    return patched(folder, change)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(put(76, "<f", 0), id="qfac of 0"),
        pytest.param(put(76, "<f", -1), id="qfac of -1"),
        pytest.param(put(80, "<3f", 2, -3, 4), id="negative pixdim"),
        pytest.param(put(76, "<4f", 0, -2, 3, 4), id="qfac of 0 and negative pixdim"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_qform_is_nibabels_also_where_its_header_needs_mending(
    tmp_path: Path, change: Callable[[bytearray], None]
) -> None:
    path = by_qform(tmp_path, change)
    np.testing.assert_array_equal(read_voxels(location(path)).affine, nib.load(path).affine)
    np.testing.assert_array_equal(read_header(location(path)).affine, nib.load(path).affine)


@pytest.mark.parametrize("qfac", [5.0, np.nan])
def test_a_qform_without_a_qfac_is_refused_unless_a_sform_stands_in(tmp_path: Path, qfac: float) -> None:
    with pytest.raises(ReadError) as caught:
        read_header(location(by_qform(tmp_path, put(76, "<f", qfac))))
    assert caught.value.code == "file-corrupt"
    header = read_header(location(by_qform(tmp_path, put(76, "<f", qfac), sform_code=1)))
    assert header.warnings == ("nifti-forms-differ",)
    np.testing.assert_array_equal(header.affine, np.eye(4))


@pytest.mark.parametrize("offset", [np.nan, np.inf, -np.inf, -8])
def test_voxels_that_begin_nowhere_are_refused(tmp_path: Path, offset: float) -> None:
    path = patched(tmp_path, put(108, "<f", offset))
    for read in (nifti_digest, lambda name: read_voxels(location(Path(name)))):
        with pytest.raises(ReadError) as caught:
            read(str(path))
        assert (caught.value.code, "vox_offset" in caught.value.message) == ("file-corrupt", True)


def test_no_byte_of_a_header_raises_anything_but_a_read_error(tmp_path: Path) -> None:
    """Each byte of the header set to each of some awkward values."""
    for byte in range(348):
        for value in (0x00, 0x7F, 0x80, 0xFF):
            path = str(patched(tmp_path, put(byte, "<B", value)))
            for read in (nifti_digest, read_nifti_header, read_nifti):
                with contextlib.suppress(ReadError):
                    read(path)
