"""Segmenter: the task network of segmentation, of MONAI's classes: a bundle of it needs nothing of ours, or one file.

It gives logits at the image's own resolution. A U-Net whose stem takes a step of two works at half resolution, in a
tenth of the time; its feature map is enlarged by a learned sub-pixel convolution (Shi et al. 2016, arXiv:1609.05158),
which finds edges better than logits enlarged by interpolation.

Shapes: B batch, C channels, D H W voxels, K classes, background first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from monai.inferers import SliceInferer, SlidingWindowInferer
from monai.networks.blocks import UnetOutBlock, UpSample
from monai.networks.nets import UNETR, DynUNet, SegResNet, SwinUNETR
from torch import Tensor, nn

from ..config import Section
from ..errors import RecipeError, UsageError, WeightsError
from . import decoders
from .blueprint import SCRIPT, Decoder, blueprint
from .config import CONFIGS, DynUNetConfig, SwinConfig, TimmConfig, ViTConfig, architecture
from .dynunet import decoder_maps
from .encoder import Encoder
from .task_network import TaskNetwork
from .vit import ViT
from .weights import Receipt, load_weights

_CLASSES: dict[str, Any] = {
    "DynUNet": DynUNet,
    "SegResNet": SegResNet,
    "SwinUNETR": SwinUNETR,
    "UNETR": UNETR,
    "UpSample": UpSample,
}
_WINDOWS_AT_ONCE = 4


class Segmenter(TaskNetwork):
    """A network that gives every voxel a logit for each class; build it with `segmenter_for`.

    Args:
        spec: plain values: `encoder` (an encoder's spec), `classes`, `labels`, `shape` (the crop it sees), `overlap`
            (of windows at inference), `decoder` (which one) and `slice_axis` (where a 2D network sees the slices of
            volumes, else None).
        deep_supervision: let the decoder's coarser maps give logits too, in training (a DynUNet only). These outputs
            are no part of `net`, and neither saved nor exported.
    """

    kind = "segmenter"

    def __init__(self, spec: dict[str, Any], *, deep_supervision: bool = False) -> None:
        super().__init__()
        self.spec = spec
        self.classes = int(spec["classes"])
        self.labels: tuple[str, ...] = tuple(spec["labels"])
        self.shape = tuple(spec["shape"])
        self.channels = int(spec["encoder"]["channels"])
        self.preparation = {}
        self.receipt = None
        self._config = CONFIGS[str(spec["encoder"]["name"])](**spec["encoder"]["config"])
        self._blueprint = blueprint(
            self._config,
            channels=self.channels,
            shape=self.shape,
            classes=self.classes,
            decoder=spec.get("decoder", "unetr"),  # networks saved before there was a choice
        )
        parts = [_build(target, arguments) for target, arguments in self._blueprint.parts]
        self.net = parts[0] if len(parts) == 1 else nn.Sequential(*parts)
        if isinstance(self._config, ViTConfig):
            self._fix_vit(self._config)
        self.supervision = self._coarse_outputs() if deep_supervision else None

    @property
    def multiple(self) -> tuple[int, ...]:
        """Each axis of an image must be a multiple of this many voxels."""
        return self._blueprint.multiple

    @property
    def script(self) -> str | None:
        """The source a bundle must carry for its network, or None where MONAI's classes are enough."""
        if not any(target.startswith(SCRIPT) for target, _ in self._blueprint.parts):
            return None
        return Path(decoders.__file__).read_text(encoding="utf-8")

    @property
    def packages(self) -> tuple[str, ...]:
        """The packages its network needs beside torch and MONAI."""
        timm = ("timm",) if isinstance(self._config, TimmConfig) else ()
        # MONAI's attention blocks import einops, which MONAI does not bring
        return (*timm, "einops") if isinstance(self._config, (ViTConfig, SwinConfig)) else timm

    @property
    def values(self) -> tuple[int, ...]:
        """What the label maps it learned from hold for each class, background first."""
        return tuple(self.spec.get("values", range(self.classes)))

    def forward(self, x: Tensor) -> Any:
        """Return logits (B, K, ...) of the shape of the image x, (B, C, ...).

        In training with deep supervision: a list of logits, finest first. The first are those; the next ones have the
        resolution of the decoder's coarser levels, the bottleneck left out, as in nnU-Net.
        """
        if self.supervision is None or not self.training:
            return self.net(x)
        first, *coarser = decoder_maps(self.body(), x)
        if isinstance(self.net, nn.Sequential):  # a network at half resolution, and what enlarges its output
            first = self.net[1](first)
        return [first, *(output(level) for output, level in zip(self.supervision, coarser))]

    def _coarse_outputs(self) -> nn.ModuleList:
        if not isinstance(self._config, DynUNetConfig):
            raise RecipeError(
                f"deep supervision needs a decoder of several outputs, which {self.spec['encoder']['name']} has not",
                where="finetune.deep_supervision",
                fix="switch it off, or take dynunet",
            )
        # After `net`, so that its weights are drawn as they are without them.
        levels = self._config.channels[1:-1]
        return nn.ModuleList(UnetOutBlock(len(self.shape), level, self.classes) for level in levels)

    def predict(self, x: Tensor) -> Tensor:
        """Return logits of whole images of any size from overlapping windows, as the exported bundle does.

        Args:
            x: normalised image, (B, C, D, H, W) or (B, C, H, W); a volume too for a 2D network with a `slice_axis`.

        Returns:
            (B, K, ...), float32, without gradient.
        """
        arguments = self.inferer_definition()
        inferer = {"SliceInferer": SliceInferer, "SlidingWindowInferer": SlidingWindowInferer}[
            arguments.pop("_target_")
        ]
        with torch.no_grad():
            return inferer(**arguments)(x.float(), self.net).float()  # type: ignore[no-any-return]

    def inferer_definition(self) -> dict[str, Any]:
        """Return the MONAI bundle config of the inferer that `predict` uses."""
        axis = self.spec["slice_axis"]
        target: dict[str, Any] = {"_target_": "SlidingWindowInferer"}
        if axis is not None:
            target = {"_target_": "SliceInferer", "spatial_dim": axis}
        return {
            **target,
            "roi_size": list(self.shape),
            "sw_batch_size": _WINDOWS_AT_ONCE,
            "overlap": self.spec["overlap"],
            "mode": "gaussian",
            "padding_mode": "replicate",
        }

    def body(self) -> nn.Module:
        """Return the part of the network whose weights an encoder brings."""
        return self.net.get_submodule(self._blueprint.body)

    def new_names(self) -> tuple[str, ...]:
        """Return how names in `body()` begin that no encoder brings; an impossible name where it brings all."""
        return self._blueprint.new or (" ",)

    def definition(self) -> dict[str, Any]:
        """Return MONAI bundle config items that build the same network, under `network_def` and names it refers to.

        Where there are several items, their weights have the names of `net` all the same.
        """
        items = [{"_target_": target, **arguments} for target, arguments in self._blueprint.parts]
        if len(items) == 1:
            return {"network_def": items[0]}
        return {
            "network_body": items[0],
            "network_upsample": items[1],
            "network_def": "$torch.nn.Sequential(@network_body, @network_upsample)",
        }

    def _fix_vit(self, config: ViTConfig) -> None:
        """Give MONAI's ViT the positions of our encoder at this crop, and fix what gets no gradient."""
        spacing = self.spec["encoder"]["spacing_mm"]
        # An encoder of the same crop knows the positions; its blocks are not needed.
        own = ViT(
            config.model_copy(update={"depth": 1}),
            channels=self.channels,
            shape=self.shape,
            spacing_mm=None if spacing is None else tuple(spacing),
        )
        vit: Any = self.body()
        with torch.no_grad():
            vit.patch_embedding.position_embeddings.copy_(own.positions(own.grid)).requires_grad_(False)
        vit.patch_embedding.position_embeddings.requires_grad_(False)
        for block in vit.blocks:
            block.norm_cross_attn.requires_grad_(False)


def segmenter_for(
    encoder: Encoder | Section,
    classes: int,
    *,
    labels: tuple[str, ...] = (),
    values: tuple[int, ...] = (),
    shape: tuple[int, ...] | None = None,
    channels: int | None = None,
    spacing_mm: tuple[float, ...] | None = None,
    overlap: float = 0.5,
    slice_axis: int | None = None,
    decoder: Decoder = "unetr",
    deep_supervision: bool = False,
) -> Segmenter:
    """Build the task network that fits an encoder, with fresh weights; `load_encoder_into` brings the pretrained ones.

    Args:
        encoder: an encoder, or a recipe's section `encoder`; with the section, give shape and channels.
        classes: K, the background among them.
        labels: their names, background first; `background`, `class 1`, ... unless given.
        values: what the label maps hold for each class, background first; 0, 1, ... unless given.
        shape: voxels of the crop it will see; the encoder's unless given.
        channels: of the image; the encoder's unless given.
        spacing_mm: of the images; the encoder's unless given.
        overlap: share by which windows overlap in `predict`.
        slice_axis: axis of volumes along which a 2D network sees slices; None for images.
        decoder: `unetr`, the family's own (a U-Net's, UNETR's, SwinUNETR's), or `light`, with few weights and no skip
            from the image.
        deep_supervision: in training, coarser levels of a DynUNet's decoder give logits too.

    Raises:
        RecipeError: there is no such task network for this encoder.
        UsageError: fewer than two classes, or labels that do not fit them.
    """
    if classes < 2:
        raise UsageError(f"a segmentation needs two classes or more, the background among them; got {classes}")
    labels = tuple(labels) or ("background", *(f"class {k}" for k in range(1, classes)))
    if len(labels) != classes:
        raise UsageError(f"{len(labels)} labels are named for {classes} classes", fix="name the background too")
    values = tuple(values) or tuple(range(classes))
    if len(values) != classes:
        raise UsageError(f"{len(values)} values are given for {classes} classes", fix="give the background's too")
    if isinstance(encoder, Encoder):
        spec = dict(encoder.spec)
    elif shape is None or channels is None:
        raise ValueError("with a section instead of an encoder, give shape and channels")
    else:
        spec = {
            "name": encoder.name,  # type: ignore[attr-defined]
            "config": architecture(encoder),
            "channels": channels,
            "shape": list(shape),
            "spacing_mm": None,
        }
    if channels is not None:
        spec["channels"] = channels
    if spacing_mm is not None:
        spec["spacing_mm"] = [float(mm) for mm in spacing_mm]
    crop = tuple(shape or spec["shape"])
    window = {"shape": list(crop), "overlap": float(overlap), "slice_axis": slice_axis}
    whole = {"encoder": spec, "classes": classes, "labels": list(labels), "values": list(values)}
    whole |= {"decoder": decoder, **window}
    segmenter = Segmenter(whole, deep_supervision=deep_supervision)
    if any(n % m for n, m in zip(crop, segmenter.multiple)):
        raise RecipeError(
            f"a crop of {crop} voxels does not fit {spec['name']}, whose axes are multiples of {segmenter.multiple}",
            where="loader.crop",
            fix="change the crop",
        )
    return segmenter


def segmenter_from_spec(spec: dict[str, Any]) -> Segmenter:
    """Build a segmenter, with fresh weights, from the plain values another one kept in `spec`."""
    if spec.get("encoder", {}).get("name") not in CONFIGS:
        raise WeightsError("this task network is of an unknown kind", fix=f"known are {', '.join(sorted(CONFIGS))}")
    return Segmenter(spec)


def load_encoder_into(network: TaskNetwork, encoder: Encoder) -> Receipt:
    """Give a task network the weights of a pretrained encoder: all of it, decoder included.

    Where a segmenter has its classes in the encoder's own output block, that block stays new.

    Raises:
        WeightsError: they are of different kinds, or something found no partner.
    """
    if encoder.spec["name"] != network.spec["encoder"]["name"]:
        raise WeightsError(
            f"weights of {encoder.spec['name']} cannot go into {network.spec['encoder']['name']}",
            fix="build the network for this encoder",
        )
    receipt = load_weights(
        network.body(), encoder.net.state_dict(), ignore=network.new_names(), derived=encoder.derived
    )
    network.receipt = receipt
    return receipt


def _build(target: str, arguments: dict[str, Any]) -> nn.Module:
    own = target.removeprefix(f"{SCRIPT}.")
    cls = _CLASSES[target] if own == target else getattr(decoders, own)
    return cls(**arguments)  # type: ignore[no-any-return]
