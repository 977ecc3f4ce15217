"""Where the crops of one sample lie: first voxels, drawn from a sample's numbers; no voxel is read here.

A crop longer than its image along an axis starts at 0 and is padded at its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .order import Numbers

Start = tuple[int, ...]


def anywhere(shape: Sequence[int], size: Sequence[int], numbers: Numbers) -> Start:
    """Draw a start so that the crop lies inside, all places alike."""
    return tuple(numbers.between(0, max(whole - n, 0)) for whole, n in zip(shape, size))


def around(centre: Sequence[int], shape: Sequence[int], size: Sequence[int]) -> Start:
    """Return the start that puts a voxel at the crop's centre, or as near to it as the image's border allows."""
    return tuple(min(max(c - n // 2, 0), max(whole - n, 0)) for c, whole, n in zip(centre, shape, size))


def inside(
    box: tuple[Sequence[int], Sequence[int]], shape: Sequence[int], size: Sequence[int], numbers: Numbers
) -> Start:
    """Draw a start so that the crop's centre lies in a box (first voxel, one past the last)."""
    return around([numbers.between(low, max(low, high - 1)) for low, high in zip(*box)], shape, size)


def on_label(points: NDArray[Any], shape: Sequence[int], size: Sequence[int], numbers: Numbers) -> Start:
    """Draw a class, then one of its voxels, and centre the crop there.

    Args:
        points: (P, 1 + nd), class and index; at least one.
    """
    classes = np.unique(points[:, 0])
    chosen = points[points[:, 0] == classes[numbers.below(len(classes))]]
    return around([int(v) for v in chosen[numbers.below(len(chosen)), 1:]], shape, size)


def beside(first: Start, shape: Sequence[int], size: Sequence[int], overlap: float, numbers: Numbers) -> Start:
    """Draw a start whose crop covers at least the share `overlap` of the crop at `first`."""
    axes = sum(n > 1 for n in size) or 1
    # The same share along every axis: their product is then at least `overlap`.
    along = [int(n * (1 - overlap ** (1 / axes)) + 1e-9) if n > 1 else 0 for n in size]
    return tuple(
        numbers.between(max(0, a - shift), min(max(whole - n, 0), a + shift))
        for a, whole, n, shift in zip(first, shape, size, along)
    )


def at_point(point: Sequence[float], share: Sequence[float], shape: Sequence[int], size: Sequence[int]) -> Start:
    """Return the start that puts a point (in voxels) at the share `share` of the crop, as the border allows."""
    wanted = (round(p - s * (n - 1)) for p, s, n in zip(point, share, size))
    return tuple(min(max(a, 0), max(whole - n, 0)) for a, whole, n in zip(wanted, shape, size))
