"""What the nearest neighbours of features tell: a class, and whether the right images are found.

Shapes: N stored images, Q queries, F features, K classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Numbers = NDArray[np.float64]


def cosine_similarity(queries: ArrayLike, stored: ArrayLike) -> Numbers:
    """Return (Q, N) cosines of the angles between features, (Q, F) and (N, F); 0 for a feature of zeros."""
    q, s = (_unit(np.asarray(x, dtype=np.float64)) for x in (queries, stored))
    if q.shape[1] != s.shape[1]:
        raise ValueError(f"queries have {q.shape[1]} features, stored images {s.shape[1]}")
    return np.asarray(q @ s.T, dtype=np.float64)


def _unit(features: Numbers) -> Numbers:
    if features.ndim != 2:
        raise ValueError(f"features must be (N, F), got {features.shape}")
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.where(length > 0, length, 1.0), dtype=np.float64)


def knn(
    similarity: ArrayLike, labels: ArrayLike, *, classes: int, k: int = 20, temperature: float | None = None
) -> Numbers:
    """Let the k most similar stored images vote on the class of each query.

    Args:
        similarity: (Q, N), higher is nearer.
        labels: (N,), class numbers of the stored images.
        classes: K.
        k: neighbours; all, where there are fewer. Of equally similar ones the first stored are taken.
        temperature: a vote weighs exp(similarity / temperature); all the same unless given. DINO uses .07 on cosines.

    Returns:
        (Q, K), shares of the votes; rows sum to 1.

    Source: Wu et al. 2018, arXiv:1805.01978, section 3.4; unweighted equal to scikit-learn's `KNeighborsClassifier`.
    """
    s, y = np.asarray(similarity, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    if s.ndim != 2 or y.shape != (s.shape[1],) or k < 1 or not len(y):
        raise ValueError(f"similarity {s.shape} must be (Q, N) with N labels {y.shape}, and k {k} at least 1")
    if temperature is not None and temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if y.min() < 0 or y.max() >= classes:
        raise ValueError(f"class numbers must lie between 0 and {classes - 1}")
    nearest = np.argsort(-s, axis=1, kind="stable")[:, :k]  # (Q, k)
    found = np.take_along_axis(s, nearest, 1)
    weight = np.ones_like(found) if temperature is None else np.exp((found - found[:, :1]) / temperature)
    votes = np.zeros((len(s), classes))
    np.add.at(votes, (np.arange(len(s))[:, None], y[nearest]), weight)
    return np.asarray(votes / votes.sum(1, keepdims=True), dtype=np.float64)


def recall_at(similarity: ArrayLike, relevant: ArrayLike, k: int) -> float:
    """Give the share of queries with a right image among the k most similar (Recall@k, as retrieval papers have it).

    Args:
        similarity: (Q, N), higher is nearer; -inf leaves an image out (the query itself, its own patient).
        relevant: (Q, N), whether an image is right for a query. Queries without a right one are left out.
        k: how many are looked at. Of equally similar ones the last stored come first.

    Returns:
        0 to 1; nan where no query has a right image.

    Source: Jegou, Douze and Schmid 2011, IEEE TPAMI 33 (1), section V.
    """
    s, right = _ranking(similarity, relevant)
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    asked = (right > 0).any(1)
    if not asked.any():
        return float("nan")
    ordered = np.take_along_axis(right, _order(s), 1)[asked]
    return float((ordered[:, :k] > 0).any(1).mean())


def ndcg_at(similarity: ArrayLike, relevance: ArrayLike, k: int | None = None) -> float:
    """Give the normalised discounted cumulative gain: how early the relevant images come.

    Args:
        similarity: (Q, N), higher is nearer; -inf leaves an image out, its relevance too.
        relevance: (Q, N), at least 0; the gain is the number itself. Queries without any are left out.
        k: how many are looked at; all unless given.

    Returns:
        0 to 1; nan where no query has a relevant image. Ties are averaged over their orders.

    Source: Jarvelin and Kekalainen 2002, ACM TOIS 20 (4); equal to scikit-learn's `ndcg_score`.
    """
    s, gain = _ranking(similarity, relevance)
    if k is not None and k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    asked = (gain > 0).any(1)
    if not asked.any():
        return float("nan")
    discount = 1 / np.log2(np.arange(s.shape[1]) + 2)
    discount[len(discount) if k is None else k :] = 0
    values = []
    for one, worth in zip(s[asked], gain[asked]):
        _, place, counts = np.unique(-one, return_inverse=True, return_counts=True)
        edges = np.concatenate(([0], np.cumsum(counts)))
        running = np.concatenate(([0.0], np.cumsum(discount)))
        shared = (running[edges[1:]] - running[edges[:-1]]) / counts  # mean discount of each group of ties
        best = (np.sort(worth)[::-1] * discount).sum()
        values.append((worth * shared[place]).sum() / best)
    return float(np.mean(values))


def mean_average_precision(similarity: ArrayLike, relevant: ArrayLike) -> float:
    """Average over queries the precision at each right image.

    Args:
        similarity: (Q, N), higher is nearer; -inf leaves an image out.
        relevant: (Q, N), whether an image is right for a query. Queries without a right one are left out.

    Returns:
        0 to 1; nan where no query has a right image. Ties are one threshold, as in `average_precision`.
    """
    from .classification import average_precision

    s, right = _ranking(similarity, relevant)
    kept = np.isfinite(s)
    values = [average_precision(s[i][kept[i]], right[i][kept[i]] > 0) for i in range(len(s)) if (right[i] > 0).any()]
    return float(np.mean(values)) if values else float("nan")


def _ranking(similarity: ArrayLike, relevance: ArrayLike) -> tuple[Numbers, Numbers]:
    s, gain = np.asarray(similarity, dtype=np.float64), np.asarray(relevance, dtype=np.float64)
    if s.ndim != 2 or s.shape != gain.shape:
        raise ValueError(f"similarity {s.shape} and relevance {gain.shape} must both be (Q, N)")
    if np.isnan(s).any() or not (gain >= 0).all():
        raise ValueError("similarity must not be nan, relevance not below 0")
    return s, np.where(np.isneginf(s), 0.0, gain)


def _order(similarity: Numbers) -> NDArray[np.int64]:
    """Sort from the most similar; among ties the last stored first, so that constant features gain nothing."""
    return np.argsort(similarity, axis=1, kind="stable")[:, ::-1].astype(np.int64)
