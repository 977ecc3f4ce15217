"""How far predicted measures lie from true ones, in the measure's own unit."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class RegressionErrors:
    """Errors of a measure, in its unit unless said; nan where they are not defined."""

    n: int
    """Images with a known truth."""
    mean_absolute: float
    root_mean_square: float
    bias: float
    """Mean of prediction minus truth."""
    limits: tuple[float, float]
    """Limits of agreement: bias plus and minus 1.96 standard deviations of the difference."""
    r2: float
    """1 minus squared errors over the truth's own spread; no unit. 0 is no better than the mean of the truth."""
    pearson: float
    """Correlation; no unit."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, None where one is not defined."""
        values = {**asdict(self), "limits": list(self.limits)}
        return {k: _finite(v) for k, v in values.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return value if np.isfinite(value) else None


def regression_errors(prediction: ArrayLike, truth: ArrayLike) -> RegressionErrors:
    """Compare predicted with true values.

    Args:
        prediction: (N,), in the measure's unit.
        truth: (N,), likewise; nan where not known (left out).

    Source: limits of agreement by Bland and Altman 1986, Lancet 327; the others equal scikit-learn's
        `mean_absolute_error`, `root_mean_squared_error` and `r2_score`.
    """
    p, t = np.asarray(prediction, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if p.ndim != 1 or p.shape != t.shape:
        raise ValueError(f"prediction {p.shape} and truth {t.shape} must both be (N,)")
    known = ~np.isnan(t)
    p, t = p[known], t[known]
    if np.isnan(p).any():
        raise ValueError("predictions must not be nan where the truth is known")
    n, nan = len(t), float("nan")
    if not n:
        return RegressionErrors(0, nan, nan, nan, (nan, nan), nan, nan)
    difference = p - t
    spread, bias = float(((t - t.mean()) ** 2).sum()), float(difference.mean())
    half = 1.96 * float(difference.std(ddof=1)) if n > 1 else nan
    scale = float(np.sqrt(spread * ((p - p.mean()) ** 2).sum()))
    return RegressionErrors(
        n=n,
        mean_absolute=float(np.abs(difference).mean()),
        root_mean_square=float(np.sqrt((difference**2).mean())),
        bias=bias,
        limits=(bias - half, bias + half),
        r2=1 - float((difference**2).sum()) / spread if spread > 0 else nan,
        pearson=float(((p - p.mean()) * (t - t.mean())).sum()) / scale if scale > 0 else nan,
    )
