"""What readers are given, and what they give back."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, MedsslError
from ..problems import PROBLEMS

logger = logging.getLogger(__name__)


class Source(Protocol):
    """The files of one image: `medssl.index.Location` is one."""

    @property
    def paths(self) -> tuple[str, ...]:
        """The files; a DICOM series has one a slice."""

    @property
    def format(self) -> str:
        """`nifti`, `dicom`, `png` or `jpeg`."""

    @property
    def extra(self) -> Mapping[str, str]:
        """What else the reader needs."""


class ReadError(DataError):
    """An image that cannot be read, or cannot be trusted.

    Attributes:
        code: key of `medssl.problems.PROBLEMS`.
        message: the values found; holds no path and no free text of a header.
    """

    def __init__(self, code: str, message: str, *, where: str = "") -> None:
        super().__init__(message, where=where, fix=PROBLEMS[code].remedy)
        self.code, self.message = code, message


@contextmanager
def guarded(path: str) -> Iterator[None]:
    """Turn what no reader foresaw into a ReadError: one bad file must not end the work on all the others.

    Only the exception's type is told, for its text may quote a header.
    """
    try:
        yield
    except MedsslError:
        raise
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise ReadError("file-unreadable", f"the file cannot be read: {reason}", where=path) from error
    except Exception as error:
        logger.debug("reading failed", exc_info=True)
        raise ReadError("file-corrupt", f"the content cannot be read ({type(error).__name__})", where=path) from error


@dataclass(frozen=True)
class Header:
    """What is known of an image without its voxels.

    Attributes:
        format: `nifti`, `dicom`, `png` or `jpeg`.
        kind: `volume`, `image2d` or `rgb2d`.
        shape: of space alone, (i, j, k) or (row, column).
        spacing_mm: distance of voxel centres along each axis; None for pictures.
        affine: 4 x 4 float64, voxel index to RAS+ mm; None for pictures.
        channels: 1, or 3 for colour.
        dtype: of the file's numbers before rescaling, as numpy names it.
        modality: `CT`, `MR`; empty where the file does not tell.
        warnings: codes of what looks odd but can be used.
    """

    format: str
    kind: str
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...] | None
    affine: NDArray[np.float64] | None
    channels: int
    dtype: str
    modality: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Voxels:
    """An image in memory.

    Attributes:
        array: rescaled once. Integers stay integers (uint8, int16 or int32) where slope and intercept are whole
            numbers, else float32. (i, j, k), (row, column) or (row, column, 3).
        affine: 4 x 4 float64, voxel index to RAS+ mm; None for pictures.
    """

    array: NDArray[Any]
    affine: NDArray[np.float64] | None
