"""What is hidden from an encoder, drawn a sample. True means hidden.

Shapes: B batch, N tokens, D H W voxels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..batch import Draw


def hidden_tokens(draw: Draw, tokens: int, ratio: float) -> tuple[Tensor, Tensor]:
    """Hide a share of tokens at random, the same number in every sample.

    Args:
        draw: the samples' random numbers.
        tokens: N.
        ratio: share to hide; int(N (1 - ratio)), at least one, stay visible, as He et al. 2022 count.

    Returns:
        keep: (B, M) int64, the visible tokens in rising order. mask: (B, N) bool, True where hidden.
    """
    kept = max(1, int(tokens * (1 - ratio)))
    order = draw.permutation(tokens)
    keep = order[:, :kept].sort(1).values
    mask = torch.ones(len(keep), tokens, dtype=torch.bool, device=keep.device).scatter(1, keep, False)
    return keep, mask


def hidden_blocks(draw: Draw, shape: tuple[int, ...], block: int, ratio: float) -> Tensor:
    """Hide blocks of voxels at random on a grid that starts anew in every sample.

    Args:
        draw: the samples' random numbers.
        shape: spatial shape of the crop.
        block: edge of a block in voxels; a grid shifted by a random part of it keeps the network from learning it.
        ratio: share of the blocks to hide.

    Returns:
        (B, 1, *shape) bool.
    """
    cells = tuple(math.ceil(size / block) + 1 for size in shape)
    total = math.prod(cells)
    _, mask = hidden_tokens(draw.of("blocks"), total, ratio)
    mask = mask.reshape(-1, *cells)
    offset = draw.of("grid").integers(len(shape), low=0, high=block)
    for axis, size in enumerate(shape):
        where = (offset.new_ones(size).cumsum(0) - 1 + offset[:, axis : axis + 1]) // block  # (B, size)
        view = [len(mask)] + [1] * len(shape)
        view[axis + 1] = size
        index = where.reshape(view).expand(-1, *mask.shape[1 : axis + 1], size, *mask.shape[axis + 2 :])
        mask = mask.gather(axis + 1, index)
    return mask.unsqueeze(1)
