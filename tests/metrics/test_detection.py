"""Boxes: equal to MONAI's and the challenges' code on the same boxes, and their laws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from monai.apps.detection.metrics.coco import COCOMetric
from monai.apps.detection.metrics.matching import matching_batch
from monai.data.box_utils import box_iou
from monai.metrics.froc import compute_froc_curve_data, compute_froc_score

from medssl.metrics import (
    Found,
    box_average_precision,
    box_mean_average_precision,
    box_overlap,
    found_in,
    froc,
    match_boxes,
)

SEEDS = st.integers(0, 200)
AXES = st.sampled_from([2, 3])


def boxes(random: np.random.Generator, count: int, axes: int) -> np.ndarray:
    low = random.uniform(0, 30, (count, axes))
    return np.concatenate([low, low + random.uniform(5, 20, (count, axes))], 1)


def drawn(seed: int, axes: int, images: int = 6) -> list[Found]:
    """Images with up to four true boxes, most of them found about where they are, and some that are not there."""
    random = np.random.default_rng(seed)
    out = []
    for _ in range(images):
        truth = boxes(random, int(random.integers(0, 5)), axes)
        kept = truth[random.random(len(truth)) < 0.8]
        near = kept + np.tile(random.normal(0, 1.5, axes), 2)  # moved, as large as it was
        near = np.concatenate([near, boxes(random, int(random.integers(0, 4)), axes)])
        out.append(found_in(near, random.permutation(np.linspace(0.01, 0.99, 97))[: len(near)], truth))
    return out


def with_targets(images: list[Found], count: int) -> list[Found]:
    """Keep the first true boxes, over all images."""
    out = []
    for image in images:
        truth = image.truth[:count]
        out.append(found_in(image.boxes, image.scores, truth))
        count -= len(truth)
    return out


@given(seed=SEEDS, axes=AXES)
def test_overlap_equals_monais(seed: int, axes: int) -> None:
    random = np.random.default_rng(seed)
    a, b = boxes(random, 7, axes), boxes(random, 5, axes)
    np.testing.assert_allclose(box_overlap(a, b), box_iou(a, b), atol=1e-6)
    np.testing.assert_allclose(np.diag(box_overlap(a, a)), 1)


@given(seed=SEEDS, axes=AXES, factor=st.floats(0.2, 5))
def test_overlap_does_not_know_the_unit(seed: int, axes: int, factor: float) -> None:
    random = np.random.default_rng(seed)
    a, b = boxes(random, 7, axes), boxes(random, 5, axes)
    np.testing.assert_allclose(box_overlap(factor * a, factor * b), box_overlap(a, b), atol=1e-9)


@given(seed=SEEDS, axes=AXES)
def test_average_precision_equals_monais_over_classes_and_overlaps(seed: int, axes: int) -> None:
    # With eight true boxes recall is the same number in MONAI's single precision and in double.
    classes = [with_targets(drawn(start, axes, images=9), 8) for start in (seed, seed + 1000)]
    overlaps = (0.1, 0.3, 0.5)
    metric = COCOMetric(["a", "b"], iou_list=overlaps, iou_range=(0.1, 0.5, 0.2), max_detection=[100], verbose=False)
    pairs = list(zip(*classes))
    results = matching_batch(
        iou_fn=box_iou,
        iou_thresholds=metric.iou_thresholds,
        pred_boxes=[np.concatenate([f.boxes for f in pair]) for pair in pairs],
        pred_classes=[np.repeat([0, 1], [len(f.boxes) for f in pair]) for pair in pairs],
        pred_scores=[np.concatenate([f.scores for f in pair]) for pair in pairs],
        gt_boxes=[np.concatenate([f.truth for f in pair]) for pair in pairs],
        gt_classes=[np.repeat([0, 1], [len(f.truth) for f in pair]) for pair in pairs],
    )
    theirs = metric(results)[0]
    mean, at = box_mean_average_precision(classes, overlaps=overlaps)
    for overlap in overlaps:
        assert at[overlap] == pytest.approx(theirs[f"AP_IoU_{overlap:.2f}_MaxDet_100"], abs=1e-5)
    assert mean == pytest.approx(np.mean(list(at.values())))


@given(seed=SEEDS, axes=AXES)
def test_froc_equals_monais(seed: int, axes: int) -> None:
    missed = found_in([], [], boxes(np.random.default_rng(seed), 1, axes))
    images = [*drawn(seed, axes), missed]  # MONAI's curve drops its lowest threshold: a missed box, if there is one
    matched = match_boxes(images, 0.1)
    hits, false = matched.scores[matched.hit], matched.scores[~matched.hit]
    hits = np.concatenate([hits, np.zeros(matched.targets - len(hits))])
    curve = compute_froc_curve_data(false, hits, matched.targets, matched.images)
    ours = froc(matched, rates=(0.25, 0.5, 1, 2, 4, 8))
    np.testing.assert_allclose(ours.false_positives, curve[0][::-1])
    np.testing.assert_allclose(ours.sensitivity, curve[1][::-1])
    assert ours.score == pytest.approx(compute_froc_score(*curve, (0.25, 0.5, 1, 2, 4, 8)))


@given(seed=SEEDS, axes=AXES)
def test_a_stricter_overlap_never_finds_more_and_the_curve_rises(seed: int, axes: int) -> None:
    images = drawn(seed, axes)
    hits = [match_boxes(images, overlap).hit.sum() for overlap in (0.1, 0.3, 0.5, 0.9)]
    assert hits == sorted(hits, reverse=True)
    curve = froc(match_boxes(images, 0.1))
    assert (np.diff(curve.false_positives) >= 0).all()
    if match_boxes(images, 0.1).targets:
        assert (np.diff(curve.sensitivity) >= 0).all()


def test_a_true_box_is_found_once_and_a_double_is_false() -> None:
    box = [[0.0, 0, 0, 10, 10, 10]]
    matched = match_boxes([found_in(box * 2, [0.9, 0.8], box)], 0.5)
    assert matched.hit.tolist() == [True, False]


def test_an_image_without_a_box_gives_false_positives_alone() -> None:
    box = [[0.0, 0, 10, 10]]
    with_box, without = found_in(box, [0.6], box), found_in(box, [0.9], np.zeros((0, 4)))
    alone, both = match_boxes([with_box], 0.5), match_boxes([with_box, without], 0.5)
    assert (froc(alone).score, box_average_precision(alone)) == (1.0, 1.0)
    assert froc(both, rates=(0.25,)).at_rates[0] == 0
    assert box_average_precision(both) == pytest.approx(0.5)
    nothing = match_boxes([without], 0.5)
    assert np.isnan(froc(nothing).score)
    assert np.isnan(box_average_precision(nothing))
    assert match_boxes([found_in([], [], box)], 0.5).targets == 1
    assert box_average_precision(match_boxes([found_in([], [], box)], 0.5)) == 0


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: found_in([[0, 0, 1, 1]], [], []), "as many scores"),
        (lambda: found_in([[2, 0, 1, 1]], [0.5], []), "low corner first"),
        (lambda: found_in([[0, 0, 1]], [0.5], []), "must be"),
        (lambda: match_boxes([], 0.0), "above 0"),
        (lambda: froc(match_boxes([], 0.5)), "no image"),
        (lambda: box_overlap([[0, 0, 1, 1]], [[0, 0, 0, 1, 1, 1]]), "2 and 3 axes"),
    ],
)
def test_what_is_no_box_is_refused(call: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()  # type: ignore[operator]
