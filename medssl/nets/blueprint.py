"""Blueprint: what a task network is made of, for each family of encoders, in MONAI's words and plain values.

Shapes: K classes, the background among them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from ..config import Section
from ..errors import RecipeError
from .config import DynUNetConfig, SegResNetConfig, SwinConfig, TimmConfig, ViTConfig
from .dynunet import axis_strides, dynunet_arguments
from .segresnet import segresnet_arguments
from .swin import PATCH, STAGES, check_bottom, swin_arguments, swin_unetr_arguments
from .timm_encoder import timm_multiple
from .vit import vit_arguments

Decoder = Literal["unetr", "light"]
"""`unetr`: the family's own, with skips from the image; `light`: few weights, on the features alone, all timm has."""

SCRIPT = "scripts.network"
"""Where a bundle keeps the classes of `nets/decoders.py`, as Python imports them there."""

_UNETR_FEATURES = 16
_LIGHT_WIDTH = 64


@dataclass(frozen=True)
class Blueprint:
    """How to build a task network, and which part of it an encoder brings."""

    parts: tuple[tuple[str, dict[str, Any]], ...]
    """Modules in order: the class, as a MONAI bundle names it, and its arguments."""
    body: str
    """Where in the network the encoder's stands, as torch names modules; empty for the whole."""
    new: tuple[str, ...]
    """How names in the body begin that no encoder brings."""
    multiple: tuple[int, ...]
    """Each axis of an image must be a multiple of this many voxels."""


def blueprint(config: Section, *, channels: int, shape: tuple[int, ...], classes: int, decoder: Decoder) -> Blueprint:
    """Return how the task network of an encoder's section is built.

    Args:
        config: the section `encoder`.
        channels: of the image.
        shape: voxels of the crop it sees.
        classes: K.
        decoder: which decoder.

    Raises:
        RecipeError: there is none for this encoder.
    """
    if isinstance(config, DynUNetConfig | SegResNetConfig | SwinConfig) and decoder == "light" and _has_own(config):
        raise RecipeError(
            f"{config.name} has a decoder of its own, which is pretrained with it",
            where="finetune.decoder",
            fix="leave it at unetr",
        )
    if isinstance(config, DynUNetConfig):
        return _dynunet(config, channels, len(shape), classes)
    if isinstance(config, SegResNetConfig):
        arguments = segresnet_arguments(config, channels=channels, axes=len(shape), out_channels=classes)
        multiple = (2 ** (len(config.blocks_down) - 1),) * len(shape)
        return Blueprint((("SegResNet", arguments),), "", ("conv_final.2.",), multiple)
    if isinstance(config, SwinConfig):
        return _swin(config, channels, shape, classes, decoder)
    if isinstance(config, TimmConfig):
        multiple = (timm_multiple(config.model),) * len(shape)
        light = {"model": config.model, "in_channels": channels, "out_channels": classes, "width": _LIGHT_WIDTH}
        return Blueprint(((f"{SCRIPT}.LightTimm", light),), "encoder", (), multiple)
    assert isinstance(config, ViTConfig)
    return _vit(config, channels, shape, classes, decoder)


def _has_own(config: DynUNetConfig | SegResNetConfig | SwinConfig) -> bool:
    return config.decoder if isinstance(config, SwinConfig) else True


def _dynunet(config: DynUNetConfig, channels: int, axes: int, classes: int) -> Blueprint:
    strides = axis_strides(config, axes)
    stem = strides[0]
    multiple = tuple(prod(axis) for axis in zip(*strides))
    half = any(step > 1 for step in stem)
    width = config.features if half else classes
    body = dynunet_arguments(config, channels=channels, axes=axes, out_channels=width)
    if not half:
        return Blueprint((("DynUNet", body),), "", ("output_block.",), multiple)
    enlarge = {
        "spatial_dims": axes,
        "in_channels": config.features,
        "out_channels": classes,
        "scale_factor": stem,
        # MONAI's sub-pixel convolution takes one factor for all axes.
        **({"mode": "pixelshuffle", "apply_pad_pool": False} if len(set(stem)) == 1 else {"mode": "deconv"}),
    }
    return Blueprint((("DynUNet", body), ("UpSample", enlarge)), "0", (), multiple)


def _swin(config: SwinConfig, channels: int, shape: tuple[int, ...], classes: int, decoder: Decoder) -> Blueprint:
    axes = len(shape)
    multiple = (PATCH * 2**STAGES,) * axes
    if decoder == "light":
        swin = swin_arguments(config, channels=channels, axes=axes)
        light = {"swin": swin, "out_channels": classes, "width": _LIGHT_WIDTH}
        return Blueprint(((f"{SCRIPT}.LightSwin", light),), "swinViT", (), multiple)
    check_bottom(shape)
    arguments = swin_unetr_arguments(config, channels=channels, axes=axes, out_channels=classes)
    whole = (("SwinUNETR", arguments),)
    return Blueprint(whole, "", ("out.",), multiple) if config.decoder else Blueprint(whole, "swinViT", (), multiple)


def _vit(config: ViTConfig, channels: int, shape: tuple[int, ...], classes: int, decoder: Decoder) -> Blueprint:
    """Return MONAI's UNETR where it fits: patches of 16 and 12 blocks."""
    vit = vit_arguments(config, channels=channels, shape=shape)
    # A ViT's table of positions is made for one crop.
    if decoder == "light":
        light = {"vit": vit, "out_channels": classes, "width": _LIGHT_WIDTH}
        return Blueprint(((f"{SCRIPT}.LightViT", light),), "vit", (), shape)
    if config.depth != 12 or any(p != 16 for p in vit["patch_size"]):
        any_patch = {"vit": vit, "out_channels": classes, "feature_size": _UNETR_FEATURES}
        return Blueprint(((f"{SCRIPT}.PatchUNETR", any_patch),), "vit", (), shape)
    arguments = {
        "in_channels": channels,
        "out_channels": classes,
        "img_size": list(shape),
        "feature_size": _UNETR_FEATURES,
        "hidden_size": config.width,
        "mlp_dim": config.mlp,
        "num_heads": config.heads,
        "proj_type": "conv",
        "norm_name": "instance",
        "spatial_dims": len(shape),
        "qkv_bias": config.qkv_bias,
    }
    return Blueprint((("UNETR", arguments),), "vit", (), shape)
