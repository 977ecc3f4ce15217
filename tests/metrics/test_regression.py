"""Errors of measures: equal to scikit-learn's, and blind to what must not matter."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from medssl.metrics import regression_errors


@given(seed=st.integers(0, 200))
def test_errors_equal_scikit_learns_and_numpys(seed: int) -> None:
    random = np.random.default_rng(seed)
    truth = random.normal(60, 10, 25)
    found = truth + random.normal(2, 4, 25)
    errors = regression_errors(found, truth)
    assert errors.mean_absolute == pytest.approx(sk.mean_absolute_error(truth, found))
    assert errors.root_mean_square == pytest.approx(sk.root_mean_squared_error(truth, found))
    assert errors.r2 == pytest.approx(sk.r2_score(truth, found))
    assert errors.pearson == pytest.approx(np.corrcoef(truth, found)[0, 1])
    low, high = errors.limits
    assert (low + high) / 2 == pytest.approx(errors.bias)
    assert high - low == pytest.approx(2 * 1.96 * np.std(found - truth, ddof=1))
    assert regression_errors([*found, 1.0], [*truth, np.nan]) == errors


@given(seed=st.integers(0, 200), factor=st.floats(0.1, 10))
def test_errors_scale_with_the_unit_and_shares_do_not(seed: int, factor: float) -> None:
    random = np.random.default_rng(seed)
    truth, found = random.normal(0, 1, (2, 9))
    one, other = regression_errors(found, truth), regression_errors(factor * found, factor * truth)
    assert other.mean_absolute == pytest.approx(factor * one.mean_absolute)
    assert (other.r2, other.pearson) == (pytest.approx(one.r2), pytest.approx(one.pearson))


def test_what_is_not_defined_is_nan_and_none_in_json() -> None:
    assert regression_errors([], []).n == 0
    one = regression_errors([2.0], [1.0])
    assert one.mean_absolute == 1
    assert one.to_dict()["r2"] is None
    assert one.to_dict()["limits"] == [None, None]
    with pytest.raises(ValueError, match="must not be nan"):
        regression_errors([np.nan], [1.0])
    with pytest.raises(ValueError, match="must both be"):
        regression_errors([1.0], [1.0, 2.0])
