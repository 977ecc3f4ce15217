"""Stored values to normalised ones, on the device."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..batch import Batch, is_streams


def scale(batch: Batch) -> Batch:
    """Return the batch with `image` normalised: float32, (clip(x, low, high) - shift) / scale.

    Works on one stream's batch or on a dict of them, with any number of axes between batch and channels. The batch
    given stays as it is.
    """
    if is_streams(batch):
        return {name: scale(stream) for name, stream in batch.items()}
    out: dict[str, Any] = dict(batch)
    out["image"] = scaled(batch["image"], batch["intensity"])
    return out


def scaled(image: Tensor, intensity: Tensor) -> Tensor:
    """Return normalised values of (..., C, *spatial), float32.

    Args:
        image: as stored, any dtype.
        intensity: low, high, shift and scale of each image, (..., 4), float32.
    """
    wide = intensity.float().reshape(*intensity.shape[:-1], 4, *(1,) * (image.ndim - intensity.ndim + 1))
    axis = intensity.ndim - 1
    low, high, shift, size = wide.unbind(axis)
    return ((image.float().clamp(low, high) - shift) / size).contiguous()
