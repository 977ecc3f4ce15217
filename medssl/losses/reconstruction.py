"""Losses of masked modelling: pure functions, one value a sample.

Shapes: B batch, N tokens or patches, P values of a patch, C channels, D H W voxels.
"""

from __future__ import annotations

import torch
from torch import Tensor


def standardized_patches(patches: Tensor, *, floor: float = 0.02) -> Tensor:
    """Give every patch mean 0 and standard deviation 1, except where it is flat.

    Args:
        patches: (B, N, P), normalised intensities.
        floor: smallest standard deviation divided by. With the 1e-6 of He et al. the noise of air becomes a target of
            unit variance; flat patches then dominate the loss.

    Returns:
        (B, N, P): (x - mean) / max(sd, floor), the variance unbiased.

    Source: He et al. 2022, arXiv:2111.06377, section 3 ("reconstruction target"); the floor is ours.
    """
    mean = patches.mean(-1, keepdim=True)
    sd = patches.var(-1, keepdim=True).sqrt()
    return (patches - mean) / sd.clamp_min(floor)


def masked_patch_error(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return each sample's mean squared error over its masked patches.

    Args:
        prediction, target: (B, N, P).
        mask: (B, N) bool, True where a patch was hidden.

    Returns:
        (B,) float32; 0 for a sample without a masked patch.

    Source: He et al. 2022, arXiv:2111.06377, section 3.
    """
    error = (prediction.float() - target.float()).square().mean(-1)
    return _masked_mean(error, mask)


def masked_voxel_error(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return each sample's mean squared error over its masked voxels.

    Args:
        prediction, target: (B, C, ...) of equal shape.
        mask: (B, 1, ...) bool, True where a voxel was hidden.

    Returns:
        (B,) float32; 0 for a sample without a masked voxel.
    """
    error = (prediction.float() - target.float()).square().mean(1, keepdim=True)
    return _masked_mean(error.flatten(1), mask.flatten(1))


def _masked_mean(error: Tensor, mask: Tensor) -> Tensor:
    # where, not a product: what is not masked may be anything, even NaN, without touching the loss
    total = torch.where(mask, error, torch.zeros_like(error)).sum(1)
    return total / mask.sum(1).clamp_min(1)
