"""A plan for a segmentation: spacing, crop and batch size, from the data and a limit of memory, by nnU-Net's rules.

Isensee et al. 2021, Nature Methods 18 (2), supplement 2, as version 2 of nnU-Net has them. Two things differ: the
network is the one that was asked for instead of one made for the crop, and memory is counted on that very network.

Shapes: n spatial axes of the network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..config import Section
from ..errors import DataError, RecipeError, UsageError
from ..geometry import orientation_of
from ..index import Index, IndexRow
from ..nets.config import DynUNetConfig
from ..nets.encoder import Encoder
from ..nets.segmenter import Segmenter, segmenter_for
from ..prepare import PrepareConfig, config_of
from ..store import Store, StoreRow
from .config import FinetuneConfig
from .segmentation import cross_entropy, dice_loss, over_levels
from .start import Design, Start, as_encoder, labelled

_ANISOTROPY = 3.0
"""How many times coarser, and smaller, one axis must be than the others to be resampled more finely."""
_LARGEST = {2: 2048**2, 3: 256**3}
"""Voxels of the crop that is shrunk to fit."""
_SMALLEST_BATCH = 2
_SMALLEST_EDGE = 2
"""Voxels of the coarsest feature map along each axis, which shrinking leaves; nnU-Net leaves 4, too many for a ViT."""
_SHARE = 0.05
"""Of the voxels of all images, the largest that one step may show."""
_BYTES_A_WEIGHT = 16
"""The weight, its gradient, and AdamW's two moments, in float32."""
_PASSING = 4
"""Tensors of the largest size that come and go beside what is kept: gradients, and what the losses need. With it the
estimate is 0 to 12% above what a step takes on a CPU (DynUNet 0.60 of 0.60 GB, SegResNet 2.40 of 2.14 GB)."""
_PAIRS = ("RL", "AP", "SI")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Plan:
    """What a segmentation of these images is best trained with, within a limit of memory."""

    images: int
    """Labelled images the plan was made from."""
    network: str
    parameters: int
    median_spacing_mm: tuple[float, ...] | None
    """Of the images as they are; None where some have no spacing."""
    spacing_mm: tuple[float, ...] | None
    """What they should be resampled to; as they are where an encoder or a store has decided it."""
    median_shape: tuple[int, ...]
    """Voxels at `spacing_mm`."""
    crop: tuple[int, ...]
    batch_size: int
    memory_gb: float
    """Estimate for one step of training in float32: activations kept for the gradient, weights and their moments."""
    limit_gb: float

    @property
    def resamples(self) -> bool:
        """True where `spacing_mm` is another than the images have."""
        return self.spacing_mm != self.median_spacing_mm

    @property
    def settings(self) -> tuple[str, ...]:
        """What to say after `--set`, once for each, to follow the plan by hand."""
        settings = [f"finetune.crop={list(self.crop)}", f"finetune.batch_size={self.batch_size}"]
        if self.resamples and self.spacing_mm is not None:
            settings.insert(0, f"prepare.spacing_mm={list(self.spacing_mm)}")
        return tuple(settings)

    def __str__(self) -> str:
        rows = [
            ("", "images", "plan"),
            ("spacing (mm)", _times(self.median_spacing_mm), _times(self.spacing_mm)),
            ("shape (voxels)", _times(self.median_shape), ""),
            ("crop (voxels)", "", _times(self.crop)),
            ("batch size", "", str(self.batch_size)),
            ("memory (GB)", "", f"{self.memory_gb:.2f} of {self.limit_gb:g}"),
        ]
        return "\n".join(
            [
                f"plan for {self.images} labelled images and a {self.network} of {self.parameters:,} parameters",
                *(f"  {name.ljust(16)}{one.rjust(22)}{two.rjust(22)}" for name, one, two in rows),
                "train by it: --set finetune.plan=true, or " + " ".join(f"--set '{s}'" for s in self.settings),
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "images": self.images,
            "network": self.network,
            "parameters": self.parameters,
            "median_spacing_mm": None if self.median_spacing_mm is None else list(self.median_spacing_mm),
            "spacing_mm": None if self.spacing_mm is None else list(self.spacing_mm),
            "median_shape": list(self.median_shape),
            "crop": list(self.crop),
            "batch_size": self.batch_size,
            "memory_gb": self.memory_gb,
            "limit_gb": self.limit_gb,
            "settings": list(self.settings),
        }


def _times(numbers: Sequence[float] | None) -> str:
    return "unknown" if numbers is None else " x ".join(f"{n:.4g}" for n in numbers)


def plan_segmentation(
    encoder: Start,
    data: Store | Path | str,
    config: FinetuneConfig | None = None,
    *,
    network: Section | None = None,
    prepare: PrepareConfig | None = None,
    allow_partial: bool = False,
) -> Plan:
    """Plan spacing, crop and batch size for `finetune`, which makes the same plan where `config.plan` is set.

    Args:
        encoder: an encoder, its folder or run, whose spacing is kept; None (or "none") for training from scratch.
        data: a store, or an index; a spacing is planned for an index only, and for a store that kept each image's own.
        config: the recipe's section `finetune`: `memory_gb`, and whether the network sees volumes or slices.
        network: the section `encoder` to plan for where there is no encoder; a small DynUNet unless given.
        prepare: how an index would be prepared.
        allow_partial: accept an encoder folder that lacks weights.

    Raises:
        DataError: there are no labelled images in the split `train`.
        RecipeError: not even the smallest crop fits into the memory.
        UsageError: the data is a datalist, whose images are not known before they are prepared.
    """
    config = config or FinetuneConfig()
    loaded = as_encoder(encoder, allow_partial=allow_partial)
    design = Design(loaded, loaded if loaded is not None else network or DynUNetConfig())
    if isinstance(data, Store):
        return plan_for(design, data, config)
    path = Path(data)
    if path.is_file():
        raise UsageError("a datalist cannot be planned for", where=str(path), fix="prepare it, and name the store")
    if not (path / "index.parquet").is_file():
        return plan_for(design, Store.open(path), config)
    rows = [row for row in Index.open(path).rows if row.labelled and row.split == "train"]
    if not rows:
        raise DataError("no labelled images in split 'train'", where=str(path), fix="give labels to `medssl index`")
    section = config_of(loaded.preparation) if loaded is not None and loaded.preparation else prepare
    section = section or PrepareConfig()
    shapes, spacings = _turned(rows, section.orientation)
    # Label values stand in the files, not in the index; one more class costs next to nothing.
    return _plan(design, shapes, spacings, section.spacing_mm, rows[0].channels, 2, config)


def plan_for(design: Design, store: Store, config: FinetuneConfig) -> Plan:
    """Plan for a store's labelled training images."""
    rows = [store.row(image_id) for image_id in labelled(store, "train")]
    spacings = None if any(row.spacing_mm is None for row in rows) else np.array([row.spacing_mm for row in rows])
    fixed = None
    if design.encoder is not None or store.preparation.get("prepare", {}).get("spacing_mm") is not None:
        fixed = None if spacings is None else tuple(np.median(spacings, axis=0).tolist())
    shapes = np.array([row.shape for row in rows], dtype=np.float64)
    return _plan(design, shapes, spacings, fixed, rows[0].channels, len(store.classes) + 1, config)


def by_plan(config: FinetuneConfig, design: Design, store: Store) -> FinetuneConfig:
    """Return the section with planned crop and batch size, where it asks for a plan."""
    if not config.plan:
        return config
    plan = plan_for(design, store, config)
    return config.model_copy(update={"crop": plan.crop, "batch_size": plan.batch_size, "plan": False})


def planned_preparation(data: Path | str, prepare: PrepareConfig) -> PrepareConfig:
    """Return how to prepare an index by the spacing that suits its labelled training images; other data as it was.

    A spacing that `prepare` names stands.
    """
    path = Path(data)
    if prepare.spacing_mm is not None or not (path / "index.parquet").is_file():
        return prepare
    rows = [row for row in Index.open(path).rows if row.labelled and row.split == "train" and row.kind == "volume"]
    if not rows:
        return prepare
    shapes, spacings = _turned(rows, prepare.orientation)
    return prepare if spacings is None else prepare.model_copy(update={"spacing_mm": target_spacing(spacings, shapes)})


def target_spacing(spacings: Floats, shapes: Floats) -> tuple[float, ...]:
    """Return the spacing to resample to: the median, and less along an axis of thick and few slices.

    Args:
        spacings: mm, (images, n).
        shapes: voxels, (images, n).
    """
    target, size = np.median(spacings, axis=0), np.median(shapes, axis=0)
    worst = int(np.argmax(target))
    others = [axis for axis in range(len(target)) if axis != worst]
    coarse = target[worst] > _ANISOTROPY * target[others].max()
    if coarse and size[worst] * _ANISOTROPY < size[others].min():
        target[worst] = max(np.percentile(spacings[:, worst], 10), target[others].max())
    return tuple(round(float(mm), 4) for mm in target)


def _turned(rows: Sequence[IndexRow] | Sequence[StoreRow], codes: str | None) -> tuple[Floats, Floats | None]:
    """Return shapes and spacings, (images, n) each, in the order of axes that preparation turns them to."""
    shapes, spacings = [], []
    for row in rows:
        order = list(range(len(row.shape)))
        if codes is not None and row.affine is not None and len(row.shape) == 3:
            own = [_pair(code) for code in orientation_of(row.affine)]
            order = [own.index(_pair(code)) for code in codes]
        shapes.append([row.shape[axis] for axis in order])
        spacings.append(None if row.spacing_mm is None else [row.spacing_mm[axis] for axis in order])
    if len({len(shape) for shape in shapes}) > 1:
        raise DataError("volumes and 2D images together cannot be planned for", fix="index them apart")
    known = None if any(s is None for s in spacings) else np.array(spacings, dtype=np.float64)
    return np.array(shapes, dtype=np.float64), known


def _pair(code: str) -> str:
    return next(pair for pair in _PAIRS if code in pair)


def _plan(
    design: Design,
    shapes: Floats,
    spacings: Floats | None,
    fixed: tuple[float, ...] | None,
    channels: int,
    classes: int,
    config: FinetuneConfig,
) -> Plan:
    own = None if spacings is None else tuple(round(float(mm), 4) for mm in np.median(spacings, axis=0))
    spacing: tuple[float, ...] | None = None
    if spacings is not None:
        # An encoder knows its images at one spacing; pictures are never resampled.
        keep = design.encoder is not None or shapes.shape[1] == 2
        spacing = fixed or (own if keep else target_spacing(spacings, shapes))
        shapes = shapes * spacings / np.array(spacing)
    median = np.median(shapes, axis=0)
    axes = _axes(design, shapes.shape[1], config)
    seen = [a for a in range(len(median)) if len(axes) == len(median) or a != config.slice_axis]
    gauge = _Gauge(design, channels, classes, config)
    step = gauge.multiple(len(seen))
    ratio = np.ones(len(seen)) if spacing is None else np.array([spacing[a] for a in seen])
    limit = config.memory_gb * 1e9
    crop = _shrunk(_first_crop(ratio, median[seen], step), median[seen], step, gauge, limit)
    voxels = float(shapes.prod(axis=1).sum())
    batch = max(_SMALLEST_BATCH, min(gauge.fits(crop, limit), round(voxels * _SHARE / math.prod(crop))))
    return Plan(
        images=len(shapes),
        network=gauge.name,
        parameters=gauge.parameters(crop),
        median_spacing_mm=own,
        spacing_mm=spacing,
        median_shape=tuple(round(n) for n in median),
        crop=crop,
        batch_size=batch,
        memory_gb=gauge.need(crop, batch) / 1e9,
        limit_gb=config.memory_gb,
    )


def _axes(design: Design, image_axes: int, config: FinetuneConfig) -> tuple[int, ...]:
    """Return as many numbers as the network has axes: two where it sees the slices of volumes."""
    if isinstance(design.network, Encoder):
        return tuple(design.network.spec["shape"])
    return config.crop or (0,) * image_axes


def _first_crop(spacing: Floats, shape: Floats, step: tuple[int, ...]) -> tuple[int, ...]:
    """Return a large crop with sides alike in mm, no larger than the images but for whole strides."""
    aspect = 1 / spacing
    ideal = aspect * (_LARGEST[len(shape)] / aspect.prod()) ** (1 / len(shape))
    wanted = np.minimum(np.round(ideal), np.round(shape))
    return tuple(int(max(1, math.ceil(n / s)) * s) for n, s in zip(wanted, step))


def _shrunk(
    crop: tuple[int, ...], shape: Floats, step: tuple[int, ...], gauge: _Gauge, limit: float
) -> tuple[int, ...]:
    """Return the crop, smaller by whole steps until a step of training fits into the limit of bytes."""
    least = tuple(min(n, _SMALLEST_EDGE * s) for n, s in zip(crop, step))
    while (need := gauge.need(crop, _SMALLEST_BATCH)) > limit:
        # The axis of which the crop shows the largest share gives way, of those that can.
        shares = [n / whole if n > low else -1 for n, whole, low in zip(crop, shape, least)]
        axis = int(np.argmax(shares))
        if shares[axis] < 0:
            raise RecipeError(
                f"a step with {_SMALLEST_BATCH} crops of {crop} voxels takes about {need / 1e9:.2g} GB",
                where="finetune.memory_gb",
                fix="raise it, or take a smaller network",
            )
        crop = tuple(n - step[a] if a == axis else n for a, n in enumerate(crop))
    return crop


class _Gauge:
    """Counts what a network takes, on torch's `meta` device: shapes alone, nothing is computed."""

    def __init__(self, design: Design, channels: int, classes: int, config: FinetuneConfig) -> None:
        self.network, self.channels, self.classes, self.config = design.network, channels, classes, config
        self._counted: dict[tuple[int, ...], tuple[int, int, int]] = {}

    @property
    def name(self) -> str:
        """The architecture."""
        return str(
            self.network.spec["name"] if isinstance(self.network, Encoder) else getattr(self.network, "name", "")
        )

    def multiple(self, axes: int) -> tuple[int, ...]:
        """Return what each axis of a crop must be a multiple of."""
        if isinstance(self.network, Encoder):
            return self.network.multiple
        patch = getattr(self.network, "patch", None)  # of a ViT, whose segmenter is made for one crop
        if patch is not None:
            return (patch,) * axes if isinstance(patch, int) else tuple(patch)
        return self._segmenter((64,) * axes).multiple

    def parameters(self, crop: tuple[int, ...]) -> int:
        """Return the number of weights."""
        return self._count(crop)[2]

    def need(self, crop: tuple[int, ...], batch: int) -> float:
        """Return the bytes of a training step: what is kept for the gradient, passing tensors, and the weights."""
        kept, largest, parameters = self._count(crop)
        return batch * (kept + _PASSING * largest) + _BYTES_A_WEIGHT * parameters

    def fits(self, crop: tuple[int, ...], limit: float) -> int:
        """Return the largest batch within a limit of bytes."""
        kept, largest, parameters = self._count(crop)
        return int((limit - _BYTES_A_WEIGHT * parameters) // (kept + _PASSING * largest))

    def _count(self, crop: tuple[int, ...]) -> tuple[int, int, int]:
        """Return bytes kept for one crop, bytes of the largest tensor of it, and the number of weights."""
        if crop not in self._counted:
            segmenter = self._segmenter(crop)
            kept = kept_for_gradient(segmenter, crop, batch=2)
            parameters = sum(p.numel() for p in segmenter.parameters())
            self._counted[crop] = (sum(kept) // 2, max(kept) // 2, parameters)
        return self._counted[crop]

    def _segmenter(self, crop: tuple[int, ...]) -> Segmenter:
        with torch.device("meta"):
            return segmenter_for(
                self.network,
                self.classes,
                shape=crop,
                channels=self.channels,
                decoder=self.config.decoder,
                deep_supervision=self.config.deep_supervision,
            )


def kept_for_gradient(segmenter: nn.Module, crop: tuple[int, ...], *, batch: int) -> list[int]:
    """Return the bytes of every tensor that a training step of `finetune` keeps for its gradient, weights apart.

    Args:
        segmenter: on any device; on `meta` nothing is computed.
        crop: voxels of a crop.
        batch: crops.
    """
    weights = {p.untyped_storage()._cdata for p in segmenter.parameters()}
    device = next(segmenter.parameters()).device
    kept: dict[int, Any] = {}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage  # held, so that no other one takes its place
        return x

    image = torch.zeros(batch, getattr(segmenter, "channels", 1), *crop, device=device)
    label = torch.zeros(batch, *crop, dtype=torch.long, device=device)
    training = segmenter.training
    segmenter.train()
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        out = segmenter(image)
        outputs = [level.float() for level in (out if isinstance(out, list) else [out])]
        loss = (over_levels(cross_entropy, outputs, label) + over_levels(dice_loss, outputs, label)).sum()
    segmenter.train(training)
    del loss
    return [storage.nbytes() for storage in kept.values()]
