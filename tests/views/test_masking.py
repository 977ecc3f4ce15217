"""Laws of masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medssl.batch import Draw, hash64
from medssl.views.masking import hidden_blocks, hidden_tokens

KEYS = torch.tensor([hash64(1, n) for n in range(16)])


@given(tokens=st.integers(2, 80), ratio=st.floats(0.05, 0.95))
def test_kept_and_hidden_tokens_are_all_tokens_once(tokens: int, ratio: float) -> None:
    keep, mask = hidden_tokens(Draw(KEYS), tokens, ratio)
    assert keep.shape[1] == max(1, int(tokens * (1 - ratio)))
    assert (keep.diff(dim=1) > 0).all()
    assert not mask.gather(1, keep).any()
    assert (mask.sum(1) + keep.shape[1] == tokens).all()


def test_as_many_tokens_are_hidden_as_in_the_reference(shared: Path) -> None:
    reference = np.load(shared.parent / "methods" / "fixtures" / "cardiac_random_masking.npz", allow_pickle=False)
    tokens = reference["mask"].shape[1]
    _, mask = hidden_tokens(Draw(KEYS), tokens, float(reference["ratio"]))
    assert int(mask[0].sum()) == int(reference["mask"][0].sum())


def test_every_token_is_hidden_equally_often() -> None:
    keys = torch.tensor([hash64(2, n) for n in range(3000)])
    _, mask = hidden_tokens(Draw(keys), 20, 0.75)
    assert (mask.float().mean(0) - 0.75).abs().max() < 0.04


@pytest.mark.parametrize("shape", [(17, 24, 9), (21, 16)], ids=["3D", "2D"])
def test_hidden_blocks_lie_on_a_grid_and_cover_their_share(shape: tuple[int, ...]) -> None:
    keys = torch.tensor([hash64(4, n) for n in range(200)])
    mask = hidden_blocks(Draw(keys), shape, 4, 0.6)
    assert mask.shape == (200, 1, *shape)
    assert (mask.float().mean() - 0.6).abs() < 0.02
    for axis in range(len(shape)):
        # along an axis the mask changes only every fourth voxel, at a place that differs from sample to sample
        changes = mask.diff(dim=axis + 2)
        moved = changes.movedim(axis + 2, 1).flatten(2).any(2)  # (samples, size - 1)
        places = [set((row.nonzero()[:, 0] % 4).tolist()) for row in moved]
        assert all(len(place) <= 1 for place in places)
        assert len(set().union(*places)) == 4


def test_a_sample_hides_the_same_alone_and_in_a_batch() -> None:
    whole = hidden_blocks(Draw(KEYS), (9, 8, 7), 3, 0.5)
    for i in (0, 7):
        assert torch.equal(hidden_blocks(Draw(KEYS[i : i + 1]), (9, 8, 7), 3, 0.5)[0], whole[i])
