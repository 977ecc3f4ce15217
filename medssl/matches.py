"""Matches: pairs of points of equal anatomy in two images, found offline and kept as a file.

A folder: `matches.parquet` with one pair a row, and in its metadata the fingerprints of the store whose images the
points lie in and of the encoder that found them. Points are RAS+ mm, so that they outlive another preparation.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import DataError

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Matches:
    """Pairs of points; N pairs.

    Args:
        image_id: image of the first point of each pair, N.
        point_mm: the first points, (N, 3), RAS+ mm.
        partner_id: image of the second point, N.
        partner_mm: the second points, (N, 3), RAS+ mm.
        score: how well the two look alike, (N,); larger is better.
        cycle_mm: how far from the first point one lands by matching there and back, (N,) mm.
        store: fingerprint of the store.
        encoder: fingerprint of the encoder.
    """

    image_id: tuple[str, ...]
    point_mm: Array
    partner_id: tuple[str, ...]
    partner_mm: Array
    score: Array
    cycle_mm: Array
    store: str = ""
    encoder: str = ""

    def __post_init__(self) -> None:
        n = len(self.image_id)
        shapes = {"point_mm": (n, 3), "partner_mm": (n, 3), "score": (n,), "cycle_mm": (n,)}
        wrong = [name for name, shape in shapes.items() if getattr(self, name).shape != shape]
        if wrong or len(self.partner_id) != n:
            raise ValueError(f"{n} matches need {shapes}; wrong: {', '.join(wrong) or 'partner_id'}")

    def __len__(self) -> int:
        return len(self.image_id)

    @cached_property
    def images(self) -> tuple[str, ...]:
        """The ids of all images that hold a first point, sorted."""
        return tuple(sorted(set(self.image_id)))

    def of(self, image_id: str) -> Array:
        """Return the row numbers of an image's matches, ascending."""
        return self._rows.get(image_id, np.zeros(0, dtype=np.int64))

    @cached_property
    def _rows(self) -> dict[str, Array]:
        rows: dict[str, list[int]] = {}
        for number, image_id in enumerate(self.image_id):
            rows.setdefault(image_id, []).append(number)
        return {image_id: np.asarray(numbers, dtype=np.int64) for image_id, numbers in rows.items()}

    @classmethod
    def open(cls, folder: Path | str) -> Matches:
        """Read `matches.parquet` of a folder.

        Raises:
            DataError: there is none, or it is not a table of matches.
        """
        import pyarrow.parquet as pq

        path = Path(folder) / "matches.parquet"
        if not path.is_file():
            raise DataError("there are no matches here", where=str(folder), fix="find them with `medssl match`")
        try:
            table = pq.read_table(path)
            columns = {name: table[name].to_pylist() for name in table.column_names}
            metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
            return cls(
                image_id=tuple(columns["image_id"]),
                point_mm=np.asarray(columns["point_mm"], dtype=np.float64).reshape(-1, 3),
                partner_id=tuple(columns["partner_id"]),
                partner_mm=np.asarray(columns["partner_mm"], dtype=np.float64).reshape(-1, 3),
                score=np.asarray(columns["score"], dtype=np.float64),
                cycle_mm=np.asarray(columns["cycle_mm"], dtype=np.float64),
                store=metadata.get("store", ""),
                encoder=metadata.get("encoder", ""),
            )
        except (OSError, ValueError, KeyError) as error:
            raise DataError(
                f"the matches cannot be read: {type(error).__name__}", where=str(path), fix="find them again"
            ) from error

    def write(self, folder: Path | str) -> None:
        """Write `matches.parquet` into an existing folder, in one step."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        point = pa.list_(pa.float64(), 3)
        table = pa.table(
            {
                "image_id": pa.array(self.image_id, pa.string()),
                "point_mm": pa.array(self.point_mm.tolist(), point),
                "partner_id": pa.array(self.partner_id, pa.string()),
                "partner_mm": pa.array(self.partner_mm.tolist(), point),
                "score": pa.array(self.score, pa.float64()),
                "cycle_mm": pa.array(self.cycle_mm, pa.float64()),
            }
        ).replace_schema_metadata({"store": self.store, "encoder": self.encoder})
        path = Path(folder) / "matches.parquet"
        temporary = path.with_name(".matches.parquet.tmp")
        pq.write_table(table, temporary, compression="zstd")
        temporary.replace(path)
