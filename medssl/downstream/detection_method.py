"""Detection as a method of the engine: boxes move with their crop, and each sample's loss is its own mean.

Shapes: B batch, M boxes of an image (filled up with -1), n axes, A anchors, K classes, G true boxes of a crop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from monai.apps.detection.utils.ATSS_matcher import ATSSMatcher
from monai.apps.detection.utils.box_coder import BoxCoder
from monai.data.box_utils import box_iou, box_pair_giou
from torch import Tensor, nn
from torch.nn import functional

from ..batch import Batch, Draw, Facts
from ..methods.method import Group, Losses, Method, Views
from ..nets.detector import Detector
from ..views.intensity import change_intensity
from ..views.spatial import crop_to_view, draw_affine, offsets_to_voxels, spacing_of, voxels_to_offsets, warp
from .config import FinetuneConfig
from .detection_boxes import TrueBoxes
from .layers import hold_still, train_groups

ABSENT, PARTLY = -1, -2
"""In the place of a class: no box; one of which too little is in the view to learn from."""
BACKGROUND, UNSURE = -1, -2
"""In the place of a true box's number: the anchor is of none; it does not count."""
_THINNEST = 1e-2
"""Voxels; a box with a thinner side in the view has no shape to learn."""


class Detection(Method):
    """Trains a detector.

    Args:
        config: the recipe's section `finetune`.
        encoder: the detector, with the pretrained weights already in it, or without.
        facts: of the data.
        boxes: of each image, in the order of the loader's items.
    """

    needs: ClassVar[tuple[str, ...]] = ("image", "affine", "start", "box", "index")
    corners: Tensor
    """(images, M, 2n)."""
    classes: Tensor
    """(images, M)."""

    def __init__(self, config: FinetuneConfig, encoder: Detector, facts: Facts, *, boxes: Sequence[TrueBoxes]) -> None:
        super().__init__(config, encoder, facts)
        n, most = len(encoder.shape), max([1, *(len(image.classes) for image in boxes)])
        corners, classes = torch.zeros(len(boxes), most, 2 * n), torch.full((len(boxes), most), ABSENT)
        for i, image in enumerate(boxes):
            corners[i, : len(image.classes)] = torch.from_numpy(image.corners).float()
            classes[i, : len(image.classes)] = torch.from_numpy(image.classes)
        self.register_buffer("corners", corners, persistent=False)
        self.register_buffer("classes", classes, persistent=False)
        self.coder = BoxCoder(weights=(1.0,) * 2 * n)
        self.atss = ATSSMatcher(config.detection.candidates, box_iou, center_in_gt=False)

    def views(self, batch: Batch, step: int) -> Views:
        """Return `image` (B, C, ...), augmented, `boxes` (B, M, 2n) and `classes` (B, M) in it, and `chance` (B, A)."""
        hold_still(self.encoder, self.config, step)  # the engine has put everything in train mode just before
        draw, image = Draw(batch["key"]), batch["image"].float()
        shape, n = tuple(image.shape[2:]), image.ndim - 2
        matrix, spacing = draw_affine(self.config.spatial, draw.of("spatial"), n), spacing_of(batch["affine"], n)
        image = change_intensity(warp(image, matrix, spacing, shape), self.config.intensity, draw.of("intensity"))
        corners = self.corners[batch["index"]] - batch["start"].float().repeat(1, 2)[:, None]
        boxes, seen = moved_boxes(corners, batch["box"], matrix, spacing, shape)
        known = self.classes[batch["index"]]
        small = seen < self.config.detection.least_visible
        classes = torch.where(small & (known >= 0), torch.where(seen > 0, PARTLY, ABSENT), known)
        chance = draw.of("negatives").uniform(len(self.encoder.anchors))
        return {"image": image, "boxes": boxes, "classes": classes, "chance": chance}

    def forward(self, views: Views) -> Losses:
        """Return the terms `class` and `box`: means over samples of each sample's own value."""
        logits, codes = self.encoder(views["image"])  # (B, A, K), (B, A, 2n)
        by_class, by_box = [], []
        for b in range(len(logits)):
            classes, boxes = views["classes"][b], views["boxes"][b]
            real = classes >= 0
            anchor_of = self.assigned(boxes[real], boxes[classes == PARTLY])  # (A,)
            by_class.append(self.class_loss(logits[b], anchor_of, classes[real], views["chance"][b]))
            by_box.append(self.box_loss(codes[b], anchor_of, boxes[real]))
        terms = {"class": torch.stack(by_class).mean(), "box": torch.stack(by_box).mean()}
        return Losses.of(weights={"box": self.config.detection.box_weight}, seen=None, **terms)

    @torch.no_grad()
    def assigned(self, boxes: Tensor, partly: Tensor) -> Tensor:
        """Return for each anchor (A,) the number of its true box, or `BACKGROUND`, or `UNSURE`.

        Args:
            boxes: (G, 2n).
            partly: (P, 2n), boxes of which too little is in view: an anchor with its centre there is no background.
        """
        anchors, config = self.encoder.anchors, self.config.detection
        found = torch.full((len(anchors),), BACKGROUND, device=anchors.device)
        if len(boxes) and config.matcher == "atss":
            found = self.atss.compute_matches(boxes, anchors, self.encoder.places, self.encoder.shapes)[1]
        elif len(boxes):
            found = by_overlap(box_iou(boxes, anchors), config.positive_overlap, config.negative_overlap)
        if len(partly):
            n = anchors.shape[1] // 2
            centres = (anchors[:, None, :n] + anchors[:, None, n:]) / 2
            near = ((centres >= partly[:, :n]) & (centres < partly[:, n:])).all(2).any(1)
            found = torch.where(near & (found == BACKGROUND), UNSURE, found)
        return found

    def class_loss(self, logits: Tensor, anchor_of: Tensor, classes: Tensor, chance: Tensor) -> Tensor:
        """Return one sample's loss of the classes, 0-dim.

        Args:
            logits: (A, K).
            anchor_of: (A,), see `assigned`.
            classes: (G,).
            chance: (A,), uniform; decides which of the surest wrong anchors are taken.
        """
        config, positive = self.config.detection, anchor_of >= 0
        wanted = torch.zeros_like(logits)
        wanted[positive, classes[anchor_of[positive]]] = 1.0
        if config.loss == "focal":
            counts = anchor_of != UNSURE
            loss = focal_loss(logits, wanted, config.focal_gamma, config.focal_alpha)[counts]
            return loss.sum() / positive.sum().clamp_min(1)
        hard = hard_negatives(
            logits.detach().amax(1),
            anchor_of == BACKGROUND,
            chance,
            count=max(config.least_negatives, round(config.negatives * int(positive.sum()))),
            pool=config.pool,
        )
        taken = torch.cat([positive.nonzero()[:, 0], hard])
        loss = functional.binary_cross_entropy_with_logits(logits[taken], wanted[taken], reduction="none")
        return loss.sum() / max(1, len(taken))

    def box_loss(self, codes: Tensor, anchor_of: Tensor, boxes: Tensor) -> Tensor:
        """Return one sample's loss of the boxes, 0-dim: the mean over its positive anchors, 0 where it has none.

        Args:
            codes: (A, 2n).
            anchor_of: (A,), see `assigned`.
            boxes: (G, 2n).
        """
        positive = anchor_of >= 0
        if not bool(positive.any()):
            return (codes * 0).sum()  # the head gets a gradient all the same
        anchors, truth = self.encoder.anchors[positive], boxes[anchor_of[positive]]
        if self.config.detection.box_loss == "smooth_l1":
            wanted = self.coder.encode_single(truth, anchors)
            return functional.smooth_l1_loss(codes[positive], wanted, beta=1 / 9)
        found = self.coder.decode_single(codes[positive], anchors)
        overlap: Tensor = box_pair_giou(found, truth)
        return (1 - overlap).mean()

    def groups(self) -> list[Group]:
        """Return what moves, and how fast: the body's layers, and pyramid and heads at a rate of their own."""
        return train_groups(self.encoder, self.config)

    def encoders(self) -> dict[str, nn.Module]:
        """Return the task network."""
        return {"detector": self.encoder}

    def panels(self, views: Views) -> dict[str, Tensor]:
        """Return the first crop beside itself with its true boxes (green) and the surest found (red), from above."""
        image = views["image"][0, 0].float()
        grey = _flat(image)
        grey = ((grey - grey.min()) / (grey.max() - grey.min()).clamp_min(1e-6)).expand(3, *grey.shape)
        truth = views["boxes"][0][views["classes"][0] >= 0]
        with torch.no_grad():
            logits, codes = self.encoder(views["image"][:1])
        best = logits[0].amax(1).topk(min(len(truth) or 1, logits.shape[1])).indices
        found = self.coder.decode_single(codes[0, best], self.encoder.anchors[best])
        green = _outlined(grey, truth, (0.2, 0.9, 0.2))
        return {"detection": torch.cat([grey, green, _outlined(grey, found, (0.95, 0.2, 0.2))], 2)}


def moved_boxes(
    corners: Tensor, inside: Tensor, matrix: Tensor, spacing: Tensor, shape: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Take boxes from a crop to its view, and say how much of each is to be seen there.

    A turned box is the box about the turned ellipsoid that fills it, not about its turned corners, which would be too
    large for what is round (Kalra et al. 2021, arXiv:2109.13488). Mirrored, shifted and scaled boxes are exact.

    Args:
        corners: (B, M, 2n) in voxels of the crop, also outside it.
        inside: (B, 2, n), first voxel of the image in the crop, and one past its last.
        matrix: (B, n, n + 1), see `draw_affine`.
        spacing: (B, n) mm.
        shape: of crop and view.

    Returns:
        (B, M, 2n) in voxels of the view, cut at its edge and at the crop's; and (B, M), the share of the box's volume
        that is left, of what could be at most in a view of that shape; 0 where nothing is.
    """
    n = len(shape)
    size = torch.tensor(shape, dtype=torch.float32, device=corners.device)
    low, high = corners[..., :n], corners[..., n:]
    whole = (high - low).clamp_min(1e-6)
    first = torch.maximum(low, inside[:, None, 0].float())
    last = torch.minimum(high, inside[:, None, 1].float())
    there = (last > first).all(2)
    last = torch.maximum(first, last)
    share = ((last - first) / whole).prod(2)
    centre, half = (first + last) / 2, (last - first) / 2
    offsets = voxels_to_offsets(centre - 0.5, shape, spacing)  # voxel centres are whole numbers there
    middle = offsets_to_voxels(crop_to_view(offsets, matrix), shape, spacing) + 0.5
    turn = torch.linalg.inv_ex(matrix[..., :-1])[0]  # (B, n, n), crop to view
    half = ((half * spacing[:, None])[..., None, :] * turn[:, None]).square().sum(3).sqrt() / spacing[:, None]
    start, end = (middle - half).clamp_min(0), torch.minimum(middle + half, size)
    there &= (end - start > _THINNEST).all(2)
    share = share * ((end - start).clamp_min(0) / (2 * half).clamp_min(1e-6)).prod(2)
    possible = torch.minimum(size / whole, torch.ones_like(whole)).prod(2)
    return torch.cat([start, torch.maximum(start, end)], 2), torch.where(there, share / possible, 0.0)


def by_overlap(overlap: Tensor, positive: float, negative: float) -> Tensor:
    """Return for each anchor (A,) its true box by overlap (G, A), as Faster R-CNN does (arXiv:1506.01497).

    An anchor is of the box it overlaps most if by `positive`, and of none if by less than `negative`; between both it
    is `UNSURE`. The anchors that overlap a box most are of it all the same.
    """
    best, of = overlap.max(0)
    out = torch.where(best >= positive, of, torch.where(best < negative, BACKGROUND, UNSURE))
    top = overlap.amax(1, keepdim=True)
    needed = ((overlap == top) & (top > 0)).any(0)
    return torch.where(needed & (out < 0), of, out)


def hard_negatives(scores: Tensor, negative: Tensor, chance: Tensor, *, count: int, pool: float) -> Tensor:
    """Return the numbers of `count` anchors of background drawn among the `pool` times as many surest ones.

    Args:
        scores: (A,), higher is surer of an object.
        negative: (A,) bool.
        chance: (A,), uniform.
        count: how many; fewer where there are fewer.
        pool: 1 takes the surest ones.

    Source: as MONAI's `HardNegativeSampler`, which draws by torch's own generator.
    """
    there = negative.nonzero()[:, 0]
    surest = there[scores[there].topk(min(len(there), max(count, int(count * pool)))).indices]
    return surest[chance[surest].topk(min(len(surest), count)).indices]


def focal_loss(logits: Tensor, wanted: Tensor, gamma: float, alpha: float) -> Tensor:
    """Return the focal loss of each logit, of its shape (Lin et al. 2017, arXiv:1708.02002, equation 5)."""
    loss = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")  # -log p of what is true
    wrong = (-torch.expm1(-loss)).clamp_min(1e-7)
    return (alpha * wanted + (1 - alpha) * (1 - wanted)) * wrong**gamma * loss


def _flat(image: Tensor) -> Tensor:
    """Return the brightest voxel along the last axis of a volume, or a 2D image as it is."""
    return image if image.ndim == 2 else image.amax(-1)


def _outlined(grey: Tensor, boxes: Tensor, colour: tuple[float, float, float]) -> Tensor:
    """Draw the outlines of boxes (D, 2n), seen along the last axis, on a picture (3, H, W)."""
    out, (h, w) = grey.clone(), grey.shape[1:]
    n, tint = boxes.shape[1] // 2, torch.tensor(colour, device=grey.device)[:, None]
    for box in boxes.round().long().tolist():
        top, bottom = (min(max(v, 0), h - 1) for v in (box[0], box[n] - 1))
        left, right = (min(max(v, 0), w - 1) for v in (box[1], box[n + 1] - 1))
        out[:, [top, bottom], left : right + 1] = tint[:, None]
        out[:, top : bottom + 1, [left, right]] = tint[:, None]
    return out
