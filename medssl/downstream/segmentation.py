"""Segmentation as a method of the engine: cross-entropy (or focal loss) and Dice over augmented crops.

The output block, which no pretraining has seen, learns faster than the body; which of the body's weights move, and how
fast, `layers.py` says. Crops and labels are turned together, and voxels that a turn brings in from outside the crop
count for no loss.

Shapes: B batch, C channels, D H W voxels, n spatial axes, K classes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..batch import Batch, Draw, Facts
from ..methods.method import Group, Losses, Method, Views
from ..nets.segmenter import Segmenter
from ..views.intensity import change_intensity
from ..views.spatial import draw_affine, spacing_of, warp
from .config import FinetuneConfig
from .layers import hold_still, train_groups

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
    needs: ClassVar[tuple[str, ...]] = ("image", "label", "affine", "box")

    def __init__(self, config: FinetuneConfig, encoder: Segmenter, facts: Facts, *, classes: Sequence[int]) -> None:
        super().__init__(config, encoder, facts)
        self.register_buffer("values", torch.tensor([0, *classes]), persistent=False)

    def views(self, batch: Batch, step: int) -> Views:
        """Return `image` (B, C, ...) and `label` (B, ...) int64, class numbers, augmented."""
        if isinstance(self.encoder, Segmenter):
            hold_still(self.encoder, self.config, step)  # the engine has put everything in train mode just before
        draw, (image, inside) = Draw(batch["key"]), filled(batch["image"].float(), batch["box"])
        shape, n = tuple(image.shape[2:]), image.ndim - 2
        matrix, spacing = draw_affine(self.config.spatial, draw.of("spatial"), n), spacing_of(batch["affine"], n)
        label = torch.searchsorted(self.values, batch["label"].to(self.values.dtype).contiguous())
        # One more than the class number, so that the zeros from outside the crop can be told from the background.
        label = (
            warp((label + 1) * inside.float(), matrix, spacing, shape, mode="nearest", padding="zeros")[:, 0].long() - 1
        )
        image = warp(image, matrix, spacing, shape)
        image = change_intensity(image, self.config.intensity, draw.of("intensity"))
        return {"image": image, "label": label.where(label >= 0, _IGNORED)}

    def forward(self, views: Views) -> Losses:
        """Return the terms `cross_entropy` or `focal`, and `dice`, summed over the network's outputs."""
        out, label = self.encoder(views["image"]), views["label"]  # (B, K, ...) or a list of them, (B, ...)
        outputs: list[Tensor] = [level.float() for level in (out if isinstance(out, list) else [out])]
        voxel = (
            functools.partial(focal, gamma=self.config.focal_gamma) if self.config.loss == "focal" else cross_entropy
        )
        terms = {
            self.config.loss: over_levels(voxel, outputs, label).mean(),
            "dice": over_levels(dice_loss, outputs, label).mean(),
        }
        return Losses.of(weights={"dice": self.config.dice_weight}, seen=None, **terms)

    def groups(self) -> list[Group]:
        """Return what moves, and how fast: the body's layers, and the new output block at a rate of its own."""
        assert isinstance(self.encoder, Segmenter)
        return train_groups(self.encoder, self.config)

    def encoders(self) -> dict[str, nn.Module]:
        """Return the task network."""
        return {"segmenter": self.encoder}

    def panels(self, views: Views) -> Mapping[str, Tensor]:  # type: ignore[override]
        """Return the first crop's middle slice beside itself with the truth and with what is found."""
        image, label = views["image"][:1], views["label"][0]
        out = self.encoder(image)
        found = (out[0] if isinstance(out, list) else out)[0].argmax(0)
        slices = [_middle(x) for x in (image[0, 0].float(), label.clamp_min(0), found)]
        grey = slices[0]
        grey = ((grey - grey.min()) / (grey.max() - grey.min()).clamp_min(1e-6)).expand(3, *grey.shape)
        return {"segmentation": torch.cat([grey, _tinted(grey, slices[1]), _tinted(grey, slices[2])], 2)}


def filled(image: Tensor, box: Tensor) -> tuple[Tensor, Tensor]:
    """Fill what lies beyond an image's end with its last voxels, as windows are filled when images are scored.

    A network that learns from crops filled otherwise finds next to nothing in images much smaller than its crop.

    Args:
        image: (B, C, ...), crops.
        box: (B, 2, n), first voxel of the image in each crop, and one past its last.

    Returns:
        The crops, and (B, 1, ...) bool, False where they were filled.
    """
    inside = torch.ones_like(image[:, :1], dtype=torch.bool)
    for axis, size in enumerate(image.shape[2:]):
        place = torch.arange(size, device=image.device)
        within = torch.maximum(torch.minimum(place, box[:, 1, axis, None] - 1), box[:, 0, axis, None])  # (B, size)
        wide = [1] * image.ndim
        wide[0], wide[axis + 2] = within.shape
        image = image.gather(axis + 2, within.reshape(wide).expand_as(image))
        inside = inside & (within == place).reshape(wide)
    return image, inside


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Return each sample's mean cross-entropy over its voxels that count: (B,); 0 where none does.

    Args:
        logits: (B, K, ...).
        label: (B, ...) int64, class numbers; -100 where a voxel does not count.
    """
    loss = functional.cross_entropy(logits, label, ignore_index=_IGNORED, reduction="none").flatten(1)
    return loss.sum(1) / (label != _IGNORED).flatten(1).sum(1).clamp_min(1)


def focal(logits: Tensor, label: Tensor, *, gamma: float = 2.0) -> Tensor:
    """Return each sample's mean focal loss over its voxels that count: (B,); 0 where none does.

    Args:
        logits: (B, K, ...).
        label: (B, ...) int64, class numbers; -100 where a voxel does not count.
        gamma: with 0 it is cross-entropy.

    Source: Lin et al. 2017, arXiv:1708.02002, equation 4.
    """
    loss = functional.cross_entropy(logits, label, ignore_index=_IGNORED, reduction="none").flatten(1)  # -log p
    # One minus the probability of the true class; its power has no gradient at 0, where gamma below 1 would have an
    # infinite one.
    wrong = (-torch.expm1(-loss)).clamp_min(1e-7)
    return (wrong**gamma * loss).sum(1) / (label != _IGNORED).flatten(1).sum(1).clamp_min(1)


def over_levels(loss: Callable[[Tensor, Tensor], Tensor], outputs: Sequence[Tensor], label: Tensor) -> Tensor:
    """Return the weighted mean of a loss over outputs of falling resolution: (B,).

    Args:
        loss: takes logits (B, K, ...) and labels (B, ...), gives (B,).
        outputs: logits, finest first; each has half the weight of the one before.
        label: (B, ...) int64 at the finest resolution; each coarser voxel takes the label at its centre.

    Source: deep supervision as in nnU-Net (Isensee et al. 2021), which leaves the coarsest output out; here every
    output learns, for a head without a gradient would stay as it was drawn.
    """
    weights = [0.5**level for level in range(len(outputs))]
    total = torch.zeros(len(label), device=label.device)
    for weight, logits in zip(weights, outputs):
        size, at = logits.shape[2:], label
        if size != label.shape[1:]:
            # float32 holds every class number, and -100, as it is
            at = functional.interpolate(label[:, None].float(), size=size, mode="nearest-exact")[:, 0].long()
        total = total + weight / sum(weights) * loss(logits, at)
    return total


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
