"""Elastic deformation with an affine map, batched on the device, in millimetres: one grid, one interpolation.

A view's point p (an offset in mm from its centre) shows its crop's point A(p + d(p)): d is a Gaussian random field a
component (`fields.py`), A the affine map of `spatial.py`. d is drawn on the view's voxels, linear between them and
constant outside. Whether the map folds does not depend on A, whose own determinant never vanishes: det J of p + d(p)
is looked at.

Draw (`draw_elastic`), apply (`apply_elastic`) and invert (`crop_points`) are three steps; `sampling_grid` is the grid
that relates a view to its crop, and points of one view are found in another by `view_points`, then `crop_points`.
Shapes: B batch, C channels, n spatial axes (2 or 3), P points.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from ..batch import Draw
from ..config import Section
from .fields import RandomFieldConfig, draw_field
from .spatial import crop_to_view, offsets_to_voxels, sample_at, view_to_crop, voxels_to_offsets

SHRINK = 0.8
"""What a displacement that folds is multiplied by, again and again."""


class ElasticConfig(Section):
    """How far voxels may be displaced. 0 mm, the default, is no displacement and no resampling.

    With `gaussian` fields sd_mm / field.length_mm is the root mean square gradient of a component. 0.15 is mild (no
    fold in 1000 draws) and 0.2 still safe; above that folds come, and displacements are shrunk.
    """

    sd_mm: float = Field(0.0, ge=0)
    """Standard deviation of each component of the displacement."""
    field: RandomFieldConfig = RandomFieldConfig()
    """How the displacement varies in space."""
    probability: float = Field(1.0, ge=0, le=1)
    """Chance of a displacement, sample by sample."""
    rounds: int = Field(8, ge=0)
    """How often a displacement that folds is multiplied by 0.8 before it is left out altogether."""

    @model_validator(mode="after")
    def _no_tears(self) -> ElasticConfig:
        if self.field.spectrum == "gaussian" and self.sd_mm > 0.5 * self.field.length_mm:
            raise ValueError(
                f"a displacement of {self.sd_mm:g} mm over {self.field.length_mm:g} mm folds nearly everywhere: "
                "sd_mm is at most half of field.length_mm, and best below a fifth of it"
            )
        return self


@dataclass(frozen=True)
class Elastic:
    """A drawn deformation of each sample.

    Args:
        shape: spatial shape of the view.
        spacing: (B, n) mm, of crop and view alike.
        matrix: (B, n, n + 1) as `draw_affine` gives it; None is the identity.
        displacement: (B, n, *shape) mm along the view's voxel axes; None is none.
        moved: (B,) bool, False where the sample is not displaced.
        folded: (B,) share of voxels with det J <= 0 of the displacement as drawn; what is kept has none.
        shrunk: (B,) int64, how often the displacement was multiplied by 0.8 until nothing folded.
    """

    shape: tuple[int, ...]
    spacing: Tensor
    matrix: Tensor | None
    displacement: Tensor | None
    moved: Tensor
    folded: Tensor
    shrunk: Tensor


def draw_elastic(
    config: ElasticConfig, draw: Draw, shape: tuple[int, ...], spacing: Tensor, *, matrix: Tensor | None = None
) -> Elastic:
    """Draw each sample's displacement on the view's grid and shrink it until it does not fold.

    Args:
        config: how far.
        draw: the samples' random numbers.
        shape: spatial shape of the view.
        spacing: (B, n) mm.
        matrix: (B, n, n + 1) from `draw_affine`, or None for no affine map.

    Raises:
        UsageError: the field's spectrum is too rough to be a deformation (`fields.check_field`).
    """
    b, n = spacing.shape
    none = torch.zeros(b, device=spacing.device)
    if config.sd_mm == 0:
        return Elastic(shape, spacing, matrix, None, none.bool(), none, none.long())
    moved = draw.of("on").chance(config.probability)
    field = draw_field(config.field, draw.of("displacement"), shape, spacing, count=n, displacement=True)
    field = field * config.sd_mm * _wide(moved.float(), n + 1)
    scales = [SHRINK**k for k in range(config.rounds + 1)]
    folds = _folds(field, spacing, scales)
    sound = torch.cat([folds == 0, torch.ones_like(folds[:1], dtype=torch.bool)])  # (rounds + 2, B)
    shrunk = sound.int().argmax(0)
    scale = torch.stack([none + value for value in (*scales, 0.0)]).gather(0, shrunk[None])[0]
    return Elastic(shape, spacing, matrix, field * _wide(scale, n + 1), moved & (scale > 0), folds[0], shrunk)


def fold_fraction(displacement: Tensor, spacing: Tensor) -> Tensor:
    """Share of voxels at which p + d(p) folds: (B,).

    A voxel counts when det J <= 0 with any of the 2^n choices of forward and backward differences: the corners of the
    cells around it. Central differences miss folds (Liu et al. 2022, arXiv 2212.06060).

    Args:
        displacement: (B, n, *shape) mm.
        spacing: (B, n) mm.
    """
    return _folds(displacement, spacing, [1.0])[0]


def _folds(displacement: Tensor, spacing: Tensor, scales: list[float]) -> Tensor:
    """Fold fractions of s d for each scale s, (scales, B): det(I + s G) is a polynomial in s."""
    n = displacement.shape[1]
    sides: list[tuple[Tensor, Tensor]] = []
    for axis in range(n):
        step = displacement.diff(dim=axis + 2) / _wide(spacing[:, axis], n + 1)
        if step.shape[axis + 2] == 0:
            sides.append((torch.zeros_like(displacement),) * 2)
            continue
        first, last = step.narrow(axis + 2, 0, 1), step.narrow(axis + 2, step.shape[axis + 2] - 1, 1)
        sides.append((torch.cat([step, last], axis + 2), torch.cat([first, step], axis + 2)))
    folded = [torch.zeros_like(displacement[:, 0], dtype=torch.bool) for _ in scales]
    for corner in itertools.product((0, 1), repeat=n):
        terms = _invariants([sides[axis][side] for axis, side in enumerate(corner)])
        folded = [was | (_determinant(terms, s) <= 0) for was, s in zip(folded, scales)]
    return torch.stack([one.flatten(1).float().mean(1) for one in folded])


def _invariants(columns: list[Tensor]) -> list[Tensor]:
    """Trace, sum of the principal 2 x 2 minors (and determinant) of G, whose columns are (B, n, *shape)."""
    n = len(columns)
    g = [[columns[j][:, i] for j in range(n)] for i in range(n)]
    trace = g[0][0] + g[1][1]
    minor = g[0][0] * g[1][1] - g[0][1] * g[1][0]
    if n == 2:
        return [trace, minor]
    one = g[1][1] * g[2][2] - g[1][2] * g[2][1]
    two = g[1][0] * g[2][2] - g[1][2] * g[2][0]
    three = g[1][0] * g[2][1] - g[1][1] * g[2][0]
    whole = g[0][0] * one - g[0][1] * two + g[0][2] * three
    return [trace + g[2][2], minor + one + g[0][0] * g[2][2] - g[0][2] * g[2][0], whole]


def _determinant(terms: list[Tensor], scale: float) -> Tensor:
    out = 1 + scale * terms[0] + scale**2 * terms[1]
    return out + scale**3 * terms[2] if len(terms) == 3 else out


def sampling_grid(elastic: Elastic, crop: tuple[int, ...]) -> Tensor:
    """Say which voxel of the crop each voxel of the view shows: (B, *shape, n), not rounded.

    Args:
        elastic: from `draw_elastic`.
        crop: spatial shape of the crop.
    """
    n, shape, device = len(elastic.shape), elastic.shape, elastic.spacing.device
    axes = [torch.arange(size, device=device, dtype=torch.float32) for size in shape]
    voxels = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(1, -1, n)
    points = voxels_to_offsets(voxels.expand(len(elastic.spacing), -1, n), shape, elastic.spacing)
    if elastic.displacement is not None:
        points = points + elastic.displacement.flatten(2).mT
    if elastic.matrix is not None:
        points = view_to_crop(points, elastic.matrix)
    return offsets_to_voxels(points, crop, elastic.spacing).reshape(-1, *shape, n)


def apply_elastic(image: Tensor, elastic: Elastic, *, mode: str = "bilinear", padding: str = "border") -> Tensor:
    """Resample crops into views, once for displacement and affine map together.

    A sample without either stays as it is, bit for bit, where view and crop are of one shape.

    Args:
        image: (B, C, *crop), any dtype; whole numbers are exact up to 2^24 with `nearest`.
        elastic: from `draw_elastic`.
        mode: `bilinear` (linear in any number of axes), or `nearest` for labels, which keep their dtype.
        padding: what lies outside the crop: `border` or `zeros`.

    Returns:
        (B, C, *shape): float for `bilinear`, else of the image's dtype.
    """
    crop = tuple(image.shape[2:])
    still = elastic.matrix is None and crop == elastic.shape
    if still and elastic.displacement is None:
        return image
    values = image if image.is_floating_point() else image.float()
    size = torch.tensor(crop, device=image.device)
    grid = ((2 * sampling_grid(elastic, crop) + 1) / size - 1).flip(-1)
    out = functional.grid_sample(values, grid.to(values.dtype), mode=mode, padding_mode=padding, align_corners=False)
    if still:
        out = out.where(_wide(elastic.moved, out.ndim - 1), values)
    return out.to(image.dtype) if mode == "nearest" else out


def view_points(points: Tensor, elastic: Elastic) -> Tensor:
    """Map (B, P, n) offsets in a view to offsets in its crop, mm: A(p + d(p))."""
    moved = points + _displacement_at(points, elastic)
    return moved if elastic.matrix is None else view_to_crop(moved, elastic.matrix)


def crop_points(points: Tensor, elastic: Elastic, *, rounds: int = 60) -> Tensor:
    """Map (B, P, n) offsets in a crop to offsets in the view, mm: the inverse of `view_points`.

    By fixed-point iteration, p <- A^-1 x - d(p) (Chen et al. 2008, Med. Phys. 35:81). It converges wherever the norm
    of d's gradient is below 1; at a root mean square gradient of 0.15 the result is within 0.01 mm after 60 rounds.
    At stronger settings compare `view_points` of the result with the points given.
    """
    start = points if elastic.matrix is None else crop_to_view(points, elastic.matrix)
    if elastic.displacement is None:
        return start
    found = start
    for _ in range(rounds):
        found = start - _displacement_at(found, elastic)
    return found


def _displacement_at(points: Tensor, elastic: Elastic) -> Tensor:
    if elastic.displacement is None:
        return torch.zeros_like(points)
    voxels = offsets_to_voxels(points, elastic.shape, elastic.spacing)
    return sample_at(elastic.displacement, voxels, elastic.shape)


def _wide(value: Tensor, axes: int) -> Tensor:
    return value.reshape(-1, *(1,) * axes)
