"""What is to be told of a whole image: a finding or measure of the index, or a group such as sex or scanner."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import DataError
from ..index import Index
from ..store import Store

Kind = Literal["classes", "number"]
MOST_CLASSES = 20
"""Different whole numbers up to which a label counts as classes."""


@dataclass(frozen=True)
class Target:
    """A value for each image that has one: a class number, or a measure in its own unit."""

    name: str
    kind: Kind
    values: Mapping[str, float]
    """Image to class number, or to the measure."""
    classes: tuple[str, ...]
    """Names of the classes, by number; empty for a measure."""


def read_target(store: Store, name: str, *, index: Index | Path | str | None = None) -> Target:
    """Find a target by its name: a finding or measure, `modality` or `view`, or a group of the index.

    Whole numbers of at most 20 kinds, and words, are classes; other numbers are a measure.

    Args:
        store: its images' `labels`, `modality` and `view` are looked at first.
        name: of the target.
        index: where groups (sex, age, scanner, site) are, and labels a store does not hold.

    Raises:
        DataError: no image has a value of that name, or all have the same.
    """
    words: dict[str, str] = {}
    numbers: dict[str, float] = {}
    known: set[str] = set()
    for row in store.rows:
        known |= set(row.labels) | {word for word in ("modality", "view") if getattr(row, word)}
        if name in row.labels:
            numbers[row.image_id] = row.labels[name]
        elif name in ("modality", "view") and getattr(row, name):
            words[row.image_id] = getattr(row, name)
    if index is not None and not (words or numbers):
        index = index if isinstance(index, Index) else Index.open(index)
        held = set(store.ids)
        for entry in index.rows:
            if entry.image_id not in held:
                continue
            known |= set(entry.labels) | set(entry.groups)
            if name in entry.labels:
                numbers[entry.image_id] = entry.labels[name]
            elif name in entry.groups:
                words[entry.image_id] = entry.groups[name]
    numbers = {image: value for image, value in numbers.items() if not math.isnan(value)}
    if not words and not numbers:
        there = ", ".join(sorted(known)) or "none"
        raise DataError(
            f"no image has a target {name!r}; there are: {there}",
            where=str(store.folder),
            fix="name one of them, or give the index that has it (--index)",
        )
    return _target(name, words or {image: float(value) for image, value in numbers.items()}, store)


def _target(name: str, values: Mapping[str, float] | Mapping[str, str], store: Store) -> Target:
    kinds: list[Any] = sorted(set(values.values()))
    if len(kinds) < 2:
        raise DataError(
            f"all {len(values)} images have the same {name}", where=str(store.folder), fix="name another target"
        )
    whole = all(isinstance(kind, str) or float(kind).is_integer() for kind in kinds)
    if whole and len(kinds) <= MOST_CLASSES:
        number = {kind: float(n) for n, kind in enumerate(kinds)}
        names = tuple(kind if isinstance(kind, str) else f"{kind:g}" for kind in kinds)
        return Target(name, "classes", {image: number[value] for image, value in values.items()}, names)
    if any(isinstance(kind, str) for kind in kinds):
        raise DataError(
            f"{name} has {len(kinds)} different words, at most {MOST_CLASSES} are classes",
            where=str(store.folder),
            fix="name another target",
        )
    return Target(name, "number", {image: float(value) for image, value in values.items()}, ())
