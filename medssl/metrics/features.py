"""How many directions a batch of features uses."""

from __future__ import annotations

from typing import Any

import numpy as np


def effective_rank(features: Any) -> float:
    """Count the directions that features spread over, as the exponential of an entropy.

    p_k is the share of the k-th singular value; the result is exp(-sum p_k log p_k), between 1 (every sample the same,
    up to length) and min(N, F) (all directions alike). The mean is not taken off: then features that have collapsed
    onto one vector give 1 even if rounding noise is left around it.

    Args:
        features: (N, F), a torch tensor on any device or a numpy array. Zeros alone give 1.

    Source: Roy and Vetterli 2007, EUSIPCO, equation 3; as RankMe, Garrido et al. 2023, arXiv:2210.02885.
    """
    if hasattr(features, "detach"):
        features = features.detach().float().cpu().numpy()
    table = np.asarray(features, dtype=np.float64)
    if table.ndim != 2 or 0 in table.shape:
        raise ValueError(f"features must be (N, F), got {table.shape}")
    values = np.linalg.svd(table, compute_uv=False)
    if not values.sum() > 0:
        return 1.0
    share = values / values.sum()
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))
