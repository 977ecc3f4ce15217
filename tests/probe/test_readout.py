"""Laws of the one trained layer."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from medssl.probe.readout import draw_points, fit_readout


def _points(seed: int, n: int = 300) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, n)
    return np.eye(3)[labels] @ random.normal(size=(3, 5)) + random.normal(0, 0.7, (n, 5)), labels


@given(seed=st.integers(0, 20), scale=st.floats(0.01, 100), shift=st.floats(-50, 50))
def test_the_readout_ignores_scale_and_shift_of_features(seed: int, scale: float, shift: float) -> None:
    features, labels = _points(seed)
    ones = np.ones(len(labels))
    plain = fit_readout(features, labels, ones, classes=3).scores(features)
    moved = features * scale + shift
    again = fit_readout(moved, labels, ones, classes=3).scores(moved)
    np.testing.assert_allclose(plain - plain[:, :1], again - again[:, :1], atol=2e-2)


def test_a_feature_without_spread_is_harmless() -> None:
    features, labels = _points(0)
    constant = np.concatenate([features, np.full((len(features), 1), 3.0)], 1)
    ones = np.ones(len(labels))
    one, two = (fit_readout(f, labels, ones, classes=3).scores(f) for f in (features, constant))
    np.testing.assert_allclose(one, two, atol=1e-6)


def test_the_readout_equals_scikit_learns_logistic_regression() -> None:
    from sklearn.linear_model import LogisticRegression

    features, labels = _points(4)
    # As many points of every class, each for one voxel, so that there is no lean to choose.
    even = np.concatenate([np.flatnonzero(labels == k)[:80] for k in range(3)])
    features, labels = features[even], labels[even]
    features = (features - features.mean(0)) / features.std(0)
    penalty = 1e-2
    theirs = LogisticRegression(C=1 / (2 * penalty * len(labels)), tol=1e-10, max_iter=5000).fit(features, labels)
    ours = fit_readout(features, labels, np.ones(len(labels)), classes=3, penalty=penalty).scores(features)
    want = theirs.decision_function(features)
    np.testing.assert_allclose(ours - ours[:, :1], want - want[:, :1], atol=1e-3)


def test_a_class_rare_among_voxels_is_not_found_everywhere_when_features_say_little() -> None:
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1], 500)
    features = labels[:, None] * 1.0 + random.normal(size=(1000, 1))  # overlap: the threshold decides
    even = fit_readout(features, labels, np.ones(1000), classes=2).scores(features).argmax(1).mean()
    rare = fit_readout(features, labels, np.where(labels, 1.0, 30.0), classes=2).scores(features).argmax(1).mean()
    assert rare < 0.5 * even


@given(seed=st.integers(0, 20), points=st.integers(4, 60))
def test_points_stand_for_every_voxel_of_their_class(seed: int, points: int) -> None:
    random = np.random.default_rng(seed)
    label = random.integers(0, 3, (6, 7, 5))
    at, labels, counts = draw_points(label, points, random)
    np.testing.assert_array_equal(label[tuple(at.T)], labels)
    assert len({tuple(v) for v in at}) == len(at) <= points
    np.testing.assert_allclose(np.bincount(labels, counts), np.bincount(label.ravel()))


def test_weak_penalty_separates_what_can_be_separated() -> None:
    labels = np.repeat([0, 1, 2], 20)
    fitted = fit_readout(np.eye(3)[labels], labels, np.ones(60), classes=3)
    assert (fitted.scores(np.eye(3)).argmax(1) == [0, 1, 2]).all()
