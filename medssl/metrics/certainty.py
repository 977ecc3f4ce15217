"""How sure a difference is that was measured with few seeds and few patients, alone and among several.

Shapes: S seeds, P patients.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Key = TypeVar("Key", bound=Hashable)
Table = NDArray[np.float64]

POWER = 0.8
"""Chance to find the smallest difference that a comparison is said to see."""
_FEWEST_SEVERAL = 3
"""Seeds, and patients, with which several comparisons are decided: the far tail of two is not known well enough."""
_FEWEST = 10
"""Draws beyond 0 that make a tail; where there are fewer, Student's distribution says how thin it is."""


@dataclass(frozen=True)
class Interval:
    """A mean and the range that holds it with the given confidence; `seeds` and `patients` count what it rests on."""

    mean: float
    low: float
    high: float
    confidence: float
    seeds: int
    patients: int
    error: float | None = None
    """Standard error of the mean, over seeds and patients."""
    freedom: float | None = None
    """Degrees of freedom of that error: how well it is known."""
    p: float | None = None
    """Two-sided chance of such a difference where there is none; of this comparison alone."""
    comparisons: int = 1
    """How many stand in one table with it."""
    p_corrected: float | None = None
    """The same for the whole table (Holm); that of this comparison where it stands alone."""

    @property
    def smallest(self) -> float | None:
        """The smallest true difference that the test finds with chance .8, by the spread that was measured.

        With several comparisons, at the level of the strictest of them (Bonferroni's, Holm's first step).
        It leans on the measured spread, which few seeds tell badly: simulated with 12 patients, differences of the mean
        smallest size are significant in 73% of tables of 3 seeds, in 76% of 5 and of 10 (benchmarks/intervals.py).
        """
        if self.error is None or self.freedom is None:
            return None
        from scipy.special import stdtrit

        level = (1 - self.confidence) / self.comparisons
        return float(self.error * (stdtrit(self.freedom, 1 - level / 2) + stdtrit(self.freedom, POWER)))

    @property
    def doubt(self) -> str:
        """Why the sign of the difference may be luck, in a few words; empty where it is more than that."""
        if self.patients < 2 or self.seeds < 2:
            return f"one {'patient' if self.patients < 2 else 'seed'} tells no spread"
        if self.low <= 0 <= self.high:
            return "0 lies inside"
        if self.comparisons > 1 and min(self.seeds, self.patients) < _FEWEST_SEVERAL:
            what = "seeds" if self.seeds < _FEWEST_SEVERAL else "patients"
            return f"two {what} are too few for {self.comparisons} comparisons"
        if self.p_corrected is not None and self.p_corrected > 1 - self.confidence:
            return f"p is {self.p_corrected:.3f} among {self.comparisons} comparisons"
        if self.smallest is not None and abs(self.mean) < self.smallest:
            return f"below {self.smallest:.3f}, the smallest difference it could see"
        return ""

    @property
    def verdict(self) -> str:
        """`better`, `worse` or `undecided`.

        Decided is what is outside the interval, significant among all comparisons, and no smaller than what could be
        seen: a smaller one that passes the test has likely been overestimated (type M error, Gelman and Carlin 2014).
        That costs power: a true difference of just that size is decided in half of the tables.
        """
        if self.doubt:
            return "undecided"
        return "better" if self.mean > 0 else "worse"

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers."""
        return {**asdict(self), "smallest": self.smallest, "verdict": self.verdict, "doubt": self.doubt}


def bootstrap(differences: ArrayLike, *, draws: int = 2000, confidence: float = 0.95, seed: int = 0) -> Interval:
    """Give the mean of paired differences with a bootstrap interval over seeds and patients.

    Both levels are drawn anew, with replacement and independently: another choice of labelled images and another
    group of test patients. Of few seeds such draws spread too little, so they are stretched about their mean: to the
    standard error of the two-way table, and each quantile of the normal distribution to that of Student's with
    Satterthwaite's degrees of freedom. Of intervals that say 95%, simulated with 12 patients and equal spread of
    seeds, patients and rest, 93% hold the truth with 2 seeds, 94% with 3, 95% with 5 (unstretched: 80, 85 and 90%);
    where seeds spread five times as much as patients, 92, 93 and 95% (unstretched: 64, 76 and 86%); where nothing but
    the rest spreads, 99%.

    Args:
        differences: (S, P), one arm minus the other for each seed and test patient; or (P,) for one seed. nan where
            nothing was measured; left out of means. A seed or patient of which nothing was measured does not count.
        draws: how often the table is drawn.
        confidence: share of the draws inside the interval.
        seed: of the draws.

    Raises:
        ValueError: no finite number in the table.

    Source: Efron and Tibshirani 1993, chapter 13; two levels as in Owen 2007, Annals of Applied Statistics 1 (2);
        Satterthwaite 1946, Biometrics Bulletin 2 (6).
    """
    table = np.atleast_2d(np.asarray(differences, dtype=np.float64))
    if table.ndim != 2:
        raise ValueError(f"differences must be (seeds, patients), got {table.shape}")
    table = _measured(table)
    valid = np.isfinite(table)
    if not table.size:
        raise ValueError("no finite difference to average")
    seeds, patients = table.shape
    mean = float(table[valid].mean())
    means = _draw(np.where(valid, table, 0.0), valid.astype(np.float64), draws, seed)
    error, freedom = standard_error(table)
    p = None
    if error > 0:
        means = _stretch(means, mean, error, freedom)
    if seeds > 1 and patients > 1:
        p = _p_value(means, mean, error, freedom)
    tail = (1 - confidence) / 2
    low, high = (float(np.quantile(means, q)) for q in (tail, 1 - tail))
    if p is None:
        return Interval(mean, low, high, confidence, seeds, patients)
    return Interval(mean, low, high, confidence, seeds, patients, error, freedom, p, p_corrected=p)


def _draw(total: Table, count: Table, draws: int, seed: int) -> Table:
    """Return the means of tables of which rows and columns were drawn anew, (draws,)."""
    random = np.random.Generator(np.random.PCG64(seed))
    seeds, patients = total.shape
    by_seed = random.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws).astype(np.float64)  # (draws, S)
    by_patient = random.multinomial(patients, np.full(patients, 1 / patients), size=draws).astype(np.float64)
    sums = ((by_seed @ total) * by_patient).sum(1)  # (draws,)
    counts = ((by_seed @ count) * by_patient).sum(1)
    return np.asarray(sums[counts > 0] / counts[counts > 0], dtype=np.float64)


def standard_error(differences: ArrayLike) -> tuple[float, float]:
    """Return the standard error of a table's mean over random seeds and random patients, and its degrees of freedom.

    The variance is (MS seeds + MS patients - MS rest) / SP of the two-way analysis, and no less than either of the
    first two over SP; MS rest over SP where both are zero. What was not measured is filled in by the additive fit.

    Args:
        differences: (S, P); nan where nothing was measured. With S = 1 or P = 1, the other alone spreads.

    Source: Searle, Casella and McCulloch 1992, Variance Components, section 4.7; freedom by Satterthwaite 1946.
    """
    table = _filled(np.atleast_2d(np.asarray(differences, dtype=np.float64)))
    seeds, patients = table.shape
    rows, columns = table.mean(1, keepdims=True), table.mean(0, keepdims=True)
    mean = table.mean()
    free = (seeds - 1, patients - 1, (seeds - 1) * (patients - 1))
    squares = (
        patients * float(((rows - mean) ** 2).sum()),
        seeds * float(((columns - mean) ** 2).sum()),
        float(((table - rows - columns + mean) ** 2).sum()),
    )
    by_seed, by_patient, rest = (square / n if n else 0.0 for square, n in zip(squares, free))
    variance = max(by_seed + by_patient - rest, by_seed, by_patient)
    if variance < 1e-12 * rest:  # seeds have one mean, patients too, and yet the table spreads: a Latin square's
        variance = rest
    doubtful = sum(value**2 / n for value, n in zip((by_seed, by_patient, rest), free) if n)
    if variance < 1e-24 * max(1.0, mean * mean) or doubtful == 0:
        return 0.0, 1.0
    return math.sqrt(variance / table.size), max(1.0, variance**2 / doubtful)


def _measured(table: Table) -> Table:
    """Leave out the seeds and the patients of which nothing was measured."""
    valid = np.isfinite(table)
    return np.asarray(table[valid.any(1)][:, valid.any(0)], dtype=np.float64)


def _filled(table: Table) -> Table:
    """Put row mean plus column mean minus mean where nothing was measured; rows and columns without anything go."""
    table = _measured(table)
    valid = np.isfinite(table)
    out = np.where(valid, table, table[valid].mean())
    for _ in range(20 if not valid.all() else 0):
        fit = out.mean(1, keepdims=True) + out.mean(0, keepdims=True) - out.mean()
        out = np.where(valid, table, fit)
    return np.asarray(out, dtype=np.float64)


def _stretch(means: Table, mean: float, error: float, freedom: float) -> Table:
    from scipy.special import ndtr, stdtrit  # scipy takes a while to import

    spread = float(means.std())
    if spread <= 1e-12 * max(1.0, abs(mean)):
        return means
    z = np.clip((means - mean) / spread, -6, 6)
    return np.asarray(mean + error * stdtrit(freedom, ndtr(z)), dtype=np.float64)


def _p_value(means: Table, mean: float, error: float, freedom: float) -> float:
    """Return twice the share of draws on the other side of 0."""
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    beyond = min(int((means <= 0).sum()), int((means >= 0).sum()))
    if beyond >= _FEWEST:
        return min(1.0, 2 * (beyond + 1) / (len(means) + 1))
    from scipy.special import stdtr

    return float(min(2 * stdtr(freedom, -abs(mean) / error), 2 * (_FEWEST + 1) / (len(means) + 1)))


def holm(found: Mapping[Key, Interval]) -> dict[Key, Interval]:
    """Correct the chances of one table for how many comparisons stand in it.

    The smallest p is multiplied by the number of comparisons, the next by one less, and so on, never falling. Then the
    chance that any difference of the table is called so by luck is at most 1 - confidence, however they hang together.
    Intervals stay those of each comparison alone. What has no p (one seed, one patient) is not counted.

    Simulated, six comparisons of arms that do not differ hold a p below .05 in 20% of tables with 5 seeds, corrected in
    5%. With 3 seeds, whose far tails are not known well, corrected in 9%, and a verdict, which asks for more, in 4%;
    with 2 in up to 23%, so two decide no table of several.

    Args:
        found: comparison to its interval.

    Source: Holm 1979, Scandinavian Journal of Statistics 6 (2).
    """
    tested = sorted((key for key in found if found[key].p is not None), key=lambda key: found[key].p or 0.0)
    out, largest = dict(found), 0.0
    for k, key in enumerate(tested):
        largest = min(1.0, max(largest, (len(tested) - k) * (found[key].p or 0.0)))
        out[key] = replace(found[key], comparisons=len(tested), p_corrected=largest)
    return out
