"""ViT as an encoder: any choice of patches, positions in millimetres.

Dosovitskiy et al. 2021, arXiv:2010.11929, in MONAI's class, whose weights it shares name by name. Two things differ in
how it is run: patches a method hides are left out before they are embedded (He et al. 2022, arXiv:2111.06377), and
attention is torch's fused one. Positions are fixed sines and cosines of the patch centre in mm from the middle of the
crop; for the recipe's crop and spacing they stand in `net`'s own table, so that MONAI's class computes the same.

Shapes: B batch, C channels, D H W voxels, N patches of the grid, M patches kept, P voxels of a patch, F features.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from monai.networks.nets import ViT as MonaiViT
from torch import Tensor
from torch.nn import functional

from ..errors import RecipeError
from .config import ViTConfig
from .encoder import Encoder
from .patches import grid_of, patchify


def patch_centres(
    grid: tuple[int, ...], patch: tuple[int, ...], spacing_mm: Tensor | tuple[float, ...], device: torch.device | str
) -> Tensor:
    """Return where patches lie, in mm from the middle of the crop along its axes.

    Args:
        grid: patches along each axis.
        patch: voxels of a patch along each axis.
        spacing_mm: one an axis, or (B, axes).

    Returns:
        (1 or B, N, axes) float32, row-major over the grid.
    """
    axes = [(torch.arange(n, device=device) - (n - 1) / 2) * p for n, p in zip(grid, patch)]
    voxels = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)  # (N, axes)
    spacing = torch.as_tensor(spacing_mm, dtype=torch.float32, device=device).reshape(-1, 1, len(grid))
    return voxels * spacing


def sine_positions(centres: Tensor, width: int, wavelengths_mm: tuple[float, float]) -> Tensor:
    """Turn points into vectors: sines and cosines over waves spaced evenly in their logarithm.

    Args:
        centres: (..., axes), mm.
        width: features F; what does not divide by 2 x axes is filled with zeros.
        wavelengths_mm: shortest and longest wave.

    Returns:
        (..., F) float32: the sines of every axis, then the cosines.
    """
    count = width // (2 * centres.shape[-1])
    if count == 0:
        raise ValueError(f"{width} features are too few for positions along {centres.shape[-1]} axes")
    shortest, longest = wavelengths_mm
    span = torch.linspace(math.log(shortest), math.log(longest), count, device=centres.device)
    phase = (centres.float()[..., None] * (2 * math.pi / span.exp())).flatten(-2)  # (..., axes x count)
    return functional.pad(torch.cat([phase.sin(), phase.cos()], -1), (0, width - 2 * phase.shape[-1]))


class ViT(Encoder):
    """Tokens of a ViT, and maps of them at four depths."""

    derived: ClassVar[tuple[str, ...]] = ("patch_embedding.position_embeddings",)

    def __init__(
        self, config: ViTConfig, *, channels: int, shape: tuple[int, ...], spacing_mm: tuple[float, ...] | None
    ) -> None:
        super().__init__(config, channels=channels, shape=shape, spacing_mm=spacing_mm)
        axes = len(shape)
        self.patch = (config.patch,) * axes if isinstance(config.patch, int) else tuple(config.patch)
        if len(self.patch) != axes or any(n % p for n, p in zip(shape, self.patch)):
            raise RecipeError(
                f"a crop of {shape} voxels is no whole number of patches of {self.patch}",
                where="encoder.patch",
                fix="change loader.crop or encoder.patch",
            )
        self.width, self.wavelengths_mm = config.width, config.wavelengths_mm
        self.spacing_mm = (1.0,) * axes if spacing_mm is None else tuple(spacing_mm)
        self.grid = grid_of(shape, self.patch)
        self.net: Any = MonaiViT(**vit_arguments(config, channels=channels, shape=shape))
        for block in self.net.blocks:
            block.attn.use_flash_attention = True  # the same weights through torch's fused attention
            block.norm_cross_attn.requires_grad_(False)  # MONAI makes it, nothing uses it
        table = self.net.patch_embedding.position_embeddings.requires_grad_(False)
        with torch.no_grad():
            table.copy_(self.positions(self.grid))
        depth = config.depth
        self.taps = tuple(sorted({depth // 4, depth // 2, 3 * depth // 4}))
        levels = 1 + len(self.taps)
        self.out_channels = (config.width,) * levels
        self.strides = (self.patch,) * levels

    def positions(
        self,
        grid: tuple[int, ...],
        spacing_mm: Tensor | tuple[float, ...] | None = None,
        *,
        width: int | None = None,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Return the position vectors of a grid, (1 or B, N, F) float32.

        Args:
            grid: patches along each axis.
            spacing_mm: of the images, one an axis or (B, axes); the recipe's unless given.
            width: features F; the encoder's unless given (a decoder has its own).
            device: where to make them.
        """
        spacing = self.spacing_mm if spacing_mm is None else spacing_mm
        return sine_positions(
            patch_centres(grid, self.patch, spacing, device), width or self.width, self.wavelengths_mm
        )

    def embed(
        self, x: Tensor, keep: Tensor | None = None, spacing_mm: Tensor | tuple[float, ...] | None = None
    ) -> Tensor:
        """Return the kept patches, embedded, with their positions, (B, M, F)."""
        grid = grid_of(tuple(x.shape[2:]), self.patch)
        positions: Tensor
        if grid == self.grid and spacing_mm is None:
            positions = self.net.patch_embedding.position_embeddings  # (1, N, F)
        else:
            positions = self.positions(grid, spacing_mm, device=x.device)  # (1 or B, N, F)
        patches = patchify(x, self.patch)  # (B, N, P)
        if keep is not None:
            patches = _take(patches, keep)  # (B, M, P)
            positions = _take(positions.expand(len(x), -1, -1), keep)  # (B, M, F)
        linear = self.net.patch_embedding.patch_embeddings  # a convolution whose stride is its kernel: a linear map
        return functional.linear(patches, linear.weight.flatten(1), linear.bias) + positions

    def tokens(
        self, x: Tensor, keep: Tensor | None = None, spacing_mm: Tensor | tuple[float, ...] | None = None
    ) -> Tensor:
        """Return the tokens of the kept patches after the last norm; the others are never looked at.

        Args:
            x: (B, C, D, H, W) or (B, C, H, W), whole patches along each axis.
            keep: (B, M) int64, patches of each image in row-major order; all unless given.
            spacing_mm: of these images, one an axis or (B, axes); the recipe's unless given.

        Returns:
            (B, M, F).
        """
        tokens = self.embed(x, keep, spacing_mm)
        for block in self.net.blocks:
            tokens = block(tokens)
        return self.net.norm(tokens)  # type: ignore[no-any-return]

    def forward(self, x: Tensor, **context: Any) -> list[Tensor]:
        """Return maps of one stride, (B, F, gd, gh, gw) each, the deepest first.

        The first is after the last norm, and gives every parameter a gradient; then come the tokens at three, two and
        one quarter of the depth, where UNETR (arXiv:2103.10504) taps them.
        """
        grid = grid_of(tuple(x.shape[2:]), self.patch)
        tokens, maps = self.embed(x, spacing_mm=context.get("spacing_mm")), []
        for index, block in enumerate(self.net.blocks):
            tokens = block(tokens)
            if index in self.taps:
                maps.append(tokens)
        maps.append(self.net.norm(tokens))
        return [
            tokens.transpose(1, 2).reshape(len(x), -1, *grid) for tokens in reversed(maps)
        ]  # (B, N, F) -> (B, F, ...)

    def pooled(self, x: Tensor, **context: Any) -> Tensor:
        """Return the mean of all tokens, (B, F)."""
        return self.tokens(x, spacing_mm=context.get("spacing_mm")).mean(1)


def _take(x: Tensor, keep: Tensor) -> Tensor:
    """Return rows of each sample: (B, N, F) and (B, M) to (B, M, F)."""
    return torch.gather(x, 1, keep[..., None].expand(-1, -1, x.shape[-1]))


def vit_arguments(config: ViTConfig, *, channels: int, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return the arguments of MONAI's ViT, as plain JSON types."""
    patch = [config.patch] * len(shape) if isinstance(config.patch, int) else list(config.patch)
    return {
        "in_channels": channels,
        "img_size": list(shape),
        "patch_size": patch,
        "hidden_size": config.width,
        "mlp_dim": config.mlp,
        "num_layers": config.depth,
        "num_heads": config.heads,
        "proj_type": "conv",
        "pos_embed_type": "learnable",
        "spatial_dims": len(shape),
        "qkv_bias": config.qkv_bias,
        "save_attn": False,
    }
