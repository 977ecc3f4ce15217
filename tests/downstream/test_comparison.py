"""Laws of comparing encoders with scratch."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from medssl.downstream import CompareResult, FinetuneConfig, compare_encoders
from medssl.downstream.comparison import parse_counts
from medssl.errors import DataError, UsageError
from medssl.metrics import Interval
from medssl.nets.encoder import Encoder, save_network
from medssl.store import Store


def _compare(
    encoders: list[Encoder | None], store: Store, out: Path, config: FinetuneConfig, **more: object
) -> CompareResult:
    arguments: dict[str, object] = {"counts": (1, 2), "seeds": 2} | more
    return compare_encoders(encoders, data=store, out=out, config=config, **arguments)  # type: ignore[arg-type]


def test_arms_with_equal_weights_differ_by_nothing(
    store: Store, encoder: Encoder, quick: FinetuneConfig, tmp_path: Path
) -> None:
    result = _compare([encoder, copy.deepcopy(encoder)], store, tmp_path / "out", quick, names=("one", "two"))
    for count in result.counts:
        np.testing.assert_array_equal(result.dice["one"][count], result.dice["two"][count])
    assert result.computed == 4  # the second arm's cells are the first arm's


def test_a_rerun_trains_only_what_is_missing(
    store: Store, encoder: Encoder, quick: FinetuneConfig, tmp_path: Path
) -> None:
    first = _compare([encoder, None], store, tmp_path / "out", quick)
    again = _compare([encoder, None], store, tmp_path / "out", quick)
    assert (first.computed, again.computed) == (8, 0)
    assert {**first.to_dict(), "computed": 0} == again.to_dict()
    assert _compare([encoder, None], store, tmp_path / "out", quick, seeds=3).computed == 4
    next((tmp_path / "out" / "cells").iterdir()).write_text('{"decided_by": ')
    mended = _compare([encoder, None], store, tmp_path / "out", quick, seeds=3)
    assert mended.computed == 1
    assert _compare([encoder, None], store, tmp_path / "out", quick.model_copy(update={"steps": 5})).computed == 8
    other = copy.deepcopy(encoder)
    with torch.no_grad():
        next(iter(other.parameters())).add_(0.1)
    assert _compare([other, None], store, tmp_path / "out", quick).computed == 4


def test_a_comparison_that_was_stopped_goes_on_to_the_same_numbers(
    store: Store, encoder: Encoder, quick: FinetuneConfig, tmp_path: Path
) -> None:
    def stop(phase: str, done: int, total: int) -> None:
        if phase == "compare" and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _compare([encoder, None], store, tmp_path / "out", quick, progress=stop)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["cells"]
    resumed = _compare([encoder, None], store, tmp_path / "out", quick)
    whole = _compare([encoder, None], store, tmp_path / "whole", quick)
    assert resumed.computed == 5
    for arm in whole.arms:
        for count in whole.counts:
            np.testing.assert_array_equal(resumed.dice[arm][count], whole.dice[arm][count])


def test_arms_of_a_seed_share_their_labelled_images_and_a_larger_count_holds_the_smaller(
    store: Store, encoder: Encoder, quick: FinetuneConfig, tmp_path: Path
) -> None:
    _compare([encoder, None], store, tmp_path / "out", quick)
    cells = [json.loads(path.read_text()) for path in (tmp_path / "out" / "cells").iterdir()]
    images = {(c["arm"], c["count"], c["seed"]): c["decided_by"]["images"] for c in cells}
    assert images["scratch", 2, 0] != images["scratch", 2, 1]
    for seed in range(2):
        for count in (1, 2):
            assert images["encoder", count, seed] == images["scratch", count, seed]
        assert set(images["scratch", 1, seed]) < set(images["scratch", 2, seed])
    assert all(set(chosen) <= set(store.ids_of("train")) for chosen in images.values())


def test_every_arm_chooses_its_rate_on_validation_images(
    store: Store, encoder: Encoder, quick: FinetuneConfig, tmp_path: Path
) -> None:
    result = _compare([encoder, None], store, tmp_path / "out", quick, counts=(2,), learning_rates=(1e-5, 1e-2))
    assert result.computed == 8
    cells = [json.loads(path.read_text()) for path in (tmp_path / "out" / "cells").iterdir()]
    for arm in result.arms:
        means = {
            rate: np.mean(
                [
                    [value or 0.0 for value in score["dice"]]
                    for cell in cells
                    if cell["arm"] == arm and cell["learning_rate"] == rate
                    for score in cell["scores"]["validation"]
                ]
            )
            for rate in (1e-5, 1e-2)
        }
        assert result.rates[arm][2] == max(means, key=lambda rate: means[rate])
    assert "chosen by validation" in str(result)


def test_without_a_search_validation_images_are_not_touched(
    store: Store, encoder: Encoder, quick: FinetuneConfig, tmp_path: Path
) -> None:
    _compare([encoder], store, tmp_path / "out", quick, counts=(1,), seeds=1)
    (cell,) = [json.loads(path.read_text()) for path in (tmp_path / "out" / "cells").iterdir()]
    assert set(cell["scores"]) == {"test"}


def test_runs_are_named_by_their_folders_and_scratch_keeps_its_name(
    store: Store, encoder: Encoder, quick: FinetuneConfig, tmp_path: Path
) -> None:
    save_network(tmp_path / "scratch" / "encoder", encoder, preparation={}, card="# card\n")
    run = str(tmp_path / "scratch")
    result = compare_encoders(
        [run, "none"], data=store.folder, counts=(1,), seeds=1, out=tmp_path / "out", config=quick
    )
    assert result.arms == ("scratch'", "scratch")
    assert set(result.differences) == {"scratch'"}
    assert json.loads((tmp_path / "out" / "compare.json").read_text()) == json.loads(json.dumps(result.to_dict()))


def test_more_labels_than_there_are_or_nothing_to_compare_is_one_clear_line(
    store: Store, encoder: Encoder, quick: FinetuneConfig, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="9 labelled images wanted, the split 'train' has 4"):
        _compare([encoder], store, tmp_path / "out", quick, counts=(9,))
    with pytest.raises(UsageError, match="nothing to compare"):
        _compare([], store, tmp_path / "out", quick)
    with pytest.raises(UsageError, match="no task 'detection'"):
        compare_encoders([encoder], "detection", data=store, out=tmp_path / "out")
    with pytest.raises(UsageError, match="scratch is named twice"):
        _compare([None, None], store, tmp_path / "out", quick)


@pytest.mark.parametrize(("text", "counts"), [("2", (2,)), ("2,4, 8", (2, 4, 8))])
def test_counts_are_read_from_text(text: str, counts: tuple[int, ...]) -> None:
    assert parse_counts(text) == counts


@pytest.mark.parametrize("text", ["", "two", "2;4", "0,2", "-1"])
def test_counts_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no numbers of images"):
        parse_counts(text)


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(-0.01, 0.05, "undecided, 0 lies inside"), (0.01, 0.05, "is better than scratch"), (-0.05, -0.01, "is worse")],
)
def test_the_sentence_claims_no_more_than_the_interval(low: float, high: float, words: str) -> None:
    interval = Interval((low + high) / 2, low, high, 0.95, 3, 2)
    table = {1: np.zeros((3, 2))}
    result = CompareResult(
        out=Path("out"),
        arms=("run", "scratch"),
        counts=(1,),
        seeds=3,
        split="test",
        patients=("a", "b"),
        steps=10,
        dice={"run": table, "scratch": table},
        hausdorff95_mm={"run": {1: float("nan")}, "scratch": {1: 1.0}},
        rates={"run": {1: 1e-3}, "scratch": {1: 1e-3}},
        searched=(),
        differences={"run": {1: interval}},
        overall={"run": interval},
        computed=0,
    )
    assert words in str(result)
    assert "3 seeds: the interval is narrower than it should be" in str(result)
    json.dumps(result.to_dict(), allow_nan=False)
