"""Laws of what is read from frozen features of whole images."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medssl.probe.heads import Answers, _folds, _linear, by_attention, by_linear_layer, by_neighbours, standardized

KNOBS = {"heads": 2, "steps": 150, "learning_rate": 0.02, "seed": 0}


def answers(values: np.ndarray, classes: int) -> Answers:
    """Every image is its own patient."""
    return Answers(np.asarray(values, dtype=np.float64), tuple(f"p{i:03d}" for i in range(len(values))), classes)


def marked(images: int, seed: int, *, tokens: int = 12) -> tuple[list[np.ndarray], np.ndarray]:
    """Draw images of noise tokens, of which one is marked and bears the class; the others' mean hides it."""
    random = np.random.default_rng(seed)
    truth = np.arange(images) % 2
    out = []
    for value in truth:
        rows = np.concatenate([random.normal(0, 1.5, (tokens, 1)), np.zeros((tokens, 1))], 1)
        rows[random.integers(tokens)] = [2.0 * value - 1.0, 3.0]
        out.append(rows)
    return out, truth


@pytest.mark.parametrize("classes", [2, 3])
def test_features_that_separate_the_classes_are_read_by_every_head(classes: int) -> None:
    random = np.random.default_rng(0)
    truth = np.arange(60) % classes
    x = np.eye(classes)[truth] * 4 + random.normal(size=(60, classes))
    known = answers(truth[:40], classes)
    tokens = [row[None] for row in x]
    found = {
        "kNN": by_neighbours(x[:40], known, x[40:], neighbours=5, temperature=0.07),
        "linear": by_linear_layer(x[:40], known, x[40:]),
        "attentive": by_attention(tokens[:40], known, tokens[40:], **KNOBS),
    }
    for name, shares in found.items():
        np.testing.assert_allclose(shares.sum(1), 1)
        assert (shares.argmax(1) == truth[40:]).mean() > 0.9, name


@given(scale=st.floats(0.01, 100), shift=st.floats(-10, 10))
def test_no_head_heeds_the_unit_of_a_feature(scale: float, shift: float) -> None:
    random = np.random.default_rng(1)
    x = random.normal(size=(20, 3))
    known = answers(np.arange(14) % 2, 2)
    moved = x * np.array([scale, 1, 1]) + np.array([shift, 0, 0])
    for head in (
        lambda v: by_neighbours(v[:14], known, v[14:], neighbours=3, temperature=0.1),
        lambda v: by_linear_layer(v[:14], known, v[14:]),
    ):
        np.testing.assert_allclose(head(x), head(moved), atol=1e-4)


def test_a_measure_is_told_in_its_own_unit() -> None:
    random = np.random.default_rng(2)
    x = random.normal(size=(80, 4))
    truth = 120 + 30 * x[:, 0] - 10 * x[:, 2]
    known = answers(truth[:60], 0)
    np.testing.assert_allclose(by_linear_layer(x[:60], known, x[60:])[:, 0], truth[60:], atol=0.5)
    near = by_neighbours(x[:60], known, x[60:], neighbours=5, temperature=0.07)[:, 0]
    assert np.corrcoef(near, truth[60:])[0, 1] > 0.8
    tokens = [row[None] for row in x]
    attended = by_attention(tokens[:60], known, tokens[60:], **KNOBS)[:, 0]
    assert np.corrcoef(attended, truth[60:])[0, 1] > 0.95


def test_attention_finds_what_stands_in_one_token_of_many() -> None:
    train, truth = marked(80, 0)
    scored, wanted = marked(40, 1)
    found = by_attention(train, answers(truth, 2), scored, **{**KNOBS, "steps": 400})
    assert (found.argmax(1) == wanted).mean() > 0.9
    means = by_linear_layer(
        np.stack([t.mean(0) for t in train]), answers(truth, 2), np.stack([t.mean(0) for t in scored])
    )
    assert (means.argmax(1) == wanted).mean() < 0.8


def test_attention_heeds_neither_the_order_of_tokens_nor_how_many_others_have() -> None:
    train, truth = marked(10, 0)
    scored, _ = marked(4, 1)
    long, _ = marked(1, 2, tokens=40)
    known = answers(truth, 2)
    one = by_attention(train, known, [*scored, long[0]], **KNOBS)
    two = by_attention(train, known, [t[::-1] for t in scored], **KNOBS)
    np.testing.assert_allclose(one[:4], two, atol=1e-3)


def test_equal_seeds_give_equal_attention() -> None:
    train, truth = marked(10, 0)
    one, two = (by_attention(train, answers(truth, 2), train, **KNOBS) for _ in range(2))
    np.testing.assert_array_equal(one, two)


def test_a_feature_that_does_not_vary_says_nothing() -> None:
    train, scored = standardized(np.array([[1.0, 5.0], [2.0, 5.0]]), np.array([[1.5, 7.0]]))
    np.testing.assert_array_equal(train[:, 1], 0)
    np.testing.assert_array_equal(scored, 0)


@pytest.mark.parametrize("penalty", [1e-3, 1e-1])
def test_a_linear_layer_is_scikit_learns(penalty: float) -> None:
    from sklearn.linear_model import LogisticRegression, Ridge

    random = np.random.default_rng(4)
    x, classes = random.normal(size=(40, 5)), random.integers(0, 3, 30)
    train, scored = standardized(x[:30], x[30:])
    ridge = Ridge(alpha=30 * penalty).fit(train, x[:30, 0] ** 2)
    ours = _linear(x[:30], answers(x[:30, 0] ** 2, 0), x[30:], penalty)[:, 0]
    np.testing.assert_allclose(ours, ridge.predict(scored), rtol=1e-6)
    logistic = LogisticRegression(C=1 / (2 * 30 * penalty), tol=1e-8, max_iter=1000).fit(train, classes)
    shares = _linear(x[:30], answers(classes, 3), x[30:], penalty)
    np.testing.assert_allclose(shares, logistic.predict_proba(scored), atol=2e-3)


@given(patients=st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=20))
def test_no_patient_stands_in_two_folds_and_patients_are_spread_over_them(patients: list[str]) -> None:
    of = _folds(patients)
    held = {patient: {int(f) for f, p in zip(of, patients) if p == patient} for patient in patients}
    assert all(len(folds) == 1 for folds in held.values())
    assert len(set(of.tolist())) == min(4, len(held))
