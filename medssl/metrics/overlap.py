"""Overlap, surface distance and volume of label maps, a class at a time.

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
        label: (*), 0 and values of `classes`.
        classes: the values beside 0, positive and rising.

    Raises:
        ValueError: the label map holds another value, which would be counted as one of these.
    """
    values = np.array((0, *classes))
    numbers = np.searchsorted(values, label)
    wrong = values[np.minimum(numbers, len(classes))] != label
    if wrong.any():
        found = ", ".join(str(value) for value in np.unique(label[wrong])[:5])
        raise ValueError(f"a label map holds {found}, which is none of the classes {tuple(classes)}")
    return numbers.astype(np.int64)


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


def volume_error_ml(
    prediction: Labels, label: Labels, spacing_mm: Sequence[float], classes: int
) -> NDArray[np.float64]:
    """Measure by how much a segmented volume is too large.

    Args:
        prediction: (D, H, W), class numbers.
        label: (D, H, W), class numbers.
        spacing_mm: distance of voxel centres along each axis.
        classes: K, the background counted.

    Returns:
        (K - 1,) ml, negative where too little was found; nan where a class is in neither map.
    """
    _check(prediction, label)
    if label.ndim != 3:
        raise ValueError(f"volumes have three axes, these maps {label.ndim}")
    voxel_ml = float(np.prod(_checked(spacing_mm, 3))) / 1000
    found, wanted = (np.bincount(x.ravel(), minlength=classes)[1:classes] for x in (prediction, label))
    return np.where(found + wanted > 0, (found.astype(np.float64) - wanted) * voxel_ml, np.nan)


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
    return surface_measures(prediction, label, spacing_mm, tolerance_mm=0.0, classes=_highest(prediction, label) + 1)[0]


def surface_dice(
    prediction: Labels, label: Labels, spacing_mm: Sequence[float], *, tolerance_mm: float, classes: int
) -> NDArray[np.float64]:
    """Measure the share of two surfaces that lies no farther from the other one than a tolerance.

    Surfaces are those of `hausdorff95`, each surface voxel counts as one: the same as MONAI's
    `compute_surface_dice(use_subvoxels=False)`.

    Args:
        prediction: (*), class numbers.
        label: (*), class numbers.
        spacing_mm: distance of voxel centres along each axis.
        tolerance_mm: what two careful readers may differ by, 0 or more.
        classes: K, the background counted.

    Returns:
        (K - 1,): nan where a class is in neither map, 0 where it is in one of them alone.

    Source: Nikolov et al. 2018, arXiv:1809.04430, with voxels in place of surface elements.
    """
    return surface_measures(prediction, label, spacing_mm, tolerance_mm=tolerance_mm, classes=classes)[1]


def surface_measures(
    prediction: Labels, label: Labels, spacing_mm: Sequence[float], *, tolerance_mm: float, classes: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return `hausdorff95` and `surface_dice`, (K - 1,) each, from distances that are computed once."""
    _check(prediction, label)
    if tolerance_mm < 0:
        raise ValueError(f"tolerance_mm must not be negative, got {tolerance_mm}")
    spacing = _checked(spacing_mm, label.ndim)
    far, near = np.full(classes - 1, np.nan), np.full(classes - 1, np.nan)
    for k in range(1, classes):
        a, b = prediction == k, label == k
        if a.any() and b.any():
            to_b, to_a = _distances(a, b, spacing)
            far[k - 1] = max(np.percentile(to_b, 95), np.percentile(to_a, 95))
            close = np.count_nonzero(to_b <= tolerance_mm) + np.count_nonzero(to_a <= tolerance_mm)
            near[k - 1] = close / (len(to_a) + len(to_b))
        elif a.any() or b.any():
            far[k - 1], near[k - 1] = np.inf, 0.0
    return far, near


def _highest(prediction: Labels, label: Labels) -> int:
    return int(max(prediction.max(initial=0), label.max(initial=0)))


def _checked(spacing_mm: Sequence[float], axes: int) -> tuple[float, ...]:
    spacing = tuple(float(value) for value in spacing_mm)
    if len(spacing) != axes or not all(value > 0 for value in spacing):
        raise ValueError(f"spacing_mm {spacing} must be {axes} positive lengths")
    return spacing


def _distances(
    a: NDArray[np.bool_], b: NDArray[np.bool_], spacing: tuple[float, ...]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how far each surface voxel of `a` is from the surface of `b`, and of `b` from that of `a`, in mm."""
    box = _box_of(a | b)
    a, b = a[box], b[box]
    a_surface, b_surface = _surface(a), _surface(b)
    from scipy.ndimage import distance_transform_edt  # scipy.ndimage takes a while to import

    to_a = distance_transform_edt(~a_surface, sampling=spacing)
    to_b = distance_transform_edt(~b_surface, sampling=spacing)
    return to_b[a_surface], to_a[b_surface]


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
