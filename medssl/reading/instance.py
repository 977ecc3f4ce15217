"""One DICOM file of CT or MR: the facts that decide whether it fits into a volume, and its stored pixels.

Clauses of the standard are cited as PS3.3 (information objects) and PS3.5 (encoding), https://dicom.nema.org.
"""

from __future__ import annotations

import hashlib
import io
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .source import ReadError

CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
_DICOMDIR = "1.2.840.10008.1.3.10"
_BEGINS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51")  # SOI of JPEG and JPEG-LS, SOC of JPEG 2000
# Enhanced CT, Legacy Converted Enhanced CT, Enhanced MR, Enhanced MR Color, Legacy Converted Enhanced MR
_ENHANCED = (f"{CT}.1", f"{CT}.2", f"{MR}.1", f"{MR}.3", f"{MR}.4")


@dataclass(frozen=True)
class Instance:
    """What one file says. Identifiers stay in memory: they are hashed before anything is written.

    Attributes:
        position: of the first voxel's centre in LPS+ mm, (3,).
        orientation: directions in LPS+ of growing column and of growing row index, (6,).
        pixel_spacing: distance of rows, distance of columns, in mm: in this order (PS3.3 10.7.1.3).
        tilt: Gantry/Detector Tilt in degrees.
        digest: hash of stored pixels, place and scale; without UIDs, so that an anonymised copy is found.
        flaw: code of what keeps this file from being a slice, with the message; empty for a good one.
        uid: SOP Instance UID.
    """

    path: str
    sop_class: str
    modality: str
    patient: str
    study: str
    series: str
    frame: str
    shape: tuple[int, int]
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    pixel_spacing: tuple[float, ...] | None
    thickness: float | None
    tilt: float
    slope: float | None
    intercept: float | None
    rescale_type: str
    bits: tuple[int, int, bool]
    compressed: bool
    lossy: bool
    groups: tuple[tuple[str, str], ...]
    scanner: str
    digest: str
    flaw: tuple[str, str] | None
    uid: str = ""


def read_dataset(path: str) -> Any:
    """Read a DICOM file whole, without decoding its pixels.

    Raises:
        ReadError: it cannot be opened or taken apart.
    """
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        content = Path(path).read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # values that break their VR's rules; those we use are checked below
            try:
                return pydicom.dcmread(io.BytesIO(content))
            except EOFError:  # without its pixels the file can still say to which series it belongs
                return pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True)
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise ReadError("file-unreadable", f"the file cannot be opened: {reason}", where=path) from error
    except InvalidDicomError as error:
        raise ReadError("dicom-no-preamble", "the DICM prefix is missing", where=path) from error
    except EOFError as error:
        raise ReadError("file-truncated", "the file ends within an element", where=path) from error
    except Exception as error:  # pydicom raises nearly anything on damaged bytes
        raise ReadError("file-corrupt", f"the elements cannot be read ({type(error).__name__})", where=path) from error


def instance_of(dataset: Any, path: str) -> Instance:
    """Gather the facts of one file.

    Raises:
        ReadError: an element that is needed holds what it must not.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _gathered(dataset, path)
        except ReadError:
            raise
        except Exception as error:  # a value that is no number, an unknown VR, a broken sequence
            message = f"an element cannot be read ({type(error).__name__})"
            raise ReadError("file-corrupt", message, where=path) from error


def is_directory(dataset: Any) -> bool:
    """Say whether the file is a DICOMDIR, which lists files and holds no image."""
    return str(getattr(dataset.file_meta, "MediaStorageSOPClassUID", "")) == _DICOMDIR


def stored_pixels(dataset: Any, path: str) -> NDArray[Any]:
    """Decode the pixels of one slice, (column, row), before rescaling.

    Bits beyond Bits Stored may hold overlays or rubbish (PS3.5 8.1.1): pydicom clears them and extends the sign.

    Raises:
        ReadError: no decoder understands the pixel data, or it is damaged.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            pixels: NDArray[Any] = dataset.pixel_array  # (row, column)
        except Exception as error:  # the decoders raise whatever their C libraries do
            message = f"pixels of transfer syntax {dataset.file_meta.TransferSyntaxUID} cannot be decoded"
            raise ReadError("dicom-undecodable", message, where=path) from error
    if pixels.shape != (dataset.get("Rows"), dataset.get("Columns")):
        sizes = [" x ".join(map(str, size)) for size in (pixels.shape, (dataset.get("Rows"), dataset.get("Columns")))]
        raise ReadError("dicom-multiframe", f"the pixels are {sizes[0]}, wanted {sizes[1]}", where=path)
    return pixels.T


def _gathered(dataset: Any, path: str) -> Instance:
    meta = dataset.file_meta
    syntax = getattr(meta, "TransferSyntaxUID", None)
    modality = _text(dataset, "Modality")
    sop_class = _text(dataset, "SOPClassUID") or str(getattr(meta, "MediaStorageSOPClassUID", ""))
    # Only where neither place names the class does the modality decide.
    sop_class = sop_class or {"CT": CT, "MR": MR}.get(modality, "")
    if not sop_class:
        raise ReadError("file-corrupt", "the file does not say what it holds (no SOP class)", where=path)
    shape = (int(dataset.get("Columns") or 0), int(dataset.get("Rows") or 0))
    slope, intercept = _number(dataset, "RescaleSlope"), _number(dataset, "RescaleIntercept")
    position, orientation = (
        _numbers(dataset, "ImagePositionPatient", 3),
        _numbers(dataset, "ImageOrientationPatient", 6),
    )
    pixel_spacing = _numbers(dataset, "PixelSpacing", 2)
    bits = (
        int(dataset.get("BitsAllocated") or 0),
        int(dataset.get("BitsStored") or 0),
        bool(dataset.get("PixelRepresentation")),
    )
    digest = hashlib.sha256(dataset.get("PixelData") or b"")
    digest.update(repr((shape, position, orientation, pixel_spacing, slope, intercept, bits)).encode())
    return Instance(
        path=path,
        sop_class=sop_class,
        modality=modality,
        patient=_text(dataset, "PatientID"),
        study=_text(dataset, "StudyInstanceUID"),
        series=_text(dataset, "SeriesInstanceUID"),
        frame=_text(dataset, "FrameOfReferenceUID"),
        shape=shape,
        position=position,
        orientation=orientation,
        pixel_spacing=pixel_spacing,
        thickness=_number(dataset, "SliceThickness"),
        tilt=tilt if (tilt := _number(dataset, "GantryDetectorTilt")) and math.isfinite(tilt) else 0.0,
        slope=slope,
        intercept=intercept,
        rescale_type=_text(dataset, "RescaleType"),
        bits=bits,
        compressed=bool(syntax is not None and syntax.is_encapsulated),
        lossy=_text(dataset, "LossyImageCompression") == "01",
        groups=_groups(dataset),
        scanner="\n".join(_text(dataset, k) for k in ("Manufacturer", "ManufacturerModelName", "DeviceSerialNumber")),
        digest=digest.hexdigest(),
        flaw=_flaw(dataset, sop_class, shape, bits, syntax),
        uid=_text(dataset, "SOPInstanceUID"),
    )


def _flaw(
    dataset: Any, sop_class: str, shape: tuple[int, int], bits: tuple[int, int, bool], syntax: Any
) -> tuple[str, str] | None:
    """Return code and message of what keeps a file from being a slice of a volume."""
    if sop_class in _ENHANCED:
        return "dicom-multiframe", "the file is an enhanced multi-frame image"
    if sop_class not in (CT, MR):
        return "dicom-unsupported", "the file is no single-frame CT or MR image"
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        return "dicom-multiframe", f"the file holds {int(dataset.NumberOfFrames)} frames"
    if _is_mosaic(dataset):
        return "dicom-mosaic", "the file is a mosaic of slices"
    if "PixelData" not in dataset:
        other = "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset
        return ("dicom-pixels", "the pixels are floating-point") if other else ("file-truncated", "there are no pixels")
    if "ModalityLUTSequence" in dataset:
        return "dicom-pixels", "values are looked up in a table (Modality LUT)"
    allocated, stored, _ = bits
    photometric, samples = _text(dataset, "PhotometricInterpretation"), int(dataset.get("SamplesPerPixel") or 1)
    if samples != 1 or photometric != "MONOCHROME2":
        return "dicom-pixels", f"{samples} samples a pixel, {photometric if photometric.isalnum() else 'not grey'}"
    if allocated not in (8, 16, 32) or not 1 <= stored <= allocated or dataset.get("HighBit", stored - 1) != stored - 1:
        return "dicom-pixels", f"{stored} of {allocated} bits are stored"
    if 0 in shape:
        return "shape-empty", f"{shape[0]} columns and {shape[1]} rows"
    for keyword in ("RescaleSlope", "RescaleIntercept"):
        if (value := _number(dataset, keyword)) is not None and not math.isfinite(value):
            return "dicom-rescale-missing", f"{keyword} is {value}"
    return _pixels_flaw(dataset, shape[0] * shape[1] * allocated // 8, syntax)


def _pixels_flaw(dataset: Any, wanted: int, syntax: Any) -> tuple[str, str] | None:
    """Return what is wrong with the amount of pixel data, `wanted` bytes uncompressed."""
    found = len(dataset.PixelData)
    if syntax is None or not syntax.is_encapsulated:
        if found < wanted:
            return "file-truncated", f"{found} of {wanted} bytes of pixels are there"
        if found > wanted + wanted % 2:  # values have even length (PS3.5 8.1.1)
            return "dicom-multiframe", f"{found} bytes of pixels are there, one frame has {wanted}"
    elif found < 16:  # less than an offset table and a fragment (PS3.5 A.4)
        return "file-truncated", "there are no compressed pixels"
    elif (frames := _compressed_frames(dataset.PixelData, syntax)) > 1:
        return "dicom-multiframe", f"the compressed pixels hold {frames} frames"
    return None


def _compressed_frames(data: bytes, syntax: Any) -> int:
    """Count frames by the offset table, and by fragments that begin a picture: decoders stop after the first one.

    A frame may have several fragments, but each frame begins one (PS3.5 A.4); of RLE a fragment is a frame (A.4.2).
    """
    from pydicom.encaps import generate_fragments, parse_basic_offsets
    from pydicom.uid import RLELossless

    try:
        offsets = parse_basic_offsets(data)
        pieces = list(generate_fragments(data))[1:]  # the first item is the offset table
    except Exception:  # damaged items, which the decoder will name
        return 1
    begun = len(pieces) if syntax == RLELossless else sum(piece.startswith(_BEGINS) for piece in pieces)
    return max(len(offsets), begun)


def _is_mosaic(dataset: Any) -> bool:
    """Say whether Siemens tiled a volume into this slice; one variant tells so in a private element alone."""
    if "MOSAIC" in [str(part) for part in dataset.get("ImageType") or []]:
        return True
    try:
        return int(dataset.private_block(0x0019, "SIEMENS MR HEADER")[0x0A].value) > 1
    except (KeyError, TypeError, ValueError):
        return False


def _groups(dataset: Any) -> tuple[tuple[str, str], ...]:
    """Return what may leave: words of a fixed list, and ages by decade (90 and above together)."""
    groups = []
    if (sex := _text(dataset, "PatientSex")) in ("F", "M", "O"):
        groups.append(("sex", sex))
    age = _text(dataset, "PatientAge")
    if len(age) == 4 and age[:3].isdecimal() and age[3] in "DWMY":
        years = int(age[:3]) if age[3] == "Y" else int(age[:3]) // {"M": 12, "W": 52, "D": 365}[age[3]]
        groups.append(("age", "90+" if years >= 90 else f"{years // 10 * 10}-{years // 10 * 10 + 9}"))
    maker = _text(dataset, "Manufacturer").lower()
    for word, name in _MAKERS.items():
        if word in maker:
            groups.append(("maker", name))
            break
    return tuple(groups)


_MAKERS = {
    "siemens": "Siemens",
    "philips": "Philips",
    "ge medical": "GE",
    "ge healthcare": "GE",
    "canon": "Canon",
    "toshiba": "Canon",
    "hitachi": "Hitachi",
    "fujifilm": "Fujifilm",
    "uih": "United Imaging",
    "united imaging": "United Imaging",
}


def _text(dataset: Any, keyword: str) -> str:
    value = dataset.get(keyword)
    return "" if value is None else str(value).strip(" \0")


def _number(dataset: Any, keyword: str) -> float | None:
    value = dataset.get(keyword)
    return None if value is None or value == "" else float(value)


def _numbers(dataset: Any, keyword: str, count: int) -> tuple[float, ...] | None:
    value = dataset.get(keyword)
    if value is None or isinstance(value, (str, bytes)) or not hasattr(value, "__len__") or len(value) != count:
        return None
    numbers = tuple(float(number) for number in value)
    return numbers if np.isfinite(numbers).all() else None
