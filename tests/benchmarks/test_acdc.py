"""The benchmark on ACDC short axis: its split, its way of combining seeds, its page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.acdc import (
    OPPONENT,
    PRETRAINING_SEEDS,
    RANDOM,
    RECIPES,
    best_rates,
    differences,
    gap,
    over_seeds,
    summary,
)
from benchmarks.acdc_data import PER_GROUP, patients_of, read_patient, read_sunnybrook, split_patients
from medssl.metrics import bootstrap
from medssl.recipe import load_recipe


def _rows() -> list[dict[str, str]]:
    return [{"patient": f"patient{g}{k}", "group": f"G{g}"} for g in range(5) for k in range(8)]


def test_every_group_is_in_every_split_and_no_patient_in_two() -> None:
    rows = _rows()
    split = split_patients(rows)
    group = {row["patient"]: row["group"] for row in rows}
    assert sorted(name for names in split.values() for name in names) == sorted(group)
    for part, names in split.items():
        assert sorted(group[name] for name in names) == sorted(
            g for g in set(group.values()) for _ in range(PER_GROUP[part])
        )
    assert split == split_patients(list(reversed(rows)))
    assert split != split_patients(rows, seed=1)


def test_a_group_of_another_size_is_named() -> None:
    with pytest.raises(ValueError, match="group G4 has 7 patients"):
        split_patients(_rows()[:-1])


def _dice(gain: float) -> dict[str, dict[int, np.ndarray]]:
    """Return tables in which every recipe is better by `gain` in the mean of its seeds."""
    random = np.random.default_rng(0)
    base = {n: 0.1 * n + random.normal(0, 0.05, (5, 15)) for n in (1, 3)}
    out = {name: base for other in OPPONENT.values() for name in (other, f"{other} x3")}
    for recipe in RECIPES:
        for seed, way in zip(PRETRAINING_SEEDS, (-1, 1)):
            out[f"{recipe}, seed {seed}"] = {
                n: t + gain + 0.03 * way + random.normal(0, 0.01, t.shape) for n, t in base.items()
            }
    return out


def test_differences_are_paired_and_average_pretraining_seeds_before_the_bootstrap() -> None:
    dice = _dice(0.1)
    found = differences(dice, OPPONENT)
    for recipe, value in found.items():
        first, second = (dice[f"{recipe}, seed {s}"] for s in PRETRAINING_SEEDS)
        table = np.mean([(first[n] + second[n]) / 2 - dice["scratch"][n] for n in (1, 3)], 0)
        expected = bootstrap(table)
        assert value["all counts"]["mean"] == pytest.approx(expected.mean, abs=1e-12)
        assert value["all counts"]["low"] == pytest.approx(expected.low, abs=1e-12)
        assert value["all counts"]["comparisons"] == 3
        assert value["by count"]["1"]["comparisons"] == 6
        assert value["all counts"]["low"] > 0.08  # scratch's own spread, 0.05, is taken out by pairing
        assert value["patients up"] == "15 of 15"
        by_seed = value["by pretraining seed"]
        assert by_seed["1"]["mean"] - by_seed["0"]["mean"] == pytest.approx(0.06, abs=0.01)


def test_the_gap_over_counts_weighs_every_count_alike() -> None:
    dice = _dice(0.0)
    tables = gap(over_seeds(dice, "anatomy"), dice["scratch"])
    np.testing.assert_allclose(tables[0], (tables[1] + tables[3]) / 2)


def test_encoders_of_all_seeds_take_the_rate_of_the_first() -> None:
    rates = best_rates({"scratch": {"0.001": 0.5, "0.01": 0.6}, "anatomy, seed 0": {"0.001": 0.7, "0.01": 0.6}})
    assert rates == {"scratch": 0.01, "anatomy, seed 0": 0.001, "anatomy, seed 1": 0.001}


def test_the_summary_holds_every_endpoint() -> None:
    dice = _dice(0.1)
    probe = {**dice, **dict.fromkeys((*RANDOM.values(), "no network"), dice["scratch"])}
    found = summary({"scratch": {"0.01": 0.5}}, dice, probe)
    for key in ("primary", "against_longer", "probe_against_random", "probe_against_no_network"):
        assert set(found[key]) == set(RECIPES)
    assert found["longer_against_scratch"]["scratch"]["all counts"]["mean"] == 0
    assert np.shape(found["patient_dice"]["scratch"]["1"]) == (5, 15)


def test_recipes_prepare_alike_and_fine_tune_alike() -> None:
    recipes = [load_recipe(name) for name in RECIPES.values()]
    assert all(recipe.prepare == recipes[0].prepare and recipe.loader == recipes[0].loader for recipe in recipes)
    assert len({(r.finetune.steps, r.finetune.batch_size, r.train.steps) for r in recipes}) == 1
    assert recipes[0].encoder == recipes[1].encoder


def test_real_scans_are_read_with_their_labels(shared: Path) -> None:
    folder = shared / "noncommercial" / "acdc-short-axis"
    rows = patients_of(folder)
    assert {part: len(names) for part, names in split_patients(rows).items()} == {
        "test": 15, "validation": 5, "training": 20,
    }  # fmt: skip
    row = rows[0]
    image, label = read_patient(folder, row)
    assert image.shape == label.shape == (int(row["columns"]), int(row["rows"]), 2 * int(row["slices"]))
    assert set(np.unique(label)) == {0, 1, 2, 3}
    half = image.shape[2] // 2
    assert (label[..., :half] == 3).sum() > (label[..., half:] == 3).sum()  # end-diastole stands first
    assert len(read_sunnybrook(shared / "sunnybrook-cine")) == 15
