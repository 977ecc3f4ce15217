"""Boxes found against true boxes, over images with and without any: FROC and average precision.

Shapes: D detections and G true boxes of one image, n axes (2 or 3). A box is (2n,): its low corner, then its high one,
both in mm (or any one unit), so that overlap does not depend on how an image was sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Numbers = NDArray[np.float64]

LUNA_RATES = (0.125, 0.25, 0.5, 1, 2, 4, 8)
"""False positives an image at which the LUNA16 challenge reads sensitivity."""


@dataclass(frozen=True)
class Found:
    """What was found and what is there in one image, of one class."""

    boxes: Numbers
    """(D, 2n) mm."""
    scores: Numbers
    """(D,), higher is surer."""
    truth: Numbers
    """(G, 2n) mm; none in an image without a box."""


@dataclass(frozen=True)
class Matched:
    """Detections of all images, told apart into hits and false positives."""

    scores: Numbers
    """(all D,), falling."""
    hit: NDArray[np.bool_]
    """(all D,)."""
    targets: int
    """True boxes."""
    images: int


@dataclass(frozen=True)
class Froc:
    """Sensitivity by false positives an image."""

    false_positives: Numbers
    """Mean number an image, rising; one for each threshold."""
    sensitivity: Numbers
    """Share of true boxes found there."""
    rates: tuple[float, ...]
    at_rates: tuple[float, ...]
    """Sensitivity at `rates`, between thresholds on a straight line; nan where there is no true box."""

    @property
    def score(self) -> float:
        """The mean over the rates, the challenges' one number."""
        return float(np.mean(self.at_rates))


def _boxes(boxes: ArrayLike) -> Numbers:
    table = np.asarray(boxes, dtype=np.float64)
    if table.size == 0 and table.ndim < 2:
        return np.zeros((0, 6))
    if table.ndim != 2 or table.shape[1] % 2:
        raise ValueError(f"boxes must be (D, 2n), got {table.shape}")
    n = table.shape[1] // 2
    if not (table[:, :n] <= table[:, n:]).all():
        raise ValueError("a box must have its low corner first")
    return table


def box_overlap(first: ArrayLike, second: ArrayLike) -> Numbers:
    """Return (D, G): volume two boxes share over that of their union; 0 for boxes without volume.

    Args:
        first: (D, 2n) mm.
        second: (G, 2n) mm.

    Source: Jaccard 1912; equal to MONAI's `box_iou`.
    """
    a, b = _boxes(first), _boxes(second)
    if not len(a) or not len(b):
        return np.zeros((len(a), len(b)))
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"boxes of {a.shape[1] // 2} and {b.shape[1] // 2} axes")
    n = a.shape[1] // 2
    sides = np.minimum(a[:, None, n:], b[None, :, n:]) - np.maximum(a[:, None, :n], b[None, :, :n])  # (D, G, n)
    shared = np.clip(sides, 0, None).prod(2)
    union = (a[:, n:] - a[:, :n]).prod(1)[:, None] + (b[:, n:] - b[:, :n]).prod(1)[None] - shared
    return np.asarray(np.where(union > 0, shared / np.where(union > 0, union, 1.0), 0.0), dtype=np.float64)


def match_boxes(images: Sequence[Found], overlap: float, *, most: int = 100) -> Matched:
    """Tell hits from false positives.

    In each image the surest detection takes the free true box it overlaps most, if by at least `overlap`, then the
    next; a true box is taken once, so doubles are false positives. A hit is one that took a box.

    Args:
        images: all images, those without a true box too: their detections are false positives.
        overlap: above 0 and up to 1.
        most: surest detections of an image that are looked at.

    Source: Lin et al. 2014, arXiv:1405.0312 (COCO), as in MONAI's `matching_batch`.
    """
    if not 0 < overlap <= 1:
        raise ValueError(f"overlap must be above 0 and at most 1, got {overlap}")  # also without an image
    return pooled([match_boxes_in(image, overlap, most=most) for image in images])


def match_boxes_in(image: Found, overlap: float, *, most: int = 100) -> Matched:
    """Tell hits from false positives in one image; see `match_boxes`."""
    if not 0 < overlap <= 1:
        raise ValueError(f"overlap must be above 0 and at most 1, got {overlap}")
    order = np.argsort(-image.scores, kind="stable")[:most]
    table = box_overlap(image.boxes[order], image.truth)  # (D, G)
    hit = np.zeros(len(order), dtype=bool)
    for d in range(len(order) if table.shape[1] else 0):
        best = table.shape[1] - 1 - int(table[d, ::-1].argmax())  # the last of equals, as COCO's code has it
        if table[d, best] >= overlap:
            hit[d], table[:, best] = True, -1.0
    return Matched(np.asarray(image.scores, dtype=np.float64)[order], hit, len(image.truth), 1)


def pooled(images: Sequence[Matched]) -> Matched:
    """Put the detections of images together, the surest first; of equals those of the earlier image."""
    scores = np.concatenate([np.zeros(0), *(image.scores for image in images)])
    hits = np.concatenate([np.zeros(0, dtype=bool), *(image.hit for image in images)])
    order = np.argsort(-scores, kind="stable")
    targets, count = sum(image.targets for image in images), sum(image.images for image in images)
    return Matched(scores[order], hits[order], targets, count)


def froc(matched: Matched, *, rates: Sequence[float] = LUNA_RATES) -> Froc:
    """Give the free-response curve: sensitivity over false positives an image.

    Args:
        matched: of `match_boxes`.
        rates: false positives an image at which sensitivity is read; beyond the last threshold it stays.

    Raises:
        ValueError: there is no image.

    Source: Bunch et al. 1977; interpolated as CAMELYON16 and LUNA16 do, equal to MONAI's `compute_froc_score`.
    """
    if not matched.images:
        raise ValueError("no image")
    last = np.flatnonzero(np.append(np.diff(matched.scores) != 0, len(matched.scores) > 0))  # equal scores go together
    false = np.concatenate(([0.0], np.cumsum(~matched.hit)[last])) / matched.images
    if not matched.targets:
        nothing = np.full(len(false), np.nan)
        return Froc(false, nothing, tuple(rates), (float("nan"),) * len(rates))
    found = np.concatenate(([0.0], np.cumsum(matched.hit)[last])) / matched.targets
    return Froc(false, found, tuple(rates), tuple(float(v) for v in np.interp(rates, false, found)))


def box_average_precision(matched: Matched) -> float:
    """Give the area below precision over recall, precision made falling, read at 101 recalls.

    Returns:
        0 to 1; nan where there is no true box.

    Source: Lin et al. 2014, arXiv:1405.0312; equal to MONAI's `COCOMetric`, whose recall is in float32, but for that.
    """
    if not matched.targets:
        return float("nan")
    hits = np.cumsum(matched.hit)
    precision = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
    # A recall that equals one asked for counts as reaching it, whatever its last bit says.
    at = np.searchsorted(hits / matched.targets, np.linspace(0, 1, 101) - 1e-9, side="left")
    return float(np.append(precision, 0.0)[np.minimum(at, len(hits))].mean())


def box_mean_average_precision(
    classes: Sequence[Sequence[Found]], *, overlaps: Sequence[float] = (0.1, 0.3, 0.5), most: int = 100
) -> tuple[float, dict[float, float]]:
    """Average `box_average_precision` over classes and overlaps.

    Args:
        classes: for each class all images; classes without a true box are left out.
        overlaps: in mm-wise intersection over union; lesions are asked for .1, as nnDetection and LUNA do.
        most: as in `match_boxes`, of each class.

    Returns:
        The mean over overlaps, and the mean over classes at each; nan where there is no true box.
    """
    at: dict[float, float] = {}
    for overlap in overlaps:
        values = [box_average_precision(match_boxes(images, overlap, most=most)) for images in classes]
        known = [value for value in values if not np.isnan(value)]
        at[overlap] = float(np.mean(known)) if known else float("nan")
    return float(np.mean(list(at.values()))), at


def found_in(boxes: ArrayLike, scores: ArrayLike, truth: ArrayLike) -> Found:
    """Put one image's detections and true boxes together, checked; empty lists are no boxes."""
    b, t = _boxes(boxes), _boxes(truth)
    s = np.asarray(scores, dtype=np.float64).reshape(-1)
    if len(s) != len(b) or np.isnan(s).any():
        raise ValueError(f"{len(b)} boxes need as many scores, none nan; got {len(s)}")
    return Found(b, s, t)
