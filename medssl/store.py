"""The store: voxels on disk, chunked and compressed, of which any box is read without the rest.

A folder: `arrays/<image_id>.b2nd` (channels first, as prepared), `arrays/<image_id>.label.b2nd` for labelled images,
`store.parquet` (one row an image; written last, so a store without it is unfinished), `preparation.json` (what was
done to the voxels), `problems.csv` (images that could not be prepared, by id and code) and `card.md` (the data card).

Nothing in it names a patient, a path or a header's text.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .config import fingerprint
from .decoding import ArrayFile, open_array
from .errors import DataError

Array = NDArray[Any]

_EDGES = {2: (512, 128), 3: (64, 32)}
"""Edge of a chunk and of a block in voxels, by number of axes: a crop decodes the blocks it touches."""

_HANDLES = 128
"""Arrays kept open by each thread."""


@dataclass(frozen=True)
class StoreRow:
    """One image of a store.

    `shape` and `foreground_box` are in voxels after preparation, `affine` maps those voxels to RAS+ mm and is None
    where the file tells no geometry. `foreground_box` is (first voxel, one past the last). `intensity` is
    (low, high, shift, scale): a normalised value is (clip(x, low, high) - shift) / scale. `classes` are the values
    of the label map but 0, `labels` findings or measures of the whole image, `groups` what it belongs to (site,
    scanner, sex). `boxes` are pairs of a class's name and (low corner, high corner) in voxels of this grid, where
    voxel i spans [i, i + 1), so that a mask's box is (least index, greatest index + 1); None where nobody looked for
    boxes, () where there are none.
    """

    image_id: str
    subject_id: str
    kind: str
    shape: tuple[int, ...]
    channels: int
    dtype: str
    affine: tuple[tuple[float, ...], ...] | None
    spacing_mm: tuple[float, ...] | None
    foreground_box: tuple[tuple[int, ...], tuple[int, ...]]
    intensity: tuple[float, float, float, float]
    split: str = "train"
    labelled: bool = False
    label_dtype: str = ""
    classes: tuple[int, ...] = ()
    view: str = ""
    modality: str = ""
    labels: dict[str, float] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
    boxes: tuple[tuple[str, tuple[float, ...]], ...] | None = None
    text: str = ""
    content: str = ""
    """Hash of the voxels and of the label's."""


class Store:
    """Prepared images, read box by box; safe to use from several threads.

    Example:
        store = Store.open("store")
        crop = store.read(store.ids[0], start=(0, 0, 0), size=(32, 32, 32))  # (C, 32, 32, 32)
    """

    def __init__(self, folder: Path, rows: Sequence[StoreRow], points: dict[str, Array], preparation: Any) -> None:
        self.folder = folder
        self.rows = tuple(sorted(rows, key=lambda row: row.image_id))
        self.preparation: dict[str, Any] = preparation
        self._by_id = {row.image_id: row for row in self.rows}
        self._points = points
        self._open = threading.local()

    @classmethod
    def open(cls, path: Path | str) -> Store:
        """Open a finished store.

        Raises:
            DataError: there is no store at `path`, or its preparation was interrupted.
        """
        folder = Path(path)
        if not (folder / "store.parquet").is_file():
            if (folder / "preparation.json").is_file():
                raise DataError(
                    "the store is not finished", where=str(folder), fix="run `medssl prepare` again; it goes on"
                )
            raise DataError("there is no store here", where=str(folder), fix="make one with `medssl prepare`")
        try:
            rows, points = read_table(folder / "store.parquet")
            preparation = json.loads((folder / "preparation.json").read_text("utf-8"))
        except (OSError, ValueError, KeyError) as error:
            raise DataError(
                f"the store cannot be read: {type(error).__name__}", where=str(folder), fix="prepare it again"
            ) from error
        return cls(folder, rows, points, preparation)

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of all images, sorted."""
        return tuple(row.image_id for row in self.rows)

    def ids_of(self, split: str) -> tuple[str, ...]:
        """Return the ids of one split, sorted."""
        return tuple(row.image_id for row in self.rows if row.split == split)

    @cached_property
    def classes(self) -> tuple[int, ...]:
        """The values found in the label maps of all images, but 0."""
        return tuple(sorted({value for row in self.rows for value in row.classes}))

    @cached_property
    def box_names(self) -> tuple[str, ...]:
        """The classes of the boxes of all images, sorted."""
        return tuple(sorted({name for row in self.rows for name, _ in row.boxes or ()}))

    def boxes(self, image_id: str) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return an image's boxes.

        Returns:
            Corners, (M, 2 nd) in voxels, low corner then high (see `StoreRow`), and classes, (M,) into `box_names`.

        Raises:
            DataError: nobody looked for boxes in this image (`StoreRow.boxes` is None).
        """
        row = self._by_id[image_id]
        if row.boxes is None:
            raise DataError(
                "nobody looked for boxes in the image", where=f"image {image_id}", fix="give --boxes to `medssl index`"
            )
        corners = np.asarray([corners for _, corners in row.boxes], dtype=np.float64)
        classes = np.asarray([self.box_names.index(name) for name, _ in row.boxes], dtype=np.int64)
        return corners.reshape(-1, 2 * len(row.shape)), classes

    @cached_property
    def fingerprint(self) -> str:
        """Name of the content: voxels, labels, boxes, groups, splits and preparation."""
        rows = [[row.image_id, row.subject_id, row.split, row.content, *_further(row)] for row in self.rows]
        return fingerprint([self.preparation.get("fingerprint"), rows])

    def row(self, image_id: str) -> StoreRow:
        """Return what is known of an image; KeyError where the store has none of that id."""
        return self._by_id[image_id]

    def shape(self, image_id: str) -> tuple[int, ...]:
        """Return the spatial shape in voxels."""
        return self._by_id[image_id].shape

    def affine(self, image_id: str) -> Array:
        """Return (4, 4) float64, voxel to RAS+ mm; the identity where the image has no geometry."""
        affine = self._by_id[image_id].affine
        return np.eye(4) if affine is None else np.asarray(affine, dtype=np.float64)

    def label_points(self, image_id: str) -> Array:
        """Return (P, 1 + nd) int32: some labelled voxels of every class, as (class, index...)."""
        row = self._by_id[image_id]
        return self._points.get(image_id, np.zeros((0, 1 + len(row.shape)), dtype=np.int32))

    def read(self, image_id: str, start: Sequence[int] | None = None, size: Sequence[int] | None = None) -> Array:
        """Read the box `[start, start + size)` of an image, the whole of it by default.

        Returns:
            (C, *size), in the dtype that was stored.

        Raises:
            ValueError: the box leaves the image.
            DataError: the file is damaged or gone.
        """
        row = self._by_id[image_id]
        out = np.empty((row.channels, *(row.shape if size is None else size)), dtype=row.dtype)
        self.read_into(out, image_id, start)
        return out

    def label(self, image_id: str, start: Sequence[int] | None = None, size: Sequence[int] | None = None) -> Array:
        """Read the box `[start, start + size)` of an image's label map: (1, *size), integers. See `read`."""
        row = self._by_id[image_id]
        out = np.empty((1, *(row.shape if size is None else size)), dtype=row.label_dtype or "uint8")
        self.read_into(out, image_id, start, label=True)
        return out

    def read_into(self, out: Array, image_id: str, start: Sequence[int] | None = None, *, label: bool = False) -> None:
        """Decode the box of `out`'s size at `start` straight into `out`, contiguous (C, *size) of the stored dtype."""
        row = self._by_id[image_id]
        if label and not row.labelled:
            raise DataError(
                "the image has no label map", where=f"image {image_id}", fix="give labels to `medssl index`"
            )
        size = out.shape[1:]
        first = tuple(int(v) for v in (start if start is not None else (0,) * len(row.shape)))
        if len(first) != len(row.shape) or len(size) != len(row.shape):
            raise ValueError(f"start and size of an image with shape {row.shape} need {len(row.shape)} numbers each")
        if any(a < 0 or n < 1 or a + n > whole for a, n, whole in zip(first, size, row.shape)):
            raise ValueError(f"the box at {first} of size {tuple(size)} leaves the image of shape {row.shape}")
        wanted = row.label_dtype if label else row.dtype
        if out.dtype != wanted or out.shape[0] != (1 if label else row.channels) or not out.flags.c_contiguous:
            raise ValueError(f"out must be contiguous {wanted} with all channels, is {out.dtype} {out.shape}")
        try:
            self._handle(image_id, label).read_into(out, (0, *first))
        except (OSError, RuntimeError) as error:
            raise DataError(
                "voxels cannot be decoded", where=f"image {image_id}", fix="prepare the store again"
            ) from error

    def _handle(self, image_id: str, label: bool) -> ArrayFile:
        """Return an open array; every thread has its own, because decoding keeps state in the handle."""
        handles: OrderedDict[tuple[str, bool], ArrayFile] | None = getattr(self._open, "handles", None)
        if handles is None:
            handles = self._open.handles = OrderedDict()
        key = (image_id, label)
        if key in handles:
            handles.move_to_end(key)
            return handles[key]
        path = array_path(self.folder, image_id, label=label)
        if not path.is_file():
            raise DataError("an array of the store is gone", where=f"image {image_id}", fix="prepare the store again")
        handle = handles[key] = open_array(path)
        if len(handles) > _HANDLES:
            handles.popitem(last=False)
        return handle


def array_path(folder: Path, image_id: str, *, label: bool = False) -> Path:
    """Return where the voxels of an image, or of its label map, lie in a store."""
    return folder / "arrays" / f"{image_id}{'.label' if label else ''}.b2nd"


def write_array(path: Path, array: Array, *, codec: str = "lz4") -> None:
    """Write (C, *spatial) voxels in one step: under its name the file is whole or not there."""
    import blosc2

    spatial = array.shape[1:]
    chunk, block = _EDGES[len(spatial)]
    temporary = path.with_name(f".{path.name}.{os.getpid()}.b2nd")
    temporary.unlink(missing_ok=True)
    try:
        blosc2.asarray(
            np.ascontiguousarray(array),
            urlpath=str(temporary),
            mode="w",
            chunks=(1, *(min(chunk, n) for n in spatial)),
            blocks=(1, *(min(block, n) for n in spatial)),
            cparams={
                "codec": blosc2.Codec.ZSTD if codec == "zstd" else blosc2.Codec.LZ4,
                "clevel": 1 if codec == "zstd" else 5,
                "filters": [blosc2.Filter.SHUFFLE],
                "nthreads": 1,
            },
        )
        with temporary.open("rb+") as file:  # Windows flushes only what may be written
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_table(path: Path, rows: Iterable[StoreRow], points: dict[str, Array], *, source: str = "") -> None:
    """Write `store.parquet` in one step; `source` is the fingerprint of the index the images came from."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(list(_columns(pa).items()), metadata={"medssl_store": "1", "source": source})
    table = pa.Table.from_pylist(
        [_record(row, points) for row in sorted(rows, key=lambda row: row.image_id)], schema=schema
    )
    temporary = path.with_name(f".{path.name}.tmp")
    pq.write_table(table, temporary, compression="zstd")
    temporary.replace(path)


def read_table(path: Path) -> tuple[list[StoreRow], dict[str, Array]]:
    """Read `store.parquet`: the rows, and the labelled voxels of each image."""
    import pyarrow.parquet as pq

    rows, points = [], {}
    for record in pq.read_table(path).to_pylist():
        raw = record.pop("label_points")
        row = _row(record)
        rows.append(row)
        if raw:
            points[row.image_id] = np.frombuffer(raw, dtype="<i4").reshape(-1, 1 + len(row.shape))
    return rows, points


def table_source(path: Path) -> str:
    """Return the fingerprint of the index a store was prepared from."""
    import pyarrow.parquet as pq

    metadata = pq.read_schema(path).metadata or {}
    return bytes(metadata.get(b"source", b"")).decode()


def _columns(pa: Any) -> dict[str, Any]:
    words = ("image_id", "subject_id", "kind", "dtype", "split", "label_dtype", "view", "modality", "text", "content")
    out = {name: pa.string() for name in words}
    out |= {name: pa.list_(pa.int32()) for name in ("shape", "foreground_box", "classes")}
    out |= {name: pa.list_(pa.float64()) for name in ("affine", "spacing_mm", "intensity")}
    out |= {"channels": pa.int32(), "labelled": pa.bool_(), "labels": pa.map_(pa.string(), pa.float64())}
    out |= {"groups": pa.map_(pa.string(), pa.string())}
    out |= {"boxes": pa.list_(pa.struct([("name", pa.string()), ("corners", pa.list_(pa.float64()))]))}
    return out | {"label_points": pa.binary()}


def _further(row: StoreRow) -> list[Any]:
    """Return what else tells an image from others; nothing where nothing else is known, as in stores without it."""
    if not row.labels and not row.groups and row.boxes is None:
        return []
    boxes = None if row.boxes is None else [[name, list(corners)] for name, corners in row.boxes]
    return [sorted(row.labels.items()), sorted(row.groups.items()), boxes]


def _record(row: StoreRow, points: dict[str, Array]) -> dict[str, Any]:
    found = points.get(row.image_id)
    return {
        **vars(row),
        "affine": None if row.affine is None else [v for line in row.affine for v in line],
        "foreground_box": [v for corner in row.foreground_box for v in corner],
        "labels": sorted(row.labels.items()),
        "groups": sorted(row.groups.items()),
        "boxes": None if row.boxes is None else [{"name": name, "corners": list(box)} for name, box in row.boxes],
        "label_points": b"" if found is None else np.ascontiguousarray(found, dtype="<i4").tobytes(),
    }


def _row(record: dict[str, Any]) -> StoreRow:
    affine, box, spacing = record["affine"], record["foreground_box"], record["spacing_mm"]
    boxes = record.get("boxes")  # a store made before there were groups and boxes has neither column
    low, high, shift, scale = record["intensity"]
    return StoreRow(
        **{
            **record,
            "shape": tuple(record["shape"]),
            "classes": tuple(record["classes"]),
            "affine": None if affine is None else tuple(tuple(affine[i : i + 4]) for i in range(0, 16, 4)),
            "spacing_mm": None if spacing is None else tuple(spacing),
            "foreground_box": (tuple(box[: len(box) // 2]), tuple(box[len(box) // 2 :])),
            "intensity": (low, high, shift, scale),
            "labels": {key: value for key, value in record["labels"] if not math.isnan(value)},
            "groups": dict(record.get("groups") or ()),
            "boxes": None if boxes is None else tuple((item["name"], tuple(item["corners"])) for item in boxes),
        }
    )
