"""What a method is given: batches, facts about the data, and the random numbers of a sample.

Shapes: B batch, V views, C channels, D H W voxels, S planes, T frames, L text length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Batch = dict[str, Any]
"""Tensors by key, samples along their first axis; `image_id` is a list of str. With several streams, a dict of such."""

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX1, _MIX2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _splitmix(value: int) -> int:
    value = (value + _GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * _MIX1) & _MASK
    value = ((value ^ (value >> 27)) * _MIX2) & _MASK
    return value ^ (value >> 31)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def hash64(*parts: int | str) -> int:
    """Hash numbers and names to a signed 64-bit integer, the same on every machine (splitmix64, Steele et al. 2014)."""
    state = 0
    for part in parts:
        if isinstance(part, str):
            for byte in part.encode():
                state = _splitmix(state ^ byte)
            part = len(part)
        state = _splitmix(state ^ (int(part) & _MASK))
    return _signed(state)


def _shift(value: Tensor, bits: int) -> Tensor:
    """Shift right filling with zeros; torch's own shift keeps the sign."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _mix(value: Tensor) -> Tensor:
    """splitmix64's output function on int64 tensors; multiplication wraps around, as it must."""
    value = value + _signed(_GOLDEN)
    value = (value ^ _shift(value, 30)) * _signed(_MIX1)
    value = (value ^ _shift(value, 27)) * _signed(_MIX2)
    return value ^ _shift(value, 31)


class Draw:
    """Random numbers of each sample of a batch, a pure function of its key and of a name.

    Every sample's numbers depend on its own key alone, so a batch gives the same as its samples one by one, on
    any device, and switching one augmentation off does not shift the others' draws.

    Args:
        key: (B,) int64, as the loader hands it on.
    """

    def __init__(self, key: Tensor) -> None:
        self.key = key

    def of(self, name: str | int) -> Draw:
        """Return the draws that belong to `name`: independent of those of every other name."""
        return Draw(_mix(self.key ^ hash64(name)))

    def bits(self, *shape: int) -> Tensor:
        """Return (B, *shape) int64 with all 64 bits random."""
        count = 1
        for size in shape:
            count *= size
        counter = torch.arange(count, device=self.key.device, dtype=torch.int64)
        bits = _mix(_mix(self.key[:, None] + counter * _signed(_GOLDEN)) ^ self.key[:, None])
        return bits.reshape(-1, *(shape or (1,)))

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Return (B, *shape) float32, uniform in [low, high); without a shape, (B,)."""
        unit = _shift(self.bits(*shape), 40).to(torch.float32) * 2.0**-24
        out = low + (high - low) * unit
        return out if shape else out[:, 0]

    def normal(self, *shape: int) -> Tensor:
        """Return (B, *shape) float32, standard normal (Box and Muller 1958); for whole voxel fields use `noise`."""
        first = self.of("radius").uniform(*shape)
        second = self.of("angle").uniform(*shape)
        return (-2 * (1 - first).log()).sqrt() * (2 * torch.pi * second).cos()

    def integers(self, *shape: int, low: int, high: int) -> Tensor:
        """Return (B, *shape) int64, uniform over low, ..., high - 1."""
        out = low + _shift(self.bits(*shape), 11) % (high - low)
        return out if shape else out[:, 0]

    def chance(self, probability: float, *shape: int) -> Tensor:
        """Return (B, *shape) bool, True with the given probability."""
        return self.uniform(*shape) < probability

    def permutation(self, n: int) -> Tensor:
        """Return (B, n) int64: a random order of 0, ..., n - 1 for each sample."""
        return _shift(self.bits(n), 1).argsort(1)

    def noise(self, *shape: int) -> Tensor:
        """Return (B, *shape) float32, standard normal, by torch's generator seeded a sample: fast for whole volumes.

        Equal on one kind of device; CPU and CUDA differ.
        """
        out = torch.empty(len(self.key), *shape, device=self.key.device)
        generator = torch.Generator(self.key.device)
        for sample, key in zip(out, self.key.tolist()):
            sample.normal_(generator=generator.manual_seed(key & ((1 << 63) - 1)))
        return out


@dataclass(frozen=True)
class StreamFacts:
    """What is known of one stream of samples before the first of them is read.

    `shape` is that of one sample's image without batch and view axes, (D, H, W) or (H, W) or (S, T, H, W); `items` the
    number of different items; `batch` the samples of one optimiser step over all ranks and microbatches.
    """

    kind: str
    shape: tuple[int, ...]
    channels: int
    items: int
    batch: int
    spacing_mm: tuple[float, ...] | None = None
    labels: tuple[str, ...] = ()
    vocabulary: int = 0


@dataclass(frozen=True)
class Facts:
    """What a method may know of its data: the number of optimiser steps, and the facts of each stream by name.

    With one stream its facts are also attributes of this object: `facts.shape`, `facts.items`.
    """

    steps: int
    streams: Mapping[str, StreamFacts] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        streams = self.__dict__.get("streams", {})
        if name in StreamFacts.__dataclass_fields__ and len(streams) == 1:
            return getattr(next(iter(streams.values())), name)
        raise AttributeError(f"facts have no {name!r}" + (f" for {len(streams)} streams" if len(streams) > 1 else ""))


def is_streams(batch: Batch) -> bool:
    """Say whether a batch is a dict of streams rather than one stream's tensors."""
    return bool(batch) and all(isinstance(value, dict) for value in batch.values())


def rows(batch: Batch, start: int, stop: int) -> Batch:
    """Return samples start, ..., stop - 1 of every entry of one stream's batch."""
    return {key: value[start:stop] for key, value in batch.items()}


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    """Copy every tensor of a batch, or of each of its streams, to a device; other entries stay."""
    out: Batch = {}
    for key, value in batch.items():
        if isinstance(value, Tensor):
            # MPS has no float64; spacings and affines lose nothing that matters in float32.
            value = value.float() if value.dtype == torch.float64 and torch.device(device).type == "mps" else value
            out[key] = value.to(device, non_blocking=True)
        else:
            out[key] = to_device(value, device) if isinstance(value, dict) else value
    return out
