"""Scores and probabilities: equal to scikit-learn's and torchmetrics' code on the same numbers, and their laws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn import metrics as sk

from medssl.metrics import (
    auroc,
    average_precision,
    balanced_accuracy,
    brier,
    by_group,
    calibration_error,
    confusion,
    quadratic_kappa,
)

SEEDS = st.integers(0, 200)


def drawn(seed: int, n: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Scores with many ties, and labels of both kinds."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, n)
    labels[:2] = 0, 1
    return np.round(random.random(n) * 0.7 + 0.3 * labels, 1), labels


@given(seed=SEEDS)
def test_auroc_average_precision_and_brier_equal_scikit_learns(seed: int) -> None:
    scores, labels = drawn(seed)
    assert auroc(scores, labels) == pytest.approx(sk.roc_auc_score(labels, scores), abs=1e-12)
    assert average_precision(scores, labels) == pytest.approx(sk.average_precision_score(labels, scores), abs=1e-12)
    assert brier(scores, labels) == pytest.approx(sk.brier_score_loss(labels, scores), abs=1e-12)


@given(seed=SEEDS)
def test_auroc_knows_only_the_order_and_mirrors_with_the_scores(seed: int) -> None:
    scores, labels = drawn(seed)
    assert auroc(np.exp(3 * scores), labels) == pytest.approx(auroc(scores, labels), abs=1e-12)
    assert auroc(-scores, labels) == pytest.approx(1 - auroc(scores, labels), abs=1e-12)


@given(seed=SEEDS)
def test_images_without_a_known_label_do_not_count(seed: int) -> None:
    scores, labels = drawn(seed)
    more = np.append(labels.astype(float), [np.nan] * 3)
    for measure in (auroc, average_precision, brier, calibration_error):
        assert measure(np.append(scores, [0.1, 0.5, 0.9]), more) == measure(scores, labels)


@given(seed=SEEDS)
def test_ordered_and_balanced_agreement_equal_scikit_learns(seed: int) -> None:
    random = np.random.default_rng(seed)
    truth, found = random.integers(0, 4, 30), random.integers(0, 4, 30)
    np.testing.assert_array_equal(confusion(found, truth, 4), sk.confusion_matrix(truth, found, labels=range(4)))
    assert balanced_accuracy(found, truth, 4) == pytest.approx(
        np.mean([(found[truth == k] == k).mean() for k in np.unique(truth)])
    )
    kappa = sk.cohen_kappa_score(truth, found, weights="quadratic", labels=range(4))
    assert quadratic_kappa(found, truth, 4) == pytest.approx(kappa, abs=1e-12)


@given(seed=SEEDS, bins=st.sampled_from([1, 5, 15]))
def test_calibration_error_equals_torchmetrics(seed: int, bins: int) -> None:
    torch = pytest.importorskip("torch")
    reference = pytest.importorskip("torchmetrics.functional.classification")
    random = np.random.default_rng(seed)
    probability, labels = random.random(50), random.integers(0, 2, 50)
    theirs = reference.binary_calibration_error(torch.tensor(probability), torch.tensor(labels), n_bins=bins, norm="l1")
    assert calibration_error(probability, labels, bins=bins) == pytest.approx(float(theirs), abs=1e-6)
    several = random.dirichlet(np.ones(3), 50)
    classes = random.integers(0, 3, 50)
    theirs = reference.multiclass_calibration_error(
        torch.tensor(several), torch.tensor(classes), num_classes=3, n_bins=bins, norm="l1"
    )
    assert calibration_error(several, classes, bins=bins) == pytest.approx(float(theirs), abs=1e-6)


def test_a_probability_that_comes_true_as_often_as_it_says_is_calibrated() -> None:
    assert calibration_error([0.25] * 4, [1, 0, 0, 0]) == pytest.approx(0)
    assert calibration_error([0.9] * 4, [0] * 4) == pytest.approx(0.9)
    assert calibration_error([0.0, 1.0], [0, 1]) == 0
    assert brier([[1.0, 0.0], [0.0, 1.0]], [1, 0]) == 2


def test_one_kind_of_label_alone_has_no_auroc() -> None:
    assert np.isnan(auroc([0.1, 0.2], [1, 1]))
    assert np.isnan(average_precision([0.1, 0.2], [0, 0]))
    assert np.isnan(brier([0.5], [np.nan]))


@given(seed=SEEDS)
def test_a_subgroup_is_measured_as_if_it_were_alone(seed: int) -> None:
    scores, labels = drawn(seed)
    groups = [None if k % 7 == 0 else "AB"[k % 2] for k in range(len(scores))]
    inside = np.array([group == "A" for group in groups])
    assume(0 < labels[inside].sum() < inside.sum())
    found = by_group(auroc, scores, labels, groups)
    assert set(found) == {"A", "B"}
    assert found["A"] == auroc(scores[inside], labels[inside])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: auroc([0.1], [0, 1]), "must both be"),
        (lambda: auroc([0.1, 0.2], [0, 2]), "0, 1, or nan"),
        (lambda: auroc([np.nan, 0.2], [0, 1]), "must not be nan"),
        (lambda: brier([1.5], [1]), "between 0 and 1"),
        (lambda: calibration_error([[0.5, 0.6]], [1]), "sum to 1"),
        (lambda: calibration_error([0.5], [1], bins=0), "at least 1"),
        (lambda: confusion([3], [0], 3), "between 0 and 2"),
        (lambda: by_group(auroc, [0.1], [1], []), "0 groups"),
    ],
)
def test_what_cannot_be_measured_is_refused(call: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()  # type: ignore[operator]
