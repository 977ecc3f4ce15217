"""Laws of cutting images into patches."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medssl.nets.patches import grid_of, patchify, unpatchify

sizes = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4)), min_size=2, max_size=3)


@given(axes=sizes, channels=st.integers(1, 3), batch=st.integers(1, 2))
def test_unpatchify_is_the_exact_inverse_of_patchify(axes: list[tuple[int, int]], channels: int, batch: int) -> None:
    patch = tuple(p for _, p in axes)
    shape = tuple(n * p for n, p in axes)
    x = torch.randn(batch, channels, *shape)
    patches = patchify(x, patch)
    assert patches.shape == (batch, torch.Size(grid_of(shape, patch)).numel(), channels * torch.Size(patch).numel())
    assert torch.equal(unpatchify(patches, patch, shape), x)


def test_a_patch_holds_the_voxels_a_convolution_would_see() -> None:
    x = torch.randn(2, 3, 4, 6, 8, dtype=torch.float64)
    convolution = torch.nn.Conv3d(3, 5, (2, 3, 4), (2, 3, 4)).double()
    ours = patchify(x, (2, 3, 4)) @ convolution.weight.flatten(1).T + convolution.bias
    torch.testing.assert_close(ours, convolution(x).flatten(2).transpose(1, 2))


def test_an_image_that_is_no_whole_number_of_patches_is_refused() -> None:
    with pytest.raises(ValueError, match="no whole number of patches"):
        patchify(torch.zeros(1, 1, 9, 8), (4, 4))
