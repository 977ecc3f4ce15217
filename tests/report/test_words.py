"""The verdict says what the intervals allow, and no more."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from medssl.metrics import Interval, Saving
from medssl.report.sources import RunFiles
from medssl.report.words import headline, verdict

EMPTY: Any = {}
RUN = RunFiles({}, "", "", EMPTY, EMPTY, EMPTY, (), 0.0, 0.0, EMPTY, EMPTY, "")


def gap(low: float, high: float, seeds: int = 5) -> dict[str, Any]:
    return Interval((low + high) / 2, low, high, 0.95, seeds, 8).to_dict()


def compared(low: float, high: float, seeds: int = 5) -> dict[str, Any]:
    return {
        "counts": [2],
        "measure": "Dice",
        "seeds": seeds,
        "split": "test",
        "patients": ["a", "b"],
        "overall": {"encoder": gap(low, high, seeds)},
        "differences": {"encoder": {"2": gap(low, high, seeds)}},
    }


def said(probe: Any, compare: Any, *, illustration: bool = False) -> str:
    return " ".join((headline(probe, compare), *verdict(RUN, None, probe, compare, illustration=illustration)))


@pytest.mark.parametrize(
    ("low", "high", "word"), [(0.01, 0.05, "better"), (-0.05, -0.01, "worse"), (-0.01, 0.05, "undecided")]
)
def test_fine_tuning_is_called_by_where_zero_lies(low: float, high: float, word: str) -> None:
    text = said(None, compared(low, high))
    assert word in text
    assert not {"better", "worse", "undecided"} - {word} & {w.strip(":;,.()") for w in text.split()}
    assert ("No gain over training from scratch is shown." in text) == (word != "better")
    assert f"{low:+.3f} to {high:+.3f}" in text


def test_an_interval_that_touches_zero_is_undecided() -> None:
    assert "undecided" in said(None, compared(0.0, 0.05))


def test_one_seed_decides_nothing_wherever_zero_lies() -> None:
    text = said(None, compared(0.01, 0.05, seeds=1))
    assert "undecided" in text
    assert "better" not in text


def test_few_seeds_are_told() -> None:
    assert "only large differences can be seen" in said(None, compared(0.01, 0.05, seeds=2))
    assert "only large" not in said(None, compared(0.01, 0.05, seeds=5))


def test_nothing_measured_claims_nothing() -> None:
    assert "was not measured" in said(None, None)


def test_an_illustration_is_called_one_whatever_was_found() -> None:
    assert "This is an illustration" in said(None, compared(0.01, 0.05), illustration=True)
    assert "illustration" not in said(None, compared(0.01, 0.05))


def test_a_probe_that_beats_one_control_only_names_the_other() -> None:
    probe = {
        "patients": ["a", "b"],
        "labelled_images": 2,
        "split": "test",
        "dice": {"encoder": 0.6},
        "scores": {"encoder": [[[0.6], [0.6]]]},
        "differences": {"random weights": gap(0.1, 0.2), "no network": gap(-0.1, 0.2)},
    }
    text = said(probe, None)
    assert "better than random weights by 0.150" in text
    assert "worth more than the control no network." in text
    assert headline(probe, None).startswith("Frozen, it is not shown to be better than all its controls")


def test_what_several_comparisons_make_doubtful_is_undecided_and_says_why() -> None:
    alone = Interval(0.03, 0.01, 0.05, 0.95, 5, 8, 0.01, 20.0, p=0.02, p_corrected=0.02)
    among = replace(alone, comparisons=6, p_corrected=0.12)
    for value, word in ((alone, "better"), (among, "undecided")):
        result = compared(0, 0) | {"overall": {"encoder": value.to_dict()}}
        assert word in headline(None, result)
    text = said(None, compared(0, 0) | {"overall": {"encoder": among.to_dict()}})
    assert "p is 0.120 among 6 comparisons" in text
    assert f"the smallest difference it could see is {among.smallest:.3f}" in text


@pytest.mark.parametrize(
    ("reached", "beyond", "words"), [(4.6, False, "a label-saving factor of 2.3"), (None, True, "beyond the counts")]
)
def test_the_labels_saved_are_told(reached: float | None, beyond: bool, words: str) -> None:
    saving = Saving(2, reached, 3.1, None, 1, 8, beyond, False, True)
    text = said(None, compared(0.01, 0.05) | {"savings": {"encoder": {"2": saving.to_dict()}}})
    assert f"With 2 labelled images it comes as far as scratch with {saving}: {words}." in text
