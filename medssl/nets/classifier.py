"""Classifier: the task network of classification, grading and regression of whole images, for every encoder family.

It takes the pretrained way down of an encoder; a decoder that was pretrained too is left behind, as it tells nothing of
the whole image.

Shapes: B batch, C channels, D H W voxels, K outputs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import Section
from ..errors import UsageError, WeightsError
from . import decoders, image_network
from .config import CONFIGS, DynUNetConfig, SegResNetConfig, SwinConfig, TimmConfig, ViTConfig, architecture
from .dynunet import dynunet_arguments
from .encoder import Encoder, build_encoder
from .image_network import Answer, ImageNetwork, WindowMean
from .segresnet import segresnet_arguments
from .swin import swin_arguments, swin_unetr_arguments
from .task_network import TaskNetwork
from .vit import ViT, vit_arguments

KINDS = ("binary", "multiclass", "multilabel", "ordinal", "regression")
_UNUSED: dict[str, tuple[str, ...]] = {
    "dynunet": ("upsamples.", "output_block.", "skip_layers.", "heads."),
    "segresnet": ("up_layers.", "up_samples.", "conv_final."),
    "swin_unetr": ("encoder1.", "encoder2.", "encoder3.", "encoder4.", *(f"decoder{n}." for n in range(1, 6)), "out."),
}
"""How names of pretrained decoders begin, by family."""


class Classifier(TaskNetwork):
    """A network that tells one or several things of a whole image; build it with `classifier_for`.

    Args:
        spec: plain values: `encoder` (an encoder's spec), `kind` (one of `KINDS`), `targets` (names), `classes` (names,
            of classes and grades; empty otherwise), `ordinal`, `pooling`, `queries`, `dropout`, `shape` (the crop it
            sees), `overlap`, `slice_axis`, `windows` (what is averaged over them), `weights`, `mean` and `spread` (see
            `Answer`).
    """

    kind = "classifier"

    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__()
        self.spec = spec
        self.task_kind = str(spec["kind"])
        self.targets, self.classes = tuple(spec["targets"]), tuple(spec["classes"])
        self.shape, self.channels = tuple(spec["shape"]), int(spec["encoder"]["channels"])
        self.preparation, self.receipt = {}, None
        self._config = CONFIGS[str(spec["encoder"]["name"])](**spec["encoder"]["config"])
        self.net = ImageNetwork(**self.network_arguments())
        if isinstance(self._config, ViTConfig):
            self._place_tokens(self._config)

    @property
    def names(self) -> tuple[str, ...]:
        """What each number of an answer stands for: classes, or targets."""
        return self.classes or self.targets

    @property
    def scripts(self) -> dict[str, str]:
        """The sources a bundle must carry for its network, by file name."""
        return {
            Path(m.__file__ or "").name: Path(m.__file__ or "").read_text("utf-8") for m in (decoders, image_network)
        }

    @property
    def packages(self) -> tuple[str, ...]:
        """The packages its network needs beside torch and MONAI."""
        if isinstance(self._config, TimmConfig):
            return ("timm",)
        return ("einops",) if isinstance(self._config, (ViTConfig, SwinConfig)) else ()

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K) of crops x, (B, C, ...); of grades (B, K - 1)."""
        return self.net(x)  # type: ignore[no-any-return]

    def predict(self, x: Tensor) -> Tensor:
        """Return logits of whole images of any size, averaged over windows or slices, as the exported bundle does.

        Args:
            x: normalised, (B, C, D, H, W) or (B, C, H, W); a volume too for a 2D network with a `slice_axis`.

        Returns:
            (B, K) float32, without gradient.
        """
        arguments = self.inferer_arguments()
        with torch.no_grad():
            return WindowMean(**arguments)(x.float(), self.net).float()

    def answer(self, logits: Tensor) -> Tensor:
        """Return probabilities, or values in units, of logits: (B, K) float64, in the order of `names`."""
        return Answer(**self.answer_arguments())(logits)

    def inferer_arguments(self) -> dict[str, Any]:
        """Return the arguments of the `WindowMean` that `predict` uses, as plain values."""
        return {
            "roi_size": list(self.shape),
            "overlap": self.spec["overlap"],
            "slice_axis": self.spec["slice_axis"],
            "mean_of": self.spec["windows"],
        }

    def answer_arguments(self) -> dict[str, Any]:
        """Return the arguments of the `Answer` that `answer` uses, as plain values."""
        return {"kind": self.task_kind, **{key: self.spec[key] for key in ("ordinal", "weights", "mean", "spread")}}

    def body(self) -> nn.Module:
        """Return the part of the network whose weights an encoder brings."""
        return self.net.body  # type: ignore[return-value]

    def new_names(self) -> tuple[str, ...]:
        """Return how names of the encoder begin that have no place here: those of its decoder."""
        return _UNUSED.get(self._family(), (" ",))

    def _family(self) -> str:
        with_decoder = isinstance(self._config, SwinConfig) and self._config.decoder
        return "swin_unetr" if with_decoder else self._config.name

    def network_arguments(self) -> dict[str, Any]:
        """Return the arguments of its `ImageNetwork`, as plain values."""
        steps = len(self.classes) - 1 if self.task_kind == "ordinal" else len(self.names)
        return {
            "family": self._family(),
            "arguments": _body_arguments(self._config, self.channels, self.shape),
            "outputs": steps,
            "pooling": self.spec["pooling"],
            "queries": self.spec["queries"],
            "dropout": self.spec["dropout"],
            "coral": self.task_kind == "ordinal" and self.spec["ordinal"] == "coral",
        }

    def _place_tokens(self, config: ViTConfig) -> None:
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
        table = vit.patch_embedding.position_embeddings.requires_grad_(False)
        with torch.no_grad():
            table.copy_(own.positions(own.grid))
        for block in vit.blocks:
            block.norm_cross_attn.requires_grad_(False)


def _body_arguments(config: Any, channels: int, shape: tuple[int, ...]) -> dict[str, Any]:
    axes = len(shape)
    if isinstance(config, DynUNetConfig):
        return dynunet_arguments(config, channels=channels, axes=axes, out_channels=1)
    if isinstance(config, SegResNetConfig):
        return segresnet_arguments(config, channels=channels, axes=axes, out_channels=1)
    if isinstance(config, SwinConfig):
        if config.decoder:
            return swin_unetr_arguments(config, channels=channels, axes=axes, out_channels=1)
        return swin_arguments(config, channels=channels, axes=axes)
    if isinstance(config, TimmConfig):
        return {"model": config.model, "in_channels": channels}
    return vit_arguments(config, channels=channels, shape=shape)


def classifier_for(
    encoder: Encoder | Section,
    kind: str,
    targets: tuple[str, ...],
    classes: tuple[str, ...] = (),
    *,
    shape: tuple[int, ...] | None = None,
    channels: int | None = None,
    spacing_mm: tuple[float, ...] | None = None,
    overlap: float = 0.5,
    slice_axis: int | None = None,
    windows: str = "logits",
    ordinal: str = "corn",
    pooling: str = "average",
    queries: int = 4,
    dropout: float = 0.0,
    weights: list[Any] | None = None,
    mean: tuple[float, ...] = (),
    spread: tuple[float, ...] = (),
) -> Classifier:
    """Build the classifier that fits an encoder, with fresh weights; `load_encoder_into` brings the pretrained ones.

    Args:
        encoder: an encoder, or a recipe's section `encoder`; with the section, give shape and channels.
        kind: one of `KINDS`.
        targets: names of what is told; one for classes and grades, one an output otherwise.
        classes: names of classes, or of grades in their order; none for findings and measures.
        shape: voxels of the crop it will see; the encoder's unless given.
        channels: of the image; the encoder's unless given.
        spacing_mm: of the images; the encoder's unless given.
        overlap: least share by which windows overlap in `predict`.
        slice_axis: axis of volumes along which a 2D network sees slices; None for images.
        windows: average `logits` or `features` over windows.
        ordinal: `corn` or `coral`, of grades.
        pooling: `average` or `attentive`.
        queries: of attentive pooling.
        dropout: share of the pooled features left out in training.
        weights: of classes in training, see `Answer`.
        mean: of each measure, in its unit.
        spread: of each measure, in its unit.

    Raises:
        RecipeError: the crop does not fit the encoder.
        UsageError: kind, targets, classes and what is known of measures do not fit each other.
    """
    _check_told(kind, targets, classes, mean, spread)
    spec = _encoder_spec(encoder, shape, channels, spacing_mm)
    crop = tuple(shape or spec["shape"])
    _check_crop(spec, crop)
    return Classifier(
        {
            "encoder": spec,
            "kind": kind,
            "targets": list(targets),
            "classes": list(classes),
            "ordinal": ordinal,
            "pooling": pooling,
            "queries": int(queries),
            "dropout": float(dropout),
            "shape": list(crop),
            "overlap": float(overlap),
            "slice_axis": slice_axis,
            "windows": windows,
            "weights": weights,
            "mean": [float(value) for value in mean],
            "spread": [float(value) for value in spread],
        }
    )


def _encoder_spec(
    encoder: Encoder | Section,
    shape: tuple[int, ...] | None,
    channels: int | None,
    spacing_mm: tuple[float, ...] | None,
) -> dict[str, Any]:
    if isinstance(encoder, Encoder):
        spec = dict(encoder.spec)
    elif shape is None or channels is None:
        raise ValueError("with a section instead of an encoder, give shape and channels")
    else:
        name, config = encoder.name, architecture(encoder)  # type: ignore[attr-defined]
        spec = {"name": name, "config": config, "channels": channels, "shape": list(shape), "spacing_mm": None}
    spec |= {} if channels is None else {"channels": channels}
    return spec | ({} if spacing_mm is None else {"spacing_mm": [float(mm) for mm in spacing_mm]})


def _check_told(
    kind: str, targets: tuple[str, ...], classes: tuple[str, ...], mean: tuple[float, ...], spread: tuple[float, ...]
) -> None:
    if kind not in KINDS:
        raise UsageError(f"no classifier is {kind!r}", fix=f"use {', '.join(KINDS)}")
    if kind in ("multiclass", "ordinal"):
        if len(targets) != 1 or len(classes) < 2:
            raise UsageError(f"{kind} takes one target of two classes or more, got {len(targets)} of {len(classes)}")
    elif not targets or classes or (kind == "binary" and len(targets) > 1):
        raise UsageError(f"{kind} takes {'one target' if kind == 'binary' else 'targets'} and no classes")
    if kind == "regression" and not len(mean) == len(spread) == len(targets):
        raise UsageError(f"{len(targets)} measures need as many means and spreads, got {len(mean)} and {len(spread)}")


def _check_crop(spec: dict[str, Any], crop: tuple[int, ...]) -> None:
    """Raise RecipeError where the encoder cannot see crops of this shape; it says which it can."""
    config = CONFIGS[str(spec["name"])](**spec["config"])
    with torch.random.fork_rng(devices=[]):
        build_encoder(config, channels=int(spec["channels"]), shape=crop)


def classifier_from_spec(spec: dict[str, Any]) -> Classifier:
    """Build a classifier, with fresh weights, from the plain values another one kept in `spec`."""
    if spec.get("encoder", {}).get("name") not in CONFIGS or spec.get("kind") not in KINDS:
        raise WeightsError("this classifier is of an unknown kind", fix="save it with this version of medssl")
    return Classifier(spec)
