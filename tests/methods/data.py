"""Batches of made-up volumes, enough for laws that hold for any voxels."""

from __future__ import annotations

import torch

from medssl.batch import Batch, Facts, StreamFacts, hash64


def batch_of(
    samples: int = 3,
    shape: tuple[int, ...] = (16, 16, 16),
    *,
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0),
    seed: int = 0,
) -> Batch:
    """Smooth random volumes, all voxels real, as `scale` hands them on."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(samples, 1, *(max(2, size // 4) for size in shape), generator=generator)
    mode = "trilinear" if len(shape) == 3 else "bilinear"
    affine = torch.diag(torch.tensor([*spacing, *[1.0] * (4 - len(spacing))]))
    return {
        "image": torch.nn.functional.interpolate(coarse, shape, mode=mode),
        "affine": affine.repeat(samples, 1, 1),
        "box": torch.tensor([[0] * len(shape), list(shape)]).repeat(samples, 1, 1),
        "start": torch.zeros(samples, len(shape), dtype=torch.int64),
        "index": torch.arange(samples),
        "key": torch.tensor([hash64(seed, n) for n in range(samples)]),
        "image_id": [f"image-{n}" for n in range(samples)],
    }


def facts_of(shape: tuple[int, ...] = (16, 16, 16), samples: int = 3) -> Facts:
    """The facts of `batch_of`."""
    kind = "volume" if len(shape) == 3 else "image2d"
    return Facts(10, {"main": StreamFacts(kind, shape, 1, samples, samples, (1.0,) * len(shape))})
