"""Laws of the paired, two-level bootstrap, and of correcting for several comparisons."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medssl.metrics import Interval, bootstrap, holm, standard_error


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


@given(seed=st.integers(0, 20))
def test_seeds_and_patients_without_any_measurement_neither_count_nor_decide(seed: int) -> None:
    table = np.random.default_rng(seed).normal(0.3, 0.2, (3, 4))
    wide = np.full((5, 7), np.nan)
    wide[np.ix_([0, 2, 4], [1, 2, 5, 6])] = table
    assert bootstrap(wide) == bootstrap(table)
    one = bootstrap(np.stack([table[:, 0], np.full(3, np.nan)], 1))  # two patients, of whom one has no such class
    assert (one.patients, one.p, one.doubt) == (1, None, "one patient tells no spread")
    assert bootstrap(np.stack([table[0], np.full(4, np.nan)])).doubt == "one seed tells no spread"


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


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_few_seeds_do_not_make_the_interval_too_narrow(seeds: int) -> None:
    random = np.random.default_rng(seeds)
    hits = 0
    for trial in range(250):
        table = random.normal(0, 1, (seeds, 1)) + random.normal(0, 0.3, (1, 12)) + random.normal(0, 0.5, (seeds, 12))
        found = bootstrap(0.3 + table, draws=300, seed=trial)
        hits += found.low <= 0.3 <= found.high
    assert 0.88 <= hits / 250 <= 0.99  # percentiles alone: 64, 76 and 86%


@given(seed=st.integers(0, 100), seeds=st.integers(2, 6))
def test_p_is_small_exactly_where_zero_is_outside(seed: int, seeds: int) -> None:
    table = np.random.default_rng(seed).normal(0.3, 0.6, (seeds, 9))
    found = bootstrap(table)
    assert found.p is not None
    if found.p < 0.045:
        assert not found.low <= 0 <= found.high
    if found.p > 0.055:
        assert found.low <= 0 <= found.high


@given(seed=st.integers(0, 100))
def test_p_of_swapped_arms_is_the_same_and_more_confidence_is_wider(seed: int) -> None:
    table = np.random.default_rng(seed).normal(0.2, 0.6, (4, 9))
    assert bootstrap(table).p == pytest.approx(bootstrap(-table).p)
    narrow, wide = bootstrap(table, confidence=0.8), bootstrap(table, confidence=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high
    assert narrow.p == wide.p


def test_the_standard_error_is_that_of_many_tables_drawn_alike() -> None:
    random = np.random.default_rng(0)
    tables = [
        random.normal(0, 0.6, (6, 1)) + random.normal(0, 0.4, (1, 15)) + random.normal(0, 0.5, (6, 15))
        for _ in range(2000)
    ]
    true = np.std([table.mean() for table in tables])
    assert np.sqrt(np.mean([standard_error(table)[0] ** 2 for table in tables])) == pytest.approx(true, rel=0.05)


@given(seed=st.integers(0, 100), seeds=st.integers(2, 4), patients=st.integers(2, 6))
def test_the_standard_error_is_no_less_than_seeds_or_patients_alone_would_have(
    seed: int, seeds: int, patients: int
) -> None:
    table = np.random.default_rng(seed).normal(size=(seeds, patients))  # nothing but the rest spreads
    error, _ = standard_error(table)
    for means in (table.mean(0), table.mean(1)):
        assert error >= means.std(ddof=1) / np.sqrt(len(means)) * (1 - 1e-9)


@pytest.mark.parametrize("table", [[[2, 0], [0, 2]], [[1, 0, 0.5], [0.5, 1, 0], [0, 0.5, 1]]], ids=["2 x 2", "3 x 3"])
def test_a_table_whose_means_are_all_one_is_not_therefore_sure(table: list[list[float]]) -> None:
    found = bootstrap(table)
    assert found.verdict == "undecided"
    assert found.error is not None
    assert found.p is not None
    assert found.error > 0.2
    assert found.p > 0.05


@given(seed=st.integers(0, 100))
def test_what_was_not_measured_hardly_moves_the_standard_error(seed: int) -> None:
    random = np.random.default_rng(seed)
    table = random.normal(0, 1, (5, 1)) + random.normal(0, 1, (1, 20)) + random.normal(0, 0.1, (5, 20))
    holes = table.copy()
    holes[random.integers(0, 5), random.integers(0, 20)] = np.nan
    assert standard_error(holes)[0] == pytest.approx(standard_error(table)[0], rel=0.1)


def interval(p: float, mean: float = 1.0, error: float = 0.1) -> Interval:
    return Interval(mean, 0.5, 1.5, 0.95, 5, 8, error, 10.0, p=p, p_corrected=p)


def test_holm_multiplies_the_smallest_p_by_all_the_next_by_one_less_and_never_falls() -> None:
    found = holm({"a": interval(0.01), "b": interval(0.04), "c": interval(0.03), "d": interval(0.005)})
    assert [found[k].p_corrected for k in "abcd"] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert {value.comparisons for value in found.values()} == {4}
    assert [found[k].verdict for k in "abcd"] == ["better", "undecided", "undecided", "better"]
    assert found["b"].doubt == "p is 0.060 among 4 comparisons"


@given(values=st.lists(st.floats(0.0001, 1), min_size=1, max_size=8))
def test_holm_never_lowers_a_p_and_keeps_their_order(values: list[float]) -> None:
    found = holm({k: interval(p) for k, p in enumerate(values)})
    corrected = [found[k].p_corrected or 0.0 for k in range(len(values))]
    assert all(p <= q <= min(1.0, p * len(values)) + 1e-12 for p, q in zip(values, corrected))
    order = np.argsort(values)
    assert (np.diff(np.array(corrected)[order]) >= 0).all()
    if len(values) == 1:
        assert corrected == pytest.approx(values)


def test_what_cannot_be_tested_is_not_counted() -> None:
    found = holm({"a": interval(0.03), "one seed": bootstrap([[0.2, 0.3]])})
    assert (found["a"].comparisons, found["a"].p_corrected) == (1, 0.03)
    assert found["one seed"].p_corrected is None


def test_no_difference_is_called_one_by_luck_in_at_most_about_one_table_of_twenty() -> None:
    random, wrong, trials = np.random.default_rng(4), 0, 200
    for trial in range(trials):
        scratch = random.normal(0, 1, (5, 1)) + random.normal(0, 1, (5, 12))
        arms = [random.normal(0, 1, (5, 1)) + random.normal(0, 1, (5, 12)) - scratch for _ in range(4)]
        found = holm({k: bootstrap(arm, draws=300, seed=trial) for k, arm in enumerate(arms)})
        wrong += any(value.verdict != "undecided" for value in found.values())
    assert wrong / trials <= 0.09


def test_the_smallest_difference_is_found_with_chance_point_eight() -> None:
    random, sees, sizes = np.random.default_rng(5), 0, []
    for trial in range(300):
        table = random.normal(0, 0.3, (8, 1)) + random.normal(0, 0.3, (1, 20)) + random.normal(0, 0.3, (8, 20))
        sizes.append(bootstrap(table, draws=200, seed=trial).smallest)
    smallest = float(np.mean(sizes))
    for trial in range(300):
        table = random.normal(0, 0.3, (8, 1)) + random.normal(0, 0.3, (1, 20)) + random.normal(0, 0.3, (8, 20))
        p = bootstrap(table + smallest, draws=300, seed=trial).p
        sees += p is not None and p < 0.05
    assert 0.72 <= sees / 300 <= 0.9


def test_below_the_smallest_difference_it_could_see_nothing_is_decided() -> None:
    found = interval(0.01, mean=0.3, error=0.12)
    assert found.smallest == pytest.approx(0.12 * (2.228 + 0.879), rel=1e-3)
    assert found.verdict == "undecided"
    assert found.doubt == "below 0.373, the smallest difference it could see"
    assert interval(0.01, mean=0.4, error=0.12).verdict == "better"


@given(comparisons=st.integers(2, 20))
def test_more_comparisons_see_only_larger_differences(comparisons: int) -> None:
    alone = interval(0.01)
    among = holm({k: interval(0.01) for k in range(comparisons)})[0]
    assert among.smallest is not None
    assert alone.smallest is not None
    assert among.smallest > alone.smallest


@pytest.mark.parametrize(("seeds", "patients", "what"), [(2, 8, "seeds"), (5, 2, "patients")])
def test_two_seeds_or_patients_decide_one_comparison_but_not_several(seeds: int, patients: int, what: str) -> None:
    value = Interval(1.0, 0.5, 1.5, 0.95, seeds, patients, 0.01, 10.0, p=0.0001, p_corrected=0.0001)
    assert value.verdict == "better"
    assert holm({"a": value, "b": value})["a"].doubt == f"two {what} are too few for 2 comparisons"
