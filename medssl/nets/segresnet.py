"""SegResNet as an encoder: the whole network is pretrained, decoder included.

Myronenko 2018, 3D MRI brain tumor segmentation using autoencoder regularization, arXiv:1810.11654, in MONAI's class
(without the variational branch). Every parameter gets a gradient from the finest map.

Shapes: B batch, C channels, D H W voxels, F features.
"""

from __future__ import annotations

from typing import Any, ClassVar

from monai.networks.nets import SegResNet
from torch import Tensor

from .config import SegResNetConfig
from .encoder import Encoder


def segresnet_arguments(config: SegResNetConfig, *, channels: int, axes: int, out_channels: int) -> dict[str, Any]:
    """Return the arguments of MONAI's SegResNet, as plain JSON types."""
    return {
        "spatial_dims": axes,
        "init_filters": config.channels,
        "in_channels": channels,
        "out_channels": out_channels,
        "blocks_down": list(config.blocks_down),
        "blocks_up": list(config.blocks_up),
    }


class SegResNetEncoder(Encoder):
    """Feature maps of a SegResNet: its output, the decoder's coarser levels, the bottom."""

    head: ClassVar[tuple[str, ...]] = ("conv_final.2.",)

    def __init__(
        self, config: SegResNetConfig, *, channels: int, shape: tuple[int, ...], spacing_mm: tuple[float, ...] | None
    ) -> None:
        super().__init__(config, channels=channels, shape=shape, spacing_mm=spacing_mm)
        axes, levels = len(shape), len(config.blocks_down)
        self.net: Any = SegResNet(
            **segresnet_arguments(config, channels=channels, axes=axes, out_channels=config.features)
        )
        self.strides = tuple((2**level,) * axes for level in range(levels))
        self.out_channels = (config.features, *(config.channels * 2**level for level in range(1, levels)))

    def forward(self, x: Tensor, **context: Any) -> list[Tensor]:
        """Return the output, the decoder's coarser maps and the bottom, finest first, (B, F, ...) each."""
        self.check_shape(tuple(x.shape[2:]))
        up, skips = self.net.encode(x)
        maps = [up]
        for sample, block, skip in zip(self.net.up_samples, self.net.up_layers, reversed(skips[:-1])):
            up = block(sample(up) + skip)
            maps.append(up)
        maps[-1] = self.net.conv_final(up)
        return maps[::-1]

    def pooled(self, x: Tensor, **context: Any) -> Tensor:
        """Return the mean of the bottom map, (B, F); the decoder does not run, and gets no gradient from here."""
        self.check_shape(tuple(x.shape[2:]))
        return self.net.encode(x)[0].flatten(2).mean(2)  # type: ignore[no-any-return]
