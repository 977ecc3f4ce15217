"""Laws of reconstruction losses."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from medssl.losses.reconstruction import masked_patch_error, masked_voxel_error, standardized_patches


@given(seed=st.integers(0, 99), scale=st.floats(0.5, 50), shift=st.floats(-100, 100))
def test_a_target_patch_forgets_scale_and_shift(seed: int, scale: float, shift: float) -> None:
    patches = torch.rand(2, 3, 27, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    one, two = standardized_patches(patches), standardized_patches(patches * scale + shift)
    torch.testing.assert_close(one, two, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(one.mean(-1), torch.zeros(2, 3, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(one.std(-1), torch.ones(2, 3, dtype=torch.float64), atol=1e-9, rtol=0)


def test_each_sample_counts_alike_however_much_of_it_is_hidden() -> None:
    prediction, target = torch.zeros(2, 4, 3), torch.ones(2, 4, 3)
    mask = torch.tensor([[True, False, False, False], [True, True, True, True]])
    assert torch.equal(masked_patch_error(prediction, target, mask), torch.ones(2))


def test_a_sample_without_a_hidden_patch_gives_nothing() -> None:
    error = masked_patch_error(torch.ones(1, 2, 3), torch.zeros(1, 2, 3), torch.zeros(1, 2, dtype=torch.bool))
    assert error.tolist() == [0]


def test_the_voxel_error_is_the_mean_over_channels_and_hidden_voxels() -> None:
    prediction, target = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)
    target[0, 0, 0, 0], target[0, 1, 1, 1] = 2.0, 100.0
    mask = torch.tensor([[[[True, True], [False, False]]]])
    assert masked_voxel_error(prediction, target, mask).tolist() == [(4 / 2 + 0) / 2]
