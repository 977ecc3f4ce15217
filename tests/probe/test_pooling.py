"""Laws of vectors of images, slices and regions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medssl.nets.encoder import DynUNetConfig, Encoder, ViTConfig, build_encoder
from medssl.probe.pooling import Pooler, _shares
from medssl.probe.windows import Picture, crop_of, starts_along

from .pixels import Pixels

SHAPE = (13, 15, 10)
WINDOWS = [None, (8, 8, 8), (4, 16, 12)]
NAMES = ["whole", "cubes", "bars"]


@pytest.fixture(scope="module")
def picture() -> Picture:
    """Noise of odd size, with something very bright around it that must never be seen."""
    image = torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    return Picture(image, 1000.0, torch.eye(4), (1.0, 0.5, 2.0), ((0, 0, 0), SHAPE))


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    """A small convolutional encoder with fresh weights."""
    torch.manual_seed(0)
    config = DynUNetConfig(channels=(8, 8, 8), features=4, strides=(2, 2, 2))
    return build_encoder(config, channels=1, shape=(16, 16, 16), spacing_mm=None)


@given(whole=st.integers(1, 40), size=st.integers(1, 16))
def test_the_windows_share_every_voxel_among_them_and_give_padding_nothing(whole: int, size: int) -> None:
    (starts,) = starts_along((whole,), (size,))
    seen = np.zeros(whole + size)
    for start, share in _shares(whole, size, starts).items():
        seen[start : start + size] += share
    np.testing.assert_allclose(seen[:whole], 1)
    np.testing.assert_array_equal(seen[whole:], 0)


@pytest.mark.parametrize("window", WINDOWS, ids=NAMES)
def test_a_region_is_the_mean_over_its_voxels_however_windows_lie(
    picture: Picture, window: tuple[int, ...] | None
) -> None:
    label = np.random.default_rng(1).integers(0, 3, SHAPE)
    found = Pooler(Pixels(), window=window).regions(picture, label)
    assert set(found) == {1, 2}
    image = picture.image[0].numpy()
    for value, (voxels, vector) in found.items():
        assert voxels == (label == value).sum()
        np.testing.assert_allclose(vector, [image[label == value].mean()], rtol=1e-5)


@pytest.mark.parametrize("window", WINDOWS, ids=NAMES)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slice_is_the_mean_over_its_voxels_however_windows_lie(
    picture: Picture, window: tuple[int, ...] | None, axis: int
) -> None:
    found = Pooler(Pixels(), window=window).slices(picture, axis=axis)
    across = tuple(a for a in range(3) if a != axis)
    np.testing.assert_allclose(found[:, 0], picture.image[0].numpy().mean(across), rtol=1e-5)


def test_two_regions_together_are_their_mean_weighed_by_voxels(picture: Picture, encoder: Encoder) -> None:
    pooler = Pooler(encoder)
    label = np.random.default_rng(2).integers(1, 3, SHAPE)
    (n1, v1), (n2, v2) = pooler.regions(picture, label).values()
    ((n, v),) = pooler.regions(picture, np.ones_like(label)).values()
    assert n == n1 + n2
    np.testing.assert_allclose(v, (n1 * v1 + n2 * v2) / n, rtol=1e-5)


def test_an_image_that_fits_is_the_encoders_own_pooled(encoder: Encoder) -> None:
    image = torch.rand(1, 16, 16, 8)
    picture = Picture(image, 0.0, torch.eye(4), (1.0, 1.0, 1.0), ((0, 0, 0), (16, 16, 8)))
    with torch.no_grad():
        own = encoder.eval().pooled(image[None])[0].numpy()
    np.testing.assert_allclose(Pooler(encoder).whole(picture), own, rtol=1e-5)


def test_slices_of_a_vit_are_those_of_its_deepest_tokens() -> None:
    torch.manual_seed(0)
    vit = build_encoder(ViTConfig(width=24, depth=4, heads=2, mlp=32, patch=8), channels=1, shape=(16, 16, 16))
    image = torch.rand(1, 16, 16, 16)
    picture = Picture(image, 0.0, torch.eye(4), (1.0, 1.0, 1.0), ((0, 0, 0), (16, 16, 16)))
    pooler = Pooler(vit)
    np.testing.assert_allclose(pooler.slices(picture).mean(0), pooler.whole(picture), atol=1e-5)


def test_an_image_larger_than_the_crop_is_seen_through_windows_of_the_crop() -> None:
    pixels = Pixels()
    pixels.spec["shape"] = [8, 8, 8]
    image = torch.full((1, 20, 8, 6), 0.25)
    Pooler(pixels).whole(Picture(image, 0.25, torch.eye(4), (1.0, 1.0, 1.0), ((0, 0, 0), (20, 8, 6))))
    assert {shape[2:] for shape in pixels.seen} == {(8, 8, 8)}


def test_windows_count_by_the_voxels_they_hold() -> None:
    image = torch.zeros(1, 20, 8, 8)
    image[:, 16:] = 1.0
    pixels = Pixels()
    pixels.spec["shape"] = [8, 8, 8]
    picture = Picture(image, 0.0, torch.eye(4), (1.0, 1.0, 1.0), ((0, 0, 0), (20, 8, 8)))
    starts = starts_along((20, 8, 8), (8, 8, 8))[0]
    shares = _shares(20, 8, starts)
    means = [float(crop_of(picture, (start, 0, 0), (8, 8, 8), None).mean()) for start in starts]
    expected = sum(shares[start].sum() * mean for start, mean in zip(starts, means)) / 20
    np.testing.assert_allclose(Pooler(pixels).whole(picture), [expected], rtol=1e-5)


def test_an_encoder_of_slices_gives_each_slice_its_pooled_and_the_volume_their_mean() -> None:
    image = torch.rand(1, 12, 16, 5)
    picture = Picture(image, 0.0, torch.eye(4), (1.0, 1.0, 1.0), ((0, 0, 0), (12, 16, 5)))
    pooler = Pooler(Pixels(axes=2))
    slices = pooler.slices(picture, axis=2)
    np.testing.assert_allclose(slices[:, 0], image[0].mean((0, 1)).numpy(), rtol=1e-5)
    np.testing.assert_allclose(pooler.whole(picture), slices.mean(0), rtol=1e-5)


def test_tokens_are_cells_that_hold_the_image_and_no_more_than_asked_for(picture: Picture) -> None:
    whole, tokens = Pooler(Pixels(), window=(8, 8, 8)).described(picture, 50)
    assert tokens.shape == (50, 1)
    assert tokens.max() <= 1.0  # what lies around the image is 1000
    assert whole.shape == (1,)


def test_the_mode_of_the_encoder_is_left_alone(picture: Picture, encoder: Encoder) -> None:
    encoder.train()
    Pooler(encoder).whole(picture)
    assert encoder.training


def test_a_label_map_of_another_shape_is_refused(picture: Picture) -> None:
    with pytest.raises(ValueError, match="label map"):
        Pooler(Pixels()).regions(picture, np.ones((2, 2, 2), int))
