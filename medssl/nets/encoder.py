"""Encoder: what every pretraining method trains and every downstream task starts from; built, saved, loaded here.

On disk a network is a folder: `config.json` (how to build it), `model.safetensors` (named as MONAI's or timm's class
names them, so the file loads there unchanged), `preparation.json` (what its images went through), `README.md`.

Shapes: B batch, C channels, D H W voxels, F features.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from .. import files
from ..config import Section
from ..errors import DataError, RecipeError, WeightsError
from .config import (
    CONFIGS,
    DynUNetConfig,
    EncoderConfig,
    SegResNetConfig,
    SwinConfig,
    TimmConfig,
    ViTConfig,
    architecture,
)
from .task_network import TaskNetwork
from .weights import Receipt, load_weights, read_weights, write_safetensors

__all__ = [
    "DynUNetConfig",
    "Encoder",
    "EncoderConfig",
    "SegResNetConfig",
    "SwinConfig",
    "TimmConfig",
    "ViTConfig",
    "build_encoder",
    "encoder_from_spec",
    "load_encoder",
    "load_network",
    "save_network",
]

FORMAT = 1
"""Version of the network folder."""

KINDS = ("encoder", "segmenter", "detector", "classifier")
"""What a network folder may hold, as its config.json and a run name it."""

_MODULES = {
    "dynunet": ("dynunet", "DynUNetEncoder"),
    "segresnet": ("segresnet", "SegResNetEncoder"),
    "vit": ("vit", "ViT"),
    "swin": ("swin", "build_swin"),
    "timm": ("timm_encoder", "TimmEncoder"),
}


class Encoder(nn.Module):
    """Base of every encoder: pixels in, feature maps out, with a MONAI or timm network as its only child, `net`.

    Args:
        config: the recipe's section `encoder`.
        channels: channels of the image.
        shape: voxels of the recipe's crop, (D, H, W) or (H, W).
        spacing_mm: distance of voxel centres of the recipe's images, one an axis; None where unknown.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    """Keys of the batch that `forward` takes beside pixels."""
    derived: ClassVar[tuple[str, ...]] = ()
    """Names in `net` that follow from crop and spacing, and are not taken over from other networks."""
    head: ClassVar[tuple[str, ...]] = ()
    """Names in `net`, as prefixes, of the output block, which a task network replaces by its own."""

    finest_trains_all: bool = True
    """Whether the finest map gives every trained parameter a gradient; if not, the coarsest does, and a method that
    learns from the finest map alone would leave most of the encoder as it was."""

    kind: str
    """`volume` or `image2d`."""
    out_channels: tuple[int, ...]
    """Channels of each feature map, finest first."""
    strides: tuple[tuple[int, ...], ...]
    """Voxels between neighbours of each feature map, along each axis."""
    net: nn.Module
    spec: dict[str, Any]
    """Plain values that rebuild this encoder by `encoder_from_spec`."""
    preparation: dict[str, Any]
    """What the images went through before the encoder saw them; filled when loaded from a folder."""
    receipt: Receipt | None
    """How the weights it started from were loaded, if it started from any."""

    def __init__(
        self, config: Section, *, channels: int, shape: tuple[int, ...], spacing_mm: tuple[float, ...] | None
    ) -> None:
        super().__init__()
        if len(shape) not in (2, 3):
            raise RecipeError(f"an encoder sees 2 or 3 axes, not {len(shape)}", where=f"crop {shape}")
        self.spec = {
            "name": config.name,  # type: ignore[attr-defined]
            "config": architecture(config),
            "channels": channels,
            "shape": list(shape),
            "spacing_mm": None if spacing_mm is None else [float(mm) for mm in spacing_mm],
        }
        self.kind = "volume" if len(shape) == 3 else "image2d"
        self.preparation = {}
        self.receipt = None

    @property
    def multiple(self) -> tuple[int, ...]:
        """Each axis of an image must be a multiple of this many voxels."""
        return tuple(max(axis) for axis in zip(*self.strides))

    def forward(self, x: Tensor, **context: Any) -> list[Tensor]:
        """Return feature maps, finest first.

        Args:
            x: normalised image, (B, C, D, H, W) or (B, C, H, W).
            context: entries of the batch named in `needs`.

        Returns:
            One (B, F, ...) a level, F and size as `out_channels` and `strides` say.
        """
        raise NotImplementedError(f"{type(self).__name__} must write forward()")

    def pooled(self, x: Tensor, **context: Any) -> Tensor:
        """Return one vector an image, (B, F): the mean over the coarsest map."""
        return self(x, **context)[-1].flatten(2).mean(2)  # type: ignore[no-any-return]

    def adapted(self, weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """Return foreign weights as this encoder can take them; the names, prefix included, stay.

        Args:
            weights: by name, as read from a file.
            prefix: what its names begin with before the network's own.
        """
        return dict(weights)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError unless images of this shape fit the strides."""
        if len(shape) != len(self.multiple) or any(n % m for n, m in zip(shape, self.multiple)):
            raise ValueError(f"image of {shape} voxels; every axis must be a multiple of {self.multiple}")


def build_encoder(
    config: Section, *, channels: int, shape: tuple[int, ...], spacing_mm: tuple[float, ...] | None = None
) -> Encoder:
    """Build the encoder a recipe asks for, with its first weights if it names any.

    Args:
        config: the section `encoder` (one of the classes behind `EncoderConfig`).
        channels: channels of the image.
        shape: voxels of a crop, (D, H, W) or (H, W).
        spacing_mm: distance of voxel centres along each axis, in mm.

    Raises:
        RecipeError: crop and network do not fit.
        WeightsError: the named weights do not fill the encoder, and `allow_partial` is not set.
    """
    encoder = _build(config, channels, tuple(shape), spacing_mm)
    weights: Path | None = getattr(config, "weights", None)
    if weights is not None:
        path, prefix = _weights_file(weights), str(getattr(config, "weights_prefix", ""))
        encoder.receipt = load_weights(
            encoder.net,
            encoder.adapted(read_weights(path), prefix),
            where=str(path),
            prefix_to_strip=prefix,
            allow_partial=getattr(config, "allow_partial", False),
            derived=encoder.derived,
        )
    return encoder


def _build(config: Section, channels: int, shape: tuple[int, ...], spacing_mm: tuple[float, ...] | None) -> Encoder:
    name = str(config.name)  # type: ignore[attr-defined]
    module, cls = _MODULES[name]
    build = getattr(importlib.import_module(f".{module}", __package__), cls)
    encoder: Encoder = build(config, channels=channels, shape=shape, spacing_mm=spacing_mm)
    if any(n % m for n, m in zip(shape, encoder.multiple)):
        raise RecipeError(
            f"a crop of {shape} voxels does not fit {name}, whose axes are multiples of {encoder.multiple}",
            where="loader.crop",
            fix="change the crop, or the encoder's strides or patch",
        )
    return encoder


def encoder_from_spec(spec: dict[str, Any]) -> Encoder:
    """Build an encoder, with fresh weights, from the plain values another one kept in `spec`."""
    config = CONFIGS.get(str(spec.get("name")))
    if config is None:
        raise WeightsError(f"no encoder is called {spec.get('name')!r}", fix=f"known are {', '.join(sorted(CONFIGS))}")
    spacing = spec["spacing_mm"]
    return _build(
        config(**spec["config"]),
        int(spec["channels"]),
        tuple(spec["shape"]),
        None if spacing is None else tuple(spacing),
    )


def save_network(folder: Path | str, network: nn.Module, *, preparation: dict[str, Any], card: str) -> Path:
    """Write an encoder or a task network as a network folder; equal weights give equal bytes.

    Args:
        folder: created; its files are replaced one by one, each whole.
        network: a `TaskNetwork`, or an encoder: anything with `net` and a plain `spec`.
        preparation: what `prepare` did to the images, as in a store's `preparation.json`.
        card: the model card, Markdown.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    kind = network.kind if isinstance(network, TaskNetwork) else "encoder"
    net: Any = network.net
    write_safetensors(folder / "model.safetensors", net.state_dict())
    files.write_json(folder / "preparation.json", preparation)
    files.write_text(folder / "README.md", card)
    files.write_json(folder / "config.json", {"format": FORMAT, "kind": kind, "spec": network.spec})
    return folder


def load_network(folder: Path | str, *, allow_partial: bool = False) -> nn.Module:
    """Load an encoder or a task network from its folder, with every weight in its place.

    Raises:
        DataError: the folder is not a network folder.
        WeightsError: weights are missing or of another shape; not raised with `allow_partial`.
    """
    folder = Path(folder)
    config = _read_config(folder)
    network: Any
    if config["kind"] == "encoder":
        network = encoder_from_spec(config["spec"])
    else:
        kind = config["kind"]  # one of KINDS, and so the name of a module here
        network = getattr(importlib.import_module(f".{kind}", __package__), f"{kind}_from_spec")(config["spec"])
    network.receipt = load_weights(network.net, folder / "model.safetensors", allow_partial=allow_partial)
    network.preparation = _read_json(folder / "preparation.json")
    network.eval()
    return network  # type: ignore[no-any-return]


def load_encoder(folder: Path | str, *, allow_partial: bool = False) -> Encoder:
    """Load an encoder in eval mode from its folder, or from the run that holds it.

    Its `preparation` says what images must go through first, its `receipt` how the weights were loaded.

    Raises:
        DataError: there is no encoder.
        WeightsError: less than all of it found weights, and `allow_partial` is not set.
    """
    folder = network_folder(folder)
    if _read_config(folder)["kind"] != "encoder":
        raise DataError("this is a task network, not an encoder", where=str(folder), fix="name the pretraining run")
    network = load_network(folder, allow_partial=allow_partial)
    assert isinstance(network, Encoder)
    return network


def network_folder(path: Path | str, kinds: tuple[str, ...] = KINDS) -> Path:
    """Return the network folder that `path` is or, as a run, holds under one of the names in `kinds`.

    Raises:
        DataError: neither.
    """
    path = Path(path)
    for folder in (path, *(path / kind for kind in kinds)):
        if (folder / "config.json").is_file() and (folder / "model.safetensors").is_file():
            return folder
    what = "no network is here" if path.exists() else "this folder does not exist"
    raise DataError(what, where=str(path), fix=f"name a run, or a folder with config.json ({' or '.join(kinds)})")


def network_kind(folder: Path | str) -> str:
    """Return which of `KINDS` a network folder holds."""
    return str(_read_config(Path(folder))["kind"])


def _weights_file(path: Path) -> Path:
    return network_folder(path, ("encoder",)) / "model.safetensors" if path.is_dir() else path


def _read_config(folder: Path) -> dict[str, Any]:
    config = _read_json(folder / "config.json")
    if config.get("format") != FORMAT or config.get("kind") not in KINDS or "spec" not in config:
        raise DataError(
            f"config.json has format {config.get('format')!r} and kind {config.get('kind')!r}; wanted format {FORMAT}",
            where=str(folder),
            fix="save the network with this version of medssl",
        )
    return config


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path.name} cannot be read: {type(error).__name__}", where=str(path), fix="export the network again"
        ) from error
    if not isinstance(value, dict):
        raise DataError(f"{path.name} holds no object", where=str(path), fix="export the network again")
    return value
