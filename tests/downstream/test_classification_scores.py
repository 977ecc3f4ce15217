"""Laws of what is told of answers: equal to scikit-learn, patient by patient, and shared out so that means stay."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk

from medssl.downstream import FinetuneConfig
from medssl.downstream.cells import _write_predictions, read_predictions
from medssl.downstream.classification_config import ClassificationConfig
from medssl.downstream.classification_scores import ImageAnswer, decided, united
from medssl.downstream.classification_task import ClassificationTask
from medssl.errors import DataError
from medssl.store import Store

from ..labelled_store import write_labelled_store

TASK = ClassificationTask()
N = 24


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Pictures of nothing, with targets and groups: 6 to train on and 24 to score, each of a patient."""
    random = np.random.default_rng(0)
    grades = random.integers(0, 3, N + 6)
    grades[:3] = (0, 1, 2)
    targets: list[dict[str, float]] = [
        {"grade": float(g), "ill": float(g > 0), "old": float(n % 5 == 0), "ef": 60 - 10.0 * g + float(random.normal())}
        for n, g in enumerate(grades)
    ]
    for n in (8, 9, 13):
        targets[n].pop("old")
    return write_labelled_store(
        tmp_path_factory.mktemp("scores") / "store",
        [np.zeros((4, 4), np.float32)] * (N + 6),
        [None] * (N + 6),
        splits=("train",) * 6 + ("test",) * N,
        targets=targets,
        groups=[{"sex": "mf"[n % 2]} | ({"site": "far"} if n > N + 2 else {"site": "here"}) for n in range(N + 6)],
    )


def _config(**knobs: Any) -> FinetuneConfig:
    return FinetuneConfig(classification=ClassificationConfig(draws=100, **knobs))


def _scores(store: Store, config: FinetuneConfig, seed: int = 1) -> tuple[ImageAnswer, ...]:
    """Answers that are partly right, as any network's."""
    from medssl.downstream.classification_targets import read_told

    told, random = read_told(store, config.classification), np.random.default_rng(seed)
    out = []
    for image_id in TASK.images(store, "test", config):
        truth = told.truth[image_id]
        if told.kind == "regression":
            answer = [t + random.normal(1, 3) for t in np.nan_to_num(truth)]
        elif told.classes:
            logits = random.normal(0, 1, len(told.classes)) + 1.2 * np.eye(len(told.classes))[int(truth[0])]
            answer = list(np.exp(logits) / np.exp(logits).sum())
        else:
            answer = [1 / (1 + np.exp(-random.normal(1.5 * (2 * t - 1), 1.5))) for t in np.nan_to_num(truth)]
        known = tuple(None if np.isnan(t) else float(t) for t in truth)
        out.append(ImageAnswer(image_id, store.row(image_id).subject_id, tuple(map(float, answer)), known, told.kind))
    return tuple(out)


def _arrays(scores: Any) -> tuple[Any, Any]:
    ordered = sorted(scores, key=lambda s: s.subject_id)
    truth = [[np.nan if v is None else v for v in s.truth] for s in ordered]
    return np.array([s.answer for s in ordered]), np.array(truth)


def test_findings_are_scored_as_scikit_learn_does_with_those_not_known_left_out(store: Store) -> None:
    config = _config(targets=("ill", "old"))
    scores = _scores(store, config)
    answer, truth = _arrays(scores)
    found = TASK.summary(scores, store, config)
    for k, name in enumerate(("ill", "old")):
        known = ~np.isnan(truth[:, k])
        y, p = truth[known, k], answer[known, k]
        about = found["measures"][name]
        assert about["auroc"]["value"] == pytest.approx(sk.roc_auc_score(y, p))
        assert about["auprc"]["value"] == pytest.approx(sk.average_precision_score(y, p))
        assert about["brier"]["value"] == pytest.approx(sk.brier_score_loss(y, p))
        assert found["confusion"][name] == sk.confusion_matrix(y, p >= 0.5).tolist()
    whole = np.mean([found["measures"][name]["auroc"]["value"] for name in ("ill", "old")])
    assert found["overall"]["value"] == pytest.approx(whole)


def test_what_stands_beside_the_measure_is_the_mean_over_targets(store: Store) -> None:
    for knobs, names in (
        ({"targets": ("ill", "old")}, {"auprc", "brier"}),
        ({"targets": ("grade",), "kind": "ordinal"}, {"auprc", "brier"}),
        ({"targets": ("ef", "old"), "kind": "regression"}, {"mae"}),
    ):
        config = _config(**knobs)
        scores = _scores(store, config)
        measures = TASK.summary(scores, store, config)["measures"].values()
        beside = TASK.further(scores, store, config)
        assert set(beside) == names
        for name, value in beside.items():
            assert value == pytest.approx(np.mean([about[name]["value"] for about in measures if name in about]))


def test_a_finding_that_no_scored_image_has_leaves_the_others_their_mean(store: Store) -> None:
    config, none = _config(targets=("ill", "old")), {"old": 0.0}
    rows = [dataclasses.replace(row, labels={**row.labels, **none}) for row in store.rows[6:]]
    other = Store(store.folder, [*store.rows[:6], *rows], {}, store.preparation)
    scores = _scores(other, config)
    alone = [dataclasses.replace(s, answer=s.answer[:1], truth=s.truth[:1], kind="binary") for s in scores]
    only = TASK.further(alone, other, _config(targets=("ill",)))
    assert TASK.further(scores, other, config)["auprc"] == pytest.approx(only["auprc"])


def test_classes_are_scored_as_scikit_learn_does(store: Store) -> None:
    config = _config(targets=("grade",))
    scores = _scores(store, config)
    answer, truth = _arrays(scores)
    y = truth[:, 0].astype(int)
    found = TASK.summary(scores, store, config)
    assert found["overall"]["value"] == pytest.approx(sk.roc_auc_score(y, answer, multi_class="ovr", average="macro"))
    about = found["measures"]["grade"]
    assert about["balanced_accuracy"]["value"] == pytest.approx(sk.balanced_accuracy_score(y, answer.argmax(1)))
    assert about["brier"]["value"] == pytest.approx(((answer - np.eye(3)[y]) ** 2).sum(1).mean())
    assert found["confusion"]["grade"] == sk.confusion_matrix(y, answer.argmax(1)).tolist()


def test_grades_are_scored_as_scikit_learn_does(store: Store) -> None:
    config = _config(targets=("grade",), kind="ordinal")
    scores = _scores(store, config)
    answer, truth = _arrays(scores)
    told = decided(answer, "ordinal")
    kappa = sk.cohen_kappa_score(truth[:, 0].astype(int), told, weights="quadratic")
    assert TASK.summary(scores, store, config)["overall"]["value"] == pytest.approx(kappa)
    assert float(np.nanmean(TASK.table(scores, store, config))) == pytest.approx(kappa)


def test_the_grade_decided_on_is_the_median_of_its_distribution() -> None:
    answer = np.array([[0.5, 0.3, 0.2], [0.4, 0.2, 0.4], [0.1, 0.3, 0.6], [0.2, 0.3, 0.5]])
    assert decided(answer, "ordinal").tolist() == [0, 1, 2, 1]
    assert decided(answer, "multiclass").tolist() == [0, 0, 2, 2]


def test_measures_are_scored_in_units_as_scikit_learn_does_and_skill_is_against_the_training_median(
    store: Store,
) -> None:
    config = _config(targets=("ef",), tolerance=2.0)
    scores = _scores(store, config)
    answer, truth = _arrays(scores)
    found = TASK.summary(scores, store, config)
    about = found["measures"]["ef"]
    assert about["mae"]["value"] == pytest.approx(sk.mean_absolute_error(truth, answer))
    assert about["rmse"]["value"] == pytest.approx(sk.root_mean_squared_error(truth, answer))
    assert about["r2"]["value"] == pytest.approx(sk.r2_score(truth, answer))
    assert about["bias"]["value"] == pytest.approx(float((answer - truth).mean()))
    assert about["within_tolerance"]["value"] == pytest.approx(float((np.abs(answer - truth) <= 2).mean()))
    half = 1.96 * float((answer - truth).std(ddof=1))
    assert found["agreement"]["ef"]["limits"] == pytest.approx([about["bias"]["value"] + s * half for s in (-1, 1)])
    median = np.median([store.row(i).labels["ef"] for i in store.ids_of("train")])
    skill = 1 - sk.mean_absolute_error(truth, answer) / np.abs(truth - median).mean()
    assert found["overall"]["value"] == pytest.approx(skill)
    constant = tuple(dataclasses.replace(s, answer=(float(median),)) for s in scores)
    assert float(np.nanmean(TASK.table(constant, store, config))) == pytest.approx(0, abs=1e-9)
    right = tuple(dataclasses.replace(s, answer=(float(s.truth[0] or 0),)) for s in scores)
    assert TASK.table(right, store, config) == pytest.approx(np.ones(N))


@pytest.mark.parametrize(
    "knobs", [{"targets": ("ill", "old")}, {"targets": ("grade",)}, {"targets": ("ef", "old"), "kind": "regression"}]
)
def test_the_mean_of_the_shares_is_the_measure_whatever_the_order_of_images(knobs: Any, store: Store) -> None:
    config = _config(**knobs)
    scores = _scores(store, config)
    table = TASK.table(scores, store, config)
    assert len(table) == N
    assert float(np.nanmean(table)) == pytest.approx(TASK.summary(scores, store, config)["overall"]["value"])
    np.testing.assert_allclose(TASK.table(scores[::-1], store, config), table)


def test_shares_spread_as_delong_says(store: Store) -> None:
    config = _config(targets=("ill",))
    scores = _scores(store, config)
    answer, truth = _arrays(scores)
    ill, well = answer[truth == 1], answer[truth == 0]
    higher = (ill[:, None] > well[None]).astype(float)
    delong = higher.mean(1).var(ddof=1) / len(ill) + higher.mean(0).var(ddof=1) / len(well)
    table = TASK.table(scores, store, config)
    assert table.var(ddof=1) / len(table) == pytest.approx(delong, rel=0.1)


def test_images_of_one_patient_are_averaged_first_and_a_patient_counts_once(store: Store) -> None:
    config = _config(targets=("ill",))
    scores = _scores(store, config)
    split = []
    for n, score in enumerate(scores):
        if n % 3:
            split.append(score)
        else:  # one patient's answer, said three times a little otherwise
            split += [
                dataclasses.replace(score, answer=(score.answer[0] + d,), image_id=f"{score.image_id}{d}")
                for d in (-1e-3, 0.0, 1e-3)
            ]
    np.testing.assert_allclose(TASK.table(split, store, config), TASK.table(scores, store, config))
    assert len(united(split).owner) == N
    assert len(united(split).images[0]) == 3


def test_images_of_one_patient_with_other_truths_stay_apart_but_leave_together(store: Store) -> None:
    a = ImageAnswer("a", "p", (0.9,), (1.0,), "binary")
    b = ImageAnswer("b", "p", (0.2,), (0.0,), "binary")
    units = united([a, b, dataclasses.replace(a, image_id="c", subject_id="q", answer=(0.4,))])
    assert units.patients == ("p", "q")
    assert units.owner.tolist() == [0, 0, 1]
    assert units.answer[:, 0].tolist() == [0.9, 0.2, 0.4]


def test_an_interval_holds_its_value_and_is_not_given_where_patients_show_no_spread(store: Store) -> None:
    config = _config(targets=("ill",))
    found = TASK.summary(_scores(store, config), store, config)["overall"]
    assert 0 <= found["low"] < found["value"] < found["high"] <= 1
    perfect = tuple(dataclasses.replace(s, answer=(0.9 if s.truth[0] else 0.1,)) for s in _scores(store, config))
    assert TASK.summary(perfect, store, config)["overall"] == {"value": 1.0, "low": None, "high": None}


def test_subgroups_are_scored_as_if_they_were_alone_and_small_ones_only_counted(store: Store) -> None:
    config = _config(targets=("ill",))
    scores = _scores(store, config)
    by = TASK.summary(scores, store, config)["by"]
    assert set(by) == {"sex", "site"}
    for value in ("m", "f"):
        alone = [s for s in scores if store.row(s.image_id).groups["sex"] == value]
        told = TASK.summary(alone, store, _config(targets=("ill",), by=("site",)))
        assert by["sex"][value]["measures"] == told["measures"]
        assert by["sex"][value]["patients"] == len(alone)
    assert set(by["site"]["far"]) == {"patients", "units"}
    assert any("too few" in line for line in TASK.lines(TASK.summary(scores, store, config)))
    with pytest.raises(DataError, match="no scored image has a group"):
        TASK.summary(scores, store, _config(targets=("ill",), by=("scanner",)))


def test_images_of_one_patient_from_two_scanners_count_for_each(tmp_path: Path) -> None:
    both = write_labelled_store(
        tmp_path / "store",
        [np.zeros((4, 4), np.float32)] * 12,
        [None] * 12,
        splits=("test",) * 12,
        subjects=[f"p{n // 2}" for n in range(12)],
        targets=[{"ill": float(n // 2 % 2)} for n in range(12)],
        groups=[{"scanner": "ab"[n % 2]} for n in range(12)],
    )
    right = [n // 2 % 2 if n % 2 else (n // 2 % 3) / 2 for n in range(12)]  # b tells all, a tells something else
    scores = [
        ImageAnswer(f"image{n:02d}", f"p{n // 2}", (0.1 + 0.8 * right[n],), (float(n // 2 % 2),), "binary")
        for n in range(12)
    ]
    by = TASK.summary(scores, both, _config(targets=("ill",)))["by"]["scanner"]
    assert {value: found["patients"] for value, found in by.items()} == {"a": 6, "b": 6}
    for k, value in enumerate("ab"):
        truth, told = ([getattr(s, name)[0] for s in scores[k::2]] for name in ("truth", "answer"))
        assert by[value]["overall"]["value"] == pytest.approx(sk.roc_auc_score(truth, told))


def test_one_class_alone_has_no_auroc_and_says_so(store: Store) -> None:
    config = _config(targets=("ill",))
    ill = [s for s in _scores(store, config) if s.truth == (1.0,)]
    assert np.isnan(TASK.table(ill, store, config)).all()
    assert TASK.lines(TASK.summary(ill, store, config))[0] == "AUROC unknown"


@pytest.mark.parametrize(
    ("answer", "truth"), [((1.5,), (1.0,)), ((0.5, 0.5), (1.0,)), ((-0.2,), (1.0,)), ((0.5,), (1.0, 0.0))]
)
def test_a_score_that_fits_no_target_is_refused(answer: Any, truth: Any, store: Store) -> None:
    config = _config(targets=("ill",))
    with pytest.raises(ValueError, match="image x"):
        TASK.table([ImageAnswer("x", "p", answer, truth, "binary")], store, config)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ([], "binary"),
        ([float("nan")], "regression"),
        ([1.2], "binary"),
        ([0.5, 0.4], "multiclass"),
        ([-0.1], "ordinal"),
    ],
)
def test_a_kept_score_that_is_none_is_refused(answer: Any, kind: str) -> None:
    with pytest.raises(ValueError, match="image x"):
        TASK.score_from({"image_id": "x", "subject_id": "p", "answer": answer, "truth": [1.0], "kind": kind})


def test_answers_of_classes_in_any_script_are_kept_and_read_without_pickle(tmp_path: Path) -> None:
    answer = np.array((0.2, 0.8), dtype=[("größe", "f8"), ("心", "f8")])
    _write_predictions(tmp_path, "cell", {"image00": answer})
    (found,) = read_predictions(tmp_path, "cell").values()
    assert found.dtype == answer.dtype
    assert found.tolist() == answer.tolist()
