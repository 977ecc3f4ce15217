"""Gaussian random fields in millimetres: smooth random functions of position, one or more a sample.

After Random Field Augmentations (2023, arXiv 2311.03629), whose own spectrum is not published; a field is white noise
filtered in frequency, f = ifft(fft(w) sqrt(P(k))), with k in cycles/mm, so that a setting means the same at every
spacing. Fields of a Fourier transform are periodic: each is drawn on a grid of twice the size or more and cropped.
It is divided by the standard deviation of its ensemble, known from P, never by the sample's own.

Shapes: B batch, n spatial axes (2 or 3).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ..batch import Draw
from ..config import Section
from ..errors import UsageError


class RandomFieldConfig(Section):
    """How a field varies in space. Its standard deviation is 1: whoever uses it says how strong it is."""

    spectrum: Literal["gaussian", "matern", "power"] = "gaussian"
    """`gaussian`: covariance exp(-r^2 / (2 L^2)); `matern`: rougher, by `smoothness`; `power`: |k|^-exponent."""
    length_mm: float = Field(32.0, gt=0)
    """L, the length of correlation in mm, of `gaussian` and `matern`."""
    smoothness: float = Field(2.5, gt=0)
    """nu of `matern`, P = (1 / L^2 + (2 pi k)^2)^-(nu + n / 2); displacement needs more than 1."""
    exponent: float = Field(6.0, gt=0)
    """Of `power`; more than the number of axes, and for displacement more than that number plus 2."""
    padding: int = Field(2, ge=2)
    """How many times larger than wanted the grid is drawn on; at least 2, lest opposite borders be alike."""


def check_field(config: RandomFieldConfig, n: int, *, displacement: bool = False) -> None:
    """Refuse spectra that are noise rather than a field in n axes.

    With `power` |k|^-e the variance grows with resolution unless e > n, and the gradient, which decides about folds,
    unless e > n + 2. `matern` falls as |k|^-(2 nu + n), so that nu > 1 says the same.

    Raises:
        UsageError: the field would be no deformation, or no field, at a finer spacing.
    """
    if n not in (2, 3):
        raise UsageError(f"a random field has 2 or 3 axes, not {n}", where="shape")
    least = n + 2 if displacement else n
    what = "displacement" if displacement else "a field"
    if config.spectrum == "power" and config.exponent <= least:
        raise UsageError(
            f"{what} in {n} axes needs an exponent above {least}, not {config.exponent:g}", where="exponent"
        )
    if config.spectrum == "matern" and displacement and config.smoothness <= 1:
        raise UsageError(f"displacement needs a smoothness above 1, not {config.smoothness:g}", where="smoothness")


def draw_field(
    config: RandomFieldConfig,
    draw: Draw,
    shape: tuple[int, ...],
    spacing: Tensor,
    *,
    count: int = 1,
    displacement: bool = False,
) -> Tensor:
    """Draw independent fields of mean 0 and standard deviation 1.

    Args:
        config: the spectrum.
        draw: the samples' random numbers; another name gives an independent field.
        shape: the wanted grid, n sizes.
        spacing: (B, n), mm between its points.
        count: fields a sample.
        displacement: the fields shall move voxels, so their gradient must be finite too.

    Returns:
        (B, count, *shape) float32.

    Raises:
        UsageError: see `check_field`.
    """
    n = len(shape)
    check_field(config, n, displacement=displacement)
    padded = tuple(config.padding * size for size in shape)
    power = _power(config, padded, spacing.float())
    twice = power.new_full((power.shape[-1],), 2.0)  # frequencies left out because a real field has each of them twice
    twice[0] = 1
    if padded[-1] % 2 == 0:
        twice[-1] = 1
    variance = (power * twice).flatten(1).sum(1) / math.prod(padded)
    amplitude = (power / variance.reshape(-1, *(1,) * n)).sqrt()
    axes = tuple(range(-n, 0))
    noise = torch.fft.rfftn(draw.normal(count, *padded), dim=axes)
    field: Tensor = torch.fft.irfftn(noise * amplitude[:, None], s=padded, dim=axes)
    for axis, size in enumerate(shape):
        field = field.narrow(axis + 2, 0, size)
    return field.contiguous()


def _power(config: RandomFieldConfig, padded: tuple[int, ...], spacing: Tensor) -> Tensor:
    """Return P at the frequencies of `rfftn`, (B, *half), up to a factor a sample."""
    n = len(padded)
    square = spacing.new_zeros(1)
    for axis, size in enumerate(padded):
        cycles = torch.fft.rfftfreq if axis == n - 1 else torch.fft.fftfreq
        k = cycles(size, device=spacing.device) / spacing[:, axis : axis + 1]  # (B, size), cycles/mm
        view = [len(spacing)] + [1] * n
        view[axis + 1] = k.shape[1]
        square = square + k.reshape(view).square()
    if config.spectrum == "power":
        least = 1 / (spacing * spacing.new_tensor(padded)).amax(1).square().reshape(-1, *(1,) * n)
        zero = square == 0
        return (square.where(~zero, least) / least).pow(-config.exponent / 2).where(~zero, 0.0)
    scaled = square * (2 * math.pi * config.length_mm) ** 2
    if config.spectrum == "matern":
        return (1 + scaled).pow(-config.smoothness - n / 2)
    return (-scaled / 2).exp()
