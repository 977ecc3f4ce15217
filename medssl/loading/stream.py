"""One stream of samples from one store: sample n, key and all, is a function of (seed, stream, n) alone.

Shapes: B batch, V crops of a sample, C channels, nd axes of an image, D H W voxels of a crop.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..batch import StreamFacts, hash64
from ..errors import DataError, RecipeError
from ..matches import Matches
from ..store import Store, StoreRow
from . import crops
from .config import StreamConfig
from .order import Numbers, Order

logger = logging.getLogger(__name__)
Array = NDArray[Any]
Slot = dict[str, Any]

ATTEMPTS = 8
"""Other images tried in the place of one that cannot be read."""


@dataclass(frozen=True)
class Sample:
    """Which voxels a sample takes: an item, and an image and a start for each of its V crops."""

    item: int
    key: int
    images: tuple[str, ...]
    starts: tuple[tuple[int, ...], ...]
    points: tuple[tuple[float, ...], ...] = ()


class Stream:
    """Draws the samples of one stream and cuts them into their places in a batch.

    Args:
        name: the stream's name; part of every sample's key.
        store: where the voxels are.
        config: what a sample is.
        batch: samples of one step.
        ids: images to take; by default those of `config.split`, of them the labelled ones if labels are asked for.
        points: where crops are centred instead of on labelled voxels; see `Loader`.
    """

    def __init__(
        self,
        name: str,
        store: Store,
        config: StreamConfig,
        seed: int,
        *,
        batch: int,
        labels: bool = False,
        ids: Sequence[str] | None = None,
        matches: Matches | None = None,
        points: Mapping[str, Array] | None = None,
    ) -> None:
        self.name, self.store, self.config, self.seed = name, store, config, seed
        self.batch, self.labels, self.matches = batch, labels, matches
        self.ids = _choose(store, config, labels, ids, matches)
        rows = [store.row(image_id) for image_id in self.ids]
        self.nd = _check_alike(rows, config)
        self.points = None if points is None else _checked_points(points, rows)
        self.channels = rows[0].channels
        self.dtype = np.result_type(*{row.dtype for row in rows})
        self.label_dtype = np.result_type(*({row.label_dtype for row in rows if row.labelled} or {"uint8"}))
        self.order = Order(len(self.ids), seed, name)
        size = list(config.crop)
        if config.slices != "none":
            size.insert(config.slices, 1)
        self.size = tuple(size)
        self._told: set[str] = set()

    @property
    def items(self) -> int:
        """Number of different items."""
        return len(self.ids)

    def facts(self) -> StreamFacts:
        """Return what is known before the first sample is read; the spacing is the median over the images."""
        rows = [self.store.row(image_id) for image_id in self.ids]
        known = [row.spacing_mm for row in rows if row.spacing_mm is not None and len(row.spacing_mm) >= self.nd]
        spacing = tuple(float(v) for v in np.median(np.asarray(known)[:, : self.nd], axis=0)) if known else None
        if spacing is not None and self.config.slices != "none":
            spacing = tuple(v for axis, v in enumerate(spacing) if axis != self.config.slices)
        return StreamFacts(
            kind="volume" if len(self.config.crop) == 3 else "image2d",
            shape=self.config.crop,
            channels=self.channels,
            items=self.items,
            batch=self.batch,
            spacing_mm=spacing,
            labels=tuple(sorted({label for row in rows for label in row.labels})),
        )

    def layout(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Return shape and dtype of each array of a sample, by batch key."""
        v = (self.config.crops,) if self.config.stacked else ()
        crop = self.config.crop
        out: dict[str, tuple[tuple[int, ...], Any]] = {
            "image": ((*v, self.channels, *crop), self.dtype),
            "affine": ((*v, 4, 4), np.float32),
            "intensity": ((*v, 4), np.float32),
            "box": ((*v, 2, len(crop)), np.int64),
            "start": ((*v, self.nd), np.int64),
            "index": ((), np.int64),
            "key": ((), np.int64),
        }
        if self.labels:
            out["label"] = ((*v, 1, *crop), self.label_dtype)
        if self.config.pairs == "matches":
            out["point"] = ((*v, len(crop)), np.float32)
        return out

    def draw(self, n: int, attempt: int = 0) -> Sample:
        """Draw sample n; a further `attempt` stands in for an image that cannot be read."""
        parts = (self.seed, self.name, n) if attempt == 0 else (self.seed, self.name, n, attempt)
        key, numbers = hash64(*parts), Numbers(hash64(*parts, "place"))
        item = self.order.item(n) if attempt == 0 else numbers.below(self.items)
        image_id = self.ids[item]
        if self.config.pairs == "matches":
            return self._draw_match(item, key, image_id, numbers)
        starts = [self._start(image_id, numbers)]
        while len(starts) < self.config.crops:
            if self.config.pairs == "overlap":
                shape = self.store.shape(image_id)
                starts.append(crops.beside(starts[0], shape, self.size, self.config.overlap_min, numbers))
            else:
                starts.append(self._start(image_id, numbers))
        return Sample(item, key, (image_id,) * len(starts), tuple(starts))

    def _start(self, image_id: str, numbers: Numbers) -> tuple[int, ...]:
        row = self.store.row(image_id)
        centred = self.labels or self.points is not None
        if centred and self.config.label_fraction and numbers.unit() < self.config.label_fraction:
            points = self.store.label_points(image_id) if self.points is None else self.points[image_id]
            if len(points):
                return crops.on_label(points, row.shape, self.size, numbers)
        if self.config.sampling == "foreground":
            return crops.inside(row.foreground_box, row.shape, self.size, numbers)
        return crops.anywhere(row.shape, self.size, numbers)

    def _draw_match(self, item: int, key: int, image_id: str, numbers: Numbers) -> Sample:
        matches = self.matches
        assert matches is not None  # checked where the ids are chosen
        rows = matches.of(image_id)
        row = int(rows[numbers.below(len(rows))])
        share = [0.25 + 0.5 * numbers.unit() for _ in range(self.nd)]  # the point lies in the crop's middle half
        images = (image_id, matches.partner_id[row])
        starts, points = [], []
        for name, mm in zip(images, (matches.point_mm[row], matches.partner_mm[row])):
            voxel = (np.linalg.inv(self.store.affine(name)) @ np.append(mm, 1.0))[: self.nd]
            start = crops.at_point(voxel.tolist(), share, self.store.shape(name), self.size)
            starts.append(start)
            points.append(tuple(float(p) - a for p, a in zip(voxel, start)))
        return Sample(item, key, images, tuple(starts), tuple(points))

    def fill(self, slot: Slot, place: int, n: int) -> None:
        """Cut sample n into a place of a batch's arrays; one that cannot be read is replaced, and named in the log."""
        for attempt in range(ATTEMPTS + 1):
            sample = self.draw(n, attempt)
            try:
                self._cut(slot, place, sample)
                return
            except DataError as error:
                if attempt == ATTEMPTS:
                    raise
                if sample.images[0] not in self._told:
                    self._told.add(sample.images[0])
                    logger.warning("sample %d of stream %s is replaced: %s", n, self.name, error)

    def _cut(self, slot: Slot, place: int, sample: Sample) -> None:
        stacked = self.config.stacked
        for v, (image_id, start) in enumerate(zip(sample.images, sample.starts)):
            at = (place, v) if stacked else (place,)
            row = self.store.row(image_id)
            slot["affine"][at] = self._affine(image_id, start)
            slot["intensity"][at] = row.intensity
            slot["box"][at] = self._flat(self._box(row, start))
            slot["start"][at] = self._in_order(start)
            if sample.points:
                slot["point"][at] = self._flat(np.asarray(sample.points[v]))
        self._voxels(slot["image"][place], sample, label=False)
        if self.labels:
            self._voxels(slot["label"][place], sample, label=True)
        slot["index"][place], slot["key"][place] = sample.item, sample.key
        slot["image_id"][place] = sample.images[0]
        if "partner_id" in slot:
            slot["partner_id"][place] = sample.images[1]

    def _voxels(self, out: Array, sample: Sample, *, label: bool) -> None:
        """Fill (C, *crop), or (V, C, *crop); crops of one image that share much are cut from one decoded region."""
        views = out if self.config.stacked else out[None]
        low = np.min(sample.starts, axis=0)
        span = np.max(sample.starts, axis=0) + self.size - low
        if len(set(sample.images)) == 1 and len(views) > 1 and np.prod(span) <= len(views) * np.prod(self.size):
            region = np.empty((views.shape[1], *span), dtype=out.dtype)
            self._read(region, sample.images[0], tuple(int(v) for v in low), label)
            for view, start in zip(views, sample.starts):
                offset = (slice(a - b, a - b + n) for a, b, n in zip(start, low, self.size))
                self._whole(view)[...] = region[(slice(None), *offset)]
        else:
            for view, image_id, start in zip(views, sample.images, sample.starts):
                self._read(self._whole(view), image_id, start, label)

    def _read(self, out: Array, image_id: str, start: tuple[int, ...], label: bool) -> None:
        """Fill (C, *size) from an image; what lies beyond its end becomes its lowest value, 0 for labels."""
        row = self.store.row(image_id)
        size = tuple(min(n, whole - a) for n, whole, a in zip(out.shape[1:], row.shape, start))
        stored = np.dtype(row.label_dtype if label else row.dtype)
        if size == out.shape[1:] and stored == out.dtype and out.flags.c_contiguous:
            self.store.read_into(out, image_id, start, label=label)
            return
        if size != out.shape[1:]:
            out[...] = 0 if label else _lowest(row, out.dtype)
        part = self.store.label(image_id, start, size) if label else self.store.read(image_id, start, size)
        out[(slice(None), *(slice(0, n) for n in size))] = part

    def _whole(self, view: Array) -> Array:
        """Return a crop's memory with an axis for every one of its image's: a slice gets its axis of length 1 back."""
        return view if self.config.slices == "none" else np.expand_dims(view, 1 + self.config.slices)

    def _flat(self, values: Array) -> Array:
        """Drop the sliced axis from numbers that stand for axes of an image."""
        return values if self.config.slices == "none" else np.delete(values, self.config.slices, axis=-1)

    def _in_order(self, values: Sequence[int]) -> list[int]:
        """Return one number an axis of the image: the crop's own axes first, then a slice's number along its normal."""
        if self.config.slices == "none":
            return list(values)
        return [*(v for axis, v in enumerate(values) if axis != self.config.slices), values[self.config.slices]]

    def _box(self, row: StoreRow, start: tuple[int, ...]) -> Array:
        ends = [min(n, whole - a) for n, whole, a in zip(self.size, row.shape, start)]
        return np.asarray([[0] * len(ends), ends], dtype=np.int64)

    def _affine(self, image_id: str, start: tuple[int, ...]) -> Array:
        """Return (4, 4) of a crop; a slice's first two columns are its own axes, the third its normal."""
        affine = self.store.affine(image_id).copy()
        affine[:3, 3] += affine[:3, : self.nd] @ np.asarray(start, dtype=np.float64)
        if self.config.slices != "none":
            axes = [axis for axis in range(3) if axis != self.config.slices] + [self.config.slices]
            affine[:, :3] = affine[:, axes]
        return affine


def _lowest(row: StoreRow, dtype: Any) -> float | int:
    low = row.intensity[0]
    if not np.issubdtype(dtype, np.integer):
        return low
    limits = np.iinfo(dtype)
    return int(min(max(math.floor(low), limits.min), limits.max))


def _choose(
    store: Store, config: StreamConfig, labels: bool, ids: Sequence[str] | None, matches: Matches | None
) -> tuple[str, ...]:
    where = f"store {store.folder}"
    if ids is not None:
        if unknown := [image_id for image_id in ids if image_id not in set(store.ids)]:
            raise DataError(
                f"{len(unknown)} of {len(ids)} images are not in the store, first {unknown[0]}", where=where
            )
        if labels and (bare := [image_id for image_id in ids if not store.row(image_id).labelled]):
            raise DataError(f"{len(bare)} of {len(ids)} images have no label map, first {bare[0]}", where=where)
        chosen = list(ids)
    else:
        chosen = list(store.ids if config.split == "all" else store.ids_of(config.split))
        chosen = [image_id for image_id in chosen if not labels or store.row(image_id).labelled]
    if config.pairs == "matches":
        if matches is None:
            raise RecipeError("pairs of matches need a table of matches", where="loader.pairs", fix="give one")
        known = set(chosen)
        chosen = [
            image_id
            for image_id in chosen
            if len(matches.of(image_id)) and all(matches.partner_id[int(row)] in known for row in matches.of(image_id))
        ]
    if not chosen:
        kinds = "labelled images" if labels else "images"
        splits = sorted({row.split for row in store.rows})
        raise DataError(f"there are no {kinds} in split {config.split}; splits found: {splits}", where=where)
    return tuple(chosen)


def _checked_points(points: Mapping[str, Array], rows: Sequence[StoreRow]) -> dict[str, Array]:
    """Return the points of these images; raise ValueError unless they are classes and voxels of theirs."""
    out = {}
    for row in rows:
        found = np.asarray(points.get(row.image_id, np.zeros((0, 1 + len(row.shape)), dtype=np.int64)))
        if found.ndim != 2 or found.shape[1] != 1 + len(row.shape) or not np.issubdtype(found.dtype, np.integer):
            raise ValueError(
                f"points of image {row.image_id} must be (P, {1 + len(row.shape)}) whole numbers, "
                f"are {found.shape} {found.dtype}"
            )
        if ((found[:, 1:] < 0) | (found[:, 1:] >= row.shape)).any():
            raise ValueError(f"points of image {row.image_id} leave its shape {row.shape}")
        out[row.image_id] = found
    return out


def _check_alike(rows: Sequence[StoreRow], config: StreamConfig) -> int:
    """Return the number of axes; raise DataError unless the images can stand in one batch with the crop asked for."""
    found = {(len(row.shape), row.channels) for row in rows}
    if len(found) > 1:
        shown = ", ".join(f"{nd}D with {channels} channels" for nd, channels in sorted(found))
        raise DataError(f"images of different kinds cannot stand in one batch: {shown}", fix="make a store of each")
    nd = rows[0].shape
    wanted = len(config.crop) + (config.slices != "none")
    if len(nd) != wanted:
        raise RecipeError(
            f"the crop has {len(config.crop)} numbers, the images have {len(nd)} axes",
            where="loader.crop",
            fix=f"give {len(nd)} numbers" + (", or name an axis in loader.slices" if len(nd) == 3 else ""),
        )
    return len(nd)
