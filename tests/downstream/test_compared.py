"""What a comparison says of made-up scores: no more than they hold."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medssl.downstream import CompareResult
from medssl.downstream.compared import all_differences, with_comparisons
from medssl.downstream.figure import draw_comparison

COUNTS = (1, 2, 4, 8)


def scores(lead: float, seed: int = 0, *, noise: float = 0.02, seeds: int = 5, patients: int = 8) -> dict[int, Any]:
    """Dice that rises by .08 with each doubling, `lead` above that of scratch."""
    random, patient = np.random.default_rng(seed), np.random.default_rng(99).normal(0, 0.05, patients)
    return {
        n: np.clip(0.4 + 0.08 * k + lead + patient + random.normal(0, noise, (seeds, patients)), 0, 1)
        for k, n in enumerate(COUNTS)
    }


def compared(dice: dict[str, dict[int, Any]], **more: Any) -> CompareResult:
    first = next(iter(dice.values()))
    seeds, patients = next(iter(first.values())).shape
    counts = tuple(first)
    flat = {arm: dict.fromkeys(counts, 1.0) for arm in dice}
    values: dict[str, Any] = {
        "out": Path("out"),
        "arms": tuple(dice),
        "counts": counts,
        "seeds": seeds,
        "split": "test",
        "patients": tuple(map(str, range(patients))),
        "steps": 10,
        "task": "segmentation",
        "measure": "Dice",
        "values": dice,
        "further": {"hausdorff95_mm": flat},
        "rates": flat,
        "searched": (),
        "pairs": (),
        "computed": 0,
    }
    return with_comparisons(CompareResult(**(values | more)), 0.95)


@pytest.mark.parametrize(
    ("lead", "noise", "words"),
    [
        (0.08, 0.02, "run is better than scratch"),
        (-0.08, 0.02, "run is worse than scratch"),
        (0.0, 0.02, "run against scratch is undecided, 0 lies inside"),
        (0.08, 0.6, "run against scratch is undecided"),
    ],
    ids=["better", "worse", "no difference", "noise"],
)
def test_the_sentence_claims_no_more_than_the_interval(lead: float, noise: float, words: str) -> None:
    result = compared({"run": scores(lead, 1, noise=noise), "scratch": scores(0, 2, noise=noise)})
    assert words in str(result)
    assert len({"better", "worse", "undecided"} & set(re.findall(r"\w+", result.sentences[0]))) == 1
    json.dumps(result.to_dict(), allow_nan=False)


@given(seed=st.integers(0, 40), lead=st.floats(-0.05, 0.05))
def test_what_is_decided_is_never_below_the_smallest_difference_it_could_see(seed: int, lead: float) -> None:
    arms = {"run": scores(lead, seed, noise=0.05), "scratch": scores(0, seed + 100, noise=0.05)}
    for pair in all_differences(arms, draws=300):
        for interval in (pair.overall, *pair.by_count.values()):
            assert interval.smallest is not None
            if abs(interval.mean) < interval.smallest:
                assert interval.verdict == "undecided"


def test_each_table_tells_the_smallest_difference_it_could_see_and_the_verdict_below() -> None:
    result = compared({"run": scores(0.01, 1), "scratch": scores(0, 2)})
    smallest = result.overall["run"].smallest
    assert f"smallest difference it could see {smallest:.3f}" in str(result)
    line = next(line for line in str(result).splitlines() if "could see, verdict" in line)
    for interval in result.differences["run"].values():
        assert f"{interval.smallest:.3f}, {interval.verdict}" in line


def test_encoders_are_compared_with_scratch_and_each_other_and_all_of_it_is_corrected() -> None:
    dice = {"one": scores(0.03, 1), "scratch": scores(0, 2), "two": scores(0.05, 3), "scratch x2": scores(0.01, 4)}
    result = compared(dice, control="scratch x2", control_steps=20)
    assert [(pair.first, pair.second) for pair in result.pairs] == [
        ("one", "two"),
        ("one", "scratch x2"),
        ("one", "scratch"),
        ("two", "scratch x2"),
        ("two", "scratch"),
        ("scratch x2", "scratch"),
    ]
    assert {pair.overall.comparisons for pair in result.pairs} == {6}
    assert {i.comparisons for pair in result.pairs for i in pair.by_count.values()} == {24}
    for pair in result.pairs:
        assert pair.overall.p_corrected >= pair.overall.p  # type: ignore[operator]
        gap = np.mean([dice[pair.first][n] - dice[pair.second][n] for n in COUNTS])
        assert pair.overall.mean == pytest.approx(gap)
    assert "corrected by Holm" in str(result)


def test_the_sentence_tells_how_many_labels_are_saved() -> None:
    result = compared({"run": scores(0.08, 1, noise=0.005), "scratch": scores(0, 2, noise=0.005)})
    factor = re.search(
        r"with 1 labelled image it comes as far as scratch with \S+ \[\S+, \S+\] \(([\d.]+) times", str(result)
    )
    assert factor is not None
    assert float(factor[1]) == pytest.approx(2, abs=0.2)
    top = compared({"run": scores(0.5, 1), "scratch": scores(0, 2)})
    assert "beyond the counts, over 8.0 times as many" in str(top)
    one = compared({arm: {1: table[1]} for arm, table in {"run": scores(0.1, 1), "scratch": scores(0, 2)}.items()})
    assert one.savings == {}


def test_patients_without_a_class_are_left_out_and_the_json_has_no_nan() -> None:
    dice = {"run": scores(0.05, 1), "scratch": scores(0, 2)}
    holes = {arm: {n: table.copy() for n, table in by.items()} for arm, by in dice.items()}
    for by in holes.values():
        for table in by.values():
            table[:, 3] = np.nan
    result, without = (
        compared(holes),
        compared({arm: {n: np.delete(table, 3, 1) for n, table in by.items()} for arm, by in dice.items()}),
    )
    assert result.overall["run"].mean == pytest.approx(without.overall["run"].mean)
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["patient_values"]["run"]["1"][0][3] is None


def test_the_markdown_table_holds_the_same_numbers() -> None:
    result = compared({"run": scores(0.05, 1), "scratch": scores(0, 2)}, all_images=8)
    lines = [line for line in result.markdown.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {len(COUNTS) + 2}
    assert "8 (all)" in lines[0]
    for interval in result.differences["run"].values():
        assert str(interval) in result.markdown


def test_the_plot_names_every_arm_and_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    dice = {"run <a>": scores(0.05, 1), "$x^$": scores(0.02, 3), "scratch": scores(0, 2)}
    result = compared(dice)
    one, two = (draw_comparison(result, tmp_path / name).read_bytes() for name in ("one.svg", "two.svg"))
    assert one == two
    text = " ".join(ET.fromstring(one).itertext())
    assert all(arm in text for arm in dice)
    assert "Dice minus scratch, 95% interval" in text
    alone = draw_comparison(compared({"run": scores(0, 1)}), tmp_path / "alone.svg").read_text()
    assert "minus" not in alone


def test_one_seed_is_undecided_and_tells_no_spread() -> None:
    result = compared({"run": scores(0.2, 1, seeds=1), "scratch": scores(0, 2, seeds=1)})
    assert "run against scratch is undecided, one seed tells no spread" in str(result)
    assert "1 seed: more of them see smaller differences" in str(result)
