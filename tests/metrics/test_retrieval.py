"""Nearest neighbours: equal to scikit-learn's, and their laws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, ndcg_score
from sklearn.neighbors import KNeighborsClassifier

from medssl.metrics import cosine_similarity, knn, mean_average_precision, ndcg_at, recall_at

SEEDS = st.integers(0, 200)


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.normal(size=(12, 5)), random.normal(size=(30, 5))


@given(seed=SEEDS, k=st.sampled_from([1, 3, 7, 30]))
def test_votes_equal_scikit_learns(seed: int, k: int) -> None:
    queries, stored = drawn(seed)
    labels = np.arange(30) % 4
    similarity = cosine_similarity(queries, stored)
    theirs = KNeighborsClassifier(k, metric="cosine").fit(stored, labels).predict_proba(queries)
    np.testing.assert_allclose(knn(similarity, labels, classes=4, k=k), theirs, atol=1e-12)


@given(seed=SEEDS)
def test_weighted_votes_lean_to_the_nearest_and_sum_to_one(seed: int) -> None:
    queries, stored = drawn(seed)
    labels = np.arange(30) % 3
    similarity = cosine_similarity(queries, stored)
    votes = knn(similarity, labels, classes=3, k=10, temperature=1e-4)
    np.testing.assert_allclose(votes.sum(1), 1)
    np.testing.assert_array_equal(votes.argmax(1), labels[similarity.argmax(1)])
    even = knn(similarity, labels, classes=3, k=10, temperature=1e6)
    np.testing.assert_allclose(even, knn(similarity, labels, classes=3, k=10), atol=1e-5)


@given(seed=SEEDS, k=st.sampled_from([1, 5, 30, None]), ties=st.booleans())
def test_ndcg_and_precision_equal_scikit_learns(seed: int, k: int | None, ties: bool) -> None:
    similarity = cosine_similarity(*drawn(seed))
    similarity = np.round(similarity, 1) if ties else similarity
    relevance = np.random.default_rng(seed).integers(0, 4, similarity.shape)
    relevance[:, 0] = 1
    assert ndcg_at(similarity, relevance, k) == pytest.approx(ndcg_score(relevance, similarity, k=k), abs=1e-9)
    right = relevance > 2
    right[:, 0] = True
    theirs = np.mean([average_precision_score(r, s) for r, s in zip(right, similarity)])
    assert mean_average_precision(similarity, right) == pytest.approx(theirs, abs=1e-12)


@given(seed=SEEDS)
def test_recall_rises_with_k_and_counts_queries(seed: int) -> None:
    similarity = cosine_similarity(*drawn(seed))
    right = np.random.default_rng(seed).random(similarity.shape) < 0.1
    right[:, 3] = True
    values = [recall_at(similarity, right, k) for k in (1, 5, 30)]
    assert values == sorted(values)
    assert values[-1] == 1
    nearest = similarity.argmax(1)
    assert values[0] == np.mean([r[n] for r, n in zip(right, nearest)])


@given(seed=SEEDS)
def test_an_image_left_out_changes_nothing(seed: int) -> None:
    similarity = cosine_similarity(*drawn(seed))
    right = (np.arange(30) % 3 == 0)[None].repeat(12, 0)
    hidden = np.concatenate([similarity, np.full((12, 1), -np.inf)], 1)
    more = np.concatenate([right, np.ones((12, 1), bool)], 1)
    for k in (1, 5):
        assert recall_at(hidden, more, k) == recall_at(similarity, right, k)
        assert ndcg_at(hidden, more, k) == pytest.approx(ndcg_at(similarity, right, k))
    assert mean_average_precision(hidden, more) == pytest.approx(mean_average_precision(similarity, right))


def test_a_query_whose_only_right_image_is_left_out_is_not_asked() -> None:
    similarity, right = np.array([[0.9, 0.1], [-np.inf, 0.5]]), np.array([[True, False], [True, False]])
    assert recall_at(similarity, right, 2) == 1
    assert ndcg_at(similarity, right) == 1
    assert ndcg_at(similarity, right * np.array([[1], [2]]), 1) == 1
    assert np.isnan(recall_at(similarity[1:], right[1:], 2))
    assert np.isnan(mean_average_precision(similarity[1:], right[1:]))


def test_collapsed_features_do_not_find_the_first_stored_image_by_their_order() -> None:
    similarity, right = np.ones((1, 4)), np.array([[True, False, False, False]])
    assert recall_at(similarity, right, 1) == 0
    assert ndcg_at(similarity, right, 1) == pytest.approx(0.25)


def test_what_is_not_asked_is_nan_and_what_does_not_fit_is_refused() -> None:
    assert np.isnan(recall_at([[1.0]], [[False]], 1))
    assert np.isnan(ndcg_at([[1.0]], [[0]]))
    assert np.isnan(mean_average_precision([[1.0]], [[0]]))
    np.testing.assert_array_equal(cosine_similarity([[0.0, 0.0]], [[1.0, 0.0]]), [[0.0]])
    with pytest.raises(ValueError, match="at least 1"):
        recall_at([[1.0]], [[1]], 0)
    with pytest.raises(ValueError, match="not be nan"):
        ndcg_at([[np.nan]], [[1]])
    with pytest.raises(ValueError, match="temperature"):
        knn([[1.0]], [0], classes=1, temperature=0)
    with pytest.raises(ValueError, match="stored images 3"):
        cosine_similarity(np.ones((1, 2)), np.ones((1, 3)))
