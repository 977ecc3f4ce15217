"""Laws of dense contrast at corresponding points."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from medssl.batch import rows
from medssl.losses.contrastive import dense_contrast
from medssl.methods.anatomy import Anatomy, correspondence
from medssl.nets.encoder import DynUNetConfig, build_encoder
from medssl.views.intensity import IntensityConfig
from medssl.views.spatial import SpatialConfig, sample_at

from .data import batch_of, facts_of

STILL = {"spatial": SpatialConfig(rotation=0, scale=0, shift_mm=0), "intensity": IntensityConfig(probability=0)}
SHAPES = {"3D": (16, 16, 16), "2D": (16, 24)}


def make(shape: tuple[int, ...] = SHAPES["3D"], **keys: Any) -> Anatomy:
    torch.manual_seed(0)
    config = DynUNetConfig(channels=(8, 8, 16), strides=(2, 2, 2), features=8, norm="group")
    encoder = build_encoder(config, channels=1, shape=shape, spacing_mm=(1.0,) * len(shape))
    return Anatomy(Anatomy.Config(points=keys.pop("points", 24), **keys), encoder, facts_of(shape))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 2.0, 3.0)], ids=["isotropic", "anisotropic"])
def test_corresponding_points_show_the_same_voxel(shape: tuple[int, ...], spacing: tuple[float, ...]) -> None:
    """In images whose intensities are their own coordinates, a view shows at a point where the point lies, in mm."""
    n = len(shape)
    spacing = spacing[:n]
    batch = batch_of(shape=shape, spacing=spacing)
    axes = [torch.arange(size) * mm for size, mm in zip(shape, spacing)]
    batch["start"] = torch.tensor([[3] * n] * 3)
    for axis in range(n):
        coordinates = torch.meshgrid(*axes, indexing="ij")[axis]
        batch["image"] = coordinates[None, None].repeat(3, 1, *(1,) * n) + 3 * spacing[axis]
        method = make(shape, intensity=IntensityConfig(probability=0), points=64)
        views = method.views(batch, 0)
        # Rotation may carry a voxel's neighbours out of the crop: read views at points whose surroundings are inside.
        size = torch.tensor(shape)
        for v in ("one", "two"):
            inner = ((views[f"points_{v}"] > 1) & (views[f"points_{v}"] < size - 2)).all(-1) & (views["valid"] > 0)
            place = views["place"] / torch.tensor(spacing) - 3
            inner &= ((place > 2) & (place < size - 3)).all(-1)
            shown = sample_at(views[v], views[f"points_{v}"], shape)[..., 0]
            assert inner.sum() > 10
            torch.testing.assert_close(shown[inner], views["place"][..., axis][inner], rtol=0, atol=0.02)


@pytest.mark.parametrize("across", [0.0, 0.5], ids=["own image", "across images"])
def test_every_positive_lies_within_its_radius_and_no_negative_does(across: float) -> None:
    config = Anatomy.Config(radius_mm=4, ignore_mm=10, across_weight=across)
    generator = torch.Generator().manual_seed(1)
    place = torch.rand(4, 30, 3, generator=generator) * 30
    item, valid = torch.tensor([0.0, 1.0, 2.0, 1.0]), (torch.rand(4, 30, generator=generator) > 0.2).float()
    weight, ignore = correspondence(place, item, valid, config)
    flat, image = place.flatten(0, 1), item.repeat_interleave(30)
    distance, same = torch.cdist(flat, flat), image[:, None] == image
    positive, negative = weight > 0, (weight == 0) & ~ignore
    both = valid.flatten()[:, None] * valid.flatten() > 0
    assert (distance[positive & same] <= 4).all()
    assert (distance[negative & same] > 4).all()
    assert (distance[negative & ~same] >= 10).all()
    assert (distance[positive & ~same] <= 10).all()
    assert bool((positive & ~same).any()) is bool(across)
    assert not positive[~both].any()
    assert ignore[~both].all()
    own, across_share = (weight * same).sum(1), (weight * ~same).sum(1)
    torch.testing.assert_close(own[both.any(1)], torch.ones(int(both.any(1).sum())))
    assert (across_share <= across + 1e-6).all()
    itself = weight.diagonal()[both.any(1)]
    assert (itself[:, None] >= (weight * same)[both.any(1)] - 1e-6).all()


def test_points_of_two_slices_of_one_volume_are_as_far_apart_as_the_slices() -> None:
    method, batch = make(SHAPES["2D"], **STILL), batch_of(2, SHAPES["2D"])
    batch["affine"] = torch.diag(torch.tensor([1.0, 1.0, 3.0, 1.0])).repeat(2, 1, 1)
    batch["start"] = torch.tensor([[0, 0, 4], [0, 0, 6]])
    batch["index"] = torch.tensor([5, 5])
    views = method.views(batch, 0)
    weight, ignore = correspondence(views["place"], views["item"], views["valid"], method.config)
    between = torch.zeros_like(ignore)
    between[:24, 24:] = between[24:, :24] = True
    assert not (weight > 0)[between].any()  # 6 mm lie between the slices, the radius is 4 mm
    assert not ignore[between].any()


def test_identical_views_match_every_point_to_itself() -> None:
    method = make(**STILL)
    views = method.views(batch_of(), 0)
    assert torch.equal(views["one"], views["two"])
    torch.testing.assert_close(views["points_one"], views["points_two"], rtol=0, atol=1e-4)
    assert (views["valid"] == 1).all()
    one, two = (functional.normalize(method._embed(views[v], views[f"points_{v}"]), dim=-1)[0] for v in ("one", "two"))
    assert torch.equal((one @ two.mT).argmax(1), torch.arange(24))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_views_of_a_batch_are_those_of_its_samples_one_by_one(shape: tuple[int, ...]) -> None:
    method, batch = make(shape), batch_of(4, shape)
    whole = method.views(batch, 0)
    for i in range(4):
        for key, value in method.views(rows(batch, i, i + 1), 0).items():
            torch.testing.assert_close(value[0], whole[key][i], rtol=0, atol=1e-6, msg=key)


def test_points_in_padding_take_no_part() -> None:
    method, batch = make(**STILL), batch_of()
    batch["box"][:, 1, 0] = 8
    views = method.views(batch, 0)
    assert (views["points_one"][..., 0][views["valid"] > 0] <= 7).all()
    assert (views["points_one"][..., 0][views["valid"] == 0] > 7).all()


def test_dense_contrast_is_cross_entropy_when_every_point_has_one_positive() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(9, 5, generator=generator) for _ in range(2))
    ours = dense_contrast(q, k, torch.eye(9), torch.zeros(9, 9, dtype=torch.bool), temperature=0.2)
    logits = functional.normalize(q, dim=1) @ functional.normalize(k, dim=1).mT / 0.2
    torch.testing.assert_close(ours, functional.cross_entropy(logits, torch.arange(9), reduction="none"))


def test_ignored_pairs_change_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(6, 5, generator=generator) for _ in range(2))
    ignore = torch.zeros(6, 6, dtype=torch.bool)
    ignore[:, 4] = True
    ignore[4] = False
    weight = torch.eye(6)
    weight[4] = 0
    moved = k.clone()
    moved[4] = 100
    rows_but_4 = [0, 1, 2, 3, 5]
    one = dense_contrast(q, k, weight, ignore)[rows_but_4]
    assert torch.equal(one, dense_contrast(q, moved, weight, ignore)[rows_but_4])
    assert dense_contrast(q, k, weight, ignore)[4] == 0


def test_one_batch_can_be_learned_by_heart() -> None:
    method = make()
    views = method.views(batch_of(2), 0)
    optimiser = torch.optim.AdamW(method.parameters(), 1e-2)
    losses = []
    for _ in range(120):
        loss = method(views).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_every_parameter_gets_a_gradient() -> None:
    method = make()
    method(method.views(batch_of(), 0)).total.backward()
    assert [name for name, p in method.named_parameters() if p.grad is None] == []
