"""What becomes of stored numbers: rescaled once, and kept as integers where that loses nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .source import ReadError


def rescaled(stored: NDArray[Any], slope: float, intercept: float) -> NDArray[Any]:
    """Return stored * slope + intercept.

    Integers stay integers where slope and intercept are whole: uint8 as it is, else int16 where the values fit, else
    int32. Everything else is float32.

    Raises:
        ReadError: values are not numbers, not finite, or beyond the range of the result.
    """
    if stored.dtype.kind not in "biuf":
        raise ReadError("voxels-not-numbers", f"voxels are of type {stored.dtype}")
    if stored.dtype.kind == "f":
        return _float32(stored, slope, intercept)
    if slope != round(slope) or intercept != round(intercept):
        return _float32(stored, slope, intercept)
    if stored.dtype.kind == "b" or (stored.dtype == np.uint8 and (slope, intercept) == (1.0, 0.0)):
        return stored.astype(np.uint8)
    if stored.size == 0:
        return stored.astype(np.int16)
    ends = [int(stored.min()) * int(slope) + int(intercept), int(stored.max()) * int(slope) + int(intercept)]
    for dtype in (np.int16, np.int32):
        if np.iinfo(dtype).min <= min(ends) and max(ends) <= np.iinfo(dtype).max:
            if (slope, intercept) == (1.0, 0.0):
                return stored.astype(dtype)
            return (stored.astype(np.int64) * int(slope) + int(intercept)).astype(dtype)
    raise ReadError("voxels-out-of-range", f"values run from {min(ends)} to {max(ends)}")


def _float32(stored: NDArray[Any], slope: float, intercept: float) -> NDArray[Any]:
    if not np.isfinite(stored).all():
        count = int((~np.isfinite(stored)).sum())
        raise ReadError("voxels-not-finite", f"{count} of {stored.size} voxels are NaN or infinite")
    if (slope, intercept) == (1.0, 0.0) and stored.dtype == np.float32:
        return stored.astype(np.float32)
    with np.errstate(over="ignore"):
        out: NDArray[Any] = (stored.astype(np.float64) * slope + intercept).astype(np.float32)
    if not np.isfinite(out).all():
        raise ReadError("voxels-out-of-range", "values exceed the range of float32")
    return out


def as_label(values: NDArray[Any]) -> NDArray[Any]:
    """Return label values as uint8 where they fit, else int16; (i, j, k) or (row, column) as given.

    Raises:
        ReadError: values are negative, above 32767, or not whole.
    """
    if values.size and values.dtype.kind == "f" and not np.array_equal(values, np.round(values)):
        raise ReadError("label-values", "label values are not whole numbers")
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    if low < 0 or high > np.iinfo(np.int16).max:
        raise ReadError("label-values", f"label values run from {low} to {high}, wanted 0 to 32767")
    return values.astype(np.uint8 if high <= 255 else np.int16)
