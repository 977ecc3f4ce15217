"""Laws of intensity changes."""

from __future__ import annotations

import pytest
import torch

from medssl.batch import Draw, hash64
from medssl.views.intensity import IntensityConfig, change_intensity

KEYS = torch.tensor([hash64(1, n) for n in range(64)])
OFF = IntensityConfig(probability=1, gamma=0, contrast=0, brightness=0, noise=0)


def images() -> torch.Tensor:
    return torch.rand(64, 1, 6, 7, 5, generator=torch.Generator().manual_seed(0)) * 3 - 1


def only(**keys: float) -> IntensityConfig:
    return OFF.model_copy(update=keys)


def test_nothing_is_changed_when_all_is_off_or_never_drawn() -> None:
    assert torch.equal(change_intensity(images(), OFF, Draw(KEYS)), images())
    assert torch.equal(change_intensity(images(), IntensityConfig(probability=0), Draw(KEYS)), images())


def test_a_sample_changes_the_same_alone_and_in_a_batch() -> None:
    config, image = IntensityConfig(), images()
    whole = change_intensity(image, config, Draw(KEYS))
    for i in (0, 13, 63):
        assert torch.equal(change_intensity(image[i : i + 1], config, Draw(KEYS[i : i + 1]))[0], whole[i])


def test_switching_one_change_off_leaves_the_draws_of_the_others() -> None:
    both = change_intensity(images(), only(gamma=0.3, contrast=0.2), Draw(KEYS))
    after = change_intensity(change_intensity(images(), only(gamma=0.3), Draw(KEYS)), only(contrast=0.2), Draw(KEYS))
    torch.testing.assert_close(both, after)


def test_gamma_keeps_the_range_and_the_order_of_intensities() -> None:
    image = images()
    changed = change_intensity(image, only(gamma=0.5), Draw(KEYS))
    assert not torch.equal(changed, image)
    for i in range(64):
        torch.testing.assert_close(changed[i].min(), image[i].min(), atol=1e-5, rtol=0)
        torch.testing.assert_close(changed[i].max(), image[i].max(), atol=1e-5, rtol=0)
        order = image[i].flatten().argsort()
        assert (changed[i].flatten()[order].diff() >= -1e-6).all()


def test_contrast_keeps_the_mean_and_stays_within_its_limit() -> None:
    image = images()
    changed = change_intensity(image, only(contrast=0.25), Draw(KEYS))
    torch.testing.assert_close(changed.flatten(1).mean(1), image.flatten(1).mean(1), atol=1e-5, rtol=0)
    ratio = changed.flatten(1).std(1) / image.flatten(1).std(1)
    assert ratio.min() >= 0.8 - 1e-5
    assert ratio.max() <= 1.25 + 1e-5
    assert ratio.max() - ratio.min() > 0.3


@pytest.mark.parametrize("limit", [0.1, 0.5])
def test_noise_is_as_strong_as_drawn_in_units_of_the_images_own_spread(limit: float) -> None:
    image = torch.rand(64, 1, 20, 20, 20) * 50
    added = change_intensity(image, only(noise=limit), Draw(KEYS)) - image
    strength = added.flatten(1).std(1) / image.flatten(1).std(1)
    assert strength.max() <= 1.05 * limit
    assert strength.max() > 0.8 * limit
    assert added.flatten(1).mean(1).abs().max() < 0.05 * limit * 50


def test_a_change_strikes_its_share_of_samples() -> None:
    changed = change_intensity(images(), only(brightness=0.5, probability=0.3), Draw(KEYS))
    struck = (changed != images()).flatten(1).any(1).float().mean()
    assert 0.1 < struck < 0.5
