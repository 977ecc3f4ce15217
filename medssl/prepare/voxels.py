"""One image: read, turned, resampled, and described; nothing is written here.

Shapes: C channels, D H W voxels.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import geometry
from ..errors import DataError
from ..reading import ReadError, Source, read_label, read_voxels
from ..reading.boxes import Box, fitted, moved
from ..store import StoreRow
from .config import Percentiles, PrepareConfig, Window
from .preprocessing import instance, is_spatial, spatial_items

logger = logging.getLogger(__name__)
Array = NDArray[Any]
Moves = list[tuple[Array, tuple[int, ...]]]
"""For each transform how it moved voxel indices, (4, 4), and the shape it left."""

STEPS = 200
"""Least range in integers for resampled voxels to be rounded: half a step is then below 0.25 % of the range."""

POINTS = 256
"""Labelled voxels kept of each class, for crops centred on labels."""


@dataclass(frozen=True)
class ToPrepare:
    """An image to prepare, and what is known of it; goes to worker processes."""

    image_id: str
    subject_id: str
    kind: str
    shape: tuple[int, ...]
    source: Source
    label_source: Source | None = None
    split: str = "train"
    view: str = ""
    modality: str = ""
    labels: Mapping[str, float] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)
    boxes: tuple[Box, ...] | None = None
    """In voxels of the file's array."""
    text: str = ""


@dataclass(frozen=True)
class Prepared:
    """An image ready to be stored: (C, D, H, W) or (C, H, W), its label (1, ...), and its row.

    `points` are labelled voxels as (class, index...); `problems` pairs of code and message.
    """

    row: StoreRow
    image: Array
    label: Array | None
    points: Array
    problems: tuple[tuple[str, str], ...] = ()


def prepare_image(item: ToPrepare, config: PrepareConfig) -> Prepared:
    """Read one image and its label map and bring them to the geometry the recipe asks for.

    Raises:
        DataError: the image cannot be read, or a transform fails on it.
    """
    voxels = read_voxels(item.source)
    if item.kind not in ("volume", "image2d", "rgb2d"):
        raise ReadError("format-unsupported", f"images of kind {item.kind} are not prepared yet")
    label, problems = _label_of(item, voxels.array, voxels.affine)
    image, label, affine, moves = _transformed(item.kind, voxels.array, label, voxels.affine, config)
    if not np.isfinite(image).all():
        raise ReadError("voxels-not-finite", "voxels are not finite after preparation")
    intensity = intensity_of(image, config)
    whole = np.issubdtype(voxels.array.dtype, np.integer) and _keeps_values(config, item.kind)
    image = _compact(image, voxels.array.dtype, rounded=whole and intensity[1] - intensity[0] >= STEPS)
    known = None if affine is None else tuple(tuple(float(v) for v in line) for line in affine)
    spacing = None if affine is None else tuple(float(v) for v in np.linalg.norm(affine[:3, : image.ndim - 1], axis=0))
    points = label_points(label)
    boxes, lost = _boxes_of(item, voxels.array.shape[: image.ndim - 1], moves)
    row = StoreRow(
        image_id=item.image_id,
        subject_id=item.subject_id,
        kind=item.kind,
        shape=image.shape[1:],
        channels=image.shape[0],
        dtype=image.dtype.name,
        affine=known,
        spacing_mm=spacing,
        foreground_box=foreground_box(image, intensity),
        intensity=intensity,
        split=item.split,
        labelled=label is not None,
        label_dtype="" if label is None else label.dtype.name,
        classes=tuple(int(v) for v in np.unique(points[:, 0])),
        view=item.view,
        modality=item.modality,
        labels=dict(item.labels),
        groups=dict(item.groups),
        boxes=boxes,
        text=item.text,
        content=_content(image, label),
    )
    return Prepared(row, image, label, points, (*problems, *lost))


def _boxes_of(
    item: ToPrepare, shape: tuple[int, ...], moves: Moves
) -> tuple[tuple[Box, ...] | None, list[tuple[str, str]]]:
    """Take the boxes where the voxels went; return what was lost by code and message.

    Step by step, as voxels are lost: what a crop took is not in what is padded after it.
    """
    if item.boxes is None:
        return None, []
    boxes, problems = fitted(item.boxes, shape)
    for move, left in moves:
        boxes, flaws = fitted(moved(boxes, move, len(left)), left)
        problems += [flaw for flaw in flaws if flaw[0] != "box-cut"]
    return boxes, problems


def _label_of(item: ToPrepare, array: Array, affine: Array | None) -> tuple[Array | None, list[tuple[str, str]]]:
    """Read the label map; one that cannot be trusted is left out, and said so."""
    if item.label_source is None:
        return None, []
    try:
        label = read_label(item.label_source)
    except ReadError as error:
        return None, [(error.code, error.message)]
    shape = array.shape[:2] if item.kind == "rgb2d" else array.shape
    if label.array.shape != shape:
        return None, [("label-shape", f"label {label.array.shape}, image {shape}")]
    if affine is not None and label.affine is not None and not geometry.same_place(label.affine, affine, shape):
        return None, [("label-affine", "label and image lie in different places")]
    return label.array, []


def _transformed(
    kind: str, array: Array, label: Array | None, affine: Array | None, config: PrepareConfig
) -> tuple[Array, Array | None, Array | None, Moves]:
    """Run MONAI's transforms.

    Returns:
        Image and label, channels first, the affine of the result, and how voxels moved.
    """
    first = np.moveaxis(array, -1, 0) if kind == "rgb2d" else array[None]
    data = {"image": first} | ({} if label is None else {"label": label[None]})
    items = spatial_items(config, ["image"], ["label"] if "label" in data else [], kind=kind)
    if not items:
        return first, data.get("label"), affine, []
    import torch
    from monai.data import MetaTensor

    # Where only axes are turned the numbers stay what they are; interpolation wants floating point.
    exact = all(item["_target_"] == "Orientationd" for item in items)
    matrix = torch.as_tensor(np.eye(4) if affine is None else affine, dtype=torch.float64)
    state: dict[str, Any] = {
        key: MetaTensor(
            torch.from_numpy(np.ascontiguousarray(value if exact else value.astype(np.float32))), affine=matrix.clone()
        )
        for key, value in data.items()
    }
    moves = []
    for item in items:
        before = state["image"].affine.numpy()
        try:
            state = instance(item)(state)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            logger.debug("%s failed", item["_target_"], exc_info=True)
            raise DataError(f"{item['_target_']} failed: {type(error).__name__}", where="prepare") from error
        move = np.linalg.solve(state["image"].affine.numpy(), before)
        moves.append((move, tuple(int(n) for n in state["image"].shape[1:])))
    image = state["image"].as_tensor().numpy()
    after = state["image"].affine.numpy().astype(np.float64)
    placed = after if affine is not None else None
    if label is None:
        return image, None, placed, moves
    out = np.rint(state["label"].as_tensor().numpy())
    if not np.isin(np.unique(out), [0, *np.unique(label)]).all() or out.shape[1:] != image.shape[1:]:
        raise DataError("the transforms make a label map of other classes or another shape", where="prepare.transforms")
    return image, out.astype(label.dtype), placed, moves


def _keeps_values(config: PrepareConfig, kind: str) -> bool:
    return all(is_spatial(item) for item in spatial_items(config, ["image"], kind=kind))


def _compact(image: Array, source: np.dtype[Any], *, rounded: bool) -> Array:
    """Return the image in the smallest of uint8, int16 and float32 that loses nothing; `rounded` allows rounding."""
    whole = np.rint(image) if np.issubdtype(image.dtype, np.floating) else image
    if rounded or whole is image or np.array_equal(whole, image):
        low, high = whole.min(), whole.max()
        if source == np.uint8 and low >= 0 and high <= 255:
            return np.ascontiguousarray(whole, dtype=np.uint8)
        if low >= -32768 and high <= 32767:
            return np.ascontiguousarray(whole, dtype=np.int16)
    return np.ascontiguousarray(image, dtype=np.float32)


def intensity_of(image: Array, config: PrepareConfig) -> tuple[float, float, float, float]:
    """Return low, high, shift and scale: a normalised value is (clip(x, low, high) - shift) / scale."""
    scaling = config.scaling
    if isinstance(scaling, (Window, Percentiles)):
        if isinstance(scaling, Window):
            low, high = scaling.low, scaling.high
        else:
            low, high = (float(v) for v in np.percentile(image, [scaling.lower, scaling.upper]))
        scale = (high - low) / (scaling.to[1] - scaling.to[0]) if high > low else 1.0
        return low, high, low - scaling.to[0] * scale, scale
    deviation = float(image.std(dtype=np.float64))
    return float(image.min()), float(image.max()), float(image.mean(dtype=np.float64)), deviation or 1.0


def foreground_box(
    image: Array, intensity: tuple[float, float, float, float]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the box around the voxels brighter than the mean, as (first voxel, one past the last).

    Values count as clipped to the scaling's range, so that metal or a bright vessel does not lift the mean.
    """
    seen = np.clip(image.max(axis=0), intensity[0], intensity[1])
    bright = seen > seen.mean(dtype=np.float64)
    if not bright.any():
        return (0,) * bright.ndim, tuple(bright.shape)
    low, high = [], []
    for axis in range(bright.ndim):
        along = np.flatnonzero(bright.any(axis=tuple(other for other in range(bright.ndim) if other != axis)))
        low.append(int(along[0]))
        high.append(int(along[-1]) + 1)
    return tuple(low), tuple(high)


def label_points(label: Array | None) -> Array:
    """Return (P, 1 + nd) int32, up to POINTS voxels of each class but 0, evenly taken through the volume."""
    if label is None:
        return np.zeros((0, 1), dtype=np.int32)
    found = []
    for value in np.unique(label[label != 0]):
        flat = np.flatnonzero(label[0] == value)
        flat = flat[np.linspace(0, len(flat) - 1, min(POINTS, len(flat))).astype(np.int64)]
        index = np.stack(np.unravel_index(flat, label.shape[1:]), axis=1)
        found.append(np.concatenate([np.full((len(index), 1), int(value)), index], axis=1))
    return np.concatenate(found).astype(np.int32) if found else np.zeros((0, label.ndim), dtype=np.int32)


def _content(image: Array, label: Array | None) -> str:
    digest = hashlib.sha256(f"{image.dtype.name}{image.shape}".encode())
    digest.update(np.ascontiguousarray(image).data)
    if label is not None:
        digest.update(np.ascontiguousarray(label).data)
    return digest.hexdigest()[:16]
