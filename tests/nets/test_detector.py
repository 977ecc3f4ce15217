"""A detector sees what its encoder sees, learns with all of it, and finds the same boxes however an image is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.apps.detection.utils.anchor_utils import AnchorGeneratorWithAnchorShape
from monai.data.box_utils import batched_nms
from torch import Tensor, nn

from medssl.downstream.config import FinetuneConfig
from medssl.errors import RecipeError, UsageError
from medssl.nets.detector import Detector, detector_for, pyramid_levels
from medssl.nets.encoder import (
    DynUNetConfig,
    Encoder,
    SegResNetConfig,
    SwinConfig,
    TimmConfig,
    ViTConfig,
    build_encoder,
    load_network,
    save_network,
)
from medssl.nets.retinanet import Detections, LevelAnchors, Pyramid, WindowDetector, weighted_boxes, windows
from medssl.nets.segmenter import load_encoder_into

SMALL_SWIN: dict[str, Any] = {"width": 12, "depths": (1, 1, 1, 1), "heads": (1, 1, 1, 1), "window": 2}
FAMILIES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "dynunet": (DynUNetConfig(channels=(8, 16, 16), features=8, strides=(1, 2, 2)), (32, 32)),
    "dynunet 3D, thick slices": (
        DynUNetConfig(channels=(8, 16, 16), features=8, strides=(2, (1, 2, 2), 2)),
        (16, 32, 32),
    ),
    "segresnet": (SegResNetConfig(channels=8, blocks_down=(1, 1, 1), blocks_up=(1, 1), features=8), (32, 32)),
    "vit": (ViTConfig(patch=8, width=24, depth=4, heads=2, mlp=32), (32, 32)),
    "vit 3D": (ViTConfig(patch=(4, 8, 8), width=24, depth=2, heads=2, mlp=32), (16, 32, 32)),
    "swin": (SwinConfig(**SMALL_SWIN), (64, 64)),
    "swin with decoder": (SwinConfig(**SMALL_SWIN, decoder=True, features=8), (64, 64)),
    "timm": (TimmConfig(model="resnet10t"), (64, 64)),
    "timm's vit": (TimmConfig(model="vit_tiny_patch16_224"), (64, 64)),
}


def built(config: Any, shape: tuple[int, ...], *, finest: int = 4) -> tuple[Encoder, Detector]:
    torch.manual_seed(2)
    encoder = build_encoder(config, channels=1, shape=shape)
    levels = pyramid_levels(encoder.strides, shape, finest=finest, count=3)
    anchors = [[[1.0 * s for s in level], [2.0 * s for s in level]] for level in levels]
    detector = detector_for(encoder, ["nodule", "mass"], levels=levels, anchors=anchors, width=16)
    return encoder, detector


@pytest.mark.parametrize(("config", "shape"), FAMILIES.values(), ids=list(FAMILIES))
def test_a_detector_sees_the_encoders_maps_and_trains_all_of_it(config: Any, shape: tuple[int, ...]) -> None:
    encoder, detector = built(config, shape)
    receipt = load_encoder_into(detector, encoder)
    assert not receipt.missing
    assert set(receipt.reshaped) <= set(encoder.derived)
    x = torch.randn(2, 1, *shape)
    encoder.eval(), detector.eval()
    for ours, theirs in zip(detector.net.feature_extractor.maps(x), encoder(x), strict=True):
        torch.testing.assert_close(ours, theirs)
    logits, codes = detector.train()(x)
    assert logits.shape == (2, len(detector.anchors), 2)
    assert codes.shape == (2, len(detector.anchors), 2 * len(shape))
    (logits.sum() + codes.sum()).backward()
    assert not [n for n, p in detector.named_parameters() if p.requires_grad and p.grad is None]
    trained = {n for n, p in encoder.net.named_parameters() if p.requires_grad}
    assert trained == {n for n, p in detector.body().named_parameters() if p.requires_grad}
    assert {id(p) for p in detector.head_parameters()}.isdisjoint(id(p) for p in detector.body().parameters())


@pytest.mark.parametrize(("shape", "levels"), [((32, 32), [(4, 4)]), ((16, 32, 32), [(2, 4, 4)])], ids=["2D", "3D"])
def test_a_step_of_adam_turns_no_filter_of_the_heads_far(shape: tuple[int, ...], levels: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    network = DynUNetConfig(channels=(8, 8, 8), features=8, strides=(1, 2, 2))
    detector = detector_for(network, ["mass"], levels=levels, anchors=[[levels[0]]], shape=shape, channels=1)
    heads = (detector.net.classification_head.conv, detector.net.regression_head.conv)
    before = [p.detach().clone() for head in heads for p in head.parameters() if p.ndim > 1]
    optimiser = torch.optim.AdamW(detector.parameters(), FinetuneConfig().head_learning_rate)
    logits, codes = detector(torch.randn(2, 1, *shape))
    (logits.sigmoid().mean() + codes.square().mean()).backward()
    optimiser.step()
    after = [p for head in heads for p in head.parameters() if p.ndim > 1]
    assert len(before) == 8
    for old, new in zip(before, after):
        assert float((new.detach() - old).norm() / old.norm()) < 0.15


def test_a_saved_detector_finds_the_same_boxes(tmp_path: Path) -> None:
    _, detector = built(*FAMILIES["vit"])
    save_network(tmp_path / "detector", detector, preparation={"fingerprint": "x"}, card="# card")
    again = load_network(tmp_path / "detector")
    assert isinstance(again, Detector)
    assert again.preparation == {"fingerprint": "x"}
    image = torch.randn(1, 1, 50, 40)
    for ours, theirs in zip(again.predict(image), detector.eval().predict(image), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("strides", "levels"),
    [
        ([(1, 1), (2, 2), (4, 4), (8, 8)], [(2, 2), (4, 4)]),
        ([(8, 8), (8, 8)], [(4, 4), (8, 8), (16, 16)]),
        ([(1, 1), (2, 2)], [(8, 8), (16, 16)]),
        ([(2, 2), (8, 8)], [(4, 4)]),
        ([(1, 2), (2, 4)], [(1, 2), (2, 4), (4, 8)]),
    ],
    ids=["all there", "one scale", "all finer", "one between", "thick"],
)
def test_every_level_hears_every_map_or_a_coarser_one(
    strides: list[tuple[int, ...]], levels: list[tuple[int, ...]]
) -> None:
    torch.manual_seed(0)
    pyramid = Pyramid([4] * len(strides), strides, levels, 8)
    maps = [torch.randn(1, 4, *(32 // s for s in stride), requires_grad=True) for stride in strides]
    out = pyramid(maps)
    assert [o.shape for o in out] == [(1, 8, *(32 // s for s in level)) for level in levels]
    heard = torch.autograd.grad(out[0].square().sum(), maps, allow_unused=True, retain_graph=True)
    assert all(g is not None and bool(g.any()) for g in heard)
    torch.stack([o.square().sum() for o in out]).sum().backward()
    assert not [n for n, p in pyramid.named_parameters() if p.grad is None]


def test_levels_fit_the_crop_or_are_refused() -> None:
    assert pyramid_levels([(2, 2), (4, 4)], (48, 48), finest=4, count=5) == [(4, 4), (8, 8), (16, 16)]
    assert pyramid_levels([(4, 8, 8)], (16, 32, 32), finest=4, count=2) == [(4, 4, 4), (4, 8, 8)]
    assert pyramid_levels([(2, 2)], (8, 8), finest=8, count=1) == [(4, 4)]
    with pytest.raises(RecipeError, match="no room"):
        pyramid_levels([(8, 8)], (7, 7), finest=8, count=1)
    with pytest.raises(UsageError, match="needs a class"):
        detector_for(DynUNetConfig(), [], levels=[(4, 4)], anchors=[[[4, 4]]], shape=(32, 32), channels=1)


def test_anchors_are_monais_where_monai_rounds_nothing() -> None:
    shapes, levels = [[4.0, 6.0], [8.0, 2.0]], [(2, 2), (4, 4)]
    ours = LevelAnchors([shapes, [[2 * v for v in s] for s in shapes]]).of((16, 24), levels)
    image, maps = torch.zeros(1, 1, 16, 24), [torch.zeros(1, 1, 8, 12), torch.zeros(1, 1, 4, 6)]
    theirs = AnchorGeneratorWithAnchorShape((1, 2), shapes)(image, maps)[0]
    torch.testing.assert_close(torch.cat(ours), theirs)


def test_anchors_stand_on_the_middle_of_their_cell_with_the_sides_asked_for() -> None:
    for stride in (1, 2, 3, 5):
        (found,) = LevelAnchors([[[1.0, 2.5]]]).of((4 * stride, 6 * stride), [(stride, stride)])
        centres = (found[:, :2] + found[:, 2:]) / 2
        cells = torch.cartesian_prod(torch.arange(4.0), torch.arange(6.0))
        torch.testing.assert_close(centres, (cells + 0.5) * stride)
        torch.testing.assert_close(found[:, 2:] - found[:, :2], torch.tensor([[1.0, 2.5]]).expand(24, 2))


@given(size=st.tuples(st.integers(8, 40), st.integers(8, 40)), overlap=st.sampled_from([0.0, 0.25, 0.5, 0.75]))
def test_windows_cover_an_image_and_each_voxel_is_one_windows_own(size: tuple[int, int], overlap: float) -> None:
    corners, zones = windows(size, (8, 8), overlap)
    for i in range(size[0]):
        for j in range(size[1]):
            own = [k for k, zone in enumerate(zones) if all(a <= v + 0.5 < b for v, (a, b) in zip((i, j), zone))]
            assert len(own) == 1
            assert all(c <= v < c + 8 for v, c in zip((i, j), corners[own[0]]))
    for corner in corners:
        assert all(0 <= c <= n - 8 for c, n in zip(corner, size))


class Spots(nn.Module):
    """Finds every bright voxel: logits and codes of anchors of one voxel, at stride 1."""

    def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
        return {
            "classification": [torch.where(x > 0.5, x, -20.0)],
            "box_regression": [torch.zeros(len(x), 4, *x.shape[2:])],
        }


@given(seed=st.integers(0, 1000), size=st.tuples(st.integers(3, 30), st.integers(3, 30)))
def test_every_object_is_found_once_at_its_place_whatever_the_windows(seed: int, size: tuple[int, int]) -> None:
    random = torch.Generator().manual_seed(seed)
    image = (torch.rand(1, 1, *size, generator=random) > 0.9).float() * (1 + torch.rand(1, 1, *size, generator=random))
    detector = WindowDetector(Spots(), [(1, 1)], [[[1.0, 1.0]]], (8, 8), most=1000)
    found = detector(image)
    places = torch.nonzero(image[0, 0] > 0.5).float()
    order = (found.boxes[:, 0] * 1000 + found.boxes[:, 1]).argsort()
    torch.testing.assert_close(found.boxes[order], torch.cat([places, places + 1], 1))
    torch.testing.assert_close(found.scores[order], image[0, 0][image[0, 0] > 0.5].sigmoid())
    assert bool((found.scores.diff() <= 0).all())


class Shifted(nn.Module):
    """Finds every bright voxel, by 0.6 voxels nearer to the edge of the window than it is."""

    def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
        codes = torch.zeros(len(x), 4, *x.shape[2:])
        for axis, n in enumerate(x.shape[2:]):
            way = torch.where(torch.arange(n) < n / 2, -0.6, 0.6).reshape([-1 if a == axis else 1 for a in (0, 1)])
            codes[:, axis] = way / 4  # of an anchor 4 voxels long
        return {"classification": [torch.where(x > 0.5, x, -20.0)], "box_regression": [codes]}


@pytest.mark.parametrize("fusion", ["nms", "weighted"])
@pytest.mark.parametrize("place", [(11, 15), (12, 4), (20, 27), (35, 19), (47, 36)])
def test_an_object_whose_centre_two_windows_see_apart_is_not_lost_between_them(
    place: tuple[int, int], fusion: str
) -> None:
    image = torch.zeros(1, 1, 48, 48)
    image[0, 0, place[0], place[1]] = 1.0
    found = WindowDetector(Shifted(), [(1, 1)], [[[4.0, 4.0]]], (16, 16), fusion=fusion)(image)
    assert len(found.boxes) == 1
    centre = (found.boxes[0, :2] + found.boxes[0, 2:]) / 2
    assert float((centre - torch.tensor(place) - 0.5).abs().max()) < 0.61


def random_boxes(seed: int, count: int) -> Detections:
    random = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=random) * 20
    boxes = torch.cat([low, low + 2 + 6 * torch.rand(count, 2, generator=random)], 1)
    return Detections(boxes, torch.rand(count, generator=random), torch.randint(0, 2, (count,), generator=random))


@given(seed=st.integers(0, 1000), count=st.integers(1, 30))
def test_weighted_boxes_of_one_object_are_their_mean_and_apart_they_stay(seed: int, count: int) -> None:
    found = random_boxes(seed, count)
    near = found._replace(boxes=found.boxes[:1] + 0.01 * found.boxes, classes=torch.zeros_like(found.classes))
    one = weighted_boxes(near, 0.3, 100)
    mean = (near.boxes * near.scores[:, None]).sum(0) / near.scores.sum()
    torch.testing.assert_close(one.boxes, mean[None])
    torch.testing.assert_close(one.scores, near.scores.max()[None])
    alone = weighted_boxes(found, 0.9999, 100)
    order = found.scores.argsort(descending=True, stable=True)
    torch.testing.assert_close(alone.boxes, found.boxes[order])
    assert torch.equal(alone.classes, found.classes[order])


@given(seed=st.integers(0, 1000))
def test_suppression_is_monais(seed: int) -> None:
    found = random_boxes(seed, 20)
    detector = WindowDetector(Spots(), [(1, 1)], [[[1.0, 1.0]]], (8, 8), most=5)
    kept = batched_nms(found.boxes, found.scores, found.classes, 0.3, max_proposals=5)
    assert torch.equal(detector.fused(found).boxes, found.boxes[kept])
