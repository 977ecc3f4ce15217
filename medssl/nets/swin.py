"""Swin transformer as an encoder: attention in shifted windows, four stages, each at half the resolution of the last.

Liu et al. 2021, arXiv:2103.14030; in 3D Hatamizadeh et al. 2022, Swin UNETR, arXiv:2201.01266, in MONAI's class. Its
file loads strictly into the `swinViT` of a MONAI SwinUNETR of the same knobs.

The finest map comes from the patch embedding alone: a method that trains the finest map only trains nothing of the
stages. Only the coarsest map reaches every parameter.

Shapes: B batch, C channels, D H W voxels, F features.
"""

from __future__ import annotations

from typing import Any

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
