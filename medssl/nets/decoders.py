"""Task networks that MONAI has no single class for: an encoder's network and a decoder of MONAI's blocks.

This file needs torch and MONAI alone, and timm for its networks: an exported bundle carries a copy of it.

- `PatchUNETR`: UNETR (Hatamizadeh et al. 2022, arXiv:2103.10504) for a ViT of any patch and depth; with patches of 16
  and 12 blocks it is MONAI's UNETR.
- `LightViT`, `LightSwin`, `LightTimm`: few weights beside the encoder's, and no skip from the image, so that what is
  found was in the features.

Shapes: B batch, C channels, D H W voxels, F features, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.networks.blocks import Convolution, UnetOutBlock, UnetrBasicBlock, UnetrPrUpBlock, UnetrUpBlock
from monai.networks.layers.factories import Conv
from monai.networks.nets.swin_unetr import SwinTransformer
from monai.networks.nets.vit import ViT
from torch import Tensor, nn

_NARROWEST = 16
_GROUPS = 8


def steps_up(stride: Sequence[int]) -> list[list[int]]:
    """Return the steps from a map of this stride up to the image, coarsest first: the prime factors of each axis.

    An axis of few factors takes its steps early: thick slices are as fine as they get while the others still grow.
    """
    factors = [_primes(n) for n in stride]
    count = max(1, *(len(axis) for axis in factors))
    return [[axis[i] if i < len(axis) else 1 for axis in factors] for i in range(count)]


def _primes(n: int) -> list[int]:
    """Return the prime factors of n, largest first."""
    out, divisor = [], 2
    while n > 1:
        while n % divisor == 0:
            out.append(divisor)
            n //= divisor
        divisor += 1
    return out[::-1]


class PatchUNETR(nn.Module):
    """UNETR for a ViT of any patch and depth.

    Args:
        vit: arguments of MONAI's ViT.
        out_channels: K.
        feature_size: features at the image's resolution; they double at each coarser level.
    """

    def __init__(self, vit: dict[str, Any], out_channels: int, feature_size: int = 16) -> None:
        super().__init__()
        self.vit = ViT(**vit)
        axes, hidden, self.patch = int(vit["spatial_dims"]), int(vit["hidden_size"]), list(vit["patch_size"])
        steps, depth = steps_up(self.patch), int(vit["num_layers"])
        levels = len(steps)
        # As UNETR: after a quarter, a half, three quarters; the deeper a map, the coarser its level.
        self.taps = [depth * (levels - level) // levels for level in range(1, levels)]
        widths = [feature_size * 2 ** (levels - level) for level in range(1, levels + 1)]  # coarsest first
        block: dict[str, Any] = {"kernel_size": 3, "norm_name": "instance", "res_block": True}
        self.image = UnetrBasicBlock(axes, int(vit["in_channels"]), widths[-1], stride=1, **block)
        self.skips = nn.ModuleList(
            _projection(axes, hidden, width, steps[: level + 1], block) for level, width in enumerate(widths[:-1])
        )
        self.ups = nn.ModuleList(
            UnetrUpBlock(axes, below, width, upsample_kernel_size=step, **block)
            for below, width, step in zip([hidden, *widths[:-1]], widths, steps)
        )
        self.out = UnetOutBlock(axes, widths[-1], out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K, ...) of an image (B, C, ...)."""
        deepest, *maps = _token_maps(self.vit, x, self.patch, self.taps)
        out = deepest
        for up, skip, tokens in zip(self.ups, self.skips, maps):
            out = up(out, skip(tokens))
        return self.out(self.ups[-1](out, self.image(x)))  # type: ignore[no-any-return]


def _projection(axes: int, hidden: int, width: int, steps: list[list[int]], block: dict[str, Any]) -> nn.Module:
    """Return UNETR's way of a token map up by these steps; its own block takes but one step size for all of them."""
    first: dict[str, Any] = {"num_layer": 0, "stride": 1, "kernel_size": 3, "norm_name": "instance"}
    parts: list[nn.Module] = [UnetrPrUpBlock(axes, hidden, width, upsample_kernel_size=steps[0], **first)]
    for step in steps[1:]:
        parts.append(UnetrPrUpBlock(axes, width, width, upsample_kernel_size=step, **first))
        parts.append(UnetrBasicBlock(axes, width, width, stride=1, **block))
    return nn.Sequential(*parts)


def _token_maps(vit: ViT, x: Tensor, patch: Sequence[int], taps: Sequence[int]) -> list[Tensor]:
    """Return the tokens after the last norm, then those after the blocks in `taps`, (B, F, gd, gh, gw) each."""
    tokens, hidden = vit(x)
    grid = [n // p for n, p in zip(x.shape[2:], patch)]
    return [t.transpose(1, 2).reshape(len(x), -1, *grid) for t in (tokens, *(hidden[tap] for tap in taps))]


class LightDecoder(nn.Module):
    """Feature maps to logits: maps of equal stride are mixed, coarse ones enlarged and added to finer ones.

    Args:
        spatial_dims: axes of the image.
        channels: of each map.
        strides: of each map, one number an axis.
        out_channels: K.
        width: features of every level; they halve, down to 16, on the way from the finest map to the image.
    """

    def __init__(
        self,
        spatial_dims: int,
        channels: Sequence[int],
        strides: Sequence[Sequence[int]],
        out_channels: int,
        width: int = 64,
    ) -> None:
        super().__init__()
        self.strides = [tuple(stride) for stride in strides]
        self.levels = sorted(set(self.strides), reverse=True)  # coarsest first
        inputs = [sum(c for c, s in zip(channels, self.strides) if s == level) for level in self.levels]
        self.laterals = nn.ModuleList(_convolution(spatial_dims, c, width, 1) for c in inputs)
        ratios = [[a // b for a, b in zip(*pair)] for pair in zip(self.levels, self.levels[1:])]
        self.between = nn.ModuleList(_enlarge(spatial_dims, width, width, ratio) for ratio in ratios)
        self.mixes = nn.ModuleList(_convolution(spatial_dims, width, width, 3) for _ in self.levels)
        parts: list[nn.Module] = []
        for step in steps_up(self.levels[-1]):
            narrower = max(_NARROWEST, width // 2)
            parts += [_enlarge(spatial_dims, width, narrower, step), _convolution(spatial_dims, narrower, narrower, 3)]
            width = narrower
        self.rise = nn.Sequential(*parts)
        self.out = UnetOutBlock(spatial_dims, width, out_channels)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return logits (B, K, ...) at the image's resolution.

        Args:
            maps: (B, F, ...) each, in the order of `channels` and `strides`.
        """
        out: Tensor | None = None
        for number, level in enumerate(self.levels):
            own = self.laterals[number](torch.cat([m for m, s in zip(maps, self.strides) if s == level], 1))
            out = own if out is None else own + self.between[number - 1](out)
            out = self.mixes[number](out)
        return self.out(self.rise(out))  # type: ignore[no-any-return]


def _convolution(axes: int, inputs: int, width: int, kernel: int) -> nn.Module:
    # Group norm: it does with maps of one cell, which instance norm cannot.
    act = ("leakyrelu", {"inplace": True, "negative_slope": 0.01})
    norm = ("group", {"num_groups": _GROUPS})
    return Convolution(axes, inputs, width, kernel_size=kernel, act=act, norm=norm)  # type: ignore[no-any-return]


def _enlarge(axes: int, inputs: int, width: int, step: Sequence[int]) -> nn.Module:
    size = tuple(step)
    return Conv[Conv.CONVTRANS, axes](inputs, width, kernel_size=size, stride=size)  # type: ignore[no-any-return]


class LightViT(nn.Module):
    """A ViT under a light decoder.

    Args:
        vit: arguments of MONAI's ViT.
        out_channels: K.
        width: features of the decoder.
    """

    def __init__(self, vit: dict[str, Any], out_channels: int, width: int = 64) -> None:
        super().__init__()
        self.vit = ViT(**vit)
        depth, self.patch = int(vit["num_layers"]), list(vit["patch_size"])
        self.taps = sorted({depth // 4, depth // 2, 3 * depth // 4} - {depth - 1}, reverse=True)
        levels = 1 + len(self.taps)
        axes, hidden = int(vit["spatial_dims"]), int(vit["hidden_size"])
        self.decoder = LightDecoder(axes, [hidden] * levels, [self.patch] * levels, out_channels, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K, ...) of an image (B, C, ...)."""
        return self.decoder(_token_maps(self.vit, x, self.patch, self.taps))  # type: ignore[no-any-return]


class LightSwin(nn.Module):
    """A Swin transformer under a light decoder.

    Args:
        swin: arguments of MONAI's SwinTransformer.
        out_channels: K.
        width: features of the decoder.
    """

    def __init__(self, swin: dict[str, Any], out_channels: int, width: int = 64) -> None:
        super().__init__()
        self.swinViT = SwinTransformer(**swin)
        axes, stages = int(swin["spatial_dims"]), len(swin["depths"])
        channels = [int(swin["embed_dim"]) * 2**level for level in range(stages + 1)]
        strides = [[int(p) * 2**level for p in swin["patch_size"]] for level in range(stages + 1)]
        self.decoder = LightDecoder(axes, channels, strides, out_channels, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K, ...) of an image (B, C, ...)."""
        return self.decoder(self.swinViT(x))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Level:
    """A feature map of a timm network."""

    index: int
    """Its number among timm's intermediates."""
    channels: int
    """F."""
    stride: int
    """Pixels between neighbours, along both axes."""


def timm_network(model: str, in_channels: int) -> nn.Module:
    """Return a timm network with fresh weights and no classifier, for pictures of any size where it can be so.

    What comes after its maps, such as the norm before a classifier, has its name in files but learns nothing.
    """
    net = _timm(model, in_channels)
    with torch.device("meta"):
        maps_alone: Any = _timm(model, in_channels)
    maps_alone.prune_intermediate_layers(None, prune_norm=False, prune_head=True)
    reached = {name for name, _ in maps_alone.named_parameters()}
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name in reached)
    return net


def _timm(model: str, in_channels: int) -> nn.Module:
    import timm

    arguments: dict[str, Any] = {"pretrained": False, "in_chans": in_channels, "num_classes": 0}
    try:
        # A ViT interpolates its table of positions then, which keeps the shape it has in timm's files.
        return timm.create_model(model, **arguments, dynamic_img_size=True)  # type: ignore[no-any-return]
    except TypeError:
        return timm.create_model(model, **arguments)  # type: ignore[no-any-return]


def timm_levels(net: nn.Module) -> list[Level]:
    """Return a timm network's maps: every stage's, finest first; of a ViT those at four depths, the deepest first."""
    info: Any = net.feature_info
    levels = [Level(n, int(one["num_chs"]), int(one["reduction"])) for n, one in enumerate(info)]
    if len({level.stride for level in levels}) > 1:
        return levels
    depth = len(levels)
    return [levels[n] for n in sorted({depth // 4, depth // 2, 3 * depth // 4, depth - 1}, reverse=True)]


def timm_maps(net: Any, x: Tensor, levels: Sequence[Level]) -> list[Tensor]:
    """Return a timm network's maps of these levels, in their order, (B, F, ...) each; a ViT's after its last norm."""
    order = sorted(level.index for level in levels)
    maps = dict(zip(order, net.forward_intermediates(x, indices=order, norm=True, intermediates_only=True)))
    return [maps[level.index] for level in levels]


class LightTimm(nn.Module):
    """A timm network under a light decoder.

    Args:
        model: timm's name of it.
        in_channels: C.
        out_channels: K.
        width: features of the decoder.
    """

    def __init__(self, model: str, in_channels: int, out_channels: int, width: int = 64) -> None:
        super().__init__()
        self.encoder = timm_network(model, in_channels)
        self.levels = timm_levels(self.encoder)
        channels, strides = [n.channels for n in self.levels], [[n.stride, n.stride] for n in self.levels]
        self.decoder = LightDecoder(2, channels, strides, out_channels, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K, H, W) of an image (B, C, H, W)."""
        return self.decoder(timm_maps(self.encoder, x, self.levels))  # type: ignore[no-any-return]
