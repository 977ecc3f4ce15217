"""Random changes of intensity, batched on the device; each sample draws its own numbers.

Images are normalised, about 0 to 1 or about zero mean and unit deviation. Shapes: B batch, C channels.
"""

from __future__ import annotations

import math

from pydantic import Field
from torch import Tensor

from ..batch import Draw
from ..config import Section


class IntensityConfig(Section):
    """How strongly intensities may change. Every number is the largest; 0 switches a change off."""

    probability: float = Field(0.5, ge=0, le=1)
    """Chance of each change, sample by sample."""
    gamma: float = Field(0.3, ge=0)
    """Largest |log| of the exponent of `((x - low) / range) ** gamma`."""
    contrast: float = Field(0.25, ge=0, lt=1)
    """Largest share by which deviations from the mean grow or shrink."""
    brightness: float = Field(0.1, ge=0)
    """Largest shift, in units of the image's standard deviation."""
    noise: float = Field(0.1, ge=0)
    """Largest standard deviation of Gaussian noise, in units of the image's standard deviation."""


def change_intensity(image: Tensor, config: IntensityConfig, draw: Draw) -> Tensor:
    """Change gamma, contrast, brightness and noise of each sample: (B, C, ...) to the same shape, float32."""
    image = image.float()
    if config.gamma:
        image = _gamma(image, config, draw.of("gamma"))
    if config.contrast:
        d = draw.of("contrast")
        limit = math.log1p(config.contrast)
        factor = _wide(d.uniform(low=-limit, high=limit).exp(), image)
        mean = _mean(image)
        image = _where(d.of("on"), config, (image - mean) * factor + mean, image)
    if config.brightness or config.noise:
        sd = ((image - _mean(image)).square().flatten(1).mean(1)).sqrt()
        if config.brightness:
            d = draw.of("brightness")
            shift = d.uniform(low=-config.brightness, high=config.brightness) * sd
            image = _where(d.of("on"), config, image + _wide(shift, image), image)
        if config.noise:
            d = draw.of("noise")
            strength = d.of("sd").uniform(high=config.noise) * sd
            noisy = image + _wide(strength, image) * d.noise(*image.shape[1:])
            image = _where(d.of("on"), config, noisy, image)
    return image


def _gamma(image: Tensor, config: IntensityConfig, draw: Draw) -> Tensor:
    flat = image.flatten(1)
    low, high = _wide(flat.amin(1), image), _wide(flat.amax(1), image)
    span = (high - low).clamp_min(1e-6)
    exponent = _wide(draw.uniform(low=-config.gamma, high=config.gamma).exp(), image)
    changed = ((image - low) / span).clamp(0, 1) ** exponent * span + low
    return _where(draw.of("on"), config, changed, image)


def _where(draw: Draw, config: IntensityConfig, changed: Tensor, image: Tensor) -> Tensor:
    return changed.where(_wide(draw.chance(config.probability), image), image)


def _mean(image: Tensor) -> Tensor:
    return _wide(image.flatten(1).mean(1), image)


def _wide(value: Tensor, image: Tensor) -> Tensor:
    return value.reshape(-1, *(1,) * (image.ndim - 1))
