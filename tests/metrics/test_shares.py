"""A measure of a group shared out among patients: what the shares must be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from medssl.metrics import bootstrap
from medssl.metrics.shares import shares


def _auroc(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    truth = random.permutation(np.arange(n) % 2)
    return truth, random.normal(truth, 1.0)


def test_shares_of_a_mean_are_the_values_themselves() -> None:
    values = np.array([0.2, 0.9, 0.4, 0.7])
    np.testing.assert_allclose(shares(lambda kept: float(values[list(kept)].mean()), 4), values)


def test_the_mean_of_the_shares_is_the_measure_and_their_spread_is_delongs() -> None:
    truth, score = _auroc(40, 1)

    def measure(kept: Sequence[int]) -> float:
        return float(roc_auc_score(truth[list(kept)], score[list(kept)]))

    found = shares(measure, len(truth))
    assert found.mean() == pytest.approx(roc_auc_score(truth, score), abs=1e-12)
    # DeLong's variance from the placements of either group among the other, written out anew
    wins = (score[truth == 1][:, None] > score[truth == 0][None]).astype(float)
    placed = (wins.mean(1), wins.mean(0))
    delong = sum(group.var(ddof=1) / len(group) for group in placed)
    assert found.var(ddof=1) / len(found) == pytest.approx(delong, rel=0.06)


def test_resampling_shares_stands_for_resampling_patients_and_measuring_anew() -> None:
    truth, score = _auroc(60, 2)
    found = shares(lambda kept: float(roc_auc_score(truth[list(kept)], score[list(kept)])), len(truth))
    ours = bootstrap(found[None], draws=2000)
    random = np.random.default_rng(0)
    anew = [
        roc_auc_score(truth[at], score[at]) for at in random.integers(0, 60, (2000, 60)) if 0 < truth[at].sum() < 60
    ]
    low, high = np.quantile(anew, (0.025, 0.975))
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=0.025)


def test_what_cannot_be_measured_is_nan_and_costs_the_others_nothing() -> None:
    assert np.isnan(shares(lambda kept: float("nan"), 3)).all()
    truth, score = np.array([1, 0, 0, 0]), np.array([0.9, 0.1, 0.95, 0.3])

    def measure(kept: Sequence[int]) -> float:
        there = truth[list(kept)]
        return float(roc_auc_score(there, score[list(kept)])) if 0 < there.sum() < len(there) else float("nan")

    found = shares(measure, 4)
    assert np.isnan(found).tolist() == [True, False, False, False]
    assert np.nanmean(found) == pytest.approx(2 / 3)
