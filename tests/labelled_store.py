"""Stores written straight from arrays, for tests of what stands above the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medssl.store import Store, StoreRow, array_path, write_array, write_table


def write_labelled_store(
    folder: Path,
    images: Sequence[NDArray[Any]],
    labels: Sequence[NDArray[Any] | None],
    *,
    splits: Sequence[str],
    subjects: Sequence[str] | None = None,
    spacing_mm: Sequence[float] | None = None,
    intensity: tuple[float, float, float, float] = (0.0, 1.0, 0.0, 1.0),
    preparation: Mapping[str, Any] | None = None,
    boxes: Sequence[Sequence[tuple[str, Sequence[float]]] | None] | None = None,
    targets: Sequence[Mapping[str, float]] | None = None,
    groups: Sequence[Mapping[str, str]] | None = None,
) -> Store:
    """Write images (spatial shape each) and label maps as a store and open it; ids are image00, image01, ...

    `boxes`, `targets` and `groups` have an entry an image: `StoreRow.boxes`, `StoreRow.labels`, `StoreRow.groups`.
    """
    import json

    (folder / "arrays").mkdir(parents=True)
    rows, points = [], {}
    for i, (image, label) in enumerate(zip(images, labels)):
        name, n = f"image{i:02d}", image.ndim
        write_array(array_path(folder, name), image[None])
        classes: tuple[int, ...] = ()
        if label is not None:
            write_array(array_path(folder, name, label=True), label[None])
            classes = tuple(int(v) for v in np.unique(label) if v)
            at = np.argwhere(label)
            points[name] = np.concatenate([label[tuple(at.T)][:, None], at], 1).astype("<i4")
        found = boxes[i] if boxes else None
        affine = None
        if spacing_mm is not None:
            affine = tuple(tuple(row) for row in np.diag([*spacing_mm, *[1.0] * (4 - n)]).tolist())
        rows.append(
            StoreRow(
                image_id=name,
                subject_id=subjects[i] if subjects else f"patient{i:02d}",
                kind="volume" if n == 3 else "image2d",
                shape=image.shape,
                channels=1,
                dtype=str(image.dtype),
                affine=affine,
                spacing_mm=None if spacing_mm is None else tuple(spacing_mm),
                foreground_box=((0,) * n, image.shape),
                intensity=intensity,
                split=splits[i],
                labelled=label is not None,
                label_dtype="" if label is None else str(label.dtype),
                classes=classes,
                labels=dict(targets[i]) if targets else {},
                groups=dict(groups[i]) if groups else {},
                boxes=None if found is None else tuple((name, tuple(map(float, box))) for name, box in found),
                content=f"{i:016x}",
            )
        )
    (folder / "preparation.json").write_text(json.dumps(dict(preparation or {"fingerprint": "built"})))
    write_table(folder / "store.parquet", rows, points)
    return Store.open(folder)


def ellipsoids(shape: tuple[int, ...], seed: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Draw a bright and a dark ellipsoid of random place and size in noise, and their label map (classes 1 and 2)."""
    random = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"), -1)
    label = np.zeros(shape, np.uint8)
    for k in (1, 2):
        centre = random.uniform(-0.5, 0.5, len(shape))
        radius = random.uniform(0.3, 0.5, len(shape))
        label[(((grid - centre) / radius) ** 2).sum(-1) < 1] = k
    image = np.array([0.5, 0.9, 0.1])[label] + random.normal(0, 0.05, shape)
    return image.astype(np.float32), label
