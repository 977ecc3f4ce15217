"""Segmentation as a method of the engine: cross-entropy and Dice over augmented crops, all weights trained.

The output block, which no pretraining has seen, learns faster than the body; crops and labels are turned together, and
voxels that a turn brings in from outside the crop count for no loss.

Shapes: B batch, C channels, D H W voxels, n spatial axes, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..batch import Batch, Draw, Facts
from ..methods.method import Group, Losses, Method, Views, decay_groups
from ..nets.segmenter import Segmenter
from ..views.intensity import change_intensity
from ..views.spatial import draw_affine, spacing_of, warp
from .config import FinetuneConfig

_IGNORED = -100


class Segmentation(Method):
    """Trains a segmenter.

    Args:
        config: the recipe's section `finetune`.
        encoder: the task network, with the pretrained weights already in it, or without.
        facts: of the data.
        classes: the values of the label map but 0, in rising order; class k is the k-th of them.
    """

    values: Tensor
    needs: ClassVar[tuple[str, ...]] = ("image", "label", "affine")

    def __init__(self, config: FinetuneConfig, encoder: Segmenter, facts: Facts, *, classes: Sequence[int]) -> None:
        super().__init__(config, encoder, facts)
        self.register_buffer("values", torch.tensor([0, *classes]), persistent=False)

    def views(self, batch: Batch, step: int) -> Views:
        """Return `image` (B, C, ...) and `label` (B, ...) int64, class numbers, augmented."""
        draw, image = Draw(batch["key"]), batch["image"].float()
        shape, n = tuple(image.shape[2:]), image.ndim - 2
        matrix, spacing = draw_affine(self.config.spatial, draw.of("spatial"), n), spacing_of(batch["affine"], n)
        label = torch.searchsorted(self.values, batch["label"].to(self.values.dtype).contiguous())
        # One more than the class number, so that the zeros from outside the crop can be told from the background.
        label = warp((label + 1).float(), matrix, spacing, shape, mode="nearest", padding="zeros")[:, 0].long() - 1
        image = warp(image, matrix, spacing, shape)
        image = change_intensity(image, self.config.intensity, draw.of("intensity"))
        return {"image": image, "label": label.where(label >= 0, _IGNORED)}

    def forward(self, views: Views) -> Losses:
        """Return the terms `cross_entropy` and `dice`."""
        logits, label = self.encoder(views["image"]).float(), views["label"]  # (B, K, ...), (B, ...)
        return Losses.of(
            weights={"dice": self.config.dice_weight},
            cross_entropy=cross_entropy(logits, label).mean(),
            dice=dice_loss(logits, label).mean(),
        )

    def groups(self) -> list[Group]:
        """Return the body at the base rate, and the new output block at its own."""
        assert isinstance(self.encoder, Segmenter)
        head = {id(p) for p in self.encoder.head_parameters()}
        body = [p for p in self.encoder.parameters() if id(p) not in head]
        factor = self.config.head_learning_rate / self.config.learning_rate
        return [
            *decay_groups(self.encoder, skip=self.encoder.head_parameters()),
            *decay_groups(self.encoder, rate=factor, skip=body),
        ]

    def encoders(self) -> dict[str, nn.Module]:
        """Return the task network."""
        return {"segmenter": self.encoder}

    def panels(self, views: Views) -> Mapping[str, Tensor]:  # type: ignore[override]
        """Return the first crop's middle slice beside itself with the truth and with what is found."""
        image, label = views["image"][:1], views["label"][0]
        found = self.encoder(image)[0].argmax(0)
        slices = [_middle(x) for x in (image[0, 0].float(), label.clamp_min(0), found)]
        grey = slices[0]
        grey = ((grey - grey.min()) / (grey.max() - grey.min()).clamp_min(1e-6)).expand(3, *grey.shape)
        return {"segmentation": torch.cat([grey, _tinted(grey, slices[1]), _tinted(grey, slices[2])], 2)}


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Return each sample's mean cross-entropy over its voxels that count: (B,); 0 where none does.

    Args:
        logits: (B, K, ...).
        label: (B, ...) int64, class numbers; -100 where a voxel does not count.
    """
    loss = functional.cross_entropy(logits, label, ignore_index=_IGNORED, reduction="none").flatten(1)
    return loss.sum(1) / (label != _IGNORED).flatten(1).sum(1).clamp_min(1)


def dice_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Return one minus each sample's soft Dice, the mean over the foreground classes in its label: (B,).

    A class that is not in the crop is left to cross-entropy: its Dice is 0 for any prediction, and tells nothing. A
    sample without foreground gives 0.

    Args:
        logits: (B, K, ...).
        label: (B, ...) int64, class numbers; -100 where a voxel does not count.

    Source: Milletari, Navab and Ahmadi 2016, arXiv:1606.04797, with the plain instead of the squared denominator
    (Drozdzal et al. 2016, arXiv:1608.04117).
    """
    k = logits.shape[1]
    counts = (label != _IGNORED).flatten(1)[:, None]  # (B, 1, N)
    found = logits.softmax(1).flatten(2)[:, 1:] * counts  # (B, K - 1, N)
    wanted = functional.one_hot(label.clamp_min(0), k).movedim(-1, 1).flatten(2)[:, 1:] * counts
    both, total = (found * wanted).sum(2), found.sum(2) + wanted.sum(2)
    present = (wanted.sum(2) > 0).to(logits.dtype)
    loss = (1 - 2 * both / total.clamp_min(1e-6)) * present
    return loss.sum(1) / present.sum(1).clamp_min(1)


_TINTS = ((0.9, 0.2, 0.2), (0.2, 0.6, 0.95), (0.3, 0.8, 0.3), (0.95, 0.75, 0.2), (0.7, 0.4, 0.9), (0.2, 0.8, 0.8))


def _tinted(grey: Tensor, label: Tensor) -> Tensor:
    """Lay the colours of classes, half transparent, over a grey picture (3, H, W)."""
    out = grey.clone()
    for k in range(1, int(label.max()) + 1):
        tint = torch.tensor(_TINTS[(k - 1) % len(_TINTS)], device=grey.device)[:, None, None]
        out = torch.where(label == k, 0.5 * grey + 0.5 * tint, out)
    return out


def _middle(volume: Tensor) -> Tensor:
    """Return the middle slice along the last axis of a volume, or a 2D image as it is."""
    return volume if volume.ndim == 2 else volume[..., volume.shape[-1] // 2]
