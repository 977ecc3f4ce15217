"""Boxes move as masks do, and a detector's loss is MONAI's, sample by sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.apps.detection.networks.retinanet_detector import RetinaNetDetector
from monai.apps.detection.utils.hard_negative_sampler import HardNegativeSampler
from monai.losses import BoxGIoULoss, FocalLoss
from torch import Tensor

from medssl.batch import Batch, Draw, rows
from medssl.downstream import FinetuneConfig
from medssl.downstream.detection_boxes import TrueBoxes
from medssl.downstream.detection_method import (
    ABSENT,
    BACKGROUND,
    PARTLY,
    UNSURE,
    Detection,
    by_overlap,
    focal_loss,
    hard_negatives,
    moved_boxes,
)
from medssl.nets.config import DynUNetConfig
from medssl.nets.detector import detector_for
from medssl.nets.retinanet import LevelAnchors
from medssl.views.spatial import (
    SpatialConfig,
    crop_to_view,
    draw_affine,
    offsets_to_voxels,
    voxels_to_offsets,
    warp,
)

LEVELS = [(2, 2), (4, 4)]
ANCHORS = [[[5.0, 5.0], [7.0, 4.0]], [[10.0, 10.0], [14.0, 8.0]]]
STILL = SpatialConfig(rotation=0, scale=0, shift_mm=0)


def method(classes: int = 2, **detection: Any) -> Detection:
    """A detector of random weights whose heads say something, and true boxes of three images, one without any."""
    torch.manual_seed(4)
    config = FinetuneConfig(detection=detection, spatial=STILL)
    names = [f"class {k}" for k in range(classes)]
    network = DynUNetConfig(channels=(8, 8, 8), features=8, strides=(1, 2, 2))
    detector = detector_for(network, names, levels=LEVELS, anchors=ANCHORS, width=8, shape=(24, 24), channels=1)
    with torch.no_grad():
        for head in (detector.net.classification_head.cls_logits, detector.net.regression_head.bbox_reg):
            head.weight.normal_(0, 0.3)
    boxes = [
        TrueBoxes(np.array([[2.0, 3, 8, 9], [12, 10, 20, 21]]), np.array([0, classes - 1])),
        TrueBoxes(np.zeros((0, 4)), np.zeros(0, dtype=np.int64)),
        TrueBoxes(np.array([[10.0, 4, 15, 10], [20, 20, 60, 60]]), np.array([0, 0])),
    ]
    return Detection(config, detector, None, boxes=boxes)  # type: ignore[arg-type]


def batch() -> Batch:
    torch.manual_seed(1)
    return {
        "image": torch.randn(4, 1, 24, 24),
        "affine": torch.eye(4).expand(4, 4, 4),
        "start": torch.tensor([[0, 0], [3, 1], [0, 0], [2, 2]]),
        "box": torch.tensor([[0, 0], [24, 24]]).expand(4, 2, 2),
        "index": torch.tensor([0, 0, 1, 2]),
        "key": torch.tensor([11, 12, 13, 14]),
    }


@pytest.mark.parametrize(
    "detection",
    [{}, {"loss": "focal", "box_loss": "smooth_l1"}, {"matcher": "overlap", "pool": 1}],
    ids=["hard negatives", "focal", "by overlap"],
)
def test_microbatches_give_the_loss_and_gradient_of_the_whole_step(detection: dict[str, Any]) -> None:
    whole = method(**detection)
    total = whole(whole.views(batch(), 0)).total
    total.backward()
    wanted = {name: p.grad.clone() for name, p in whole.named_parameters() if p.grad is not None}
    parts = method(**detection)
    for i in range(4):
        (parts(parts.views(rows(batch(), i, i + 1), 0)).total / 4).backward()
    assert set(wanted) == {name for name, p in parts.named_parameters() if p.requires_grad}
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    for name, parameter in parts.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-3, atol=1e-5 * largest)


@pytest.mark.parametrize("box_loss", ["giou", "smooth_l1"])
@pytest.mark.parametrize("image", [0, 2], ids=["two boxes", "one cut off"])
def test_the_loss_of_a_sample_is_monais_detectors(box_loss: str, image: int) -> None:
    ours = method(classes=1, box_loss=box_loss, pool=1, least_visible=0.0)
    given_batch = rows(batch(), 0, 1) | {"index": torch.tensor([image])}
    views = ours.views(given_batch, 0)
    losses = ours(views)
    theirs = RetinaNetDetector(ours.encoder.net, LevelAnchors(ANCHORS))
    theirs.set_atss_matcher(num_candidates=4, center_in_gt=False)
    theirs.set_hard_negative_sampler(100_000, positive_fraction=0.25, min_neg=8, pool_size=1)
    if box_loss == "giou":
        theirs.set_box_regression_loss(BoxGIoULoss(reduction="mean"), encode_gt=False, decode_pred=True)
    real = views["classes"][0] >= 0
    target = {"boxes": views["boxes"][0][real], "labels": views["classes"][0][real]}
    found = theirs.train()(views["image"], [target])
    torch.testing.assert_close(losses.terms["class"], found["classification"])
    torch.testing.assert_close(losses.terms["box"], found["box_regression"])


@given(seed=st.integers(0, 10_000))
def test_hard_negatives_and_focal_loss_are_monais(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    scores, label = torch.randn(60, generator=random), torch.randint(0, 4, (60,), generator=random) // 3
    positives = int(label.sum())
    sampler = HardNegativeSampler(batch_size_per_image=1000, positive_fraction=0.25, min_neg=5, pool_size=1)
    (wanted,) = sampler([label], scores.sigmoid())[1]
    ours = hard_negatives(scores, label == 0, torch.rand(60), count=max(5, 3 * max(1, positives)), pool=1)
    assert sorted(ours.tolist()) == wanted.nonzero()[:, 0].tolist()
    logits, target = torch.randn(9, 3, generator=random), torch.randint(0, 2, (9, 3), generator=random).float()
    theirs = FocalLoss(gamma=2.0, alpha=0.25, reduction="none", include_background=True)(logits, target)
    torch.testing.assert_close(focal_loss(logits, target, 2.0, 0.25), theirs, rtol=1e-4, atol=1e-6)


@given(seed=st.integers(0, 10_000), pool=st.floats(1, 4))
def test_hard_negatives_are_background_among_the_surest(seed: int, pool: float) -> None:
    random = torch.Generator().manual_seed(seed)
    scores, negative = torch.randn(50, generator=random), torch.rand(50, generator=random) > 0.4
    taken = hard_negatives(scores, negative, torch.rand(50, generator=random), count=6, pool=pool)
    assert len(set(taken.tolist())) == 6
    assert bool(negative[taken].all())
    surer = (scores[negative] > scores[taken].min()).sum()
    assert surer <= int(6 * pool)


def test_matching_by_overlap_is_torchvisions() -> None:
    matcher = pytest.importorskip("torchvision.models.detection._utils").Matcher(
        0.5, 0.4, allow_low_quality_matches=True
    )
    for seed in range(30):
        overlap = torch.rand(5, 40, generator=torch.Generator().manual_seed(seed))
        theirs = matcher(overlap)
        assert torch.equal(by_overlap(overlap, 0.5, 0.4), theirs)


def test_anchors_of_a_box_too_little_of_which_is_seen_are_no_background() -> None:
    detection = method()
    views = detection.views(rows(batch(), 0, 1) | {"index": torch.tensor([2])}, 0)
    assert views["classes"][0].tolist() == [0, PARTLY]  # 4 x 4 of what could be 24 x 24 voxels
    partly = views["boxes"][0][1:]
    found = detection.assigned(views["boxes"][0][:1], partly)
    centres = (detection.encoder.anchors[:, :2] + detection.encoder.anchors[:, 2:]) / 2
    there = ((centres >= partly[0, :2]) & (centres < partly[0, 2:])).all(1)
    assert set(found[there & (found < 0)].tolist()) == {UNSURE}
    assert set(found[~there & (found < 0)].tolist()) == {BACKGROUND}


def test_a_box_outside_the_crop_is_absent_and_one_larger_than_it_counts() -> None:
    detection = method()
    detection.corners[0] = torch.tensor([[40.0, 40, 50, 50], [-30, -30, 60, 60]])
    views = detection.views(rows(batch(), 0, 1), 0)
    assert views["classes"][0].tolist() == [ABSENT, 1]
    assert views["boxes"][0, 1].tolist() == [0, 0, 24, 24]


def box_of(mask: Tensor) -> Tensor:
    at = mask.nonzero()
    return torch.cat([at.amin(0), at.amax(0) + 1]).float()


@pytest.mark.parametrize("shape", [(40, 44), (32, 28, 30)], ids=["2D", "3D"])
@given(seed=st.integers(0, 10_000))
def test_a_box_moves_as_the_ellipsoid_that_fills_it(shape: tuple[int, ...], seed: int) -> None:
    n, random = len(shape), np.random.default_rng(seed)
    half, centre = random.uniform(4, 8, n), np.array(shape) / 2 + random.uniform(-3, 3, n)
    grid = np.stack(np.meshgrid(*[np.arange(s) + 0.5 for s in shape], indexing="ij"), -1)
    mask = torch.from_numpy((((grid - centre) / half) ** 2).sum(-1) < 1)
    spacing = torch.tensor([[0.7, 1.0, 1.4][:n]])
    matrix = draw_affine(
        SpatialConfig(rotation=0.5, scale=0.2, shift_mm=2.0, flips=(0,)), Draw(torch.tensor([seed])), n
    )
    corners = torch.tensor([*(centre - half), *(centre + half)]).float()[None, None]
    whole = torch.tensor([[0] * n, list(shape)])[None]
    found, seen = moved_boxes(corners, whole, matrix, spacing, shape)
    moved = warp(mask[None, None].float(), matrix, spacing, shape, mode="nearest", padding="zeros")[0, 0]
    torch.testing.assert_close(found[0, 0], box_of(moved), rtol=0, atol=2.0)
    assert float(seen) <= 1.001


@given(seed=st.integers(0, 10_000))
def test_a_box_cut_by_the_crop_is_about_what_is_left_of_its_mask_in_the_view(seed: int) -> None:
    random, shape, spacing = np.random.default_rng(seed), (16, 13), torch.tensor([[0.8, 1.3]])
    size = random.integers(1, 12, 2)
    low = random.integers(1 - size, shape)
    high = low + size
    mask = torch.zeros(shape)
    mask[max(low[0], 0) : high[0], max(low[1], 0) : high[1]] = 1
    shift = torch.from_numpy(random.integers(-4, 5, 2)).float() * spacing[0]
    matrix = torch.cat([torch.eye(2), shift[:, None]], 1)[None]
    whole = torch.tensor([[[0, 0], list(shape)]])
    found, seen = moved_boxes(torch.tensor([[[*low, *high]]]).float(), whole, matrix, spacing, shape)
    moved = warp(mask[None, None], matrix, spacing, shape, mode="nearest", padding="zeros")[0, 0]
    torch.testing.assert_close(float(seen), float(moved.sum() / size.prod()), rtol=1e-4, atol=1e-4)
    if moved.any():
        torch.testing.assert_close(found[0, 0], box_of(moved), rtol=0, atol=1e-4)


@given(seed=st.integers(0, 10_000))
def test_a_turned_box_holds_every_point_of_its_ellipsoid_and_no_more(seed: int) -> None:
    random, shape, spacing = np.random.default_rng(seed), (60, 50, 40), torch.tensor([[0.6, 1.0, 1.5]])
    half, centre = torch.tensor([9.0, 2.0, 4.0]), torch.tensor([30.0, 26, 19])
    turned = SpatialConfig(rotation=1.0, scale=0.2, shift_mm=1.0, flips=(1,))
    matrix = draw_affine(turned, Draw(torch.tensor([seed])), 3)
    points = torch.from_numpy(random.normal(size=(20_000, 3))).float()
    points = centre + half * points / points.norm(dim=1, keepdim=True)
    offsets = crop_to_view(voxels_to_offsets(points[None] - 0.5, shape, spacing), matrix)
    there = offsets_to_voxels(offsets, shape, spacing)[0] + 0.5
    box = torch.cat([centre - half, centre + half])[None, None]
    found, _ = moved_boxes(box, torch.tensor([[[0] * 3, list(shape)]]), matrix, spacing, shape)
    size = torch.tensor(shape)
    wanted = torch.cat([there.amin(0).clamp_min(0), torch.minimum(there.amax(0), size)])
    torch.testing.assert_close(found[0, 0], wanted, rtol=0, atol=0.1)


@given(seed=st.integers(0, 10_000))
def test_a_mirrored_box_is_the_mirrored_masks(seed: int) -> None:
    random = np.random.default_rng(seed)
    low, shape = random.integers(0, 9, 2), (16, 13)
    high = low + random.integers(1, 8, 2)
    mask = torch.zeros(shape)
    mask[low[0] : high[0], low[1] : high[1]] = 1
    linear = torch.diag(torch.tensor(random.choice([-1.0, 1.0], 2))).float()
    matrix = torch.cat([linear, torch.zeros(2, 1)], 1)[None]
    whole, spacing = torch.tensor([[[0, 0], list(shape)]]), torch.tensor([[0.8, 1.3]])
    found, seen = moved_boxes(torch.tensor([[[*low, *high]]]).float(), whole, matrix, spacing, shape)
    moved = warp(mask[None, None], matrix, spacing, shape, mode="nearest", padding="zeros")[0, 0]
    torch.testing.assert_close(found[0, 0], box_of(moved), rtol=0, atol=1e-4)
    share = (np.minimum(high, shape) - low).prod() / (high - low).prod()
    torch.testing.assert_close(float(seen), float(share), rtol=1e-4, atol=1e-4)


def test_a_frozen_body_is_still_and_pictures_are_drawn(tmp_path: Path) -> None:
    detection = method()
    pictures = detection.panels(detection.views(batch(), 0))
    assert pictures["detection"].shape == (3, 24, 72)
    assert 0 <= float(pictures["detection"].min()) <= float(pictures["detection"].max()) <= 1
    groups = Detection(
        detection.config.model_copy(update={"train": "linear"}),
        detection.encoder,
        None,  # type: ignore[arg-type]
        boxes=[TrueBoxes(np.zeros((0, 4)), np.zeros(0, dtype=np.int64))],
    ).groups()
    moving = {id(p) for group in groups for p in group.parameters}
    assert moving == {id(p) for p in detection.encoder.head_parameters() if p.requires_grad}


@pytest.mark.parametrize("loss", ["hard_negatives", "focal"])
def test_unsure_anchors_teach_no_class(loss: str) -> None:
    task = method(loss=loss, pool=1)
    count = len(task.encoder.anchors)
    logits = torch.randn(count, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    anchor_of = torch.full((count,), BACKGROUND)
    anchor_of[::2], anchor_of[3] = UNSURE, 0
    with torch.no_grad():
        logits[::2] += 9.0  # the surest of all
    task.class_loss(logits, anchor_of, torch.tensor([1]), torch.rand(count)).backward()
    assert logits.grad is not None
    assert not logits.grad[::2].any()
    assert bool(logits.grad[3].any())
