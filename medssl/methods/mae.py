"""Masked autoencoding: hide most of an image, rebuild what was hidden.

He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022, arXiv:2111.06377 (form `tokens`); for
convolutional U-Nets as in Models Genesis, Zhou et al. 2019, arXiv:1908.06912, and Spark3D, Wald et al. 2024,
arXiv:2410.23132 (form `dense`).
Departs from the papers: positions in millimetres; flat patches keep their scale in the target; padding is no target.

Shapes: B batch, C channels, D H W voxels, N patches of p^n voxels, M visible patches, P = C p^n values of a patch.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from ..batch import Batch, Draw, Facts
from ..errors import RunError
from ..losses.reconstruction import masked_patch_error, masked_voxel_error, standardized_patches
from ..nets.patches import patchify, unpatchify
from ..views.intensity import IntensityConfig, change_intensity
from ..views.masking import hidden_blocks, hidden_tokens
from ..views.spatial import SpatialConfig, draw_affine, spacing_of, warp
from .method import Losses, Method, MethodConfig, Views, check_trains_all


class MAE(Method):
    """Rebuild hidden voxels (`dense`) or hidden patches (`tokens`)."""

    class Config(MethodConfig):
        """Every knob of masked autoencoding."""

        name: Literal["mae"] = "mae"
        """Which method."""
        form: Literal["tokens", "dense"] = "tokens"
        """`tokens`: a ViT sees visible patches only. `dense`: a U-Net sees the image with blocks set to 0."""
        ratio: float = Field(0.75, gt=0, lt=1)
        """Share hidden. Paper: 0.75 for tokens; Spark3D: 0.6 for dense."""
        block: PositiveInt = 8
        """`dense`: edge of a hidden block, voxels."""
        decoder_width: PositiveInt = 192
        """`tokens`: width of the decoder. Paper: 512 beside a ViT-L."""
        decoder_layers: PositiveInt = 4
        """`tokens`: blocks of the decoder. Paper: 8."""
        decoder_heads: PositiveInt = 6
        """`tokens`: attention heads of the decoder. Paper: 16."""
        floor: float = Field(0.02, gt=0)
        """`tokens`: smallest standard deviation a target patch is divided by, normalised units. Paper: 0.001."""
        spatial: SpatialConfig = SpatialConfig(rotation=0.0, scale=0.0, shift_mm=0.0)
        """How a crop is moved before masking. Paper: crops and flips only."""
        intensity: IntensityConfig = IntensityConfig(probability=0.0)
        """How a crop's intensities change before masking; the target changes alike."""

    needs = ("image", "affine", "box", "key")

    def __init__(self, config: MAE.Config, encoder: Any, facts: Facts) -> None:
        super().__init__(config, encoder, facts)
        self.n = len(facts.shape)
        channels = facts.channels
        if config.form == "dense":
            check_trains_all(encoder, "recipe key method.form")
            # The head predicts the voxels under each cell of the finest feature map, s^n of them.
            self.stride = tuple(encoder.strides[0])
            self.head: nn.Module = nn.Linear(encoder.out_channels[0], channels * _volume(self.stride))
            return
        if not hasattr(encoder, "tokens"):
            raise RunError(
                f"form `tokens` needs a ViT, not {type(encoder).__name__}",
                where="recipe key method.form",
                fix="choose encoder.name=vit, or method.form=dense",
            )
        self.patch: tuple[int, ...] = tuple(encoder.patch)
        width = config.decoder_width
        self.embed = nn.Linear(encoder.out_channels[-1], width)
        self.hidden_token = nn.Parameter(torch.zeros(1, 1, width))
        nn.init.normal_(self.hidden_token, std=0.02)
        self.decoder = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, config.decoder_heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(config.decoder_layers)
        )
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, channels * _volume(self.patch)))

    def views(self, batch: Batch, step: int) -> Views:
        image, draw, spacing = batch["image"], Draw(batch["key"]), spacing_of(batch["affine"], self.n)
        real = _real_voxels(batch["box"], tuple(image.shape[2:]))  # (B, 1, D, H, W), False where the crop is padding
        moved = self.config.spatial
        if moved.rotation or moved.scale or moved.shift_mm or moved.flips:
            matrix = draw_affine(moved, draw.of("spatial"), self.n)
            shape = tuple(image.shape[2:])
            image = warp(image, matrix, spacing, shape)
            real = warp(real.float(), matrix, spacing, shape, mode="nearest", padding="zeros") > 0.5
        if self.config.intensity.probability:
            image = change_intensity(image, self.config.intensity, draw.of("intensity"))
        if self.config.form == "dense":
            mask = hidden_blocks(draw.of("mask"), tuple(image.shape[2:]), self.config.block, self.config.ratio)
            return {"image": image, "mask": mask, "target": mask & real, "spacing": spacing}
        real_patches = patchify(real.float(), self.patch).amin(-1) > 0.5  # (B, N)
        keep, mask = hidden_tokens(draw.of("mask"), real_patches.shape[1], self.config.ratio)
        return {"image": image, "keep": keep, "mask": mask, "target": mask & real_patches, "spacing": spacing}

    def forward(self, views: Views) -> Losses:
        prediction, target, features = self._rebuild(views)
        error = masked_voxel_error if self.config.form == "dense" else masked_patch_error
        return Losses.of(reconstruction=error(prediction, target, views["target"]).mean(), seen={"features": features})

    def _rebuild(self, views: Views) -> tuple[Tensor, Tensor, Tensor]:
        """Return the prediction, the target, and one feature vector a sample, (B, F)."""
        image = views["image"]
        if self.config.form == "dense":
            maps = self.encoder(image.masked_fill(views["mask"], 0))
            cells = self.head(maps[0].movedim(1, -1)).flatten(1, -2)  # (B, cells, C s^n)
            # MONAI's convolutions halve odd sizes upwards: the map may reach past the crop's end.
            shape = tuple(size * stride for size, stride in zip(maps[0].shape[2:], self.stride))
            rebuilt = unpatchify(cells, self.stride, shape)
            for axis, size in enumerate(image.shape[2:], start=2):
                rebuilt = rebuilt.narrow(axis, 0, size)
            return rebuilt, image, maps[-1].flatten(2).mean(2)
        patches = patchify(image, self.patch)  # (B, N, P)
        tokens = self.encoder.tokens(image, views["keep"], spacing_mm=views["spacing"])  # (B, M, F)
        visible = self.embed(tokens)
        full = self.hidden_token.to(visible.dtype).expand(len(image), patches.shape[1], -1)
        full = full.scatter(1, views["keep"][..., None].expand_as(visible), visible)  # (B, N, width)
        grid = tuple(size // patch for size, patch in zip(image.shape[2:], self.patch))
        positions = self.encoder.positions(grid, views["spacing"], width=full.shape[-1], device=full.device)
        full = full + positions.to(full.dtype)
        for layer in self.decoder:
            full = layer(full)
        return self.head(full), standardized_patches(patches.float(), floor=self.config.floor), tokens.mean(1)

    def panels(self, views: Views) -> dict[str, Tensor]:
        """Return one picture: a slice as it is, as the encoder saw it, and rebuilt where it was hidden."""
        prediction, _, _ = self._rebuild(views)
        image, mask, target = views["image"], views["mask"], views["target"]
        shape = tuple(image.shape[2:])
        if self.config.form == "tokens":
            patches = patchify(image, self.patch)
            mean, sd = patches.mean(-1, keepdim=True), patches.std(-1, keepdim=True).clamp_min(self.config.floor)
            whole = torch.where(mask[..., None], prediction.float() * sd + mean, patches)
            prediction = unpatchify(whole, self.patch, shape)
            voxels = _volume(self.patch)
            mask, target = (
                unpatchify(m[..., None].expand(*m.shape, voxels).float(), self.patch, shape) > 0.5
                for m in (mask, target)
            )
        low = image.flatten(1).amin(1).reshape(-1, *(1,) * (image.ndim - 1))
        seen = torch.where(mask, low, image)
        rebuilt = torch.where(mask, prediction.float(), image)
        return {"reconstruction": _strip(target, image, seen, rebuilt)}


def _volume(sizes: tuple[int, ...]) -> int:
    out = 1
    for size in sizes:
        out *= size
    return out


def _real_voxels(box: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return (B, 1, *shape) bool, True within each sample's box (B, 2, n)."""
    mask = torch.ones(len(box), 1, *shape, dtype=torch.bool, device=box.device)
    for axis, size in enumerate(shape):
        at = torch.arange(size, device=box.device)
        part = (at >= box[:, 0, axis, None]) & (at < box[:, 1, axis, None])  # (B, size)
        mask = mask & part.reshape(len(box), 1, *(size if a == axis else 1 for a in range(len(shape))))
    return mask


def _strip(target: Tensor, *images: Tensor, samples: int = 4) -> Tensor:
    """Lay the slices in which most was to be rebuilt side by side, one column an image: (1, H, W) in [0, 1]."""
    rows = []
    for sample in range(min(samples, len(images[0]))):
        first = images[0][sample, 0]
        low, high = first.min(), first.max()
        row = []
        for image in images:
            picture = image[sample, 0].float()
            if picture.ndim == 3:
                picture = picture[..., int(target[sample, 0].flatten(0, 1).sum(0).argmax())]
            picture = ((picture - low) / (high - low).clamp_min(1e-6)).clamp(0, 1).mT.flip(0)  # anterior up
            row.append(functional.pad(picture, (2, 2, 2, 2), value=1.0))
        rows.append(torch.cat(row, 1))
    return torch.cat(rows, 0)[None]
