"""How well whole images were told: discrimination, calibration, agreement and errors, with intervals over patients.

Answers to several images of one patient that have the same truth are averaged first, so that a patient with many
images does not count more than one with few; where their truths differ (views, phases), each truth is one unit.

Shapes: N images, U units, P patients, T targets, K numbers of an answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..metrics import (
    auroc,
    average_precision,
    balanced_accuracy,
    bootstrap,
    brier,
    calibration_error,
    confusion,
    quadratic_kappa,
    regression_errors,
)
from ..metrics.shares import shares
from .classification_config import ClassificationConfig, Kind
from .classification_targets import Told

Table = NDArray[np.float64]
Metric = Callable[[Table, Table], float]
"""From answers (U, K) and truths (U, T) of some units to one number, nan where it has none."""
MEASURES = {"regression": "skill", "ordinal": "quadratic kappa"}
"""What is compared, by kind; AUROC otherwise."""


@dataclass(frozen=True)
class ImageAnswer:
    """What was told of one image, and what is true.

    `answer` holds probabilities of classes, grades or findings, or values in units; `truth` a class number, or a number
    a target, None where not known.
    """

    image_id: str
    subject_id: str
    answer: tuple[float, ...]
    truth: tuple[float | None, ...]
    kind: Kind

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> ImageAnswer:
        """Take back what `to_dict` gave."""
        return cls(value["image_id"], value["subject_id"], tuple(value["answer"]), tuple(value["truth"]), value["kind"])

    def check(self) -> None:
        """Raise ValueError where answer or truth are no such numbers."""
        known = [v for v in self.truth if v is not None]
        if not self.answer or not known or not all(math.isfinite(v) for v in (*self.answer, *known)):
            raise ValueError(f"image {self.image_id}: an answer or a truth that is none")
        if self.kind == "regression":
            return
        inside = all(-1e-6 <= value <= 1 + 1e-6 for value in self.answer)
        exclusive = self.kind in ("multiclass", "ordinal")
        if not inside or (exclusive and abs(sum(self.answer) - 1) > 1e-3):
            raise ValueError(f"image {self.image_id}: probabilities that are none")


@dataclass(frozen=True)
class Units:
    """Answers, averaged by patient and truth."""

    patients: tuple[str, ...]
    """Sorted."""
    owner: NDArray[np.int64]
    """(U,), each unit's place among the patients."""
    answer: Table
    truth: Table
    images: tuple[tuple[str, ...], ...]
    """Of each unit."""

    def measured(self, metric: Metric) -> float:
        """Return a metric on all units."""
        return float(metric(self.answer, self.truth))

    def shared(self, metric: Metric) -> Table:
        """Return (P,): a metric, shared out among the patients (`metrics.shares`)."""

        def of(patients: Sequence[int]) -> float:
            inside = np.isin(self.owner, patients)
            return float(metric(self.answer[inside], self.truth[inside])) if inside.any() else math.nan

        return shares(of, len(self.patients))


def united(scores: Sequence[ImageAnswer]) -> Units:
    """Average the answers to images of one patient and one truth."""
    groups: dict[tuple[str, tuple[float | None, ...]], list[ImageAnswer]] = {}
    for score in sorted(scores, key=lambda one: (one.subject_id, one.image_id)):
        groups.setdefault((score.subject_id, score.truth), []).append(score)
    patients = sorted({subject for subject, _ in groups})
    place = {subject: n for n, subject in enumerate(patients)}
    return Units(
        tuple(patients),
        np.array([place[subject] for subject, _ in groups], dtype=np.int64),
        np.array([np.mean([one.answer for one in found], axis=0) for found in groups.values()], dtype=np.float64),
        np.array([[np.nan if v is None else v for v in truth] for _, truth in groups], dtype=np.float64),
        tuple(tuple(one.image_id for one in found) for found in groups.values()),
    )


def decided(answer: Table, kind: str) -> NDArray[np.int64]:
    """Return (U,) class numbers: the most likely class; of grades the median of their distribution."""
    if kind == "ordinal":
        # 1e-9: a cumulative half may come out a little below it
        return np.asarray((np.cumsum(answer, 1) < 0.5 - 1e-9).sum(1), dtype=np.int64)
    return np.asarray(answer.argmax(1), dtype=np.int64)


def main_parts(told: Told, reference: Sequence[float] = ()) -> dict[str, Metric]:
    """Return the parts whose mean is compared, by what they are about: AUROC, quadratic kappa or skill.

    Args:
        told: kind, targets and classes.
        reference: the training median of each measure, in its unit.
    """
    if told.kind == "ordinal":
        classes = len(told.classes)
        return {told.targets[0]: lambda a, t: quadratic_kappa(decided(a, "ordinal"), t[:, 0].astype(int), classes)}
    if told.kind == "regression":
        return {name: _skill(k, reference[k]) for k, name in enumerate(told.targets)}
    return {name: _one(auroc, told, k) for k, name in enumerate(told.names)}


def _skill(k: int, reference: float) -> Metric:
    """Return 1 - MAE / MAE of always telling the training median: 0 is no better than that, 1 perfect."""

    def skill(answer: Table, truth: Table) -> float:
        known = ~np.isnan(truth[:, k])
        base = np.abs(truth[known, k] - reference).mean() if known.any() else 0.0
        return 1 - float(np.abs(answer[known, k] - truth[known, k]).mean() / base) if base > 0 else math.nan

    return skill


def _one(measure: Callable[..., float], told: Told, k: int, **options: Any) -> Metric:
    """Return a measure of one finding, or of one class against the rest."""
    if told.classes:
        return lambda a, t: measure(a[:, k], (t[:, 0] == k).astype(np.float64), **options)
    return lambda a, t: measure(a[:, k], t[:, k], **options)


def main_table(units: Units, parts: Mapping[str, Metric]) -> Table:
    """Return (P,): the mean of the parts, shared out among patients; its mean is the measure.

    A patient without whom a class has no value, being the only one of it, counts there like the others.
    """
    columns = []
    for metric in parts.values():
        column, whole = units.shared(metric), units.measured(metric)
        if np.isfinite(whole):
            columns.append(column if len(parts) == 1 else np.where(np.isfinite(column), column, whole))
    return np.mean(columns, axis=0) if columns else np.full(len(units.patients), np.nan)


def interval_of(table: Table, bounds: tuple[float, float], config: ClassificationConfig, confidence: float) -> Any:
    """Return value, low and high of a shared-out measure; None where there is none.

    There is no range either where all shares are equal, as at an AUROC of 1: that is no certainty, but a spread that
    these patients do not show.
    """
    known = table[np.isfinite(table)]
    if not len(known):
        return {"value": None, "low": None, "high": None}
    value = float(known.mean())
    if len(known) < 2 or np.ptp(known) <= 1e-9 * (1 + abs(value)):
        return {"value": value, "low": None, "high": None}
    found = bootstrap(known, draws=config.draws, confidence=confidence)
    return {"value": value, "low": max(found.low, bounds[0]), "high": min(found.high, bounds[1])}


_SHARE, _FREE, _LENGTH = (0.0, 1.0), (-math.inf, math.inf), (0.0, math.inf)


def all_measures(
    told: Told, config: ClassificationConfig, reference: Sequence[float]
) -> dict[str, dict[str, tuple[Metric, tuple[float, float]]]]:
    """Return every measure with its bounds, by what it is about and by its name."""
    main = main_parts(told, reference)
    if told.kind == "regression":
        return {name: _of_measure(k, main[name], config) for k, name in enumerate(told.targets)}
    out: dict[str, dict[str, tuple[Metric, tuple[float, float]]]] = {}
    for k, name in enumerate(told.names):
        out[name] = {
            "auroc": (_one(auroc, told, k), _SHARE),
            "auprc": (_one(average_precision, told, k), _SHARE),
        }
        if not told.classes:
            out[name]["brier"] = (_one(brier, told, k), _SHARE)
            out[name]["ece"] = (_one(calibration_error, told, k, bins=config.bins), _SHARE)
    if told.classes:
        out[told.targets[0]] = {**out.get(told.targets[0], {}), **_of_classes(told, main, config)}
    return out


def _of_classes(
    told: Told, main: Mapping[str, Metric], config: ClassificationConfig
) -> dict[str, tuple[Metric, tuple[float, float]]]:
    classes, kind = len(told.classes), told.kind
    whole: dict[str, tuple[Metric, tuple[float, float]]] = {
        "balanced_accuracy": (
            lambda a, t: balanced_accuracy(decided(a, kind), t[:, 0].astype(int), classes),
            _SHARE,
        ),
        "brier": (lambda a, t: brier(a, t[:, 0]), (0.0, 2.0)),
        "ece": (lambda a, t: calibration_error(a, t[:, 0], bins=config.bins), _SHARE),
    }
    if kind == "ordinal":
        whole["quadratic_kappa"] = (main[told.targets[0]], (-1.0, 1.0))
        whole["mae_grades"] = (lambda a, t: float(np.abs(decided(a, kind) - t[:, 0]).mean()), _LENGTH)
    return whole


def _of_measure(k: int, skill: Metric, config: ClassificationConfig) -> dict[str, tuple[Metric, tuple[float, float]]]:
    """Return the errors of one measure, in its unit."""

    def errors(field: str) -> Metric:
        return lambda a, t: float(getattr(regression_errors(a[:, k], t[:, k]), field))

    out: dict[str, tuple[Metric, tuple[float, float]]] = {
        "skill": (skill, (-math.inf, 1.0)),
        "mae": (errors("mean_absolute"), _LENGTH),
        "rmse": (errors("root_mean_square"), _LENGTH),
        "bias": (errors("bias"), _FREE),
        "r2": (errors("r2"), (-math.inf, 1.0)),
    }
    if config.tolerance:

        def within(a: Table, t: Table) -> float:
            known = ~np.isnan(t[:, k])
            near = np.abs(a[known, k] - t[known, k]) <= config.tolerance
            return float(near.mean()) if len(near) else math.nan

        out["within_tolerance"] = (within, _SHARE)
    return out


def described(
    units: Units, told: Told, config: ClassificationConfig, confidence: float, reference: Sequence[float]
) -> dict[str, Any]:
    """Return all measures of some units with their intervals, and counts, as plain JSON types."""
    table = main_table(units, main_parts(told, reference))
    bounds = (-math.inf, 1.0) if told.kind == "regression" else (-1.0, 1.0) if told.kind == "ordinal" else _SHARE
    out: dict[str, Any] = {
        "patients": len(units.patients),
        "units": len(units.owner),
        "overall": interval_of(table, bounds, config, confidence),
        "measures": {
            about: {
                name: interval_of(units.shared(metric), limits, config, confidence)
                for name, (metric, limits) in measures.items()
            }
            for about, measures in all_measures(told, config, reference).items()
        },
    }
    if told.kind == "regression":
        out["agreement"] = {
            name: regression_errors(units.answer[:, k], units.truth[:, k]).to_dict()
            for k, name in enumerate(told.targets)
        }
    else:
        out["confusion"] = _confusions(units, told)
    return out


def _confusions(units: Units, told: Told) -> dict[str, list[list[int]]]:
    """Return counts by truth (rows) and by what was told: the class decided on, or a finding at .5."""
    if told.classes:
        found = decided(units.answer, told.kind)
        return {told.targets[0]: confusion(found, units.truth[:, 0].astype(int), len(told.classes)).tolist()}
    out = {}
    for k, name in enumerate(told.targets):
        known = ~np.isnan(units.truth[:, k])
        found = (units.answer[known, k] >= 0.5).astype(int)
        out[name] = confusion(found, units.truth[known, k].astype(int), 2).tolist()
    return out
