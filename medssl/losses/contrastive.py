"""Contrastive losses: pure functions of embeddings and of what is known about their pairs.

Shapes: B batch, N points of a view, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def dense_contrast(
    queries: Tensor, keys: Tensor, weight: Tensor, ignore: Tensor, *, temperature: float = 0.1
) -> Tensor:
    """Pull every query to its corresponding keys, push it from all other keys that are not ignored.

    Args:
        queries: (M, F), embeddings of points in one view.
        keys: (N, F), embeddings of points in the other views.
        weight: (M, N), how positive a pair is; 0 for all that are not; rows need not sum to 1.
        ignore: (M, N) bool, pairs that are neither positive nor negative. A positive pair is never ignored.
        temperature: of the softmax over keys.

    Returns:
        (M,) float32: the cross-entropy between the weights, made to sum to 1, and the softmax over the keys. 0 for a
        query without a positive.

    Source: InfoNCE, van den Oord et al. 2018, arXiv:1807.03748, with soft positives by distance as in VADeR, Pinheiro
    et al. 2020, arXiv:2011.05499, and an ignored ring as in SAM, Yan et al. 2020, arXiv:2012.02383.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    queries = functional.normalize(queries.float(), dim=-1)
    keys = functional.normalize(keys.float(), dim=-1)
    positive = weight > 0
    with torch.autocast(queries.device.type, enabled=False):  # it would multiply in bf16: steps of 0.04 in the logits
        logits = queries @ keys.mT / temperature
    logits = logits.masked_fill(ignore & ~positive, float("-inf"))
    share = weight / weight.sum(-1, keepdim=True).clamp_min(1e-12)
    # -inf times 0 is NaN: only positive pairs may enter the sum
    log_probability = logits.log_softmax(-1)
    terms = torch.where(positive, share * log_probability, torch.zeros_like(log_probability))
    return -terms.sum(-1)


def gaussian_positives(distance: Tensor, *, sd: float, radius: float) -> Tensor:
    """Weigh a pair of points by how near they lie in the body: a Gaussian, cut off at `radius`.

    Args:
        distance: (..., M, N) in mm.
        sd: standard deviation of the Gaussian, mm.
        radius: largest distance of a positive pair, mm.

    Returns:
        (..., M, N) in [0, 1].
    """
    weight = torch.exp(-0.5 * (distance / sd).square())
    return torch.where(distance <= radius, weight, torch.zeros_like(weight))
