"""Images to patches and back, without loss.

Shapes: B batch, C channels, D H W voxels, N patches, P = C x the voxels of a patch.
"""

from __future__ import annotations

from math import prod

from torch import Tensor


def grid_of(shape: tuple[int, ...], patch: tuple[int, ...]) -> tuple[int, ...]:
    """Return the number of patches along each axis.

    Raises:
        ValueError: the image is not a whole number of patches.
    """
    if len(shape) != len(patch) or any(n % p for n, p in zip(shape, patch)):
        raise ValueError(f"image of {tuple(shape)} voxels is no whole number of patches of {tuple(patch)}")
    return tuple(n // p for n, p in zip(shape, patch))


def patchify(x: Tensor, patch: tuple[int, ...]) -> Tensor:
    """Cut images into patches.

    Args:
        x: (B, C, D, H, W) or (B, C, H, W).
        patch: voxels of a patch along each axis.

    Returns:
        (B, N, P): patches in row-major order of their grid, each ordered as a convolution's weight is, channel first.
    """
    grid, axes = grid_of(tuple(x.shape[2:]), patch), len(patch)
    split = [size for pair in zip(grid, patch) for size in pair]
    x = x.reshape(*x.shape[:2], *split)  # (B, C, gd, pd, gh, ph, gw, pw)
    cells, voxels = [2 + 2 * a for a in range(axes)], [3 + 2 * a for a in range(axes)]
    return x.permute(0, *cells, 1, *voxels).reshape(x.shape[0], prod(grid), -1)  # (B, N, P)


def unpatchify(patches: Tensor, patch: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    """Put patches back together; the exact inverse of `patchify`.

    Args:
        patches: (B, N, P).
        patch: voxels of a patch along each axis.
        shape: voxels of the image along each axis.

    Returns:
        (B, C, D, H, W) or (B, C, H, W).
    """
    grid, axes = grid_of(tuple(shape), patch), len(patch)
    x = patches.reshape(patches.shape[0], *grid, -1, *patch)  # (B, gd, gh, gw, C, pd, ph, pw)
    order = [index for a in range(axes) for index in (1 + a, 2 + axes + a)]
    return x.permute(0, 1 + axes, *order).reshape(patches.shape[0], -1, *shape)
