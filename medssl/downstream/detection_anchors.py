"""Anchors and pyramid planned from the boxes of the training images.

Shapes: M boxes, n axes, L levels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Numbers = NDArray[np.float64]

_PLACES = 3.0
"""Places of the finest level along an object of the smaller ones."""
_COARSEST = 8
_ROUNDS = 100


def finest_stride(sides: ArrayLike) -> int:
    """Return the stride of the finest level: a power of 2 that leaves three places along the smaller boxes.

    Args:
        sides: (M, n) voxels, M at least 1.

    Returns:
        2, 4 or 8; the quarter of boxes whose mean side is smallest decides.
    """
    small = float(np.quantile(_mean_side(sides), 0.25))
    power = int(np.floor(np.log2(max(1.0, small / _PLACES))))
    return int(min(max(2, 2**power), _COARSEST))


def planned_anchors(sides: ArrayLike, levels: Sequence[Sequence[int]], count: int) -> list[list[list[float]]]:
    """Return anchor shapes for each level, in voxels: the middles of groups of boxes.

    A box belongs to the level on which it is about four places long (as in FPN, Lin et al. 2017, equation 1). Its sides
    are counted in that level's strides, and all boxes together are put into groups by the logarithms of their sides (k
    means, begun at quantiles of the mean side); a level's anchors are the middles, in its strides. Heads are shared by
    the levels, and so is what an anchor looks like to them.

    Args:
        sides: (M, n) voxels, M at least 1, all above 0.
        levels: strides, finest first.
        count: anchors at each place; where there are fewer distinct boxes, the middles are varied in size.
    """
    table, strides = np.asarray(sides, dtype=np.float64), np.asarray(levels, dtype=np.float64)
    if not len(table) or (table <= 0).any():
        raise ValueError("anchors need a box or more, all with volume")
    ideal = 4 * np.exp(np.log(strides).mean(1))  # (L,) voxels
    level = np.abs(np.log(_mean_side(table)[:, None] / ideal)).argmin(1)
    middles = np.exp(_groups(np.log(table / strides[level]), count))  # (count or fewer, n)
    if missing := count - len(middles):
        factors = 2.0 ** (np.arange(1, missing + 1) / (missing + 1))
        middles = np.concatenate([middles, middles[np.arange(missing) % len(middles)] * factors[:, None]])
    return [[[round(float(v), 2) for v in one * stride] for one in middles] for stride in strides]


def _mean_side(sides: ArrayLike) -> Numbers:
    return np.asarray(np.exp(np.log(np.asarray(sides, dtype=np.float64)).mean(1)))


def _groups(points: Numbers, count: int) -> Numbers:
    """Return the middles of up to `count` groups of points (M, n), in rising order of their mean (Lloyd 1982)."""
    distinct = np.unique(points, axis=0)
    if len(distinct) <= count:
        return np.asarray(distinct[np.argsort(distinct.mean(1), kind="stable")])
    order = distinct[np.argsort(distinct.mean(1), kind="stable")]
    middles = order[((np.arange(count) + 0.5) / count * len(order)).astype(int)]
    for _ in range(_ROUNDS):
        nearest = ((points[:, None] - middles[None]) ** 2).sum(2).argmin(1)
        moved = np.stack([points[nearest == k].mean(0) if (nearest == k).any() else middles[k] for k in range(count)])
        if np.allclose(moved, middles):
            break
        middles = moved
    return np.asarray(middles[np.argsort(middles.mean(1), kind="stable")])
