"""How many labels an encoder saves: the number with which training from scratch comes as far.

Shapes: S seeds, P patients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .certainty import bootstrap

Table = NDArray[np.float64]

_STEPS = 8
"""Steps between two counts, alike in their ratio, at which the interval is looked for."""
_DRAWS = 1000


@dataclass(frozen=True)
class Saving:
    """What another number of labels without the encoder is worth.

    Counts are None where the other arm's counts do not reach that far: above them with `beyond`, below with `below`.
    """

    count: int
    """Labelled images the encoder had."""
    reached: float | None
    """Labelled images with which the other arm comes as far, between its counts on a line over log count."""
    low: float | None
    high: float | None
    """Interval of `reached`; None where it ends outside the counts, or where one seed or patient tells no spread."""
    fewest: int
    most: int
    """The other arm's counts."""
    beyond: bool
    """The encoder is better than the other arm with `most`."""
    below: bool
    """The encoder is worse than the other arm with `fewest`."""
    known: bool
    """Whether there is an interval."""

    @property
    def factor(self) -> float | None:
        """How many times as many labels the other arm needs; None outside its counts."""
        return None if self.reached is None else self.reached / self.count

    def __str__(self) -> str:
        if self.beyond:
            words = f"more than {self.most}"
        else:
            words = f"fewer than {self.fewest}" if self.below else f"{self.reached:.1f}"
        if not self.known:
            return words
        low = f"{self.low:.1f}" if self.low is not None else f"below {self.fewest}"
        high = f"{self.high:.1f}" if self.high is not None else f"beyond {self.most}"
        return f"{words} [{low}, {high}]"

    @property
    def sentence(self) -> str:
        """Say the factor in words."""
        images = "labelled image" if self.count == 1 else "labelled images"
        if self.beyond:
            factor = f"beyond the counts, over {self.most / self.count:.1f} times as many"
        elif self.below:
            factor = "below the counts"
        else:
            factor = f"{self.factor:.1f} times as many"
        return f"with {self.count} {images} it comes as far as scratch with {self} ({factor})"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        names = ("count", "reached", "low", "high", "fewest", "most", "beyond", "below", "known", "factor")
        return {**{name: getattr(self, name) for name in names}, "words": str(self)}


def label_saving(encoder: Table, scratch: Mapping[int, Table], count: int, *, confidence: float = 0.95) -> Saving:
    """Find the number of labels with which the other arm comes as far as the encoder with `count`.

    Between two counts the other arm's scores lie on a straight line over the logarithm of the count; of several places
    that reach the encoder's mean the first is taken. The interval holds every count at which the paired difference to
    the encoder is not told from 0 by `bootstrap`: it is as sure as that is, and needs no rising curve.

    Args:
        encoder: (S, P) scores with `count` labels.
        scratch: count to the other arm's (S, P), same seeds and patients; two counts or more.
        count: labelled images of `encoder`.
        confidence: of the interval.

    Raises:
        ValueError: fewer than two counts.

    Source: inversion of a test, Fieller 1954, JRSS B 16 (2); the factor as in Henaff et al. 2020, arXiv:1905.09272.
    """
    counts = sorted(scratch)
    if len(counts) < 2:
        raise ValueError("an interpolation needs two counts or more")
    grid = [counts[0] * 1.0]
    for first, second in pairwise(counts):
        grid += [first * (second / first) ** (k / _STEPS) for k in range(1, _STEPS + 1)]
    gaps = [encoder - _between(scratch, counts, at) for at in grid]
    means = [float(np.nanmean(gap)) for gap in gaps]
    reached, beyond, below = None, means[0] > 0 and min(means) > 0, means[0] < 0
    if not beyond and not below:
        reached = _crossing(grid, means)
    found = [bootstrap(gap, draws=_DRAWS, confidence=confidence) for gap in gaps]
    known = all(interval.p is not None for interval in found)
    low = high = None
    if known:
        lows, highs = [interval.low for interval in found], [interval.high for interval in found]
        low = _edge(grid, lows, highs)
        high = _edge(grid[::-1], lows[::-1], highs[::-1])
    return Saving(count, reached, low, high, counts[0], counts[-1], beyond, below, known)


def _between(scratch: Mapping[int, Table], counts: list[int], at: float) -> Table:
    for first, second in pairwise(counts):
        if at <= second * (1 + 1e-12):
            share = min(1.0, max(0.0, math.log(at / first) / math.log(second / first)))
            return (1 - share) * scratch[first] + share * scratch[second]
    return scratch[counts[-1]]


def _crossing(grid: list[float], means: list[float]) -> float:
    """Return the first place at which the encoder's lead is gone; exact, for between two counts means are linear."""
    if means[0] == 0:
        return grid[0]
    k = next(k for k, mean in enumerate(means) if mean <= 0)
    share = means[k - 1] / (means[k - 1] - means[k])
    return float(grid[k - 1] * (grid[k] / grid[k - 1]) ** share)


def _edge(grid: list[float], lows: list[float], highs: list[float]) -> float | None:
    """Return where, coming from the first count, 0 is first inside the interval; None where it is from the start.

    Where it never is, the whole set lies beyond the other end, and is said to begin there; from that end it has none.
    """
    if lows[0] <= 0 <= highs[0]:
        return None
    bound = lows if lows[0] > 0 else highs
    sign = 1 if lows[0] > 0 else -1
    k = next((k for k, value in enumerate(bound) if sign * value <= 0), None)
    if k is None:
        ahead = (sign > 0) == (grid[-1] > grid[0])  # an encoder that is better lies at more labels
        return grid[-1] if ahead else None
    share = bound[k - 1] / (bound[k - 1] - bound[k])
    return float(grid[k - 1] * (grid[k] / grid[k - 1]) ** share)
