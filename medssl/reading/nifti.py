"""NIfTI-1 and NIfTI-2 in one file, plain or gzipped.

Field names are those of nifti1.h (https://nifti.nimh.nih.gov/nifti-1). nibabel takes the header apart; the checks and
the voxels are read here, because nibabel mends some headers in silence (a pixdim of 0 becomes 1).
"""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from .. import geometry
from .numbers import rescaled
from .source import Header, ReadError, Voxels

_CHUNK = 1 << 20
_HEADER_BYTES = 540  # NIfTI-2; NIfTI-1 has 348 and the magic ends there


def is_nifti(first: bytes) -> bool:
    """Say whether decompressed bytes begin a NIfTI header, single file or pair, of version 1 or 2."""
    return first[344:348] in (b"n+1\0", b"ni1\0") or first[4:8] in (b"n+2\0", b"ni2\0")


def read_nifti_header(path: str) -> Header:
    """Read the header alone.

    Raises:
        ReadError: the file cannot be read or its geometry cannot be trusted.
    """
    with _opened(path) as file:
        return _checked(_parsed(file.read(_HEADER_BYTES), path), path)


def nifti_digest(path: str) -> str:
    """Hash the decompressed content to its end, so that a copy compressed otherwise is found to be the same.

    Raises:
        ReadError: the content ends before its data does, or its checksum is wrong.
    """
    digest, length = hashlib.sha256(), 0
    with _opened(path) as file:
        first = file.read(_HEADER_BYTES)
        header = _parsed(first, path)
        while first:
            digest.update(first)
            length += len(first)
            first = file.read(_CHUNK)
    _long_enough(header, length, path)
    return digest.hexdigest()


def read_nifti(path: str) -> Voxels:
    """Read the voxels, (i, j, k), rescaled by scl_slope and scl_inter.

    Raises:
        ReadError: as `read_nifti_header`, or the voxels are cut off, not finite or not numbers.
    """
    with _opened(path) as file:
        first = file.read(_HEADER_BYTES)
        header = _parsed(first, path)
        checked = _checked(header, path)
        _check_storage(header, path)
        content, end = bytearray(first), _data_end(header)
        # In pieces, because the header may claim more than there is; past the voxels too, for gzip's checksum is there.
        while piece := file.read(_CHUNK):
            content += piece[: max(0, end - len(content))]
    _long_enough(header, len(content), path)
    stored = np.frombuffer(content, header.get_data_dtype(), math.prod(checked.shape), int(header["vox_offset"]))
    slope, intercept = _scale(header, path)
    try:
        return Voxels(rescaled(stored.reshape(checked.shape, order="F"), slope, intercept), checked.affine)
    except ReadError as error:
        raise ReadError(error.code, error.message, where=path) from error


@contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    """Open plain or gzipped content; what goes wrong while it is read becomes a ReadError."""
    from isal import igzip

    try:
        with Path(path).open("rb") as raw:
            gzipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if gzipped:
                with igzip.GzipFile(fileobj=raw, mode="rb") as file:
                    yield cast("BinaryIO", file)
            else:
                yield raw
    except EOFError as error:
        raise ReadError("file-truncated", "the compressed data ends too early", where=path) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise ReadError("file-corrupt", "the compressed data is damaged", where=path) from error
    except ReadError:
        raise
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise ReadError("file-unreadable", f"the file cannot be opened: {reason}", where=path) from error
    except Exception as error:
        if type(error).__name__ != "IsalError":  # isal's own error, which its type stubs do not know as one
            raise
        raise ReadError("file-corrupt", "the compressed data is damaged", where=path) from error


def _parsed(first: bytes, path: str) -> Any:
    """Take the header apart without mending it."""
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    if len(first) < 348 or not is_nifti(first):
        raise ReadError("file-truncated", f"{len(first)} bytes hold no whole NIfTI header", where=path)
    if first[344:348] == b"ni1\0" or first[4:8] == b"ni2\0":
        raise ReadError("nifti-pair", "this header's voxels are in another file", where=path)
    version, size = (Nifti1Header, 348) if first[344:348] == b"n+1\0" else (Nifti2Header, 540)
    if len(first) < size:
        raise ReadError("file-truncated", f"{len(first)} bytes hold no whole NIfTI-2 header", where=path)
    header = version(first[:size], check=False)
    if int(header["sizeof_hdr"]) != size:
        raise ReadError("file-corrupt", f"sizeof_hdr is {int(header['sizeof_hdr'])}, wanted {size}", where=path)
    if not 1 <= int(header["dim"][0]) <= 7 or any(int(n) < 0 for n in header["dim"][1 : 1 + int(header["dim"][0])]):
        raise ReadError("file-corrupt", f"dim is {[int(n) for n in header['dim']]}", where=path)
    return header


def _checked(header: Any, path: str) -> Header:
    """Judge shape, type, units and affine."""
    shape = [int(n) for n in header["dim"][1 : 1 + int(header["dim"][0])]]
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    if len(shape) != 3:
        raise ReadError("nifti-dimensions", f"the shape is {' x '.join(map(str, shape))}, wanted i x j x k", where=path)
    if 0 in shape:
        raise ReadError("shape-empty", f"the shape is {' x '.join(map(str, shape))}", where=path)
    dtype = _dtype(header, path)
    if dtype.kind not in "biuf":
        raise ReadError("voxels-not-numbers", f"voxels are of NIfTI type {int(header['datatype'])}", where=path)
    unit = int(header["xyzt_units"]) & 7  # nifti1.h: 0 unknown, 1 metre, 2 millimetre, 3 micron
    if unit in (1, 3):
        raise ReadError("nifti-units", f"lengths are in {'metres' if unit == 1 else 'micrometres'}", where=path)
    affine, warnings = _affine(header, shape, path)
    return Header("nifti", "volume", tuple(shape), geometry.spacing_of(affine), affine, 1, dtype.name, "", warnings)


def _affine(header: Any, shape: list[int], path: str) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Return the sform where it is set, else the qform, as nibabel does; with warnings where they disagree."""
    from nibabel.spatialimages import HeaderDataError

    qform_code, sform_code = int(header["qform_code"]), int(header["sform_code"])
    if qform_code <= 0 and sform_code <= 0:
        raise ReadError("nifti-orientation-unknown", "qform_code and sform_code are 0", where=path)
    try:
        qform = _qform(header) if qform_code > 0 else None
    except (HeaderDataError, ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
        if sform_code <= 0:
            raise ReadError("file-corrupt", "the qform's quaternion or qfac is no rotation", where=path) from error
        qform = np.full((4, 4), np.nan)
    affine = np.asarray(header.get_sform(coded=False), dtype=np.float64) if sform_code > 0 else qform
    assert affine is not None
    check_affine(affine, path)
    warnings = []
    pixdim = np.abs(np.asarray(header["pixdim"][1:4], dtype=np.float64))
    if not np.allclose(pixdim, geometry.spacing_of(affine), rtol=0.01, atol=0):
        warnings.append("nifti-spacing-differs")
    if sform_code > 0 and qform is not None:
        usable = geometry.is_finite(qform) and not geometry.is_singular(qform)
        if not usable or not geometry.same_place(affine, qform, shape, tolerance=0.5):
            warnings.append("nifti-forms-differ")
    return affine, tuple(warnings)


def _qform(header: Any) -> NDArray[np.float64]:
    """Return the qform: qfac (pixdim[0]) of 0 means 1 (nifti1.h), a negative pixdim its size, as nibabel loads them."""
    mended = header.copy()
    if mended["pixdim"][0] == 0:
        mended["pixdim"][0] = 1
    mended["pixdim"][1:4] = np.abs(mended["pixdim"][1:4])
    return np.asarray(mended.get_qform(coded=False), dtype=np.float64)


def check_affine(affine: NDArray[np.float64], where: str = "") -> None:
    """Raise ReadError for an affine that is not finite, singular or sheared."""
    if not geometry.is_finite(affine):
        raise ReadError("affine-not-finite", "the affine holds NaN or infinity", where=where)
    if geometry.is_singular(affine):
        lengths = ", ".join(f"{length:g}" for length in np.linalg.norm(affine[:3, :3], axis=0))
        raise ReadError("affine-singular", f"the voxel axes, {lengths} mm long, span no volume", where=where)
    if geometry.is_sheared(affine):
        raise ReadError("affine-sheared", "two voxel axes are not perpendicular", where=where)


def _dtype(header: Any, path: str) -> np.dtype[Any]:
    from nibabel.spatialimages import HeaderDataError

    try:
        dtype: np.dtype[Any] = np.dtype(header.get_data_dtype())
    except (HeaderDataError, KeyError) as error:
        raise ReadError("file-corrupt", f"NIfTI has no datatype {int(header['datatype'])}", where=path) from error
    return dtype


def _scale(header: Any, path: str) -> tuple[float, float]:
    """Return slope and intercept; a slope of 0, or one that is not finite, means that there is none (nifti1.h)."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not math.isfinite(slope):
        return 1.0, 0.0
    if not math.isfinite(intercept):
        raise ReadError("file-corrupt", f"scl_inter is {intercept} beside a slope of {slope:g}", where=path)
    return slope, intercept


def _data_end(header: Any) -> int:
    shape = [int(n) for n in header["dim"][1 : 1 + int(header["dim"][0])]]
    return int(header["vox_offset"]) + math.prod(shape) * (int(header["bitpix"]) // 8)


def _check_storage(header: Any, path: str) -> None:
    """Refuse a header that does not say where its voxels lie, before that is reckoned with."""
    offset, bits = float(header["vox_offset"]), int(header["bitpix"])
    dtype = _dtype(header, path)
    if bits != dtype.itemsize * 8 or not math.isfinite(offset) or offset < int(header["sizeof_hdr"]):
        raise ReadError("file-corrupt", f"bitpix is {bits} and vox_offset {offset:g}", where=path)


def _long_enough(header: Any, length: int, path: str) -> None:
    _check_storage(header, path)
    if length < _data_end(header):
        raise ReadError("file-truncated", f"{length} of {_data_end(header)} bytes are there", where=path)
