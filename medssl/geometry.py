"""Where voxels lie in the patient: affines, spacing, orientation, crops. Values only, no files.

An affine is 4 x 4 and maps a voxel index (i, j, k) to RAS+ mm: the first world axis grows to the patient's Right, then
Anterior, Superior (NIfTI, nibabel). DICOM and ITK use LPS+, which differs in the sign of the first two world axes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

SHEAR_TOLERANCE = 1e-3
"""Largest cosine between two voxel axes that still counts as perpendicular: headers hold rounded numbers."""

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def spacing_of(affine: ArrayLike) -> tuple[float, ...]:
    """Return the distance of voxel centres along each array axis in mm, (i, j, k)."""
    return tuple(float(length) for length in np.linalg.norm(_matrix(affine)[:3, :3], axis=0))


def orientation_of(affine: ArrayLike) -> str:
    """Return the axis codes such as `RAS`: the letter says where in the patient an array axis grows to.

    An oblique axis gets the letter of the nearest direction, no letter twice (the best match over the three axes
    together is found by singular values, as nibabel does).
    """
    directions = _matrix(affine)[:3, :3] / np.asarray(spacing_of(affine))
    left, values, right = np.linalg.svd(directions, full_matrices=False)
    rotation = np.asarray(left @ right if values.min() > 0 else directions, dtype=np.float64)
    codes = ["", "", ""]
    free = rotation.copy()
    for axis in np.argsort((-(rotation**2)).min(axis=0), kind="stable"):  # the clearest array axis first
        world = int(np.argmax(np.abs(free[:, axis])))
        codes[axis] = ("LR", "PA", "IS")[world][int(free[world, axis] > 0)]
        free[world, :] = 0
    return "".join(codes)


def is_finite(affine: ArrayLike) -> bool:
    """Say whether an affine holds neither NaN nor infinity."""
    return bool(np.isfinite(np.asarray(affine, dtype=np.float64)).all())


def is_singular(affine: ArrayLike) -> bool:
    """Say whether an affine maps different voxels to one place, or its last line is not (0, 0, 0, 1)."""
    matrix = np.asarray(affine, dtype=np.float64)
    if not np.array_equal(matrix[3], [0, 0, 0, 1]):
        return True
    lengths = np.linalg.norm(matrix[:3, :3], axis=0)
    if lengths.min() < 1e-6:  # mm; the finest microscope stage is coarser
        return True
    return bool(abs(np.linalg.det(matrix[:3, :3] / lengths)) < 1e-6)


def is_sheared(affine: ArrayLike) -> bool:
    """Say whether two voxel axes are not perpendicular, within `SHEAR_TOLERANCE`."""
    directions = _matrix(affine)[:3, :3] / np.asarray(spacing_of(affine))
    cosines = directions.T @ directions - np.eye(3)
    return bool(np.abs(cosines).max() > SHEAR_TOLERANCE)


def cropped(affine: ArrayLike, start: Sequence[int] | NDArray[np.int64]) -> Floats:
    """Return the affine of a crop whose first voxel is `start` (i, j, k) of the whole."""
    out = _matrix(affine).copy()
    out[:3, 3] = to_mm(out, start)
    return out


def to_mm(affine: ArrayLike, points: ArrayLike) -> Floats:
    """Map voxel indices (..., 3) to RAS+ mm (..., 3); voxel centres have whole indices."""
    matrix = _matrix(affine)
    out: Floats = np.asarray(points, dtype=np.float64) @ matrix[:3, :3].T + matrix[:3, 3]
    return out


def to_voxel(affine: ArrayLike, points_mm: ArrayLike) -> Floats:
    """Map RAS+ mm (..., 3) to voxel indices (..., 3), not rounded."""
    matrix = _matrix(affine)
    offset = np.asarray(points_mm, dtype=np.float64) - matrix[:3, 3]
    return np.asarray(np.linalg.solve(matrix[:3, :3], offset[..., None])[..., 0], dtype=np.float64)


def corners_mm(affine: ArrayLike, shape: Sequence[int]) -> Floats:
    """Return the centres of the eight corner voxels in RAS+ mm, (8, 3)."""
    ends = np.stack(np.meshgrid(*[(0, size - 1) for size in shape], indexing="ij"), axis=-1).reshape(8, 3)
    return to_mm(affine, ends)


def same_place(one: ArrayLike, two: ArrayLike, shape: Sequence[int], *, tolerance: float = 0.05) -> bool:
    """Say whether two affines put every voxel of an array of `shape` at the same place.

    Args:
        tolerance: in voxels, at the worst corner.
    """
    # Both are affine maps, so their difference is largest at a corner.
    apart = np.linalg.norm(corners_mm(one, shape) - corners_mm(two, shape), axis=1).max()
    return bool(apart <= tolerance * min(spacing_of(one)))


def from_lps(affine_lps: ArrayLike) -> Floats:
    """Turn an affine to LPS+ mm (DICOM, ITK) into one to RAS+ mm, or back: the step is its own inverse."""
    out: Floats = _LPS_TO_RAS @ _matrix(affine_lps) + 0.0  # -0.0 becomes 0.0
    return out


def as_tuple(affine: ArrayLike) -> tuple[tuple[float, float, float, float], ...]:
    """Return an affine as nested tuples, for records that are compared and hashed."""
    return tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in _matrix(affine))


def _matrix(affine: ArrayLike) -> Floats:
    matrix = np.asarray(affine, dtype=np.float64)
    if matrix.shape != (4, 4):
        raise ValueError(f"an affine is 4 x 4, got shape {matrix.shape}")
    return matrix
