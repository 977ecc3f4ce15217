"""Laws of spatial views, and agreement with scipy's resampling."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from medssl.batch import Draw, hash64
from medssl.views.spatial import (
    SpatialConfig,
    crop_to_view,
    draw_affine,
    inside,
    offsets_to_voxels,
    sample_at,
    spacing_of,
    view_to_crop,
    voxels_to_offsets,
    warp,
)

KEYS = torch.tensor([hash64(1, n) for n in range(4)])
WIDE = SpatialConfig(rotation=0.5, scale=0.3, shift_mm=4.0, flips=(0,))
SHAPES = {"3D": (9, 12, 7), "2D": (10, 13)}
by_axes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def spacing(n: int) -> torch.Tensor:
    return torch.tensor([[0.7, 1.3, 2.5][:n]]).repeat(4, 1)


@by_axes
def test_a_still_view_is_the_middle_of_its_crop(shape: tuple[int, ...]) -> None:
    n = len(shape)
    matrix = draw_affine(SpatialConfig(rotation=0, scale=0, shift_mm=0), Draw(KEYS), n)
    image = torch.randn(4, 2, *shape)
    torch.testing.assert_close(warp(image, matrix, spacing(n), shape), image, atol=1e-5, rtol=0)
    smaller = tuple(size - 2 for size in shape)
    middle = image[(..., *(slice(1, size - 1) for size in shape))]
    torch.testing.assert_close(warp(image, matrix, spacing(n), smaller), middle, atol=1e-5, rtol=0)


@by_axes
def test_resampling_is_that_of_scipy(shape: tuple[int, ...]) -> None:
    n, mm = len(shape), spacing(len(shape))
    matrix = draw_affine(WIDE, Draw(KEYS), n)
    image = torch.rand(4, 1, *shape)
    ours = warp(image, matrix, mm, shape, padding="zeros")
    for i in range(4):
        linear, shift = matrix[i, :, :n].double().numpy(), matrix[i, :, n].double().numpy()
        to_mm, to_voxel = np.diag(mm[i].double().numpy()), np.diag(1 / mm[i].double().numpy())
        centre = (np.array(shape) - 1) / 2
        voxel = to_voxel @ linear @ to_mm
        offset = centre + to_voxel @ shift - voxel @ centre
        theirs = ndimage.affine_transform(image[i, 0].double().numpy(), voxel, offset, order=1, mode="grid-constant")
        np.testing.assert_allclose(ours[i, 0].numpy(), theirs, atol=2e-5)


@by_axes
def test_points_go_to_the_crop_and_back(shape: tuple[int, ...]) -> None:
    n = len(shape)
    matrix, points = draw_affine(WIDE, Draw(KEYS), n), torch.randn(4, 20, n) * 10
    torch.testing.assert_close(crop_to_view(view_to_crop(points, matrix), matrix), points, atol=1e-4, rtol=1e-4)
    voxels = offsets_to_voxels(points, shape, spacing(n))
    torch.testing.assert_close(voxels_to_offsets(voxels, shape, spacing(n)), points, atol=1e-4, rtol=1e-4)


@by_axes
def test_a_view_shows_at_a_voxel_what_the_crop_shows_at_its_point(shape: tuple[int, ...]) -> None:
    """Draw, apply and relate are three steps that must agree: a linear image is read alike on both ways."""
    n, mm = len(shape), spacing(len(shape))
    axes = torch.meshgrid(*[torch.arange(size).float() for size in shape], indexing="ij")
    image = sum(w * axis for w, axis in zip((1.0, -2.0, 0.5), axes))[None, None].repeat(4, 1, *(1,) * n)  # type: ignore[index]
    matrix = draw_affine(SpatialConfig(rotation=0.2, scale=0.1, shift_mm=0.5), Draw(KEYS), n)
    view = warp(image, matrix, mm, shape)
    voxels = torch.rand(4, 200, n) * (torch.tensor(shape) - 1)
    there = offsets_to_voxels(view_to_crop(voxels_to_offsets(voxels, shape, mm), matrix), shape, mm)
    box = torch.tensor([[1] * n, [size - 1 for size in shape]]).repeat(4, 1, 1)
    ok = inside(there, box) & inside(voxels.floor(), box) & inside(voxels.ceil(), box)
    # also the neighbours that interpolation reads must come from within the crop
    close = (sample_at(view, voxels, shape) - sample_at(image, there, shape))[..., 0].abs()
    assert ok.sum() > 50
    assert (close[ok] < 0.02).float().mean() > 0.9


@by_axes
def test_rotations_keep_lengths_and_scales_stay_within_their_limits(shape: tuple[int, ...]) -> None:
    n = len(shape)
    keys = torch.tensor([hash64(2, i) for i in range(300)])
    turned = draw_affine(SpatialConfig(rotation=0.6, scale=0, shift_mm=0), Draw(keys), n)[..., :n]
    torch.testing.assert_close(turned @ turned.mT, torch.eye(n).expand(300, n, n), atol=1e-5, rtol=0)
    scaled = draw_affine(SpatialConfig(rotation=0, scale=0.25, shift_mm=0), Draw(keys), n)[..., :n]
    sizes = torch.linalg.det(scaled) ** (1 / n)
    assert 1 / 1.25 <= sizes.min() < 0.85
    assert 1.18 < sizes.max() <= 1.25
    shifts = draw_affine(SpatialConfig(rotation=0, scale=0, shift_mm=3), Draw(keys), n)[..., n]
    assert 2.8 < shifts.abs().max() <= 3


def test_flips_mirror_only_the_axes_that_may_be() -> None:
    keys = torch.tensor([hash64(3, i) for i in range(200)])
    signs = draw_affine(SpatialConfig(rotation=0, scale=0, shift_mm=0, flips=(1,)), Draw(keys), 3)[..., :3]
    assert (signs[:, 0, 0] == 1).all()
    assert (signs[:, 2, 2] == 1).all()
    assert 60 < (signs[:, 1, 1] == -1).sum() < 140


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_a_coarse_map_is_read_where_its_cells_lie(stride: int) -> None:
    """A map whose cells hold the mean coordinate of their voxels is read as that coordinate anywhere inside."""
    shape = (16, 8)
    coordinate = torch.arange(16).float()[:, None].expand(shape)
    cells = torch.nn.functional.avg_pool2d(coordinate[None, None], stride)
    voxels = torch.rand(1, 50, 2) * (torch.tensor(shape) - 1 - 2 * stride) + stride
    torch.testing.assert_close(sample_at(cells, voxels, shape)[0, :, 0], voxels[0, :, 0], atol=1e-4, rtol=0)


def test_spacing_is_the_length_of_the_affines_columns() -> None:
    turn = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    affine = torch.eye(4).repeat(2, 1, 1)
    affine[:, :3, :3] = turn @ torch.diag(torch.tensor([0.5, 2.0, 3.0]))
    torch.testing.assert_close(spacing_of(affine, 3), torch.tensor([[0.5, 2.0, 3.0]] * 2))
    torch.testing.assert_close(spacing_of(affine, 2), torch.tensor([[0.5, 2.0]] * 2))
