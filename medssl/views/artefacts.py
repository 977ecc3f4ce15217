"""What scanners do to images: noise, blur, low resolution, bias fields, and boxes cut out, batched on the device.

Each is drawn (`draw_*`) and applied (`apply_*`) in two steps; a sample's numbers depend on its own key alone. Every
default strength is 0: nothing is drawn, and the image comes back as it is. Lengths are in mm, so that a setting means
the same at every spacing. Noise and bias act on magnitudes, so they are told which value no signal has: `zero`.

Shapes: B batch, C channels, n spatial axes (2 or 3). Images are (B, C, *shape), float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ..batch import Draw
from ..config import Section
from .fields import RandomFieldConfig, draw_field


class RicianConfig(Section):
    """Noise of magnitude images: complex Gaussian noise, then the absolute value (Gudbjartsson and Patz 1995)."""

    sd: float = Field(0.0, ge=0)
    """Largest standard deviation in units of the image's own; each sample draws from 0 to it."""
    probability: float = Field(0.5, ge=0, le=1)
    """Chance, sample by sample."""


class BlurConfig(Section):
    """Gaussian blur of the same millimetres along every axis."""

    sigma_mm: float = Field(0.0, ge=0)
    """Largest standard deviation of the kernel; each sample draws from 0 to it."""
    probability: float = Field(0.5, ge=0, le=1)
    """Chance, sample by sample."""


class LowResolutionConfig(Section):
    """Resampling to larger voxels and back to the grid that was given."""

    spacing_mm: float = Field(0.0, ge=0)
    """Largest voxel size; each sample draws from its own spacing to it. Axes that are coarser already stay."""
    axes: Literal["all", "each", "one"] = "all"
    """`all`: one drawn size along all axes; `each`: one an axis; `one`: along one drawn axis, as thick slices are."""
    down: Literal["area", "nearest"] = "area"
    """`area` averages what a large voxel covers, as a scanner does; `nearest` picks one voxel. Up is always linear."""
    probability: float = Field(0.5, ge=0, le=1)
    """Chance, sample by sample."""


class BiasFieldConfig(Section):
    """Smooth multiplicative shading, exp of a Gaussian random field: 0.1 to 0.3 is what coils do."""

    sd: float = Field(0.0, ge=0)
    """Standard deviation of the logarithm of the factor."""
    field: RandomFieldConfig = RandomFieldConfig(length_mm=60.0)
    """How it varies in space; a third to a half of the field of view is usual."""
    probability: float = Field(0.5, ge=0, le=1)
    """Chance, sample by sample."""


class CutoutConfig(Section):
    """Boxes cut out of an image (DeVries and Taylor 2017), in mm."""

    boxes: int = Field(0, ge=0)
    """Number of boxes a sample."""
    size_mm: tuple[float, float] = (8.0, 24.0)
    """Smallest and largest edge; each box draws each of its edges."""
    fill: float | None = None
    """What fills them; None is the mean of the sample's channel."""
    probability: float = Field(0.5, ge=0, le=1)
    """Chance, sample by sample."""

    @model_validator(mode="after")
    def _sizes(self) -> CutoutConfig:
        if not 0 < self.size_mm[0] <= self.size_mm[1]:
            raise ValueError(f"size_mm goes from a smallest to a largest edge above 0, not {self.size_mm}")
        return self


def signal_zero(intensity: Tensor) -> Tensor:
    """Return the normalised value of a stored 0, (B,), from a batch's `intensity`: low, high, shift, scale, (B, 4)."""
    low, high, shift, size = intensity.float().unbind(-1)
    return (torch.zeros_like(low).clamp(low, high) - shift) / size


@dataclass(frozen=True)
class Rician:
    """Drawn noise, in units of each sample's deviation: `real` and `imaginary` are (B, C, *shape), 0 where off."""

    real: Tensor
    imaginary: Tensor


def draw_rician(config: RicianConfig, draw: Draw, shape: tuple[int, ...]) -> Rician | None:
    """Draw the noise of both channels of a coil; None at strength 0.

    Args:
        config: how strong.
        draw: the samples' random numbers.
        shape: (C, *shape) of the images.
    """
    if config.sd == 0:
        return None
    sd = draw.of("sd").uniform(high=config.sd) * draw.of("on").chance(config.probability)
    wide = _wide(sd, len(shape))
    return Rician(draw.of("real").normal(*shape) * wide, draw.of("imaginary").normal(*shape) * wide)


def apply_rician(image: Tensor, rician: Rician | None, *, zero: Tensor | float = 0.0) -> Tensor:
    """Return |x + n1 + i n2| of the magnitude x = image - zero, plus zero; samples that are off stay as they are.

    Args:
        image: (B, C, *shape).
        rician: from `draw_rician`.
        zero: the value of no signal, a number or (B,); see `signal_zero`.
    """
    if rician is None:
        return image
    sd = _wide(image.flatten(1).std(1, correction=0), image.ndim - 1)
    real, imaginary, low = rician.real * sd, rician.imaginary * sd, _level(zero, image)
    noisy = ((image - low + real).square() + imaginary.square()).sqrt() + low
    on = _wide((rician.real != 0).flatten(1).any(1), image.ndim - 1) & (sd > 0)
    return noisy.where(on, image)


def draw_blur(config: BlurConfig, draw: Draw) -> Tensor | None:
    """Draw each sample's standard deviation of the kernel in mm, (B,); 0 where off, None at strength 0."""
    if config.sigma_mm == 0:
        return None
    return draw.of("sigma").uniform(high=config.sigma_mm) * draw.of("on").chance(config.probability)


def apply_blur(image: Tensor, sigma_mm: Tensor | None, spacing: Tensor) -> Tensor:
    """Blur by the Gaussian integrated over each voxel, cut at 4 standard deviations.

    Weights sum to 1 within the image: what lies outside counts nowhere, so a constant image stays constant.

    Args:
        image: (B, C, *shape).
        sigma_mm: (B,) from `draw_blur`, or (B, n) with one an axis.
        spacing: (B, n) mm.
    """
    if sigma_mm is None:
        return image
    sigma = (sigma_mm.reshape(len(image), -1) / spacing).expand(spacing.shape)  # voxels
    out = image
    for axis, size in enumerate(image.shape[2:]):
        s = sigma[:, axis].clamp_min(1e-4)[:, None, None]
        index = torch.arange(size, device=image.device, dtype=torch.float32)
        x = index - index[:, None]
        weight = torch.special.ndtr((x + 0.5) / s) - torch.special.ndtr((x - 0.5) / s)
        weight = weight * (x.abs() <= ((4 * s).clamp_min(0.5) + 0.5).floor())
        out = _along(weight / weight.sum(-1, keepdim=True), out, axis)
    return out.where(_wide(sigma.amax(1) > 0, image.ndim - 1), image)


def draw_low_resolution(
    config: LowResolutionConfig, draw: Draw, shape: tuple[int, ...], spacing: Tensor
) -> Tensor | None:
    """Draw how many voxels each axis keeps, (B, n) int64, from 1 to its size; None at strength 0."""
    if config.spacing_mm == 0:
        return None
    n = len(shape)
    where = draw.of("spacing").uniform(n) if config.axes == "each" else draw.of("spacing").uniform()[:, None]
    wanted = spacing + where * (config.spacing_mm - spacing).clamp_min(0)
    if config.axes == "all":  # one size in mm, at least each axis's own
        finest = spacing.amin(1, keepdim=True)
        wanted = (finest + where * (config.spacing_mm - finest).clamp_min(0)).maximum(spacing)
    chosen = draw.of("on").chance(config.probability)[:, None]
    if config.axes == "one":
        axis = draw.of("axis").integers(low=0, high=n)[:, None]
        chosen = chosen & (torch.arange(n, device=spacing.device) == axis)
    size = torch.tensor(shape, device=spacing.device)
    kept = (size * spacing / wanted).round().long().clamp_min(1).minimum(size)
    return kept.where(chosen, size)


def apply_low_resolution(image: Tensor, kept: Tensor | None, *, down: str = "area") -> Tensor:
    """Resample to fewer voxels along each axis and, linearly, back.

    Args:
        image: (B, C, *shape).
        kept: (B, n) voxels an axis, from `draw_low_resolution`.
        down: `area` or `nearest`, as `torch.nn.functional.interpolate` has them.
    """
    if kept is None:
        return image
    size = torch.tensor(image.shape[2:], device=image.device)
    out = image
    for axis, length in enumerate(image.shape[2:]):
        m = kept[:, axis, None, None]
        out = _along(_up(m, length) @ _down(m, length, down), out, axis)
    return out.where(_wide((kept < size).any(1), image.ndim - 1), image)


def _down(m: Tensor, size: int, mode: str) -> Tensor:
    """Weights (B, size, size) that reduce an axis to its first m entries; the rest are not used."""
    index = torch.arange(size, device=m.device)
    row, column = index[:, None], index
    first = row * size // m
    if mode == "nearest":
        return (column == first).float()
    last = ((row + 1) * size + m - 1) // m
    weight = ((column >= first) & (column < last)).float()
    return weight / weight.sum(-1, keepdim=True).clamp_min(1)


def _up(m: Tensor, size: int) -> Tensor:
    """Weights (B, size, size) that interpolate linearly from the first m entries, voxel borders aligned."""
    row = torch.arange(size, device=m.device, dtype=torch.float32)[:, None]
    column = torch.arange(size, device=m.device)
    source = ((row + 0.5) * m / size - 0.5).clamp_min(0)
    low = source.floor().long().minimum(m - 1)
    high = (low + 1).minimum(m - 1)
    share = source - low
    return (column == low) * (1 - share) + (column == high) * share


def draw_bias_field(config: BiasFieldConfig, draw: Draw, shape: tuple[int, ...], spacing: Tensor) -> Tensor | None:
    """Draw the logarithm of each sample's factor, (B, 1, *shape); 0 where off, None at strength 0.

    Raises:
        UsageError: the field's spectrum is noise rather than a field (`fields.check_field`).
    """
    if config.sd == 0:
        return None
    strength = config.sd * draw.of("on").chance(config.probability)
    return draw_field(config.field, draw.of("field"), shape, spacing) * _wide(strength, len(shape) + 1)


def apply_bias_field(image: Tensor, log_factor: Tensor | None, *, zero: Tensor | float = 0.0) -> Tensor:
    """Multiply the signal, image - zero, by exp(log_factor): no signal stays no signal.

    Args:
        image: (B, C, *shape).
        log_factor: (B, 1, *shape) or one a channel, from `draw_bias_field`.
        zero: the value of no signal, a number or (B,); see `signal_zero`.
    """
    if log_factor is None:
        return image
    low = _level(zero, image)
    shaded = (image - low) * log_factor.exp() + low
    return shaded.where(_wide((log_factor != 0).flatten(1).any(1), image.ndim - 1), image)


def draw_cutout(config: CutoutConfig, draw: Draw, shape: tuple[int, ...], spacing: Tensor) -> Tensor | None:
    """Draw boxes whose centres lie in the image: (B, boxes, 2, n) low and high corners; None without boxes.

    Corners are offsets in mm from the image's centre; a sample that is off has boxes without extent.
    """
    if config.boxes == 0:
        return None
    n, low, high = len(shape), *config.size_mm
    extent = torch.tensor(shape, device=spacing.device) * spacing
    centre = draw.of("centre").uniform(config.boxes, n, low=-0.5, high=0.5) * extent[:, None]
    on = _wide(draw.of("on").chance(config.probability).float(), 2)
    half = draw.of("size").uniform(config.boxes, n, low=low, high=high) / 2 * on
    return torch.stack([centre - half, centre + half], 2)


def cutout_mask(boxes: Tensor, shape: tuple[int, ...], spacing: Tensor) -> Tensor:
    """Say which voxels have their centre in a box: (B, 1, *shape) bool; a low border belongs to it, a high does not."""
    n = len(shape)
    mask = torch.ones(*boxes.shape[:2], *(1,) * n, dtype=torch.bool, device=boxes.device)
    for axis, size in enumerate(shape):
        where = (torch.arange(size, device=boxes.device) - (size - 1) / 2) * spacing[
            :, axis, None, None
        ]  # (B, 1, size)
        lies = (where >= boxes[:, :, 0, axis, None]) & (where < boxes[:, :, 1, axis, None])
        view = [*boxes.shape[:2], *(1,) * n]
        view[axis + 2] = size
        mask = mask & lies.reshape(view)
    return mask.any(1, keepdim=True)


def apply_cutout(image: Tensor, boxes: Tensor | None, spacing: Tensor, *, fill: float | None = None) -> Tensor:
    """Fill the boxes.

    Args:
        image: (B, C, *shape).
        boxes: (B, boxes, 2, n) from `draw_cutout`.
        spacing: (B, n) mm.
        fill: a number, or None for the mean of each sample's channel.
    """
    if boxes is None:
        return image
    mask = cutout_mask(boxes, tuple(image.shape[2:]), spacing)
    value = image.new_full((1, 1), fill) if fill is not None else image.flatten(2).mean(2)
    return image.where(~mask, value.reshape(*value.shape[:2], *(1,) * (image.ndim - 2)))


def _along(weight: Tensor, image: Tensor, axis: int) -> Tensor:
    """Multiply one spatial axis of (B, C, *shape) by each sample's own matrix (B, out, in), in float32."""
    with torch.autocast(image.device.type, enabled=False):
        moved = image.float().movedim(axis + 2, 1)
        out = torch.bmm(weight, moved.flatten(2)).reshape(moved.shape)
    return out.movedim(1, axis + 2)


def _level(zero: Tensor | float, image: Tensor) -> Tensor | float:
    return _wide(zero, image.ndim - 1) if isinstance(zero, Tensor) else zero


def _wide(value: Tensor, axes: int) -> Tensor:
    return value.reshape(-1, *(1,) * axes)
