"""PNG pictures: grey (row, column) or colour (row, column, 3), without a place in the patient.

Chunk and field names are those of the PNG specification (W3C, third edition), section 11.2.
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


def read_picture_header(path: str) -> Header:
    """Decode the picture and tell what it is; a PNG is small, and only decoding shows whether it is whole.

    Raises:
        ReadError: it cannot be read, or has pixels of a kind that is not read.
    """
    return _header(_decoded(path, label=False))


def picture_digest(path: str) -> str:
    """Hash the decoded pixels, so that the same picture compressed otherwise is found to be the same."""
    array = _decoded(path, label=False)
    return hashlib.sha256(f"{array.shape} {array.dtype}".encode() + array.tobytes()).hexdigest()


def read_picture(path: str, *, label: bool = False) -> Voxels:
    """Decode a picture; the palette's numbers, not its colours, where it is a label map.

    Raises:
        ReadError: as `read_picture_header`.
    """
    return Voxels(rescaled(_decoded(path, label=label), 1.0, 0.0), None)


def _header(array: NDArray[Any]) -> Header:
    colour = array.ndim == 3
    shape = (int(array.shape[0]), int(array.shape[1]))
    return Header("png", "rgb2d" if colour else "image2d", shape, None, None, 3 if colour else 1, array.dtype.name)


def _decoded(path: str, *, label: bool) -> NDArray[Any]:
    from PIL import Image

    try:
        depth, colour = _depth_and_colour(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=["PNG"]) as picture:
                if getattr(picture, "n_frames", 1) > 1:
                    raise ReadError("png-pixels", "the picture is animated", where=path)
                picture.load()
                return _pixels(picture, depth, colour, label=label, path=path)
    except Image.DecompressionBombError as error:
        raise ReadError("png-pixels", "the picture has more pixels than Pillow agrees to decode", where=path) from error
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            reason = (error.strerror or type(error).__name__).lower()
            raise ReadError("file-unreadable", f"the file cannot be opened: {reason}", where=path) from error
        code = "file-truncated" if "truncated" in str(error) else "file-corrupt"
        raise ReadError(code, "the picture cannot be decoded to its end", where=path) from error


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
