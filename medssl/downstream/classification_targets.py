"""What is told of whole images: findings, classes, grades or measures, read from a store.

Shapes: T targets, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..store import Store, StoreRow
from .classification_config import ClassificationConfig, Kind

_ALONE: tuple[Kind, ...] = ("binary", "multiclass", "regression")
MOST_CLASSES = 20
"""Different values up to which a target counts as classes."""


@dataclass(frozen=True)
class Told:
    """The targets of a run, and the truth of every image that has one."""

    kind: Kind
    targets: tuple[str, ...]
    classes: tuple[str, ...]
    """Of classes and grades, the latter in their order; empty for findings and measures."""
    truth: Mapping[str, tuple[float, ...]]
    """Image to a class number (1,), or to a number a target (T,): 0 or 1, or a measure; nan where not known."""

    @property
    def names(self) -> tuple[str, ...]:
        """What each number of an answer stands for."""
        return self.classes or self.targets

    def of(self, images: Sequence[str]) -> NDArray[np.float64]:
        """Return (images, T).

        Raises:
            DataError: no target is known of an image.
        """
        if missing := [image for image in images if image not in self.truth]:
            raise DataError(
                f"{len(missing)} images have no {' or '.join(self.targets)}",
                where=f"image {missing[0]}",
                fix="leave them out, or name other targets (finetune.classification.targets)",
            )
        return np.array([self.truth[image] for image in images], dtype=np.float64).reshape(len(images), -1)

    def class_weights(self, images: Sequence[str], most: float) -> list[Any] | None:
        """Return what classes weigh so that all weigh the same together: (K,), or (T, 2) without and with a finding.

        Over these images the weights have a mean of 1, and none is above `most`. A class that none has keeps 1.

        Args:
            images: to train on.
            most: largest weight.
        """
        if self.kind == "regression":
            return None
        truth = self.of(images)
        if self.classes:
            return _balanced(truth[:, 0], len(self.classes), most)
        return [_balanced(column, 2, most) for column in truth.T]

    def scale(self, images: Sequence[str]) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and standard deviation of each measure over the images; 1 where they do not spread."""
        truth = self.of(images)
        if missing := [name for name, column in zip(self.targets, truth.T) if np.isnan(column).all()]:
            raise DataError(f"no image to train on has {missing[0]}", fix="name other targets, or take more images")
        mean, spread = np.nanmean(truth, 0), np.nanstd(truth, 0)
        return tuple(mean.tolist()), tuple(np.where(spread > 1e-9 * (1 + np.abs(mean)), spread, 1.0).tolist())


def _balanced(numbers: NDArray[np.float64], classes: int, most: float) -> list[float]:
    counts = np.bincount(numbers[~np.isnan(numbers)].astype(int), minlength=classes).astype(np.float64)
    total, there = counts.sum(), counts > 0
    weights, capped = np.ones(classes), np.zeros(classes, bool)
    while (free := there & ~capped).any():
        # What the rarest may not weigh falls to the others, alike.
        weights[free] = (total - most * counts[capped].sum()) / (free.sum() * counts[free])
        if not (free & (weights > most)).any():
            break
        capped |= free & (weights > most)
        weights[capped] = most
    return [float(w) for w in weights]


def read_told(store: Store, config: ClassificationConfig) -> Told:
    """Find the targets by their names, and what kind they are.

    Args:
        store: whose images' findings, measures and groups are read; those of all splits say which classes there are.
        config: names and kind.

    Raises:
        DataError: no image has a target, all have the same, or targets and kind do not fit.
    """
    targets = config.targets or tuple(sorted({name for row in store.rows for name in row.labels}))
    where = str(store.folder)
    if not targets:
        raise DataError("no image has a finding or measure", where=where, fix="give them to `medssl index --targets`")
    values = {row.image_id: [_value(row, name) for name in targets] for row in store.rows}
    values = {image: found for image, found in values.items() if any(one is not None for one in found)}
    kinds = [{found[t] for found in values.values() if found[t] is not None} for t in range(len(targets))]
    for name, seen in zip(targets, kinds):
        if not seen:
            raise DataError(
                f"no image has a target {name!r}; there are: {_known(store)}", where=where, fix="name these"
            )
        if len(seen) < 2:
            raise DataError(f"all images have the same {name}", where=where, fix="name another target")
    kind = _kind(targets, kinds, config.kind, where)
    if kind in ("multiclass", "ordinal"):
        order: list[Any] = sorted(kinds[0])
        number = {value: float(n) for n, value in enumerate(order)}
        classes = tuple(value if isinstance(value, str) else f"{value:.12g}" for value in order)
        return Told(kind, targets, classes, {image: (number[found[0]],) for image, found in values.items()})
    numbers = {i: tuple(np.nan if v is None else float(v) for v in found) for i, found in values.items()}
    return Told(kind, targets, (), numbers)


def _value(row: StoreRow, name: str) -> float | str | None:
    if name in row.labels:
        return float(row.labels[name])
    if name in ("modality", "view"):
        return str(getattr(row, name)) or None
    return row.groups.get(name)


def _known(store: Store) -> str:
    names: set[str] = set()
    for row in store.rows:
        names |= {*row.labels, *row.groups, *(word for word in ("modality", "view") if getattr(row, word))}
    return ", ".join(sorted(names)) or "none"


def _kind(targets: Sequence[str], kinds: Sequence[set[Any]], wanted: Kind | Literal["auto"], where: str) -> Kind:
    """Return the kind of the targets, checked against the one that was asked for."""
    fits = [_fits(name, seen, where) for name, seen in zip(targets, kinds)]
    if wanted == "auto":
        if len(targets) == 1:
            return next(kind for kind in _ALONE if kind in fits[0])
        if all("multilabel" in fit for fit in fits):
            return "multilabel"
        if all("regression" in fit and "multilabel" not in fit for fit in fits):
            return "regression"
        shown = ", ".join(targets)
        raise DataError(
            f"the targets are of different kinds, or classes: {shown}",
            where=where,
            fix="name one target (finetune.classification.targets), or their kind",
        )
    for name, fit, seen in zip(targets, fits, kinds):
        if wanted not in fit:
            raise DataError(
                f"{name} cannot be {wanted}: it has {len(seen)} values, such as {sorted(seen, key=str)[0]}",
                where=where,
                fix="binary and multilabel are 0 and 1, ordinal are whole numbers of at most "
                f"{MOST_CLASSES} kinds, multiclass these or words, regression any numbers",
            )
    return wanted


def _fits(name: str, seen: set[Any], where: str) -> set[str]:
    """Return the kinds that values fit."""
    few, words = len(seen) <= MOST_CLASSES, sum(isinstance(value, str) for value in seen)
    if 0 < words < len(seen):
        raise DataError(f"{name} is a number for some images and a word for others", where=where, fix="name another")
    if words and not few:
        raise DataError(
            f"{name} has {words} different words, at most {MOST_CLASSES} are classes", where=where, fix="name another"
        )
    if words:
        return {"multiclass"}
    out = {"regression"}
    if few and all(float(value).is_integer() for value in seen):
        out |= {"multiclass", "ordinal"}
    return out | ({"binary", "multilabel"} if seen <= {0.0, 1.0} else set())
