"""Random rotation, scaling, shift and flips, batched on the device, in millimetres about the crop's centre.

Draw, apply and relate are three steps: `draw_affine` gives each sample's matrix, `warp` resamples by it, and
`view_to_crop` / `crop_to_view` tell where points went, so that losses know which voxels of two views agree.

Positions are offsets in mm from a crop's centre along its own voxel axes. Shapes: B batch, C channels, n spatial axes
(2 or 3), P points.
"""

from __future__ import annotations

import itertools
import math

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from ..batch import Draw
from ..config import Section


class SpatialConfig(Section):
    """How far a view may be moved. Every number is the largest; each sample draws its own."""

    rotation: float = Field(0.3, ge=0)
    """Radians, about each axis, uniform in both directions."""
    scale: float = Field(0.15, ge=0, lt=1)
    """Share by which a view is enlarged or reduced, alike in all axes."""
    shift_mm: float = Field(4.0, ge=0)
    """Millimetres along each axis."""
    flips: tuple[int, ...] = ()
    """Spatial axes that may be mirrored; none unless the anatomy allows it."""


def spacing_of(batch_affine: Tensor, n: int) -> Tensor:
    """Return (B, n): the distance in mm between voxels along the image axes of (B, 4, 4) affines."""
    return batch_affine[:, :3, :n].float().square().sum(1).sqrt()


def draw_affine(config: SpatialConfig, draw: Draw, n: int) -> Tensor:
    """Draw each sample's matrix from a view's offsets to its crop's offsets, both in mm: (B, n, n + 1)."""
    b, device = len(draw.key), draw.key.device
    linear = torch.eye(n, device=device).expand(b, n, n)
    angles = draw.of("rotation").uniform(n * (n - 1) // 2, low=-config.rotation, high=config.rotation)
    for angle, (one, two) in zip(angles.unbind(1), itertools.combinations(range(n), 2)):
        turn = torch.eye(n, device=device).repeat(b, 1, 1)
        turn[:, one, one] = turn[:, two, two] = angle.cos()
        turn[:, one, two], turn[:, two, one] = -angle.sin(), angle.sin()
        linear = linear @ turn
    limit = math.log1p(config.scale)
    size = draw.of("scale").uniform(low=-limit, high=limit).exp()
    linear = linear * size[:, None, None]
    for axis in config.flips:
        sign = 1 - 2 * draw.of(f"flip {axis}").chance(0.5).float()
        linear = torch.cat(
            [linear[..., :axis], linear[..., axis : axis + 1] * sign[:, None, None], linear[..., axis + 1 :]], 2
        )
    shift = draw.of("shift").uniform(n, low=-config.shift_mm, high=config.shift_mm)
    return torch.cat([linear, shift[..., None]], 2)


def view_to_crop(points: Tensor, matrix: Tensor) -> Tensor:
    """Map (B, P, n) offsets in a view to offsets in its crop, mm."""
    return points @ matrix[..., :-1].mT + matrix[..., -1][:, None]


def crop_to_view(points: Tensor, matrix: Tensor) -> Tensor:
    """Map (B, P, n) offsets in a crop to offsets in the view, mm; the inverse of `view_to_crop`."""
    linear = matrix[..., :-1]
    # solve() would wait for the device to see whether a matrix is singular; rotations and scales never are
    solved: Tensor = torch.linalg.solve_ex(linear, (points - matrix[..., -1][:, None]).mT)[0]
    return solved.mT


def offsets_to_voxels(points: Tensor, shape: tuple[int, ...], spacing: Tensor) -> Tensor:
    """Map (B, P, n) offsets in mm to voxel indices of an image of that shape; voxel centres are whole numbers."""
    centre = (torch.tensor(shape, device=points.device) - 1) / 2
    return points / spacing[:, None] + centre


def voxels_to_offsets(voxels: Tensor, shape: tuple[int, ...], spacing: Tensor) -> Tensor:
    """Map (B, P, n) voxel indices to offsets in mm from the image's centre."""
    centre = (torch.tensor(shape, device=voxels.device) - 1) / 2
    return (voxels - centre) * spacing[:, None]


def sample_at(maps: Tensor, voxels: Tensor, shape: tuple[int, ...], *, mode: str = "bilinear") -> Tensor:
    """Read a feature map at voxels of the image it was made from.

    Args:
        maps: (B, F, *coarse), any stride.
        voxels: (B, P, n) voxel indices of the image, whose spatial shape is `shape`.
        shape: spatial shape of the image.
        mode: `bilinear` (linear in any number of axes) or `nearest`.

    Returns:
        (B, P, F).
    """
    n = voxels.shape[-1]
    size = torch.tensor(shape, device=voxels.device)
    grid = ((2 * voxels + 1) / size - 1).flip(-1)  # grid_sample names the last axis first
    grid = grid.reshape(len(voxels), *(1,) * (n - 1), -1, n).to(maps.dtype)
    out = functional.grid_sample(maps, grid, mode=mode, padding_mode="border", align_corners=False)
    return out.flatten(2).mT


def warp(
    image: Tensor,
    matrix: Tensor,
    spacing: Tensor,
    shape: tuple[int, ...],
    *,
    mode: str = "bilinear",
    padding: str = "border",
) -> Tensor:
    """Resample crops into views.

    Args:
        image: (B, C, *crop), float.
        matrix: (B, n, n + 1), from `draw_affine`.
        spacing: (B, n) in mm, of crop and view alike.
        shape: spatial shape of the view, at most the crop's for views without padding.
        mode: `bilinear`, or `nearest` for labels.
        padding: what lies outside the crop: `border` or `zeros`.

    Returns:
        (B, C, *shape).
    """
    n, crop = len(shape), tuple(image.shape[2:])
    axes = [torch.arange(size, device=image.device, dtype=torch.float32) for size in shape]
    voxels = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(1, -1, n)
    offsets = voxels_to_offsets(voxels.expand(len(image), -1, n), shape, spacing)
    source = offsets_to_voxels(view_to_crop(offsets, matrix), crop, spacing)
    grid = ((2 * source + 1) / torch.tensor(crop, device=image.device) - 1).flip(-1)
    grid = grid.reshape(len(image), *shape, n)
    return functional.grid_sample(image, grid.to(image.dtype), mode=mode, padding_mode=padding, align_corners=False)


def inside(voxels: Tensor, box: Tensor) -> Tensor:
    """Say which of (B, P, n) voxels lie within each sample's box (B, 2, n) of first and one-past-last voxel."""
    return ((voxels >= box[:, None, 0]) & (voxels <= box[:, None, 1] - 1)).all(-1)
