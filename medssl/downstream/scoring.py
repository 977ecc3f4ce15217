"""Whole images through a segmenter, and how good the result is, image by image.

Shapes: * the image, K classes, P patients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..metrics import class_numbers, dice, hausdorff95, mean_of, per_patient
from ..nets.segmenter import Segmenter
from ..progress import Progress, silent
from ..store import Store
from ..views.scaling import scaled


@dataclass(frozen=True)
class ImageScore:
    """How well one image was segmented, a number a foreground class.

    `dice` is None where a class is in neither map. `hausdorff95_mm` is None there, and where the class is in one of
    them alone (then Dice is 0); it is in voxels where the image has no spacing.
    """

    image_id: str
    subject_id: str
    dice: tuple[float | None, ...]
    hausdorff95_mm: tuple[float | None, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> ImageScore:
        """Take back what `to_dict` gave."""
        return cls(value["image_id"], value["subject_id"], tuple(value["dice"]), tuple(value["hausdorff95_mm"]))


def score_images(
    segmenter: Segmenter,
    store: Store,
    images: Sequence[str],
    *,
    progress: Progress = silent,
    keep: Callable[[str, NDArray[np.int64]], None] | None = None,
) -> tuple[ImageScore, ...]:
    """Segment whole images and compare them with their label maps, on the store's grid.

    Args:
        segmenter: left in the mode it was in.
        store: holds images and label maps.
        images: which of them.
        progress: told of every image.
        keep: called with every image's id and segmentation (*), class numbers.
    """
    training, device = segmenter.training, next(segmenter.parameters()).device
    segmenter.eval()
    scores = []
    try:
        for done, image_id in enumerate(images):
            progress("score", done, len(images))
            row = store.row(image_id)
            voxels = torch.from_numpy(store.read(image_id))
            image = scaled(voxels[None], torch.tensor([row.intensity], dtype=torch.float32))
            found = segmenter.predict(image.to(device))[0].argmax(0).cpu().numpy()
            label = class_numbers(store.label(image_id)[0], store.classes)
            scores.append(score_image(found, label, row, classes=len(store.classes) + 1))
            if keep is not None:
                keep(image_id, found)
    finally:
        segmenter.train(training)
    progress("score", len(images), len(images))
    return tuple(scores)


def score_image(found: NDArray[np.int64], label: NDArray[np.int64], row: Any, *, classes: int) -> ImageScore:
    """Compare one segmentation with its label map, (*) class numbers each; `row` is the image's `StoreRow`."""
    spacing = row.spacing_mm or (1.0,) * label.ndim
    distances = hausdorff95(found, label, spacing).tolist()
    distances += [math.nan] * (classes - 1 - len(distances))
    return ImageScore(
        row.image_id,
        row.subject_id,
        tuple(_finite(value) for value in dice(found, label, classes).tolist()),
        tuple(_finite(value) for value in distances),
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def dice_of(scores: Sequence[ImageScore]) -> NDArray[np.float64]:
    """Return (images, K - 1) with nan for None."""
    return np.array([[np.nan if v is None else v for v in score.dice] for score in scores], dtype=np.float64)


def hausdorff_of(scores: Sequence[ImageScore]) -> NDArray[np.float64]:
    """Return (images, K - 1) mm with nan for None."""
    return np.array([[np.nan if v is None else v for v in score.hausdorff95_mm] for score in scores], dtype=np.float64)


def patient_dice(scores: Sequence[ImageScore]) -> NDArray[np.float64]:
    """Return (P,): the Dice of each patient in sorted order, the mean over classes and then over its images."""
    table = per_patient(mean_of(dice_of(scores), 1)[None], [score.subject_id for score in scores])
    return np.asarray(table[0], dtype=np.float64)
