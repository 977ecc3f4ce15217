"""The recipe's section `finetune.detection`: how a detector is built, trained, and how its boxes are put together."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from ..config import Section


class DetectionConfig(Section):
    """A RetinaNet (arXiv:1708.02002) on a feature pyramid (arXiv:1612.03144), as MONAI and nnDetection use it.

    Sizes of boxes are in voxels of the store's grid here, overlaps of scores in mm.
    """

    boxes_from: Literal["auto", "boxes", "masks"] = "auto"
    """Where true boxes come from. `boxes`: those given to `index`. `masks`: one about each connected component of a
    label map, one class a label. `auto`: boxes where the store has any, else masks."""
    smallest: PositiveInt = 1
    """Voxels a connected component must have to be an object, with boxes from masks."""
    levels: int = Field(default=3, ge=1, le=5)
    """Levels of the feature pyramid, each with twice the stride of the one before."""
    finest_stride: PositiveInt | None = None
    """Voxels between neighbours on the finest level, along the axis where it is largest; none: from the size of the
    training boxes."""
    pyramid_channels: int = Field(default=32, ge=8, le=512, multiple_of=8)
    """Features of each level."""
    anchors: int = Field(default=3, ge=1, le=16)
    """Anchor shapes at each place, planned from the training boxes."""
    matcher: Literal["atss", "overlap"] = "atss"
    """Which anchors stand for a true box. `atss`: the nearest ones whose overlap is high among them (arXiv:1912.02424).
    `overlap`: those that overlap it by `positive_overlap`, and the best one."""
    candidates: int = Field(default=4, ge=1, le=64)
    """Places of each level that `atss` looks at for each box."""
    positive_overlap: float = Field(default=0.5, gt=0, le=1)
    """Overlap from which an anchor stands for a box, with `overlap`."""
    negative_overlap: float = Field(default=0.4, ge=0, le=1)
    """Overlap below which it stands for background, with `overlap`; between both it does not count."""
    loss: Literal["hard_negatives", "focal"] = "hard_negatives"
    """How the many anchors of background are kept from drowning the few others. `hard_negatives`: cross-entropy over
    the positive anchors and the surest wrong ones. `focal`: focal loss over all (arXiv:1708.02002)."""
    negatives: PositiveFloat = 3.0
    """Hard negatives for each positive anchor."""
    least_negatives: PositiveInt = 8
    """Of a crop, also without a positive anchor."""
    pool: float = Field(default=4.0, ge=1)
    """Hard negatives are drawn among this many times as many of the surest ones; 1: they are the surest."""
    focal_gamma: NonNegativeFloat = 2.0
    """How much `focal` leaves easy anchors out."""
    focal_alpha: float = Field(default=0.25, gt=0, lt=1)
    """Weight of positive anchors in `focal`; that of the others is one minus it."""
    box_loss: Literal["giou", "smooth_l1"] = "giou"
    """Of positive anchors: generalised overlap (arXiv:1902.09630), or of the encoded corners."""
    box_weight: PositiveFloat = 1.0
    """Weight of the box loss beside the class loss."""
    least_visible: float = Field(default=0.3, ge=0, le=1)
    """Share of its volume that a box cut by the edge of a crop must keep there to count as an object."""
    score: float = Field(default=0.02, ge=0, lt=1)
    """Score below which a box is no detection."""
    candidates_per_level: PositiveInt = 500
    """Surest boxes of a level, in each window, that are looked at."""
    fusion: Literal["nms", "weighted"] = "nms"
    """How boxes of one object become one. `nms`: the surest stays (non-maximum suppression). `weighted`: their mean by
    score (weighted box fusion, arXiv:1910.13302)."""
    fusion_overlap: float = Field(default=0.3, gt=0, lt=1)
    """Overlap from which two boxes of a class are of one object."""
    most: PositiveInt = 100
    """Surest detections of an image that are kept and scored."""
    overlaps: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5)
    """Overlaps in mm that mAP is the mean over; COCO's are .5, .55, ... .95. Each is above 0 and at most 1."""
    froc_overlap: float = Field(default=0.1, gt=0, le=1)
    """Overlap from which a true box counts as found in FROC."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.overlaps or any(not 0 < overlap <= 1 for overlap in self.overlaps):
            raise ValueError("overlaps must be one number or more, each above 0 and at most 1")
        if self.negative_overlap > self.positive_overlap:
            raise ValueError("negative_overlap must not be above positive_overlap")
        return self
