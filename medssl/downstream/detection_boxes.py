"""True boxes of images: those that were given, or one about each connected component of a label map.

Shapes: M boxes of an image, n axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..store import Store
from .detection_config import DetectionConfig

Corners = NDArray[np.float64]
Source = Literal["boxes", "masks"]


@dataclass(frozen=True)
class TrueBoxes:
    """What is there in one image."""

    corners: Corners
    """(M, 2n), low corner and high one, in voxels of the store's grid, of which voxel i spans [i, i + 1)."""
    classes: NDArray[np.int64]
    """(M,), numbers of `class_names`."""


def box_source(store: Store, config: DetectionConfig) -> Source:
    """Return whether boxes are those that were given or those of label maps.

    Raises:
        DataError: the store has neither, or not what `boxes_from` asks for.
    """
    given, masks = bool(store.box_names), bool(store.classes)
    if config.boxes_from in ("auto", "boxes") and given:
        return "boxes"
    if config.boxes_from in ("auto", "masks") and masks:
        return "masks"
    wanted = {"auto": "box or label map", "boxes": "box", "masks": "label map"}[config.boxes_from]
    raise DataError(
        f"no image of the store has a {wanted}",
        where=str(store.folder),
        fix="give --boxes or --labels to `medssl index`, or change finetune.detection.boxes_from",
    )


def boxed(store: Store, split: str, config: DetectionConfig) -> tuple[str, ...]:
    """Return the images of a split in which boxes were looked for, those without any too.

    Raises:
        DataError: there are none.
    """
    given = box_source(store, config) == "boxes"
    rows = [store.row(image_id) for image_id in store.ids_of(split)]
    found = tuple(row.image_id for row in rows if (row.boxes is not None if given else row.labelled))
    if not found:
        raise DataError(
            f"no images with {'boxes' if given else 'label maps'} in split {split!r}",
            where=str(store.folder),
            fix=f"give --{'boxes' if given else 'labels'} to `medssl index`, or score another split (finetune.split)",
        )
    return found


def class_names(store: Store, config: DetectionConfig) -> tuple[str, ...]:
    """Return the names of the classes of boxes."""
    if box_source(store, config) == "boxes":
        return store.box_names
    return tuple(f"label {value}" for value in store.classes)


def true_boxes(store: Store, image_id: str, config: DetectionConfig) -> TrueBoxes:
    """Return what is there in one image."""
    if box_source(store, config) == "boxes":
        corners, classes = store.boxes(image_id)
        return TrueBoxes(np.asarray(corners, dtype=np.float64), np.asarray(classes, dtype=np.int64))
    return component_boxes(store.label(image_id)[0], store.classes, smallest=config.smallest)


def component_boxes(label: NDArray[Any], values: Sequence[int], *, smallest: int = 1) -> TrueBoxes:
    """Return a box about each connected component of each class.

    Voxels that touch by a corner are of one component.

    Args:
        label: (*), integers.
        values: of the classes, in order.
        smallest: voxels of the smallest component that counts.
    """
    from scipy.ndimage import find_objects, generate_binary_structure
    from scipy.ndimage import label as components

    corners, classes = [], []
    touching = generate_binary_structure(label.ndim, label.ndim)
    for k, value in enumerate(values):
        numbers, _ = components(label == value, touching)
        sizes = np.bincount(numbers.ravel())
        for number, place in enumerate(find_objects(numbers), start=1):
            if sizes[number] >= smallest:
                corners.append([*(s.start for s in place), *(s.stop for s in place)])
                classes.append(k)
    table = np.array(corners, dtype=np.float64).reshape(-1, 2 * label.ndim)
    return TrueBoxes(table, np.array(classes, dtype=np.int64))


def in_mm(corners: NDArray[Any], spacing_mm: Sequence[float] | None) -> Corners:
    """Return boxes in mm along the image's own axes, from its corner; unchanged where there is no spacing."""
    table = np.asarray(corners, dtype=np.float64)
    return table if spacing_mm is None else table * np.tile(np.asarray(spacing_mm, dtype=np.float64), 2)


def crop_points(boxes: TrueBoxes, shape: Sequence[int], crop: Sequence[int], *, each: int = 8) -> NDArray[np.int64]:
    """Return voxels to centre crops on, with the class of the box they are for: (M x each, 1 + n).

    They are spread over the middle half of a crop about each box, evenly (Halton's sequence) and alike in every run, so
    that an object is not always in the middle.
    """
    from scipy.stats import qmc

    n = len(shape)
    spread = (qmc.Halton(n, scramble=False).random(each) - 0.5) * np.asarray(crop) / 2  # (each, n)
    centres = (boxes.corners[:, :n] + boxes.corners[:, n:]) / 2
    voxels = np.floor(centres[:, None] + spread).reshape(-1, n).clip(0, np.asarray(shape) - 1)
    return np.concatenate([boxes.classes.repeat(each)[:, None], voxels], 1).astype(np.int64)
