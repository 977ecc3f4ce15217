"""How well scores tell classes apart, and whether their probabilities mean what they say.

Shapes: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Numbers = NDArray[np.float64]


def _pairs(scores: ArrayLike, labels: ArrayLike) -> tuple[Numbers, NDArray[np.bool_]]:
    """Return scores and labels where the label is known (nan is not)."""
    s, y = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if s.ndim != 1 or s.shape != y.shape:
        raise ValueError(f"scores {s.shape} and labels {y.shape} must both be (N,)")
    known = ~np.isnan(y)
    s, y = s[known], y[known]
    if not np.isin(y, (0, 1)).all():
        raise ValueError("labels must be 0, 1, or nan where not known")
    if np.isnan(s).any():
        raise ValueError("scores must not be nan where the label is known")
    return s, y == 1


def auroc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Give the chance that an image with the finding scores higher than one without; ties count half.

    Args:
        scores: (N,), any scale.
        labels: (N,), 1 with, 0 without, nan where not known (left out).

    Returns:
        0 to 1; nan where all known labels are the same.

    Source: Hanley and McNeil 1982, Radiology 143 (1); equal to scikit-learn's `roc_auc_score`.
    """
    s, y = _pairs(scores, labels)
    positive, negative = int(y.sum()), int((~y).sum())
    if not positive or not negative:
        return float("nan")
    _, place, counts = np.unique(s, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]  # mean rank of ties
    return float((ranks[y].sum() - positive * (positive + 1) / 2) / (positive * negative))


def average_precision(scores: ArrayLike, labels: ArrayLike) -> float:
    """Give the area below the curve of precision over recall, as steps without interpolation (AUPRC).

    Args:
        scores: (N,), any scale.
        labels: (N,), 1 with, 0 without, nan where not known (left out).

    Returns:
        0 to 1; a score that knows nothing reaches the share of images with the finding. nan where there is none.

    Source: equal to scikit-learn's `average_precision_score`.
    """
    s, y = _pairs(scores, labels)
    if not y.any():
        return float("nan")
    order = np.argsort(-s, kind="stable")
    s, y = s[order], y[order]
    last = np.append(np.flatnonzero(np.diff(s)), len(s) - 1)  # ties are one threshold
    hits = np.cumsum(y)[last]
    return float((hits / (last + 1) * np.diff(hits, prepend=0)).sum() / hits[-1])


def brier(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Give the mean squared distance of probabilities from what was true; 0 is perfect.

    Args:
        probabilities: (N,) of the finding, or (N, K) of exclusive classes.
        labels: (N,): 0 or 1, or with (N, K) the class numbers; nan where not known (left out).

    Returns:
        The mean over images; for (N, K) of the sum over classes, which runs to 2. nan where no label is known.

    Source: Brier 1950, Monthly Weather Review 78 (1); (N,) equal to scikit-learn's `brier_score_loss`.
    """
    p, y = _probabilities(probabilities, labels)
    if not len(y):
        return float("nan")
    if p.ndim == 1:
        return float(((p - y) ** 2).mean())
    return float(((p - np.eye(p.shape[1])[y.astype(int)]) ** 2).sum(1).mean())


def calibration_error(probabilities: ArrayLike, labels: ArrayLike, *, bins: int = 15) -> float:
    """Give the expected calibration error (ECE): how far stated probabilities lie from observed shares.

    Images are binned by probability into equal widths, the upper edge belonging to the bin; the distance of mean
    probability and observed share is averaged with the number of images. For (N, K), probability is that of the most
    likely class, and observed whether it was the true one. With few images it is above 0 by chance alone.

    Args:
        probabilities: (N,) of the finding, or (N, K) of exclusive classes.
        labels: (N,): 0 or 1, or with (N, K) the class numbers; nan where not known (left out).
        bins: of equal width; the usual 15 unless given.

    Source: Guo et al. 2017, arXiv:1706.04599, equation 3; equal to torchmetrics' `CalibrationError` (l1).
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    p, y = _probabilities(probabilities, labels)
    if not len(y):
        return float("nan")
    if p.ndim == 2:
        p, y = p.max(1), (p.argmax(1) == y).astype(np.float64)
    bin_of = np.clip(np.ceil(p * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(bin_of, weights=p - y, minlength=bins)  # sums of probability minus truth
    return float(np.abs(gaps).sum() / len(y))


def _probabilities(probabilities: ArrayLike, labels: ArrayLike) -> tuple[Numbers, Numbers]:
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if p.ndim not in (1, 2) or y.shape != p.shape[:1]:
        raise ValueError(f"probabilities {p.shape} must be (N,) or (N, K), and labels {y.shape} (N,)")
    known = ~np.isnan(y)
    p, y = p[known], y[known]
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("probabilities must lie between 0 and 1")
    if p.ndim == 2 and not np.allclose(p.sum(1), 1, atol=1e-4):
        raise ValueError("probabilities of exclusive classes must sum to 1")
    highest = 2 if p.ndim == 1 else p.shape[1]
    if not np.isin(y, np.arange(highest)).all():
        raise ValueError(f"labels must be whole numbers below {highest}, or nan where not known")
    return p, y


def confusion(prediction: ArrayLike, labels: ArrayLike, classes: int) -> NDArray[np.int64]:
    """Count (K, K): true class by row, predicted class by column. Both are (N,) class numbers."""
    p, y = np.asarray(prediction, dtype=np.int64), np.asarray(labels, dtype=np.int64)
    if p.shape != y.shape or p.ndim != 1:
        raise ValueError(f"prediction {p.shape} and labels {y.shape} must both be (N,)")
    if len(p) and not (min(p.min(), y.min()) >= 0 and max(p.max(), y.max()) < classes):
        raise ValueError(f"class numbers must lie between 0 and {classes - 1}")
    return np.bincount(y * classes + p, minlength=classes**2).reshape(classes, classes).astype(np.int64)


def balanced_accuracy(prediction: ArrayLike, labels: ArrayLike, classes: int) -> float:
    """Average over the true classes the share that was found; nan where there is no image.

    Source: equal to scikit-learn's `balanced_accuracy_score`.
    """
    table = confusion(prediction, labels, classes)
    total = table.sum(1)
    there = total > 0
    return float((table.diagonal()[there] / total[there]).mean()) if there.any() else float("nan")


def quadratic_kappa(prediction: ArrayLike, labels: ArrayLike, classes: int) -> float:
    """Give the agreement of ordered classes beyond chance, errors weighted by their square; 1 is perfect, 0 chance.

    Source: Cohen 1968, Psychological Bulletin 70 (4); equal to scikit-learn's `cohen_kappa_score(weights="quadratic")`.
    nan where all truths and all predictions are one and the same class.
    """
    table = confusion(prediction, labels, classes).astype(np.float64)
    weight = np.subtract.outer(np.arange(classes), np.arange(classes)) ** 2
    by_chance = np.outer(table.sum(1), table.sum(0)) / max(1.0, table.sum())
    expected = float((weight * by_chance).sum())
    return 1 - float((weight * table).sum()) / expected if expected > 0 else float("nan")


def by_group(
    measure: Callable[..., float], scores: ArrayLike, labels: ArrayLike, groups: Sequence[Hashable], **options: Any
) -> dict[Hashable, float]:
    """Apply a measure to each subgroup of images (site, scanner, sex), in the order they first appear.

    Args:
        measure: such as `auroc`.
        scores: (N,) or (N, K), first argument of the measure.
        labels: (N,), second argument.
        groups: (N,), None where not known (left out).
        options: of the measure.
    """
    s, y = np.asarray(scores), np.asarray(labels)
    if not len(s) == len(y) == len(groups):
        raise ValueError(f"{len(s)} scores, {len(y)} labels and {len(groups)} groups")
    known = list(dict.fromkeys(group for group in groups if group is not None))
    at = {group: np.array([other == group for other in groups]) for group in known}
    return {group: measure(s[inside], y[inside], **options) for group, inside in at.items()}
