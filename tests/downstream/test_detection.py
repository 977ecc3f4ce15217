"""The task detection: where true boxes come from, what is planned from them, and how what is found is scored."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data.box_utils import box_iou
from numpy.typing import NDArray

from medssl.downstream import FinetuneConfig, finetune
from medssl.downstream.detection import DetectionTask, build_detector, predict_mirrored, score_image, world_box
from medssl.downstream.detection_anchors import finest_stride, planned_anchors
from medssl.downstream.detection_boxes import TrueBoxes, component_boxes, crop_points
from medssl.downstream.detection_config import DetectionConfig
from medssl.downstream.detection_scores import DetectionScore, Group
from medssl.downstream.start import Design
from medssl.errors import DataError, RecipeError
from medssl.metrics.detection import box_mean_average_precision, found_in
from medssl.nets.config import DynUNetConfig, ViTConfig
from medssl.nets.encoder import build_encoder, load_network
from medssl.nets.retinanet import Detections
from medssl.store import Store

from ..labelled_store import write_labelled_store

TASK = DetectionTask()
NETWORK = DynUNetConfig(channels=(16, 16, 24), features=16, strides=(1, 2, 2))


def discs(seed: int, shape: tuple[int, ...] = (44, 40)) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Bright (class 1) and dark (class 2) discs that do not touch, at most three, in noise."""
    random = np.random.default_rng(seed)
    image, label = random.normal(0.4, 0.05, shape), np.zeros(shape, np.uint8)
    grid = np.stack(np.meshgrid(*[np.arange(s) + 0.5 for s in shape], indexing="ij"), -1)
    for _ in range(seed % 4):
        radius, centre = random.uniform(3, 5, len(shape)), [random.uniform(6, s - 6) for s in shape]
        near = (((grid - centre) / (radius + 2)) ** 2).sum(-1) < 1
        if not label[near].any():
            k = int(random.integers(1, 3))
            label[(((grid - centre) / radius) ** 2).sum(-1) < 1] = k
    image += np.array([0, 0.5, -0.35])[label]
    return image.astype(np.float32), label


SPLITS = ("train",) * 16 + ("validation",) * 3 + ("test",) * 5


def made(folder: Path, *, boxes: bool, masks: bool = True, spacing: float = 0.5) -> Store:
    pictures = [discs(seed) for seed in range(len(SPLITS))]
    found = [component_boxes(label, (1, 2)) for _, label in pictures]
    given = [[(("bright", "dark")[k], tuple(c)) for c, k in zip(f.corners.tolist(), f.classes)] for f in found]
    return write_labelled_store(
        folder,
        [image for image, _ in pictures],
        [label if masks else None for _, label in pictures],
        splits=SPLITS,
        spacing_mm=(spacing, spacing),
        boxes=given if boxes else None,
    )


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return made(tmp_path_factory.mktemp("masks") / "store", boxes=False)


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return made(tmp_path_factory.mktemp("boxes") / "store", boxes=True, masks=False)


def quick(**more: Any) -> FinetuneConfig:
    values = {"steps": 4, "batch_size": 2, "crop": (32, 32), "workers": 0, "warmup_steps": 1} | more
    return FinetuneConfig(**values)


def trained(store: Store, out: Path, config: FinetuneConfig) -> Any:
    return finetune(None, store, out, config, task="detection", network=NETWORK)


def test_it_learns_to_find_what_is_there_and_keeps_it(masks: Store, tmp_path: Path) -> None:
    config = quick(steps=40, batch_size=4, warmup_steps=10, seed=1)
    result = trained(masks, tmp_path / "run", config)
    assert result.value > 0.9, "heads that begin with MONAI's small weights reach 0.56 in these steps"
    assert result.lines[0].startswith(f"mAP {result.value:.3f}")
    kept = sorted((tmp_path / "run" / "predictions").glob("*.json"))
    assert [path.stem for path in kept] == list(masks.ids_of("test"))
    best = [max(json.loads(path.read_text())["boxes"], key=lambda box: box["score"], default=None) for path in kept]
    for image_id, box in zip(masks.ids_of("test"), best):
        truth = component_boxes(masks.label(image_id)[0], (1, 2)).corners
        if len(truth):
            assert box is not None
            overlap = box_iou(torch.tensor([box["box"]]), torch.from_numpy(truth).double())
            assert float(overlap.max()) > 0.4
    network: Any = load_network(tmp_path / "run" / "detector")
    again = TASK.score(network, masks, config, masks.ids_of("test"))
    group = Group(again, config.detection, ("label 1", "label 2"))
    assert group.mean_precision(config.detection.overlaps) == pytest.approx(result.value, abs=1e-6)


def test_given_boxes_and_those_of_masks_are_one_task(masks: Store, boxes: Store, tmp_path: Path) -> None:
    config = quick()
    one, two = trained(masks, tmp_path / "masks", config), trained(boxes, tmp_path / "boxes", config)
    assert one.value == two.value
    first = [score.to_dict() for score in one.scores]
    assert first == [score.to_dict() for score in two.scores]
    assert TASK.images(masks, "test", config) == TASK.images(boxes, "test", config) == masks.ids_of("test")


def test_what_is_not_there_is_said(masks: Store, boxes: Store) -> None:
    with pytest.raises(DataError, match="no image of the store has a box"):
        TASK.images(masks, "train", quick(detection=DetectionConfig(boxes_from="boxes")))
    with pytest.raises(DataError, match="no image of the store has a label map"):
        TASK.images(boxes, "train", quick(detection=DetectionConfig(boxes_from="masks")))
    with pytest.raises(DataError, match="split 'nowhere'"):
        TASK.images(boxes, "nowhere", quick())
    design = Design(None, NETWORK)
    with pytest.raises(RecipeError, match="2 axes cannot be found by a network of 3"):
        build_detector(design, boxes, quick(crop=(16, 16, 16)), boxes.ids_of("train"))
    encoder = build_encoder(NETWORK, channels=3, shape=(32, 32))
    with pytest.raises(DataError, match="1 channels, the network 3"):
        build_detector(Design(encoder, encoder), boxes, quick(), boxes.ids_of("train"))
    for wrong in ({"overlaps": ()}, {"overlaps": (0.0,)}, {"negative_overlap": 0.9}):
        with pytest.raises(ValueError, match=r"overlaps|negative_overlap"):
            DetectionConfig(**wrong)


def test_an_encoders_weights_and_low_rank_corrections_are_taken(boxes: Store, tmp_path: Path) -> None:
    torch.manual_seed(3)
    encoder = build_encoder(ViTConfig(patch=8, width=24, depth=2, heads=2, mlp=32), channels=1, shape=(32, 32))
    before = {name: tensor.clone() for name, tensor in encoder.net.state_dict().items()}
    for way in ("linear", "lora", "head_first"):
        config = quick(train=way, head_steps=9)
        finetune(encoder, boxes, tmp_path / way, config, task="detection")
        network: Any = load_network(tmp_path / way / "detector")
        same = {name: torch.equal(t, before[name]) for name, t in network.body().state_dict().items()}
        moved = {name for name, equal in same.items() if not equal}
        assert all("attn" in name for name in moved)
        assert bool(moved) == (way == "lora")


def test_arms_of_one_seed_begin_with_equal_new_weights(boxes: Store) -> None:
    torch.manual_seed(8)
    encoder, images = build_encoder(NETWORK, channels=1, shape=(32, 32)), boxes.ids_of("train")
    one = build_detector(Design(encoder, encoder), boxes, quick(), images)
    torch.manual_seed(9)
    two = build_detector(Design(None, encoder), boxes, quick(), images)
    assert one.spec == two.spec
    for first, second in zip(one.head_parameters(), two.head_parameters(), strict=True):
        assert torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip(one.body().state_dict().values(), encoder.net.state_dict().values()))


@given(seed=st.integers(0, 10_000), n=st.sampled_from([2, 3]))
def test_blocks_that_do_not_touch_come_back_as_boxes(seed: int, n: int) -> None:
    random = np.random.default_rng(seed)
    label, wanted = np.zeros((24,) * n, np.int16), []
    for _ in range(6):
        low = random.integers(0, 20, n)
        high = low + random.integers(1, 5, n)
        around = tuple(slice(max(0, a - 1), b + 1) for a, b in zip(low, high))
        if not label[around].any():
            k = int(random.integers(0, 2))
            label[tuple(slice(a, b) for a, b in zip(low, high))] = (3, 7)[k]
            wanted.append((k, *low, *high))
    found = component_boxes(label, (3, 7))
    assert sorted(wanted) == sorted((int(k), *map(int, c)) for k, c in zip(found.classes, found.corners))
    sizes = (found.corners[:, n:] - found.corners[:, :n]).prod(1)
    assert len(component_boxes(label, (3, 7), smallest=9).classes) == (sizes >= 9).sum()


def test_voxels_that_touch_by_a_corner_are_one_object() -> None:
    assert component_boxes(np.eye(5, dtype=np.uint8), (1,)).corners.tolist() == [[0, 0, 5, 5]]


@given(seed=st.integers(0, 10_000), levels=st.sampled_from([[(2, 2), (4, 4), (8, 8)], [(2, 4), (4, 8)]]))
def test_boxes_of_few_shapes_are_anchors_themselves_on_their_level(seed: int, levels: list[tuple[int, ...]]) -> None:
    random = np.random.default_rng(seed)
    shapes = np.array(levels[0]) * random.uniform(3.2, 4.9, (3, 2))
    level = random.integers(0, len(levels), 30)
    sides = shapes[random.integers(0, 3, 30)] * np.array(levels)[level] / np.array(levels[0])
    anchors = np.array(planned_anchors(sides, levels, 3))
    assert anchors.shape == (len(levels), 3, 2)
    np.testing.assert_allclose(
        anchors / np.array(levels)[:, None], anchors[:1].repeat(len(levels), 0) / levels[0], atol=0.01
    )
    missed = np.abs(np.log(anchors.reshape(-1, 1, 2) / sides[None])).sum(2).min(0)
    assert missed.max() < 0.02


@given(seed=st.integers(0, 10_000))
def test_more_anchors_fit_boxes_no_worse_than_one(seed: int) -> None:
    random = np.random.default_rng(seed)
    sides = np.exp(random.normal(2.5, 0.6, (40, 3)))
    levels = [(2, 2, 2), (4, 4, 4), (8, 8, 8)]

    def fit(count: int) -> float:
        shapes = torch.tensor(planned_anchors(sides, levels, count)).reshape(-1, 3)
        one, two = (torch.cat([-t / 2, t / 2], 1) for t in (torch.from_numpy(sides).float(), shapes))
        return float(box_iou(one, two).amax(1).mean())

    assert fit(6) >= fit(1)
    assert fit(6) > 0.4
    assert finest_stride(sides * 2) in (finest_stride(sides), 2 * finest_stride(sides))


def test_anchors_of_nothing_are_refused_and_few_boxes_are_varied() -> None:
    with pytest.raises(ValueError, match="a box or more"):
        planned_anchors(np.zeros((0, 2)), [(2, 2)], 3)
    (found,) = planned_anchors([[8.0, 4.0]], [(2, 2)], 3)
    assert found[0] == [8.0, 4.0]
    assert len({tuple(one) for one in found}) == 3


@given(seed=st.integers(0, 10_000))
def test_crops_for_a_box_hold_its_middle_and_lie_in_the_image(seed: int) -> None:
    random = np.random.default_rng(seed)
    shape, crop = (40, 33, 21), (16, 16, 12)
    low = random.integers(0, np.array(shape) - 3, (3, 3))
    boxes = TrueBoxes(np.concatenate([low, low + random.integers(1, 4, (3, 3))], 1).astype(float), np.arange(3))
    points = crop_points(boxes, shape, crop)
    assert points.shape == (24, 4)
    assert ((points[:, 1:] >= 0) & (points[:, 1:] < shape)).all()
    middle = ((boxes.corners[:, :3] + boxes.corners[:, 3:]) / 2)[points[:, 0]]
    assert (np.abs(points[:, 1:] + 0.5 - middle) <= np.array(crop) / 4 + 0.5).all()


def scores_of(seed: int, patients: int = 5) -> list[DetectionScore]:
    random = np.random.default_rng(seed)
    out = []
    for p in range(patients):
        for i in range(2):
            low = random.uniform(0, 20, (random.integers(0, 4), 2))
            truth = np.concatenate([low, low + random.uniform(2, 8, low.shape)], 1)
            near = truth + random.normal(0, 0.7, truth.shape)
            far = random.uniform(0, 20, (2, 2))
            found = np.concatenate(
                [np.sort(near.reshape(-1, 2, 2), 1).reshape(-1, 4), np.concatenate([far, far + 3], 1)]
            )
            classes, true_classes = (tuple(random.integers(0, 2, len(t)).tolist()) for t in (found, truth))
            scores = tuple(np.sort(random.uniform(0, 1, len(found)))[::-1].tolist())
            tables = (
                tuple(map(tuple, found.tolist())),
                scores,
                classes,
                tuple(map(tuple, truth.tolist())),
                true_classes,
            )
            out.append(DetectionScore(f"{p}-{i}", f"patient {p}", *tables))
    return out


@given(seed=st.integers(0, 10_000))
def test_a_group_has_the_map_of_all_boxes_and_its_patients_shares_have_that_mean(seed: int) -> None:
    scores, config = scores_of(seed), DetectionConfig(overlaps=(0.1, 0.3, 0.5))
    group = Group(scores, config, ("one", "two"))
    found = [[found_in(*of_class(score, k)) for score in scores] for k in range(2)]
    wanted = box_mean_average_precision(found, overlaps=config.overlaps)[0]
    assert group.mean_precision(config.overlaps) == pytest.approx(wanted, nan_ok=True)
    table = group.by_patient()
    assert len(table) == 5
    assert float(np.nanmean(table)) == pytest.approx(wanted, nan_ok=True)
    summary = group.summary()
    json.dumps(summary, allow_nan=False)
    assert summary["images_without_box"] == sum(not score.truth for score in scores)


def of_class(score: DetectionScore, k: int) -> tuple[Any, Any, Any]:
    found = [i for i, c in enumerate(score.classes) if c == k]
    truth = [box for box, c in zip(score.truth, score.truth_classes) if c == k]
    return [score.boxes[i] for i in found], [score.scores[i] for i in found], truth


def test_a_score_comes_back_from_json_and_a_wrong_one_does_not() -> None:
    for score in scores_of(3):
        value = json.loads(json.dumps(score.to_dict()))
        assert TASK.score_from(value) == score
    wrong: dict[str, Any]
    scores, boxes = [1.5, *value["scores"][1:]], [box[::-1] for box in value["boxes"]]
    for wrong in ({"scores": scores}, {"classes": []}, {"boxes": boxes}):
        with pytest.raises(ValueError, match=r"holds|corner|must"):
            TASK.score_from(value | wrong)


def test_the_boxes_of_a_score_are_in_mm_along_the_images_axes(masks: Store) -> None:
    row = replace(masks.rows[0], spacing_mm=(0.5, 2.0))
    truth = TrueBoxes(np.array([[2.0, 3, 8, 9]]), np.array([1]))
    found = Detections(torch.tensor([[1.0, 1, 2, 3]]), torch.tensor([0.5]), torch.tensor([0]))
    score = score_image(found, truth, row)
    assert (score.boxes, score.truth) == (((0.5, 2.0, 1.0, 6.0),), ((1.0, 6.0, 4.0, 18.0),))
    plain = score_image(found, truth, replace(row, spacing_mm=None))
    assert (plain.boxes, plain.truth) == (((1.0, 1.0, 2.0, 3.0),), ((2.0, 3.0, 8.0, 9.0),))


def test_false_positives_of_images_without_a_box_count() -> None:
    there = DetectionScore("a", "p", ((0, 0, 4, 4),), (0.5,), (0,), ((0, 0, 4, 4),), (0,))
    empty = DetectionScore("b", "q", ((0, 0, 4, 4),), (0.9,), (0,), (), ())
    config = DetectionConfig()
    assert Group([there], config, ("one",)).mean_precision(config.overlaps) == 1
    assert Group([there, empty], config, ("one",)).mean_precision(config.overlaps) == pytest.approx(0.5)
    nothing = Group([empty], config, ("one",))
    assert math.isnan(nothing.mean_precision(config.overlaps))
    assert nothing.summary()["map"] is None
    assert TASK.lines({**nothing.summary(), "unit": "mm"})[0].startswith("mAP none")


def test_boxes_of_mirror_images_are_turned_back(boxes: Store) -> None:
    torch.manual_seed(0)
    detector = build_detector(Design(None, NETWORK), boxes, quick(), boxes.ids_of("train")).eval()
    with torch.no_grad():
        detector.net.classification_head.cls_logits.weight.normal_(0, 0.05)
        detector.net.classification_head.cls_logits.bias.zero_()
    image = torch.randn(1, 1, 32, 32)
    one, two = (predict_mirrored(detector, x, (0, 1)) for x in (image, image.flip(2)))
    turned = two.boxes.clone()
    turned[:, 0], turned[:, 2] = 32 - two.boxes[:, 2], 32 - two.boxes[:, 0]
    back = Detections(turned, two.scores, two.classes)
    assert len(one.boxes) == len(back.boxes) > 3
    for k in range(10):
        same = box_iou(one.boxes[k : k + 1], back.boxes)[0]
        assert float(same.max()) > 0.99
        torch.testing.assert_close(back.scores[same.argmax()], one.scores[k], rtol=1e-3, atol=1e-4)
    with pytest.raises(RecipeError, match="axis 2 cannot be mirrored"):
        predict_mirrored(detector, image, (2,))


def test_the_world_box_holds_exactly_the_voxels_of_a_turned_volume() -> None:
    affine = np.array([[0, -2.0, 0, 5], [1.5, 0, 0, -3], [0, 0, 3, 1], [0, 0, 0, 1]])
    found = world_box(np.array([1.0, 2, 3, 2, 4, 6]), affine)
    centres = np.array([[i, j, k, 1] for i in (1,) for j in (2, 3) for k in (3, 4, 5)]) @ affine.T
    np.testing.assert_allclose(found[:3], centres[:, :3].min(0) - np.array([2, 1.5, 3]) / 2)
    np.testing.assert_allclose(found[3:], centres[:, :3].max(0) + np.array([2, 1.5, 3]) / 2)
