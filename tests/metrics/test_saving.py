"""Laws of the label-saving factor."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medssl.metrics import label_saving

COUNTS = (1, 2, 4, 8)


def curve(seed: int, noise: float = 0.02, seeds: int = 5, patients: int = 10) -> dict[int, np.ndarray]:
    """Scores that rise by .1 with each doubling, with patients that differ more than seeds."""
    random = np.random.default_rng(seed)
    patient = random.normal(0, 0.1, patients)
    return {n: 0.4 + 0.1 * k + patient + random.normal(0, noise, (seeds, patients)) for k, n in enumerate(COUNTS)}


@given(seed=st.integers(0, 50), at=st.sampled_from(COUNTS))
def test_scratch_itself_comes_as_far_with_the_same_count(seed: int, at: int) -> None:
    scratch = curve(seed)
    found = label_saving(scratch[at], scratch, at)
    assert found.reached == pytest.approx(at)
    assert found.factor == pytest.approx(1)


@given(seed=st.integers(0, 50), shift=st.floats(0.02, 0.18))
def test_the_count_is_read_on_a_line_over_log_count(seed: int, shift: float) -> None:
    scratch = curve(seed, noise=0.0)
    found = label_saving(scratch[2] + shift, scratch, 2)
    assert found.reached == pytest.approx(2 * 2 ** (shift / 0.1), rel=1e-6)
    assert found.low == pytest.approx(found.reached, rel=1e-6)
    assert found.high == pytest.approx(found.reached, rel=1e-6)


@given(seed=st.integers(0, 50))
def test_the_interval_holds_the_factor_and_widens_with_the_spread(seed: int) -> None:
    widths = []
    for noise in (0.005, 0.05):
        scratch = curve(seed, noise)
        encoder = curve(seed + 1000, noise)[2] - curve(seed + 1000, 0)[2] + curve(seed, 0)[2] + 0.05
        found = label_saving(encoder, scratch, 2)
        low, high = found.low or 1.0, found.high or 8.0
        assert found.reached is not None
        assert low <= found.reached <= high
        widths.append(high / low)
    assert widths[1] > widths[0]


def test_better_than_with_all_counts_is_beyond_and_worse_than_with_the_fewest_below() -> None:
    scratch = curve(0)
    beyond, below = label_saving(scratch[8] + 0.3, scratch, 1), label_saving(scratch[1] - 0.3, scratch, 4)
    assert (beyond.beyond, beyond.reached, beyond.high) == (True, None, None)
    assert "beyond the counts, over 8.0 times" in beyond.sentence
    assert (below.below, below.reached, below.low) == (True, None, None)
    assert "below the counts" in below.sentence


def test_where_the_interval_ends_outside_the_counts_it_says_so() -> None:
    scratch = curve(1, noise=0.1, seeds=3)
    encoder = curve(2, noise=0.1, seeds=3)[8]
    found = label_saving(encoder - encoder.mean() + scratch[8].mean() - 0.01, scratch, 2)
    assert found.high is None
    assert "beyond 8]" in str(found)
    assert found.to_dict()["high"] is None


def test_one_seed_tells_a_factor_but_no_interval() -> None:
    scratch = {n: table[:1] for n, table in curve(2).items()}
    found = label_saving(scratch[2] + 0.05, scratch, 2)
    assert (found.known, found.low, found.high) == (False, None, None)
    assert found.reached is not None
    with pytest.raises(ValueError, match="two counts"):
        label_saving(scratch[2], {2: scratch[2]}, 2)


def test_the_interval_covers_the_true_count_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(3)
    hits, trials = 0, 40
    for _ in range(trials):
        patient = random.normal(0, 0.1, 12)
        seeds = random.normal(0, 0.02, (2, 4, 5, 1))  # another spread of each arm, count and seed

        def at(level: float, k: int, arm: int, patient: np.ndarray = patient, seeds: np.ndarray = seeds) -> np.ndarray:
            return level + patient + seeds[arm, k] + random.normal(0, 0.03, (5, 12))

        scratch = {n: at(0.4 + 0.1 * k, k, 0) for k, n in enumerate(COUNTS)}
        found = label_saving(at(0.55, 1, 1), scratch, 2)
        low, high = found.low or 0.0, found.high or np.inf
        hits += low <= 2 * 2**0.5 <= high
    assert hits / trials >= 0.86
