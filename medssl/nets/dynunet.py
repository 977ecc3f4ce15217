"""DynUNet as an encoder: the whole U-Net is pretrained, decoder included.

Isensee et al. 2021, nnU-Net, arXiv:1809.10486, in MONAI's class. Every parameter gets a gradient from the finest map.

Shapes: B batch, C channels, D H W voxels, F features.
"""

from __future__ import annotations

from typing import Any, ClassVar

from monai.networks.nets import DynUNet
from torch import Tensor

from ..errors import RecipeError
from .config import DynUNetConfig
from .encoder import Encoder

NORMS: dict[str, Any] = {
    "instance": ("INSTANCE", {"affine": True}),
    "group": ("GROUP", {"num_groups": 8}),
    "batch": "BATCH",
}


def axis_strides(config: DynUNetConfig, axes: int) -> list[list[int]]:
    """Return each level's step along each axis."""
    out = [[s] * axes if isinstance(s, int) else list(s) for s in config.strides]
    if any(len(step) != axes for step in out):
        raise RecipeError(f"strides {config.strides} do not fit images of {axes} axes", where="encoder.strides")
    return out


def dynunet_arguments(config: DynUNetConfig, *, channels: int, axes: int, out_channels: int) -> dict[str, Any]:
    """Return the arguments of MONAI's DynUNet, as plain JSON types."""
    strides = axis_strides(config, axes)
    norm = NORMS[config.norm]
    return {
        "spatial_dims": axes,
        "in_channels": channels,
        "out_channels": out_channels,
        "kernel_size": [[3] * axes] * len(strides),
        "strides": strides,
        "upsample_kernel_size": strides[1:],
        "filters": list(config.channels),
        "dropout": config.dropout,
        "norm_name": norm if isinstance(norm, str) else list(norm),
        "res_block": config.residual,
    }


def decoder_maps(net: Any, x: Tensor) -> list[Tensor]:
    """Return a DynUNet's output, its decoder's coarser maps and its bottleneck, finest first.

    Args:
        net: MONAI's DynUNet.
        x: (B, C, ...), each axis a multiple of its strides.
    """
    *skips, up = _maps_down(net, x)
    maps = [up]
    for block, skip in zip(net.upsamples, reversed(skips)):
        up = block(up, skip)
        maps.append(up)
    maps[-1] = net.output_block(up)
    return maps[::-1]


def _maps_down(net: Any, x: Tensor) -> list[Tensor]:
    """Return the maps on the way down, finest first, the bottleneck last."""
    maps = [net.input_block(x)]
    for block in net.downsamples:
        maps.append(block(maps[-1]))
    return [*maps, net.bottleneck(maps[-1])]


class DynUNetEncoder(Encoder):
    """Feature maps of a DynUNet: its output, the decoder's coarser levels, the bottleneck."""

    # The deepest level's strides are the bottleneck's; `pooled` needs no decoder.
    head: ClassVar[tuple[str, ...]] = ("output_block.",)

    def __init__(
        self, config: DynUNetConfig, *, channels: int, shape: tuple[int, ...], spacing_mm: tuple[float, ...] | None
    ) -> None:
        super().__init__(config, channels=channels, shape=shape, spacing_mm=spacing_mm)
        axes = len(shape)
        self.net: Any = DynUNet(**dynunet_arguments(config, channels=channels, axes=axes, out_channels=config.features))
        strides, step = [], [1] * axes
        for level in axis_strides(config, axes):
            step = [a * b for a, b in zip(step, level)]
            strides.append(tuple(step))
        self.strides = tuple(strides)
        self.out_channels = (config.features, *config.channels[1:])
        if config.norm != "group" and all(n <= s for n, s in zip(shape, self.strides[-1])):
            raise RecipeError(
                f"a crop of {shape} voxels leaves one voxel at the bottom of a DynUNet with strides {config.strides}, "
                "which cannot be normalized",
                where="loader.crop",
                fix="enlarge the crop, or drop a level",
            )

    def forward(self, x: Tensor, **context: Any) -> list[Tensor]:
        """Return the output, the decoder's coarser maps and the bottleneck, finest first, (B, F, ...) each."""
        self.check_shape(tuple(x.shape[2:]))
        return decoder_maps(self.net, x)

    def pooled(self, x: Tensor, **context: Any) -> Tensor:
        """Return the mean of the bottleneck, (B, F); the decoder does not run, and gets no gradient from here."""
        self.check_shape(tuple(x.shape[2:]))
        return _maps_down(self.net, x)[-1].flatten(2).mean(2)
