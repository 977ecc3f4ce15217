"""What a store holds, in numbers alone, and whether its splits keep subjects apart."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..store import Store, StoreRow
from .parts import Table, count, number

_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class StoreSummary:
    """One store in numbers."""

    name: str
    """Of the stream; empty where there is one."""
    fingerprint: str
    images: int
    subjects: int
    tables: tuple[Table, ...]
    card: str


@dataclass(frozen=True)
class DataSummary:
    """All stores of a run."""

    stores: tuple[StoreSummary, ...]
    shared: int
    """Subjects that stand in more than one split, over all stores."""
    splits: Mapping[str, tuple[int, int]]
    """Split to images and subjects, over all stores."""
    subjects: Mapping[str, frozenset[str]]
    """Split to subjects; compared with results, never shown."""

    @property
    def sentence(self) -> str:
        """Whether the splits keep subjects apart, as counted from the rows."""
        total = len(frozenset().union(*self.subjects.values()))
        if self.shared:
            return (
                f"{count(self.shared, 'subject')} of {total} stand in more than one split: scores on these splits are "
                "not to be trusted. Make the splits by subject, as `medssl index` does."
            )
        return f"No subject stands in two splits: all {total} were compared, row by row, when this page was written."


def summarize(stores: Mapping[str, Store]) -> DataSummary:
    """Count what the rows of each store say."""
    rows = [row for store in stores.values() for row in store.rows]
    subjects = {s: frozenset(r.subject_id for r in rows if r.split == s) for s in _splits(rows)}
    held = Counter(subject for found in subjects.values() for subject in found)
    return DataSummary(
        stores=tuple(_summary(name, store) for name, store in stores.items()),
        shared=sum(n > 1 for n in held.values()),
        splits={s: (sum(r.split == s for r in rows), len(found)) for s, found in subjects.items()},
        subjects=subjects,
    )


def open_stores(store: Any) -> dict[str, Store]:
    """Open one store, or several by the names of their streams."""
    named = store if isinstance(store, Mapping) else {"": store}
    return {str(k): v if isinstance(v, Store) else Store.open(v) for k, v in named.items() if v is not None}


def _splits(rows: Sequence[StoreRow]) -> list[str]:
    found = {row.split for row in rows}
    return [s for s in _SPLITS if s in found] + sorted(found - set(_SPLITS))


def _summary(name: str, store: Store) -> StoreSummary:
    card = store.folder / "card.md"
    tables = [_split_table(store.rows), _size_table(store.rows)]
    problems = _problems(store.folder / "problems.csv")
    if problems:
        rows = tuple((code, str(n)) for code, n in sorted(problems.items()))
        tables.append(Table("Images that could not be prepared and were left out", ("problem", "images"), rows))
    return StoreSummary(
        name=name,
        fingerprint=store.fingerprint,
        images=len(store.rows),
        subjects=len({row.subject_id for row in store.rows}),
        tables=tuple(tables),
        card=card.read_text(encoding="utf-8", errors="replace").strip() if card.is_file() else "",
    )


def _split_table(rows: Sequence[StoreRow]) -> Table:
    lines = []
    for split in _splits(rows):
        inside = [row for row in rows if row.split == split]
        subjects = len({row.subject_id for row in inside})
        lines.append((split, str(subjects), str(len(inside)), str(sum(row.labelled for row in inside))))
    subjects = len({row.subject_id for row in rows})
    lines.append(("all", str(subjects), str(len(rows)), str(sum(row.labelled for row in rows))))
    return Table("Subjects and images by split", ("split", "subjects", "images", "with label map"), tuple(lines))


def _size_table(rows: Sequence[StoreRow]) -> Table:
    lines = []
    for kind in sorted({(row.kind, len(row.shape)) for row in rows}):
        inside = [row for row in rows if (row.kind, len(row.shape)) == kind]
        names = ("i", "j", "k") if kind[1] == 3 else ("row", "column")
        for axis, name in enumerate(names):
            sizes = [float(row.shape[axis]) for row in inside]
            spacings = [row.spacing_mm[axis] for row in inside if row.spacing_mm is not None]
            lines.append((f"{kind[0]}, {name}", *_three(sizes, ".0f"), *_three(spacings, ".4g")))
    head = ("axis", "voxels, least", "median", "greatest", "spacing in mm, least", "median", "greatest")
    return Table("Shape and spacing after preparation", head, tuple(lines))


def _three(values: Sequence[float], form: str) -> tuple[str, str, str]:
    if not values:
        return ("–", "–", "–")
    low, middle, high = np.quantile(values, (0, 0.5, 1))
    return number(low, form), number(middle, form), number(high, form)


def _problems(path: Path) -> Counter[str]:
    if not path.is_file():
        return Counter()
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        return Counter(row.get("code") or "unnamed" for row in csv.DictReader(file))
