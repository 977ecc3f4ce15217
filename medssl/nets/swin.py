"""Swin transformer as an encoder: attention in shifted windows, four stages, each at half the resolution of the last.

Liu et al. 2021, arXiv:2103.14030; in 3D Hatamizadeh et al. 2022, Swin UNETR, arXiv:2201.01266, in MONAI's class. Its
file loads strictly into the `swinViT` of a MONAI SwinUNETR of the same knobs.

Without its decoder the finest map comes from the patch embedding alone: a method that learns from the finest map only
trains nothing of the stages. With it the whole SwinUNETR is pretrained, and every parameter gets a gradient from there.

Shapes: B batch, C channels, D H W voxels, F features.
"""

from __future__ import annotations

from typing import Any, ClassVar

from monai.networks.nets import SwinUNETR
from monai.networks.nets.swin_unetr import SwinTransformer
from torch import Tensor

from ..errors import RecipeError
from .config import SwinConfig
from .encoder import Encoder

PATCH = 2
"""Voxels of a patch along each axis: SwinUNETR's decoder doubles once for the patch and once for each stage."""
STAGES = 4


def swin_window(config: SwinConfig, axes: int) -> list[int]:
    """Return the voxels of an attention window along each axis, in voxels of the stage's own map."""
    window = [config.window] * axes if isinstance(config.window, int) else list(config.window)
    if len(window) != axes:
        raise RecipeError(f"a window of {config.window} does not fit images of {axes} axes", where="encoder.window")
    return window


def swin_arguments(config: SwinConfig, *, channels: int, axes: int) -> dict[str, Any]:
    """Return the arguments of MONAI's SwinTransformer, as plain JSON types."""
    return {
        "in_chans": channels,
        "embed_dim": config.width,
        "window_size": swin_window(config, axes),
        "patch_size": [PATCH] * axes,
        "depths": list(config.depths),
        "num_heads": list(config.heads),
        "qkv_bias": config.qkv_bias,
        "spatial_dims": axes,
        "use_v2": config.convolutions,
    }


def swin_unetr_arguments(config: SwinConfig, *, channels: int, axes: int, out_channels: int) -> dict[str, Any]:
    """Return the arguments of MONAI's SwinUNETR, as plain JSON types."""
    return {
        "in_channels": channels,
        "out_channels": out_channels,
        "depths": list(config.depths),
        "num_heads": list(config.heads),
        "window_size": swin_window(config, axes),
        "qkv_bias": config.qkv_bias,
        "feature_size": config.width,
        "spatial_dims": axes,
        "use_v2": config.convolutions,
    }


def check_bottom(shape: tuple[int, ...]) -> None:
    """Raise RecipeError where SwinUNETR would normalise a single voxel."""
    if all(n <= PATCH * 2**STAGES for n in shape):
        raise RecipeError(
            f"a crop of {shape} voxels leaves one voxel at the bottom of SwinUNETR, which cannot be normalized",
            where="loader.crop",
            fix="enlarge the crop along one axis, or take the light decoder",
        )


def build_swin(
    config: SwinConfig, *, channels: int, shape: tuple[int, ...], spacing_mm: tuple[float, ...] | None
) -> Encoder:
    """Build the transformer alone, or the whole SwinUNETR, as the section says."""
    kind = SwinUNETREncoder if config.decoder else SwinEncoder
    return kind(config, channels=channels, shape=shape, spacing_mm=spacing_mm)


class SwinEncoder(Encoder):
    """Five maps of a Swin transformer, each normalised over its channels: the patches, then what each stage makes."""

    finest_trains_all = False

    def __init__(
        self, config: SwinConfig, *, channels: int, shape: tuple[int, ...], spacing_mm: tuple[float, ...] | None
    ) -> None:
        super().__init__(config, channels=channels, shape=shape, spacing_mm=spacing_mm)
        axes = len(shape)
        self.net: Any = SwinTransformer(**swin_arguments(config, channels=channels, axes=axes))
        self.strides = tuple((PATCH * 2**level,) * axes for level in range(STAGES + 1))
        self.out_channels = tuple(config.width * 2**level for level in range(STAGES + 1))

    def forward(self, x: Tensor, **context: Any) -> list[Tensor]:
        """Return the five maps, finest first, (B, F, ...) each, F doubling at each."""
        self.check_shape(tuple(x.shape[2:]))
        return list(self.net(x))


class SwinUNETREncoder(Encoder):
    """Six maps of a SwinUNETR: its output, the decoder's coarser levels, the bottom."""

    head: ClassVar[tuple[str, ...]] = ("out.",)

    def __init__(
        self, config: SwinConfig, *, channels: int, shape: tuple[int, ...], spacing_mm: tuple[float, ...] | None
    ) -> None:
        super().__init__(config, channels=channels, shape=shape, spacing_mm=spacing_mm)
        axes = len(shape)
        check_bottom(shape)
        arguments = swin_unetr_arguments(config, channels=channels, axes=axes, out_channels=config.features)
        self.net: Any = SwinUNETR(**arguments)
        self.strides = tuple((2**level,) * axes for level in range(STAGES + 2))
        self.out_channels = (config.features, *(config.width * 2**level for level in range(STAGES + 1)))

    def forward(self, x: Tensor, **context: Any) -> list[Tensor]:
        """Return the output, the decoder's coarser maps and the bottom, finest first, (B, F, ...) each."""
        self.check_shape(tuple(x.shape[2:]))
        net = self.net
        *stages, deepest = net.swinViT(x, net.normalize)
        skips = [block(hidden) for block, hidden in zip((net.encoder2, net.encoder3, net.encoder4), stages)]
        ups = (net.decoder5, net.decoder4, net.decoder3, net.decoder2, net.decoder1)
        maps = [net.encoder10(deepest)]
        for up, skip in zip(ups, (stages[-1], *reversed(skips), net.encoder1(x)), strict=True):
            maps.append(up(maps[-1], skip))
        maps[-1] = net.out(maps[-1])
        return maps[::-1]

    def pooled(self, x: Tensor, **context: Any) -> Tensor:
        """Return the mean of the bottom, (B, F); the decoder does not run, and gets no gradient from here."""
        self.check_shape(tuple(x.shape[2:]))
        return self.net.encoder10(self.net.swinViT(x, self.net.normalize)[-1]).flatten(2).mean(2)  # type: ignore[no-any-return]
