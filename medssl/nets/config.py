"""What a recipe may say of its encoder; imports no torch, so that recipes are read at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from ..config import Section


class _EncoderSection(Section):
    weights: Path | None = None
    """Weights to start from: a network folder, a run, a `.safetensors` file, or a `.pt` file of plain tensors."""
    weights_prefix: str = ""
    """What the names in `weights` begin with before the network's own names, such as `module.`."""
    allow_partial: bool = False
    """Start even though some of the encoder finds no weights; the receipt lists what is missing."""


class DynUNetConfig(_EncoderSection):
    """MONAI's DynUNet, the U-Net of nnU-Net; its decoder is part of the encoder and is kept for fine-tuning."""

    name: Literal["dynunet"] = "dynunet"
    channels: tuple[PositiveInt, ...] = (24, 48, 96)
    """Channels of each level, finest first; at least three levels."""
    strides: tuple[PositiveInt | tuple[PositiveInt, ...], ...] = (2, 2, 2)
    """Step of each level, one number or one an axis. A first step of 2 lets the network work at half resolution."""
    features: PositiveInt = 32
    """Channels of the finest feature map, which the output block makes."""
    residual: bool = True
    """Residual blocks on the way down."""
    norm: Literal["instance", "group", "batch"] = "instance"
    """Normalization; `batch` makes a sample depend on the others of its batch."""
    dropout: float | None = Field(None, ge=0, lt=1)
    """Share of activations set to zero in training."""

    @model_validator(mode="after")
    def _levels(self) -> DynUNetConfig:
        if len(self.channels) < 3 or len(self.channels) != len(self.strides):
            raise ValueError(
                f"channels and strides need the same number of levels, three or more; got {len(self.channels)} "
                f"and {len(self.strides)}"
            )
        largest = 2 if self.residual else 4  # what the padding of the shortcut, a kernel of 1, allows in MONAI
        steps = [step for level in self.strides for step in ([level] if isinstance(level, int) else level)]
        if max(steps) > largest:
            raise ValueError(f"strides go up to {largest} (2 with residual blocks, 4 without), got {max(steps)}")
        if self.norm == "group" and (odd := [c for c in self.channels if c % 8]):
            raise ValueError(f"channels must be multiples of 8 with group norm, got {odd[0]}")
        return self


class SegResNetConfig(_EncoderSection):
    """MONAI's SegResNet (Myronenko 2018, arXiv:1810.11654), decoder included."""

    name: Literal["segresnet"] = "segresnet"
    channels: PositiveInt = 16
    """Channels of the finest level; they double at each level below. A multiple of 8, for its group norm."""
    blocks_down: tuple[PositiveInt, ...] = (1, 2, 2, 4)
    """Residual blocks of each level on the way down."""
    blocks_up: tuple[PositiveInt, ...] = (1, 1, 1)
    """Residual blocks of each level on the way up, coarsest first; one level fewer than `blocks_down`."""
    features: PositiveInt = 32
    """Channels of the finest feature map, which the final convolution makes."""

    @model_validator(mode="after")
    def _levels(self) -> SegResNetConfig:
        if len(self.blocks_up) != len(self.blocks_down) - 1:
            raise ValueError(
                f"blocks_up needs {len(self.blocks_down) - 1} levels, one fewer than blocks_down; "
                f"got {len(self.blocks_up)}"
            )
        if self.channels % 8:
            raise ValueError(f"channels must be a multiple of 8, got {self.channels}")
        return self


class ViTConfig(_EncoderSection):
    """MONAI's ViT with fixed positions in millimetres; the defaults are ViT-B/16 (arXiv:2010.11929)."""

    name: Literal["vit"] = "vit"
    patch: tuple[PositiveInt, ...] | PositiveInt = 16
    """Voxels of a patch along each axis, or one number for all."""
    width: PositiveInt = 768
    """Features of a token."""
    depth: PositiveInt = 12
    """Number of blocks."""
    heads: PositiveInt = 12
    """Attention heads; divides `width`."""
    mlp: PositiveInt = 3072
    """Hidden width of a block's MLP."""
    qkv_bias: bool = True
    """Bias of the query, key and value projection."""
    wavelengths_mm: tuple[float, float] = (16.0, 2048.0)
    """Shortest and longest wave of the positions, in mm (in voxels where the images have no spacing)."""

    @model_validator(mode="after")
    def _heads(self) -> ViTConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        shortest, longest = self.wavelengths_mm
        if not 0 < shortest < longest:
            raise ValueError(f"wavelengths_mm must be two growing positive numbers, got {self.wavelengths_mm}")
        return self


class SwinConfig(_EncoderSection):
    """MONAI's Swin transformer with patches of 2 voxels, the encoder of SwinUNETR (arXiv:2201.01266)."""

    name: Literal["swin"] = "swin"
    width: PositiveInt = 48
    """Features of the finest map, a multiple of 12; they double at each stage."""
    depths: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = (2, 2, 2, 2)
    """Blocks of each stage."""
    heads: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = (3, 6, 12, 24)
    """Attention heads of each stage; each divides the features of its stage."""
    window: PositiveInt | tuple[PositiveInt, ...] = 7
    """Cells of an attention window along each axis, or one number for all."""
    qkv_bias: bool = True
    """Bias of the query, key and value projection."""
    convolutions: bool = False
    """A residual convolution before each stage: SwinUNETR's second version."""
    decoder: bool = False
    """Pretrain SwinUNETR's decoder too, and keep it for fine-tuning; methods that learn from the finest map need it."""
    features: PositiveInt = 32
    """Channels of the finest feature map, which the decoder's output block makes; of no use without it."""

    @model_validator(mode="after")
    def _widths(self) -> SwinConfig:
        if self.width % 12:
            raise ValueError(f"width must be a multiple of 12, got {self.width}")
        widths = [self.width * 2**stage for stage in range(4)]
        if odd := [f"{w} by {h}" for w, h in zip(widths, self.heads) if w % h]:
            raise ValueError(f"each stage's features must be a multiple of its heads; not so {', '.join(odd)}")
        return self


class TimmConfig(_EncoderSection):
    """A 2D network of timm by its name; weights come from a local file (timm's own, named as there)."""

    name: Literal["timm"] = "timm"
    model: str = "convnext_tiny"
    """timm's name of the network, such as `convnext_tiny`, `resnet50`, `vit_small_patch16_224`."""


EncoderConfig = Annotated[
    DynUNetConfig | SegResNetConfig | ViTConfig | SwinConfig | TimmConfig, Field(discriminator="name")
]
"""The recipe's section `encoder`, told apart by its `name`."""

CONFIGS: dict[
    str, type[DynUNetConfig] | type[SegResNetConfig] | type[ViTConfig] | type[SwinConfig] | type[TimmConfig]
] = {
    "dynunet": DynUNetConfig,
    "segresnet": SegResNetConfig,
    "vit": ViTConfig,
    "swin": SwinConfig,
    "timm": TimmConfig,
}


def architecture(config: Section) -> dict[str, Any]:
    """Return the knobs that shape the network, as plain JSON types: all but where its weights come from."""
    return config.model_dump(mode="json", exclude={"name", *_EncoderSection.model_fields})
