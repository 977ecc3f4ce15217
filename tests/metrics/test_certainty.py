"""Laws of the paired, two-level bootstrap."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medssl.metrics import bootstrap


@given(value=st.floats(-1, 1), seeds=st.integers(1, 5), patients=st.integers(1, 9))
def test_a_constant_difference_has_an_interval_without_width(value: float, seeds: int, patients: int) -> None:
    found = bootstrap(np.full((seeds, patients), value), draws=100)
    assert found.low == pytest.approx(value, abs=1e-12)
    assert found.high == pytest.approx(value, abs=1e-12)
    assert found.mean == pytest.approx(value, abs=1e-12)


@given(seed=st.integers(0, 20))
def test_swapping_the_arms_mirrors_the_interval(seed: int) -> None:
    table = np.random.default_rng(seed).normal(0.1, 1, (3, 8))
    there, back = bootstrap(table), bootstrap(-table)
    assert (back.low, back.high) == (pytest.approx(-there.high, abs=1e-9), pytest.approx(-there.low, abs=1e-9))
    assert there.low <= there.mean <= there.high


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    hits = 0
    for trial in range(300):
        table = 0.3 + random.normal(0, 0.5, (12, 1)) + random.normal(0, 0.5, (1, 20)) + random.normal(0, 0.5, (12, 20))
        found = bootstrap(table, draws=400, seed=trial)
        hits += found.low <= 0.3 <= found.high
    assert 0.88 <= hits / 300 <= 0.99


def test_the_spread_between_seeds_widens_the_interval() -> None:
    patients = np.linspace(-0.1, 0.1, 10)[None]
    same, different = np.repeat(patients, 4, 0), patients + np.array([[-1.0], [0.0], [0.5], [1.0]])
    narrow, wide = bootstrap(same), bootstrap(different)
    assert wide.high - wide.low > 5 * (narrow.high - narrow.low)


def test_a_seed_and_patient_that_were_not_measured_are_left_out() -> None:
    table = np.array([[1.0, np.nan], [1.0, 1.0]])
    assert bootstrap(table).mean == 1.0
    with pytest.raises(ValueError, match="finite"):
        bootstrap(np.full((2, 2), np.nan))


@pytest.mark.parametrize(
    ("values", "verdict", "doubt"),
    [
        ([0.2, 0.3, 0.25], "better", ""),
        ([-0.2, -0.3, -0.25], "worse", ""),
        ([-0.2, 0.3, 0.1], "undecided", "0 lies inside"),
        ([0.0] * 3, "undecided", "0 lies inside"),
    ],
)
def test_the_verdict_claims_nothing_when_zero_lies_inside(values: list[float], verdict: str, doubt: str) -> None:
    found = bootstrap([values, values])
    assert (found.verdict, found.doubt) == (verdict, doubt)


@pytest.mark.parametrize(
    ("table", "doubt"), [([[0.2, 0.3]], "one seed"), ([[0.2], [0.3]], "one patient")], ids=["one seed", "one patient"]
)
def test_one_seed_or_one_patient_decides_nothing(table: list[list[float]], doubt: str) -> None:
    found = bootstrap(table)
    assert found.verdict == "undecided"
    assert doubt in found.doubt
