"""The one layer that is trained when features are judged: multinomial logistic regression, in float64.

Shapes: N points, F features, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Table = NDArray[np.float64]
_SHARES = tuple(np.linspace(0.0, 1.0, 6).tolist())


@dataclass(frozen=True)
class Readout:
    """Class scores as an affine function of features: `features @ weight.T + bias`."""

    weight: Table
    """(K, F), for features as they come: the standardisation is folded in."""
    bias: Table
    """(K,)"""

    def scores(self, features: NDArray[np.floating]) -> Table:
        """Return (N, K) for features (N, F)."""
        return features.astype(np.float64) @ self.weight.T + self.bias


def fit_readout(
    features: NDArray[np.floating], labels: NDArray[np.integer], counts: Table, *, classes: int, penalty: float = 1e-3
) -> Readout:
    """Fit a readout on points drawn evenly from the classes, and set how far it leans to the common ones.

    Points are drawn so that rare classes are seen; a readout fitted on them finds rare classes too often, one corrected
    by the true frequencies hardly at all where features are weak. How much of the correction to apply, from none to
    all, is chosen by the Dice of the training points, each counted for the voxels it stands for.

    Args:
        features: (N, F).
        labels: (N,), class numbers below `classes`.
        counts: (N,), number of voxels that each point stands for.
        classes: K.
        penalty: of the squared weights of standardised features, beside the mean loss of a point.
    """
    features = features.astype(np.float64)
    mean, spread = features.mean(0), features.std(0)
    # A feature without spread says nothing; dividing by its rounding noise would make it shout.
    spread = np.where(spread > 1e-6 * (1 + np.abs(mean)), spread, np.inf)
    weight, bias = logistic((features - mean) / spread, labels, classes, penalty)
    fitted = Readout(weight / spread, bias - (weight / spread) @ mean)
    scores = fitted.scores(features)
    lean = _lean(labels, counts, classes)
    best = max(_SHARES, key=lambda share: _point_dice((scores + share * lean).argmax(1), labels, counts, classes))
    return Readout(fitted.weight, fitted.bias + best * lean)


def logistic(features: Table, labels: NDArray[np.integer], classes: int, penalty: float) -> tuple[Table, Table]:
    """Fit multinomial logistic regression: weight (K, F) and bias (K,).

    Args:
        features: (N, F), standardised.
        labels: (N,), class numbers below `classes`.
        classes: K.
        penalty: of the squared weights, beside the mean loss of a row.
    """
    from scipy.optimize import minimize

    n, f = features.shape
    wanted = np.eye(classes)[labels]  # (N, K)

    def loss(flat: Table) -> tuple[float, Table]:
        weight, bias = flat[: classes * f].reshape(classes, f), flat[classes * f :]
        scores = features @ weight.T + bias
        scores -= scores.max(1, keepdims=True)
        log_total = np.log(np.exp(scores).sum(1, keepdims=True))
        error = (np.exp(scores - log_total) - wanted) / n  # (N, K)
        value = ((log_total - scores) * wanted).sum() / n + penalty * (weight**2).sum()
        gradient = np.concatenate([(error.T @ features + 2 * penalty * weight).ravel(), error.sum(0)])
        return float(value), gradient

    found = minimize(loss, np.zeros(classes * (f + 1)), jac=True, method="L-BFGS-B", options={"maxiter": 300})
    return found.x[: classes * f].reshape(classes, f), found.x[classes * f :]


def _lean(labels: NDArray[np.integer], counts: Table, classes: int) -> Table:
    """Return log(share of the voxels / share of the points) of each class."""
    voxels = np.bincount(labels, counts, classes)
    points = np.bincount(labels, minlength=classes)
    ratio = np.where(points > 0, voxels / voxels.sum(), 1) / np.where(points > 0, points / points.sum(), 1)
    return np.log(ratio)


def _point_dice(found: NDArray[np.integer], labels: NDArray[np.integer], counts: Table, classes: int) -> float:
    scores = []
    for k in range(1, classes):
        both = counts[(found == k) & (labels == k)].sum()
        total = counts[found == k].sum() + counts[labels == k].sum()
        if total > 0:
            scores.append(2 * both / total)
    return float(np.mean(scores)) if scores else 0.0


def draw_points(
    label: NDArray[np.integer], points: int, random: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64], Table]:
    """Draw voxels of a label map, evenly from the classes in it.

    Args:
        label: (*), class numbers.
        points: how many, at most.
        random: where they come from.

    Returns:
        Voxel indices (N, dimensions), their classes (N,), and the voxels each stands for (N,).
    """
    flat = label.ravel()
    present: Sequence[int] = np.unique(flat).tolist()
    at, counts = [], []
    for k in present:
        of_class = np.flatnonzero(flat == k)
        n = min(len(of_class), max(1, points // len(present)))
        at.append(np.sort(random.choice(of_class, n, replace=False)))
        counts.append(np.full(n, len(of_class) / n))
    chosen = np.concatenate(at)
    indices = np.stack(np.unravel_index(chosen, label.shape), 1).astype(np.int64)
    return indices, flat[chosen].astype(np.int64), np.concatenate(counts)
