"""Anatomy: equal points of two views of one body get equal embeddings, other points different ones.

Self-supervised anatomical embedding, after Yan et al., SAM, IEEE TMI 2022, arXiv:2012.02383, in its first form: one
dense head on the whole U-Net, 2D and 3D. Its coarse head and hard negatives are not part of this form.
Departs from the paper: positives are soft, a Gaussian of the distance in mm; points are drawn where both views see the
body; other images' points count as negatives unless they lie at about the same place of the image.

Shapes: B batch, C channels, D H W voxels, n spatial axes, P points, F features. Positions are mm.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from ..batch import Batch, Draw, Facts
from ..errors import RecipeError
from ..joined import joined
from ..losses.contrastive import dense_contrast, gaussian_positives
from ..views.intensity import IntensityConfig, change_intensity
from ..views.spatial import (
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
from .method import Losses, Method, MethodConfig, Views, check_trains_all


class Anatomy(Method):
    """Dense contrast at corresponding points of two views."""

    class Config(MethodConfig):
        """Every knob of the dense contrast."""

        name: Literal["anatomy"] = "anatomy"
        """Which method."""
        view: tuple[PositiveInt, ...] = ()
        """Voxels of a view along each axis; empty takes the whole crop."""
        points: PositiveInt = 128
        """Points a view contributes. Paper: 100 anchors among 2,000 candidates."""
        features: PositiveInt = 64
        """Width of the embedding. Paper: 128."""
        temperature: PositiveFloat = 0.1
        """Of the softmax over all points. Paper: 0.5."""
        positive_sd_mm: PositiveFloat = 1.5
        """Standard deviation of the Gaussian that weighs positives of the same image."""
        radius_mm: PositiveFloat = 4.0
        """Largest distance of a positive pair. Paper: 5."""
        across_weight: float = Field(0.0, ge=0)
        """Weight of positives between images, beside 1 for those of the same image; above 0 only where crops of
        different patients lie alike."""
        across_sd_mm: PositiveFloat = 4.0
        """Standard deviation of the Gaussian that weighs positives between images, by place in the image."""
        ignore_mm: float = Field(12.0, ge=0)
        """Points of other images nearer than this, by place in the image, are no negatives."""
        spatial: SpatialConfig = SpatialConfig()
        """How each of the two views is moved."""
        intensity: IntensityConfig = IntensityConfig(probability=0.8)
        """How each view's intensities change."""

    needs = ("image", "affine", "box", "start", "key")
    joins = True

    def __init__(self, config: Anatomy.Config, encoder: Any, facts: Facts) -> None:
        super().__init__(config, encoder, facts)
        self.n = len(facts.shape)
        check_trains_all(encoder, "recipe key method.name")
        _check_view(config.view, facts.shape, encoder)
        width = encoder.out_channels[0]
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, config.features))

    def views(self, batch: Batch, step: int) -> Views:
        config, image, draw = self.config, batch["image"], Draw(batch["key"])
        crop, spacing = tuple(image.shape[2:]), spacing_of(batch["affine"], self.n)
        shape = config.view or crop
        matrix = {v: draw_affine(config.spatial, draw.of(v).of("spatial"), self.n) for v in ("one", "two")}
        out: Views = {}
        for v in ("one", "two"):
            view = warp(image, matrix[v], spacing, shape)
            out[v] = change_intensity(view, config.intensity, draw.of(v).of("intensity"))
        # Points are drawn over the first view, as fractions of its voxels, and kept where both views and the body are.
        size = torch.tensor(shape, device=image.device) - 1
        voxels = draw.of("points").uniform(config.points, self.n) * size  # (B, P, n)
        in_crop = view_to_crop(voxels_to_offsets(voxels, shape, spacing), matrix["one"])  # (B, P, n) mm
        other = offsets_to_voxels(crop_to_view(in_crop, matrix["two"]), shape, spacing)
        whole_view = torch.stack([torch.zeros_like(size), size + 1]).expand(len(image), 2, self.n)
        crop_voxels = offsets_to_voxels(in_crop, crop, spacing)
        valid = inside(other, whole_view) & inside(crop_voxels, batch["box"])
        out["points_one"], out["points_two"] = voxels, other
        # A slice of a volume has one axis less than its image: its own number along that axis is part of the place.
        start = batch["start"].float()
        in_image = functional.pad(crop_voxels, (0, start.shape[1] - self.n)) + start[:, None]
        out["place"] = in_image * spacing_of(batch["affine"], start.shape[1])[:, None]  # mm from the image's corner
        out["valid"] = valid.float()  # (B, P)
        out["item"] = batch["index"]  # (B,)
        return out

    def forward(self, views: Views) -> Losses:
        own, other = (self._embed(views[v], views[f"points_{v}"]) for v in ("one", "two"))  # (B, P, F) each
        one, two = joined(own), joined(other)
        # No parameter moves these, but they must be those of the same rows.
        place, item, valid = joined(views["place"]), joined(views["item"]), joined(views["valid"])
        weight, ignore = correspondence(place, item, valid, self.config)
        one, two = one.flatten(0, 1), two.flatten(0, 1)  # (B P, F)
        there = dense_contrast(one, two, weight, ignore, temperature=self.config.temperature)
        # A point has one number in both views, so places and weights are the same seen from the second view.
        back = dense_contrast(two, one, weight, ignore, temperature=self.config.temperature)
        # A mean over images of each image's own mean over its points, so that every image counts alike.
        value = ((there + back) / 2).unflatten(0, valid.shape)
        contrast = ((value * valid).sum(1) / valid.sum(1).clamp_min(1)).mean()
        return Losses.of(
            contrast=contrast, seen={"features": own[:, 0]}
        )  # one point an image: enough to see a collapse

    def _embed(self, view: Tensor, points: Tensor) -> Tensor:
        maps = self.encoder(view)
        embedding: Tensor = self.head(sample_at(maps[0].float(), points, tuple(view.shape[2:])))
        return embedding

    def panels(self, views: Views) -> dict[str, Tensor]:
        """Return one picture: a point in view one, the same in view two, and how like it the voxels of view two are."""
        rows = []
        query = self._embed(views["one"], views["points_one"])
        dense = functional.normalize(self.head(self.encoder(views["two"])[0].float().movedim(1, -1)), dim=-1)
        for sample in range(min(4, len(query))):
            valid = views["valid"][sample].nonzero()[:, 0]
            if not len(valid):
                continue
            at = valid[0]
            likeness = dense[sample] @ functional.normalize(query[sample, at], dim=0)
            shape = tuple(views["two"].shape[2:])
            mode = "trilinear" if self.n == 3 else "bilinear"
            likeness = functional.interpolate(likeness[None, None], shape, mode=mode)[0]
            points = (views["points_one"][sample, at], views["points_two"][sample, at], views["points_two"][sample, at])
            images = (views["one"][sample], views["two"][sample], likeness)
            rows.append(torch.cat([_marked(image, point) for image, point in zip(images, points)], 2))
        return {"correspondence": torch.cat(rows, 1)} if rows else {}


def _check_view(view: tuple[int, ...], crop: tuple[int, ...], encoder: Any) -> None:
    if view and (len(view) != len(crop) or any(v > c or v % m for v, c, m in zip(view, crop, encoder.multiple))):
        raise RecipeError(
            f"a view of {view} voxels cannot be cut from a crop of {crop} for this encoder",
            where="recipe key method.view",
            fix=f"give {len(crop)} numbers, at most the crop's, each a multiple of {encoder.multiple}",
        )


def correspondence(place: Tensor, item: Tensor, valid: Tensor, config: Anatomy.Config) -> tuple[Tensor, Tensor]:
    """Say which pairs of points correspond, and which are neither positive nor negative.

    Args:
        place: (B, P, axes of the image) mm from the corner of each point's image.
        item: (B,) number of the image; the same image may stand in a step twice.
        valid: (B, P), 0 where a point is not seen in both views.
        config: radii and weights.

    Returns:
        weight: (B P, B P), rows of points in one view, columns in the other. In a row the positives of the same image,
            which fall with the distance and end at `radius_mm`, sum to 1, those of other images to `across_weight`.
        ignore: (B P, B P) bool: points that are not valid, and points of other images within `ignore_mm`.
    """
    points, flat = place.flatten(0, 1), valid.flatten() > 0
    image = item[:, None].expand(valid.shape).flatten()
    same = image[:, None] == image
    distance = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    both = flat[:, None] & flat
    weight = _shares(gaussian_positives(distance, sd=config.positive_sd_mm, radius=config.radius_mm) * (same & both))
    ignore = ~same & (distance < config.ignore_mm)
    if config.across_weight:
        # Many more points of other images lie near than of the same image: without shares they would be all there is.
        across = gaussian_positives(distance, sd=config.across_sd_mm, radius=config.ignore_mm) * (~same & both)
        weight = weight + config.across_weight * _shares(across)
    return weight, ignore | ~both


def _shares(weight: Tensor) -> Tensor:
    """Make every row sum to 1; rows of zeros stay."""
    return weight / weight.sum(1, keepdim=True).clamp_min(1e-12)


def _marked(image: Tensor, point: Tensor, half: int = 2) -> Tensor:
    """Cut the slice through a point, with a cross drawn at it: (3, H, W) in [0, 1]."""
    i, j = (round(float(x)) for x in point[:2])
    slice_ = image[0].float()
    if slice_.ndim == 3:
        slice_ = slice_[..., round(float(point[2]))]
    slice_ = ((slice_ - slice_.min()) / (slice_.max() - slice_.min()).clamp_min(1e-6)).clamp(0, 1)
    picture = slice_.expand(3, -1, -1).clone()
    colour = picture.new_tensor([1.0, 0.2, 0.1])[:, None]
    picture[:, max(0, i - half) : i + half + 1, j] = colour
    picture[:, i, max(0, j - half) : j + half + 1] = colour
    return functional.pad(picture.mT.flip(1), (2, 2, 2, 2), value=1.0)
