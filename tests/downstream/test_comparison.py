"""Laws of comparing encoders with scratch."""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from medssl.downstream import CompareResult, FinetuneConfig, compare_encoders
from medssl.downstream.cells import read_predictions
from medssl.downstream.comparison import parse_counts
from medssl.errors import DataError, UsageError
from medssl.files import without
from medssl.metrics import class_numbers, dice
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
        np.testing.assert_array_equal(result.values["one"][count], result.values["two"][count])
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
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["cells", "predictions"]
    resumed = _compare([encoder, None], store, tmp_path / "out", quick)
    whole = _compare([encoder, None], store, tmp_path / "whole", quick)
    assert resumed.computed == 5
    for name in ("compare.svg", "compare.md"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    for arm in whole.arms:
        for count in whole.counts:
            np.testing.assert_array_equal(resumed.values[arm][count], whole.values[arm][count])


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
    kept = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert kept == json.loads(json.dumps(without(result.to_dict(), "out")))


def test_more_labels_than_there_are_or_nothing_to_compare_is_one_clear_line(
    store: Store, encoder: Encoder, quick: FinetuneConfig, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="9 labelled images wanted, the split 'train' has 4"):
        _compare([encoder], store, tmp_path / "out", quick, counts=(9,))
    with pytest.raises(UsageError, match="nothing to compare"):
        _compare([], store, tmp_path / "out", quick)
    with pytest.raises(UsageError, match="scratch is named twice"):
        _compare([None, None], store, tmp_path / "out", quick)

    with pytest.raises(UsageError, match="no scratch to train longer"):
        _compare([encoder], store, tmp_path / "out", quick, scratch_longer=2)


@pytest.mark.parametrize(
    ("text", "counts"), [("2", (2,)), ("2,4, 8", (2, 4, 8)), ("all", ("all",)), ("1, all", (1, "all"))]
)
def test_counts_are_read_from_text(text: str, counts: tuple[int | str, ...]) -> None:
    assert parse_counts(text) == counts


@pytest.mark.parametrize("text", ["", "two", "2;4", "0,2", "-1", "alls"])
def test_counts_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no numbers of images"):
        parse_counts(text)


def test_all_is_every_labelled_image(store: Store, encoder: Encoder, quick: FinetuneConfig, tmp_path: Path) -> None:
    result = _compare([encoder], store, tmp_path / "out", quick, counts=(1, "all"), seeds=1)
    assert (result.counts, result.all_images) == ((1, 4), 4)
    assert "4 (all)" in str(result)
    cells = [json.loads(path.read_text()) for path in (tmp_path / "out" / "cells").iterdir()]
    (images,) = [cell["decided_by"]["images"] for cell in cells if cell["count"] == 4]
    assert sorted(images) == sorted(store.ids_of("train"))
    assert _compare([encoder], store, tmp_path / "out", quick, counts=(4, "all"), seeds=1).computed == 0


def test_the_control_is_scratch_with_more_steps_on_the_same_images(
    store: Store, encoder: Encoder, quick: FinetuneConfig, tmp_path: Path
) -> None:
    short = quick.model_copy(update={"steps": 2})
    result = _compare([encoder, None], store, tmp_path / "out", short, scratch_longer=3)
    assert (result.arms, result.encoders) == (("encoder", "scratch", "scratch x3"), ("encoder",))
    assert set(result.overall) == {"encoder"}
    assert [(pair.first, pair.second) for pair in result.pairs] == [
        ("encoder", "scratch x3"),
        ("encoder", "scratch"),
        ("scratch x3", "scratch"),
    ]
    cells = [json.loads(path.read_text()) for path in (tmp_path / "out" / "cells").iterdir()]
    decided = {(c["arm"], c["count"], c["seed"]): c["decided_by"] for c in cells}
    for count, seed in ((1, 0), (2, 1)):
        once, longer = decided["scratch", count, seed], decided["scratch x3", count, seed]
        assert (once["finetune"].pop("steps"), longer["finetune"].pop("steps")) == (2, 6)
        assert once == longer
    assert _compare([encoder, None], store, tmp_path / "out", short).computed == 0
    again = _compare([encoder, None], store, tmp_path / "out", short.model_copy(update={"steps": 6}))
    assert again.computed == 4  # scratch with six steps is the control, which is there
    np.testing.assert_array_equal(again.values["scratch"][2], result.values["scratch x3"][2])


def test_a_changed_or_foreign_cell_is_not_taken(
    store: Store, encoder: Encoder, quick: FinetuneConfig, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    known = _compare([encoder], store, out, quick, counts=(1, 2), seeds=1, predictions=False)
    first, second = sorted((out / "cells").iterdir())

    def again() -> CompareResult:
        return _compare([encoder], store, out, quick, counts=(1, 2), seeds=1, predictions=False)

    original, other = first.read_text(), second.read_text()
    value = json.loads(original)
    value["scores"]["test"][0]["dice"][0] = 0.987
    for text in (json.dumps(value), other, original.replace('"seal"', '"sea1"'), original[:-20], "[]"):
        first.write_text(text)
        found = again()
        assert found.computed == 1
        np.testing.assert_array_equal(found.values["encoder"][1], known.values["encoder"][1])
        assert first.read_text() == original
    assert again().computed == 0


def test_predictions_are_kept_as_they_were_scored_and_changed_ones_cost_the_cell(
    store: Store, encoder: Encoder, quick: FinetuneConfig, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    _compare([encoder], store, out, quick, counts=(1,), seeds=1)
    (cell,) = (out / "cells").iterdir()
    maps = read_predictions(out, cell.stem)
    assert set(maps) == set(store.ids_of("test"))
    for score in json.loads(cell.read_text())["scores"]["test"]:
        label = class_numbers(store.label(score["image_id"])[0], store.classes)
        found = dice(maps[score["image_id"]], label, len(store.classes) + 1)
        np.testing.assert_allclose(found, np.array(score["dice"], dtype=float))
    kept = out / "predictions" / f"{cell.stem}.npz"
    before = kept.read_bytes()
    kept.write_bytes(before[:-1] + b"x")
    assert _compare([encoder], store, out, quick, counts=(1,), seeds=1).computed == 1
    assert kept.read_bytes() == before
    kept.unlink()
    assert _compare([encoder], store, out, quick, counts=(1,), seeds=1).computed == 0
    _compare([encoder], store, tmp_path / "bare", quick, counts=(1,), seeds=1, predictions=False)
    assert not (tmp_path / "bare" / "predictions").exists()


def test_a_rate_is_never_chosen_on_the_images_that_are_scored(
    store: Store, encoder: Encoder, quick: FinetuneConfig, tmp_path: Path
) -> None:
    config = quick.model_copy(update={"split": "validation", "learning_rates": (1e-3, 3e-3)})
    with pytest.raises(UsageError, match="chosen on the images that are scored"):
        _compare([encoder, None], store, tmp_path / "out", config)
    assert not (tmp_path / "out").exists()


def test_what_a_comparison_keeps_names_no_folder(
    store: Store, encoder: Encoder, quick: FinetuneConfig, tmp_path: Path
) -> None:
    out = tmp_path / "of a patient" / "out"
    _compare([encoder, None], store, out, quick, counts=(1,), seeds=1)
    for path in out.rglob("*"):
        assert not path.is_file() or b"of a patient" not in path.read_bytes(), path.name


def test_without_a_folder_the_same_is_found_and_nothing_is_kept(
    store: Store, encoder: Encoder, quick: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    found = compare_encoders([encoder, None], data=store, counts=(1,), seeds=1, config=quick)
    kept = _compare([encoder, None], store, tmp_path / "out", quick, counts=(1,), seeds=1)
    assert found.out is None
    assert found.to_dict() | {"out": None} == kept.to_dict() | {"out": None}
    assert list((tmp_path / "temporary").iterdir()) == []
