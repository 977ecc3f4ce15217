"""Overlap and surface distance of label maps, a class at a time.

Shapes: * is the image, (D, H, W) or (H, W); K classes with the background as class 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.integer]


def _check(prediction: Labels, label: Labels) -> None:
    if prediction.shape != label.shape:
        raise ValueError(f"prediction {prediction.shape} and label {label.shape} must have one shape")


def class_numbers(label: NDArray[Any], classes: Sequence[int]) -> NDArray[np.int64]:
    """Number the values of a label map 0 (background), 1, ..., K - 1 in the order of `classes`.

    Args:
        label: (*), any integers.
        classes: the values beside 0, positive and rising.
    """
    return np.searchsorted(np.array((0, *classes)), label).astype(np.int64)


def dice(prediction: Labels, label: Labels, classes: int) -> NDArray[np.float64]:
    """Measure the overlap of two label maps.

    Args:
        prediction: (*), class numbers.
        label: (*), class numbers.
        classes: K, the background counted.

    Returns:
        (K - 1,): 2 |A and B| / (|A| + |B|) for classes 1, ..., K - 1; nan where a class is in neither map, for then
        nothing was asked. Average with `numpy.nanmean`.

    Source: Dice 1945, Ecology 26 (3).
    """
    _check(prediction, label)
    out = np.full(classes - 1, np.nan)
    for k in range(1, classes):
        a, b = prediction == k, label == k
        if total := int(np.count_nonzero(a)) + int(np.count_nonzero(b)):
            out[k - 1] = 2 * np.count_nonzero(a & b) / total
    return out


def hausdorff95(prediction: Labels, label: Labels, spacing_mm: Sequence[float]) -> NDArray[np.float64]:
    """Measure how far two surfaces lie apart: the 95th percentile of their distances, the worse of both directions.

    The surface of a class is its voxels with a face neighbour outside it; distances join voxel centres. The same as
    MONAI's `compute_hausdorff_distance(percentile=95)`.

    Args:
        prediction: (*), class numbers.
        label: (*), class numbers.
        spacing_mm: distance of voxel centres along each axis.

    Returns:
        (K - 1,) mm for classes 1, ..., K - 1 with K - 1 the highest number in either map. nan where a class is in
        neither, infinity where it is in one of them alone: no distance says how bad that is.

    Source: Huttenlocher, Klanderman and Rucklidge 1993, IEEE TPAMI 15 (9).
    """
    _check(prediction, label)
    spacing = tuple(float(value) for value in spacing_mm)
    if len(spacing) != label.ndim or not all(value > 0 for value in spacing):
        raise ValueError(f"spacing_mm {spacing} must be {label.ndim} positive lengths")
    highest = int(max(prediction.max(initial=0), label.max(initial=0)))
    return np.array(
        [_distance95(prediction == k, label == k, spacing) for k in range(1, highest + 1)], dtype=np.float64
    )


def _distance95(a: NDArray[np.bool_], b: NDArray[np.bool_], spacing: tuple[float, ...]) -> float:
    if not a.any() or not b.any():
        return float("inf") if a.any() or b.any() else float("nan")
    box = _box_of(a | b)
    a, b = a[box], b[box]
    a_surface, b_surface = _surface(a), _surface(b)
    from scipy.ndimage import distance_transform_edt  # scipy.ndimage takes a while to import

    to_a = distance_transform_edt(~a_surface, sampling=spacing)
    to_b = distance_transform_edt(~b_surface, sampling=spacing)
    return float(max(np.percentile(to_b[a_surface], 95), np.percentile(to_a[b_surface], 95)))


def _box_of(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    box = []
    for axis in range(mask.ndim):
        filled = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(int(filled[0]), int(filled[-1]) + 1))
    return tuple(box)


def _surface(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the voxels of a mask that have a face neighbour outside it; beyond the image is outside."""
    padded = np.pad(mask, 1)
    inner = np.ones_like(mask)
    for axis in range(mask.ndim):
        for shift in (0, 2):
            at = tuple(
                slice(shift, shift + mask.shape[i]) if i == axis else slice(1, 1 + mask.shape[i])
                for i in range(mask.ndim)
            )
            inner &= padded[at]
    return mask & ~inner
