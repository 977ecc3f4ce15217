"""PNG and JPEG pictures: grey (row, column) or colour (row, column, 3), without a place in the patient.

Chunk and field names are those of the PNG specification (W3C, third edition), section 11.2; markers of JPEG those of
ITU-T T.81, table B.1. Of JPEG 8-bit grey and colour (YCbCr or RGB) are read, sequential or progressive.
"""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .numbers import rescaled
from .source import Header, ReadError, Voxels

SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_SIGNATURE = b"\xff\xd8\xff"

_SEQUENTIAL_OR_PROGRESSIVE = (0xC0, 0xC1, 0xC2)
_OTHER_FRAMES = (0xC3, *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))  # lossless, differential, arithmetic
_ORIENTATION = 0x0112  # EXIF 2.32, 4.6.4 A


def read_picture_header(path: str) -> Header:
    """Decode the picture and tell what it is; pictures are small, and only decoding shows whether they are whole.

    Raises:
        ReadError: it cannot be read, or has pixels of a kind that is not read.
    """
    return _header(_decoded(path, label=False), "jpeg" if _is_jpeg(path) else "png")


def picture_digest(path: str) -> str:
    """Hash the decoded pixels, so that the same picture compressed otherwise is found to be the same."""
    array = _decoded(path, label=False)
    return hashlib.sha256(f"{array.shape} {array.dtype}".encode() + array.tobytes()).hexdigest()


def read_picture(path: str, *, label: bool = False) -> Voxels:
    """Decode a picture; the palette's numbers, not its colours, where it is a label map.

    Raises:
        ReadError: as `read_picture_header`, or a label map is a JPEG.
    """
    if label and _is_jpeg(path):
        raise ReadError("label-values", "the label is a JPEG, whose compression changes values", where=path)
    return Voxels(rescaled(_decoded(path, label=label), 1.0, 0.0), None)


def _header(array: NDArray[Any], kind: str) -> Header:
    colour = array.ndim == 3
    shape = (int(array.shape[0]), int(array.shape[1]))
    return Header(kind, "rgb2d" if colour else "image2d", shape, None, None, 3 if colour else 1, array.dtype.name)


def _decoded(path: str, *, label: bool) -> NDArray[Any]:
    from PIL import Image

    try:
        if _is_jpeg(path):
            return _jpeg_pixels(path)
        depth, colour = _depth_and_colour(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=["PNG"]) as picture:
                if getattr(picture, "n_frames", 1) > 1:
                    raise ReadError("png-pixels", "the picture is animated", where=path)
                picture.load()
                return _pixels(picture, depth, colour, label=label, path=path)
    except Image.DecompressionBombError as error:
        code = "jpeg-pixels" if _is_jpeg(path) else "png-pixels"
        raise ReadError(code, "the picture has more pixels than Pillow agrees to decode", where=path) from error
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            reason = (error.strerror or type(error).__name__).lower()
            raise ReadError("file-unreadable", f"the file cannot be opened: {reason}", where=path) from error
        code = "file-truncated" if "truncated" in str(error) else "file-corrupt"
        raise ReadError(code, "the picture cannot be decoded to its end", where=path) from error


def _is_jpeg(path: str) -> bool:
    with Path(path).open("rb") as file:
        return file.read(len(JPEG_SIGNATURE)) == JPEG_SIGNATURE


def _jpeg_pixels(path: str) -> NDArray[Any]:
    """Decode a JPEG; one that its EXIF turns is refused, for boxes and label maps may have been drawn either way."""
    from PIL import Image

    bits, components = _frame_of(path)
    if bits != 8 or components not in (1, 3):
        raise ReadError("jpeg-pixels", f"{components} components of {bits} bits", where=path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a picture near Pillow's limit, and of damaged EXIF
        with Image.open(path, formats=["JPEG"]) as picture:
            orientation = picture.getexif().get(_ORIENTATION, 1)
            if orientation != 1:
                raise ReadError("jpeg-orientation", f"the EXIF orientation is {orientation}, wanted 1", where=path)
            picture.load()
            return np.asarray(picture)


def _frame_of(path: str) -> tuple[int, int]:
    """Return precision in bits and number of components, from the frame header (T.81, B.2.2)."""
    content = Path(path).read_bytes()
    at = 2
    while at + 4 <= len(content):
        marker = content[at + 1]
        if content[at] != 0xFF:
            raise ReadError("file-corrupt", "a segment of the JPEG does not begin with a marker", where=path)
        if marker == 0xFF:  # fill bytes may stand before a marker (B.1.1.2)
            at += 1
            continue
        if marker in _SEQUENTIAL_OR_PROGRESSIVE and at + 10 <= len(content):
            return content[at + 4], content[at + 9]
        if marker in _OTHER_FRAMES:
            raise ReadError("jpeg-pixels", "the compression is neither sequential nor progressive Huffman", where=path)
        at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    raise ReadError("file-truncated", "the JPEG ends before its frame header", where=path)


def _depth_and_colour(path: str) -> tuple[int, int]:
    """Return IHDR's bit depth and colour type: 0 grey, 2 colour, 3 palette, 4 grey and alpha, 6 colour and alpha."""
    with Path(path).open("rb") as file:
        head = file.read(26)
    if len(head) < 26 or not head.startswith(SIGNATURE):
        raise ReadError("file-truncated", f"{len(head)} bytes hold no PNG header", where=path)
    return head[24], head[25]


def _pixels(picture: Any, depth: int, colour: int, *, label: bool, path: str) -> NDArray[Any]:
    if depth == 16 and colour != 0:
        raise ReadError("png-pixels", "colour or transparency of 16 bits would be cut to 8", where=path)
    if label and colour == 0 and depth in (2, 4):
        raise ReadError("png-pixels", f"grey labels of {depth} bits would be stretched", where=path)
    if label and colour == 3:
        return np.asarray(picture)
    if colour == 3:
        picture = picture.convert("RGBA" if "transparency" in picture.info else "RGB")
    if picture.mode in ("LA", "RGBA"):
        if np.asarray(picture)[..., -1].min() < 255:
            raise ReadError("png-pixels", "parts of the picture are transparent", where=path)
        picture = picture.convert("L" if picture.mode == "LA" else "RGB")
    array = np.asarray(picture)
    if colour == 3 and np.ptp(array, axis=2).max() == 0:
        array = array[..., 0]  # a palette of greys
    return array
