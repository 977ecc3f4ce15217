"""Detector: the task network of detection, MONAI's RetinaNet over an encoder of any family.

Shapes: B batch, C channels, n axes, L levels, A anchors, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import Section
from ..errors import RecipeError, UsageError, WeightsError
from . import decoders, retinanet
from .config import CONFIGS, DynUNetConfig, SegResNetConfig, SwinConfig, TimmConfig, ViTConfig, architecture
from .dynunet import dynunet_arguments
from .encoder import Encoder, encoder_from_spec
from .retinanet import Detections, LevelAnchors, WindowDetector, by_anchor, chain
from .segresnet import segresnet_arguments
from .swin import swin_arguments, swin_unetr_arguments
from .task_network import TaskNetwork
from .vit import vit_arguments


class Detector(TaskNetwork):
    """A network that finds boxes and their classes; build it with `detector_for`.

    Args:
        spec: plain values: `encoder` (an encoder's spec), `classes` (their names), `shape` (the crop it sees), `levels`
            (strides of the pyramid's maps), `anchors` (shapes of each level's, in voxels), `width` (features of a
            level) and `windows` (how boxes of whole images are put together, see `WindowDetector`).
    """

    kind = "detector"
    net: Any

    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__()
        self.spec = spec
        self.classes: tuple[str, ...] = tuple(spec["classes"])
        self.shape = tuple(spec["shape"])
        self.channels = int(spec["encoder"]["channels"])
        self.preparation, self.receipt = {}, None
        encoder = encoder_from_spec({**spec["encoder"], "shape": list(self.shape)})
        self.levels = [tuple(level) for level in spec["levels"]]
        self.features = _features(encoder, spec)
        self.net = retinanet.retinanet(self.features, len(self.classes), self.shapes)
        # It has the positions of this crop, and says which of its parameters are not trained.
        self.net.feature_extractor.body = encoder.net
        parts = LevelAnchors(spec["anchors"]).of(self.shape, self.levels)
        self.register_buffer("anchors", torch.cat(parts), persistent=False)
        self.places = [len(part) // self.shapes for part in parts]

    anchors: Tensor
    """(A, 2n), voxels of a crop; level by level, place by place."""

    @property
    def shapes(self) -> int:
        """Anchor shapes at each place."""
        return len(self.spec["anchors"][0])

    @property
    def scripts(self) -> dict[str, str]:
        """The sources a bundle must carry for its network, by file name."""
        return {f"{module}.py": _source(module) for module in ("retinanet", "decoders")}

    @property
    def packages(self) -> tuple[str, ...]:
        """The packages its network needs beside torch and MONAI."""
        name = self.spec["encoder"]["name"]
        return ("timm",) if name == "timm" else ("einops",) if name in ("vit", "swin") else ()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return each anchor's logits (B, A, K) and box codes (B, A, 2n), float32, of crops (B, C, ...)."""
        out = self.net(x)
        logits, codes = (by_anchor(out[key], self.shapes).float() for key in ("classification", "box_regression"))
        return logits, codes

    def predict(self, x: Tensor) -> Detections:
        """Return the boxes of one whole image (1, C, ...) of any size, normalised; see `WindowDetector`."""
        return self.windows()(x)  # type: ignore[no-any-return]

    def windows(self) -> WindowDetector:
        """Return what finds the boxes of whole images, around this network."""
        return WindowDetector(self.net, self.levels, self.spec["anchors"], self.shape, **self.spec["windows"])

    def body(self) -> torch.nn.Module:
        """Return the encoder's network: all of it takes part, and none of it is new."""
        return self.net.feature_extractor.body  # type: ignore[no-any-return]

    def definition(self) -> dict[str, Any]:
        """Return MONAI bundle config items that build the same network and what finds boxes by it."""
        return {
            "network_def": {
                "_target_": "scripts.retinanet.retinanet",
                "features": self.features,
                "classes": len(self.classes),
                "anchors": self.shapes,
            },
            "detector": {
                "_target_": "scripts.retinanet.WindowDetector",
                "network": "@network",
                "levels": [list(level) for level in self.levels],
                "anchors": self.spec["anchors"],
                "shape": list(self.shape),
                **self.spec["windows"],
            },
        }


def _source(module: str) -> str:
    own = {"retinanet": retinanet, "decoders": decoders}[module]
    return Path(str(own.__file__)).read_text(encoding="utf-8")


def _features(encoder: Encoder, spec: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `Features`, as plain JSON types."""
    family, body = _body(encoder, tuple(spec["shape"]))
    return {
        "family": family,
        "body": body,
        "channels": list(encoder.out_channels),
        "strides": [list(stride) for stride in encoder.strides],
        "levels": [list(level) for level in spec["levels"]],
        "width": int(spec["width"]),
    }


def _body(encoder: Encoder, shape: tuple[int, ...]) -> tuple[str, dict[str, Any]]:
    """Return an encoder's family and the arguments of its network."""
    channels, axes = int(encoder.spec["channels"]), len(shape)
    config = CONFIGS[str(encoder.spec["name"])](**encoder.spec["config"])
    if isinstance(config, DynUNetConfig):
        return "dynunet", dynunet_arguments(config, channels=channels, axes=axes, out_channels=config.features)
    if isinstance(config, SegResNetConfig):
        return "segresnet", segresnet_arguments(config, channels=channels, axes=axes, out_channels=config.features)
    if isinstance(config, SwinConfig):
        if config.decoder:
            whole = swin_unetr_arguments(config, channels=channels, axes=axes, out_channels=config.features)
            return "swin_unetr", whole
        return "swin", swin_arguments(config, channels=channels, axes=axes)
    if isinstance(config, TimmConfig):
        return "timm", {"model": config.model, "in_channels": channels}
    assert isinstance(config, ViTConfig)
    return "vit", vit_arguments(config, channels=channels, shape=shape)


def pyramid_levels(
    strides: Sequence[Sequence[int]], shape: Sequence[int], *, finest: int, count: int
) -> list[tuple[int, ...]]:
    """Return the strides of a pyramid's levels, finest first.

    Args:
        strides: of the encoder's maps.
        shape: of the crop; a level must divide it, and have more than one place in it.
        finest: the first level is the finest one whose largest stride is no less.
        count: levels wanted; fewer where the crop has no room for them.

    Raises:
        RecipeError: the crop has no room for one.
    """
    every = chain([tuple(stride) for stride in strides], finest, count)
    fit = [
        level
        for level in every
        if not any(n % s for n, s in zip(shape, level)) and any(n > s for n, s in zip(shape, level))
    ]
    levels = [level for level in fit if max(level) >= finest] or fit[-1:]
    if not levels:
        raise RecipeError(
            f"a crop of {tuple(shape)} voxels has no room for a level of a pyramid; strides are {every}",
            where="finetune.crop",
            fix="enlarge the crop",
        )
    return levels[:count]


def detector_for(
    encoder: Encoder | Section,
    classes: Sequence[str],
    *,
    levels: Sequence[Sequence[int]],
    anchors: Sequence[Sequence[Sequence[float]]],
    width: int = 32,
    shape: tuple[int, ...] | None = None,
    channels: int | None = None,
    spacing_mm: tuple[float, ...] | None = None,
    windows: dict[str, Any] | None = None,
) -> Detector:
    """Build the detector that fits an encoder, with fresh weights; `load_encoder_into` brings the pretrained ones.

    Args:
        encoder: an encoder, or a recipe's section `encoder`; with the section, give shape and channels.
        classes: their names; no background.
        levels: strides of the pyramid's maps, finest first, see `pyramid_levels`.
        anchors: for each level the sides of its anchors, in voxels; as many at each.
        width: features of a level, a multiple of 8.
        shape: voxels of the crop it will see; the encoder's unless given.
        channels: of the image; the encoder's unless given.
        spacing_mm: of the images; the encoder's unless given.
        windows: keywords of `WindowDetector`.

    Raises:
        RecipeError: crop and encoder do not fit.
        UsageError: there is no class, or levels have different numbers of anchors.
    """
    if not classes:
        raise UsageError("a detector needs a class")
    if len(levels) != len(anchors) or len({len(level) for level in anchors}) != 1:
        raise UsageError(f"{len(levels)} levels need as many lists of anchors, all as long", where="anchors")
    spec = _encoder_spec(encoder, shape, channels)
    if spacing_mm is not None:
        spec["spacing_mm"] = [float(mm) for mm in spacing_mm]
    whole = {
        "encoder": spec,
        "classes": list(classes),
        "shape": spec["shape"],
        "levels": [list(level) for level in levels],
        "anchors": [[[float(v) for v in one] for one in level] for level in anchors],
        "width": int(width),
        "windows": dict(windows or {}),
    }
    return Detector(whole)


def _encoder_spec(encoder: Encoder | Section, shape: tuple[int, ...] | None, channels: int | None) -> dict[str, Any]:
    """Return the spec of an encoder for this crop, or of the one a recipe's section describes."""
    if isinstance(encoder, Encoder):
        spec = dict(encoder.spec)
    elif shape is None or channels is None:
        raise ValueError("with a section instead of an encoder, give shape and channels")
    else:
        name = encoder.name  # type: ignore[attr-defined]
        spec = {"name": name, "config": architecture(encoder), "channels": channels, "spacing_mm": None}
    return {**spec, "shape": list(shape or spec["shape"]), "channels": channels or spec["channels"]}


def detector_from_spec(spec: dict[str, Any]) -> Detector:
    """Build a detector, with fresh weights, from the plain values another one kept in `spec`."""
    if spec.get("encoder", {}).get("name") not in CONFIGS:
        raise WeightsError("this task network is of an unknown kind", fix=f"known are {', '.join(sorted(CONFIGS))}")
    return Detector(spec)
