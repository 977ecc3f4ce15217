"""Laws of the effective rank."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medssl.metrics import effective_rank


@given(rank=st.integers(1, 8))
def test_orthogonal_directions_of_one_length_are_counted(rank: int) -> None:
    assert effective_rank(np.eye(12)[:rank]) == pytest.approx(rank)


@given(seed=st.integers(0, 9), scale=st.floats(1e-3, 1e3))
def test_effective_rank_ignores_scale_and_rotation_and_stays_within_bounds(seed: int, scale: float) -> None:
    random = np.random.default_rng(seed)
    features = random.normal(size=(20, 6))
    rotation = np.linalg.qr(random.normal(size=(6, 6)))[0]
    rank = effective_rank(features)
    assert 1 <= rank <= 6 + 1e-9
    assert effective_rank(scale * features @ rotation) == pytest.approx(rank)


def test_features_collapsed_onto_one_vector_have_rank_one_despite_rounding_noise() -> None:
    features = torch.ones(64, 32) + 1e-6 * torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    assert effective_rank(features) < 1.01


def test_zeros_have_rank_one() -> None:
    assert effective_rank(torch.zeros(4, 3, dtype=torch.bfloat16)) == 1
