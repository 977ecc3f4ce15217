"""What was found in each image against what is there, and the measures of a group of images.

Shapes: D boxes found and G true boxes of an image, n axes, P patients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..metrics.detection import (
    LUNA_RATES,
    Found,
    Matched,
    box_average_precision,
    found_in,
    froc,
    match_boxes_in,
    pooled,
)
from ..metrics.shares import shares
from .detection_config import DetectionConfig


@dataclass(frozen=True)
class DetectionScore:
    """Boxes found and true boxes of one image, in mm from its corner along its axes, or in voxels without a spacing."""

    image_id: str
    subject_id: str
    boxes: tuple[tuple[float, ...], ...]
    """(D, 2n), the surest first."""
    scores: tuple[float, ...]
    classes: tuple[int, ...]
    truth: tuple[tuple[float, ...], ...]
    """(G, 2n)."""
    truth_classes: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        lists = {name: list(getattr(self, name)) for name in ("scores", "classes", "truth_classes")}
        lists |= {name: [list(box) for box in getattr(self, name)] for name in ("boxes", "truth")}
        return {"image_id": self.image_id, "subject_id": self.subject_id, **lists}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> DetectionScore:
        """Take back what `to_dict` gave.

        Raises:
            ValueError: a score is no share, a box has its corners the wrong way round, or numbers do not fit.
        """
        boxes, truth = (tuple(tuple(float(v) for v in box) for box in value[key]) for key in ("boxes", "truth"))
        scores = tuple(float(v) for v in value["scores"])
        classes, true_classes = (tuple(int(k) for k in value[key]) for key in ("classes", "truth_classes"))
        if len(boxes) != len(scores) or len(boxes) != len(classes) or len(truth) != len(true_classes):
            raise ValueError("holds boxes without score or class")
        if any(not 0 <= score <= 1 for score in scores) or any(k < 0 for k in (*classes, *true_classes)):
            raise ValueError("holds a score that is no share, or a class that is none")
        if any(not math.isfinite(v) for box in (*boxes, *truth) for v in box):
            raise ValueError("holds a corner that is no number")
        found_in(boxes, scores, truth)
        return cls(str(value["image_id"]), str(value["subject_id"]), boxes, scores, classes, truth, true_classes)

    def of_class(self, k: int) -> Found:
        """Return what was found and what is there of one class."""
        boxes = [box for box, c in zip(self.boxes, self.classes) if c == k]
        scores = [score for score, c in zip(self.scores, self.classes) if c == k]
        return found_in(boxes, scores, [box for box, c in zip(self.truth, self.truth_classes) if c == k])


class Group:
    """A group of images, matched once, so that it can be measured again without some of its patients.

    Args:
        scores: of the images.
        config: gives overlaps.
        classes: names of all classes.
    """

    def __init__(self, scores: Sequence[DetectionScore], config: DetectionConfig, classes: Sequence[str]) -> None:
        self.scores, self.config, self.classes = tuple(scores), config, tuple(classes)
        self.patients = sorted({score.subject_id for score in scores})
        place = {subject: p for p, subject in enumerate(self.patients)}
        self._of = [place[score.subject_id] for score in scores]

    @cached_property
    def _found(self) -> list[list[Found]]:
        return [[score.of_class(k) for score in self.scores] for k in range(len(self.classes))]

    @cached_property
    def _matched(self) -> dict[float, list[list[Matched]]]:
        """Matches by overlap, class and image."""
        overlaps = sorted({*self.config.overlaps, self.config.froc_overlap})
        most = self.config.most
        return {o: [[match_boxes_in(image, o, most=most) for image in row] for row in self._found] for o in overlaps}

    def pool(self, k: int, overlap: float, patients: Sequence[int] | None = None) -> Matched:
        """Return the detections of one class in the images of some patients (all unless given)."""
        wanted = set(range(len(self.patients)) if patients is None else patients)
        return pooled([m for m, p in zip(self._matched[overlap][k], self._of) if p in wanted])

    def precision(self, k: int, overlap: float, patients: Sequence[int] | None = None) -> float:
        """Return the average precision of one class; nan where no image has a true box of it."""
        return box_average_precision(self.pool(k, overlap, patients))

    def mean_precision(self, overlaps: Sequence[float], patients: Sequence[int] | None = None) -> float:
        """Return the mean over overlaps and over those classes that have a true box; nan without any."""
        values = [self.precision(k, o, patients) for o in overlaps for k in range(len(self.classes))]
        known = [value for value in values if not math.isnan(value)]
        return float(np.mean(known)) if known else math.nan

    def by_patient(self) -> NDArray[np.float64]:
        """Return (P,): mAP shared out among patients."""
        return shares(lambda some: self.mean_precision(self.config.overlaps, some), len(self.patients))

    def sensitivity(self, k: int) -> tuple[float, ...]:
        """Return the sensitivity of one class at LUNA16's rates of false positives an image."""
        return froc(self.pool(k, self.config.froc_overlap)).at_rates

    def summary(self) -> dict[str, Any]:
        """Return mAP by overlap and class, and FROC, as plain JSON types."""
        overlaps, config = list(self.config.overlaps), self.config
        curves = {name: self.sensitivity(k) for k, name in enumerate(self.classes)}
        known = [curve for curve in curves.values() if not math.isnan(curve[0])]
        mean = [float(v) for v in np.mean(known, axis=0)] if known else [math.nan] * len(LUNA_RATES)
        return {
            "map": _plain(self.mean_precision(overlaps)),
            "overlaps": {f"{o:g}": _plain(self.mean_precision([o])) for o in overlaps},
            "classes": {
                name: {f"{o:g}": _plain(self.precision(k, o)) for o in overlaps} for k, name in enumerate(self.classes)
            },
            "froc": {
                "overlap": config.froc_overlap,
                "rates": list(LUNA_RATES),
                "sensitivity": [_plain(v) for v in mean],
                "score": _plain(float(np.mean(mean))),
                "classes": {name: [_plain(v) for v in curve] for name, curve in curves.items()},
            },
            "images": len(self.scores),
            "images_without_box": sum(not score.truth for score in self.scores),
            "patients": len(self.patients),
            "true_boxes": {
                name: sum(s.truth_classes.count(k) for s in self.scores) for k, name in enumerate(self.classes)
            },
        }


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
