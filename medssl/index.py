"""The dataset index: one row an image, in a folder that may be handed on; paths and problems stay in `private/`.

    index.parquet                 the rows: no name, date, original UID or path
    card.md                       the data card
    private/locations.parquet     from image (or label) id to the files
    private/problems.csv          what was left out or looks wrong, with paths

Arrays are in the file's axis order (i, j, k); pictures are (row, column).
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from .config import fingerprint
from .errors import DataError
from .files import write_bytes, write_text

VERSION = 1
"""Version of the folder's format, kept in the metadata of index.parquet."""

Affine = tuple[tuple[float, float, float, float], ...]


@dataclass(frozen=True)
class Location:
    """The files of one image, or of one label map.

    Attributes:
        paths: absolute paths; the slices of a DICOM series stand in order along its normal.
        format: `nifti`, `dicom`, `png` or `jpeg`.
        extra: what else a reader needs to find the image in its files.
    """

    paths: tuple[str, ...]
    format: str
    extra: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ProblemRow:
    """One line of problems.csv: a code of `medssl.problems.PROBLEMS`, where it was met, and the values found."""

    severity: str
    code: str
    path: str
    message: str


@dataclass(frozen=True)
class IndexRow:
    """What is known of one image without reading its voxels.

    Attributes:
        kind: `volume`, `image2d`, `rgb2d` (later `cine`).
        shape: of space alone, (i, j, k) or (row, column), without channels.
        spacing_mm: distance of voxel centres along each axis; None where the file does not tell (pictures).
        affine: 4 x 4, voxel index to RAS+ mm; None for pictures.
        orientation: axis codes such as `RAS`; empty for pictures.
        content_hash: keyed hash of the content, 16 hexadecimal digits; equal for equal content at one site.
        label_path: the label's id, for `Index.label_location`; empty without a label.
        labels: finding or measure to number, absent where not stated.
        groups: site, scanner, sex, age band.
        boxes: pairs of a class's name and (low corner, high corner) in voxels of the file's array, where voxel i spans
            [i, i + 1); None where nobody looked for boxes, () where there are none.
        problems: codes of warnings; an image with an error has no row.
    """

    image_id: str
    subject_id: str
    modality: str
    kind: str
    format: str
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...] | None
    affine: Affine | None
    orientation: str
    channels: int
    dtype: str
    content_hash: str
    split: str
    study_id: str = ""
    series_id: str = ""
    n_frames: int = 1
    frame_time_ms: float | None = None
    view: str = ""
    label_path: str = ""
    labels: Mapping[str, float] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)
    boxes: tuple[tuple[str, tuple[float, ...]], ...] | None = None
    text: str = ""
    problems: tuple[str, ...] = ()

    @property
    def labelled(self) -> bool:
        """True where a label map was found."""
        return bool(self.label_path)


class Index:
    """The rows of an index folder, sorted by image id, and the way to their files."""

    def __init__(
        self,
        folder: Path,
        rows: tuple[IndexRow, ...],
        locations: Mapping[str, Location] | None,
        *,
        key_check: str = "",
    ) -> None:
        self.folder, self.rows = folder, rows
        self.key_check = key_check
        """Equal where subject ids were made with the same site key; empty where it was not kept."""
        self._locations = locations
        self._by_id = {row.image_id: row for row in rows}

    @classmethod
    def open(cls, folder: Path | str | os.PathLike[str]) -> Index:
        """Read an index; without its `private/` folder the rows are there and `location` raises."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        folder = Path(folder)
        if not (folder / "index.parquet").is_file():
            raise DataError("this folder is no index", where=str(folder), fix="name a folder written by `medssl index`")
        try:
            table = pq.read_table(folder / "index.parquet")
            where = folder / "private" / "locations.parquet"
            locations = _locations_of(pq.read_table(where).to_pylist()) if where.is_file() else None
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                "the index cannot be read", where=str(folder), fix="run `medssl index` again into a new folder"
            ) from error
        metadata = table.schema.metadata or {}
        found = metadata.get(b"medssl.index", b"0").decode()
        if found != str(VERSION):
            raise DataError(
                f"the index has format version {found}, this medssl reads {VERSION}",
                where=str(folder),
                fix="run `medssl index` again into a new folder",
            )
        rows = tuple(_row_of(record) for record in table.to_pylist())
        return cls(folder, rows, locations, key_check=metadata.get(b"medssl.key_check", b"").decode())

    @classmethod
    def write(
        cls,
        folder: Path,
        rows: Iterable[IndexRow],
        locations: Mapping[str, Location],
        problems: Iterable[ProblemRow] = (),
        card: str = "",
        *,
        key_check: str = "",
    ) -> Index:
        """Write an index into an empty folder (a temporary one: see `medssl.files.new_folder`) and return it.

        Args:
            locations: by image id, and by label id (`IndexRow.label_path`).
            key_check: what tells the site key from others, and nothing more of it.
        """
        ordered = tuple(sorted(rows, key=lambda row: row.image_id))
        private = folder / "private"
        private.mkdir(mode=0o700)
        private.chmod(0o700)
        _write_parquet(folder / "index.parquet", [_record_of(row) for row in ordered], _row_schema(key_check))
        records = [
            {"id": name, "paths": list(place.paths), "format": place.format, "extra": json.dumps(dict(place.extra))}
            for name, place in sorted(locations.items())
        ]
        _write_parquet(private / "locations.parquet", records, _location_schema())
        write_text(private / "problems.csv", _csv_of(problems))
        write_text(folder / "card.md", card)
        return cls(folder, ordered, dict(locations), key_check=key_check)

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, image_id: str) -> IndexRow:
        """Return one image's row; KeyError where there is none."""
        return self._by_id[image_id]

    def location(self, image_id: str) -> Location:
        """Return where an image's files are.

        Raises:
            DataError: the index was copied without its `private/` folder.
        """
        if self._locations is None:
            raise DataError(
                "the index has no private/locations.parquet, so its files cannot be found",
                where=str(self.folder),
                fix="use the index where it was made, or run `medssl index` on the files here",
            )
        return self._locations[image_id]

    def label_location(self, image_id: str) -> Location | None:
        """Return where an image's label map is, None for an image without one."""
        label = self.row(image_id).label_path
        return self.location(label) if label else None

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits: equal where every row is equal, wherever the files lie."""
        records = [_record_of(row) for row in self.rows]
        # Without boxes a row reads as it did before there were any: stores made from it stay its stores.
        return fingerprint([{k: v for k, v in record.items() if k != "boxes" or v is not None} for record in records])


def _record_of(row: IndexRow) -> dict[str, Any]:
    record: dict[str, Any] = {item.name: getattr(row, item.name) for item in fields(IndexRow)}
    record["shape"], record["problems"] = list(row.shape), list(row.problems)
    record["spacing_mm"] = None if row.spacing_mm is None else list(row.spacing_mm)
    record["affine"] = None if row.affine is None else [number for line in row.affine for number in line]
    record["labels"], record["groups"] = dict(sorted(row.labels.items())), dict(sorted(row.groups.items()))
    if row.boxes is not None:
        record["boxes"] = [{"name": name, "corners": list(corners)} for name, corners in row.boxes]
    return record


def _row_of(record: dict[str, Any]) -> IndexRow:
    values = dict(record)
    values["shape"], values["problems"] = tuple(values["shape"]), tuple(values["problems"])
    if values["spacing_mm"] is not None:
        values["spacing_mm"] = tuple(values["spacing_mm"])
    if values["affine"] is not None:
        flat = values["affine"]
        values["affine"] = tuple(tuple(flat[4 * line : 4 * line + 4]) for line in range(4))
    values["labels"], values["groups"] = dict(values["labels"]), dict(values["groups"])
    if values.get("boxes") is not None:
        values["boxes"] = tuple((box["name"], tuple(box["corners"])) for box in values["boxes"])
    return IndexRow(**values)


def _locations_of(records: list[dict[str, Any]]) -> dict[str, Location]:
    return {
        record["id"]: Location(tuple(record["paths"]), record["format"], json.loads(record["extra"]))
        for record in records
    }


def _row_schema(key_check: str) -> Any:
    import pyarrow as pa

    special = {
        "shape": pa.list_(pa.int64()),
        "spacing_mm": pa.list_(pa.float64()),
        "affine": pa.list_(pa.float64()),
        "channels": pa.int64(),
        "n_frames": pa.int64(),
        "frame_time_ms": pa.float64(),
        "labels": pa.map_(pa.string(), pa.float64()),
        "groups": pa.map_(pa.string(), pa.string()),
        "boxes": pa.list_(pa.struct([("name", pa.string()), ("corners", pa.list_(pa.float64()))])),
        "problems": pa.list_(pa.string()),
    }
    columns = [(item.name, special.get(item.name, pa.string())) for item in fields(IndexRow)]
    return pa.schema(columns, metadata={"medssl.index": str(VERSION), "medssl.key_check": key_check})


def _location_schema() -> Any:
    import pyarrow as pa

    return pa.schema(
        [("id", pa.string()), ("paths", pa.list_(pa.string())), ("format", pa.string()), ("extra", pa.string())]
    )


def _write_parquet(path: Path, records: list[dict[str, Any]], schema: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records, schema=schema), buffer, compression="zstd")
    write_bytes(path, buffer.getvalue())


def _csv_of(problems: Iterable[ProblemRow]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([item.name for item in fields(ProblemRow)])
    for problem in sorted(problems, key=lambda p: (p.severity, p.code, p.path, p.message)):
        writer.writerow([problem.severity, problem.code, problem.path, problem.message])
    return text.getvalue()
