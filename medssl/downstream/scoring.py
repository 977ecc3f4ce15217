"""Whole images through a segmenter, and how good the result is, image by image.

Shapes: * the image, K classes, P patients.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import RecipeError
from ..metrics import class_numbers, dice, mean_of, per_patient, surface_measures, volume_error_ml
from ..nets.segmenter import Segmenter
from ..progress import Progress, silent
from ..store import Store
from ..views.scaling import scaled

MEASURES = ("dice", "hausdorff95_mm", "surface_dice", "volume_error_ml")
"""What is told of a class, as `ImageScore` names it."""


@dataclass(frozen=True)
class ImageScore:
    """How well one image was segmented, a number a foreground class.

    Each is None where a class is in neither map. `hausdorff95_mm` is None too where the class is in one of them alone
    (then both Dice are 0). It, and the tolerance of `surface_dice`, are in voxels where the image has no spacing;
    `volume_error_ml` (positive: too much was found) is None there, and in a 2D image.
    """

    image_id: str
    subject_id: str
    dice: tuple[float | None, ...]
    hausdorff95_mm: tuple[float | None, ...]
    surface_dice: tuple[float | None, ...] = ()
    volume_error_ml: tuple[float | None, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> ImageScore:
        """Take back what `to_dict` gave."""
        measures = {key: tuple(value[key]) for key in MEASURES}
        return cls(value["image_id"], value["subject_id"], **measures)


def score_images(
    segmenter: Segmenter,
    store: Store,
    images: Sequence[str],
    *,
    mirror_axes: Sequence[int] = (),
    tolerance_mm: float = 1.0,
    progress: Progress = silent,
    keep: Callable[[str, NDArray[np.int64]], None] | None = None,
) -> tuple[ImageScore, ...]:
    """Segment whole images and compare them with their label maps, on the store's grid.

    Args:
        segmenter: left in the mode it was in.
        store: holds images and label maps.
        images: which of them.
        mirror_axes: axes of the image to mirror, see `predict_mirrored`.
        tolerance_mm: of surface Dice.
        progress: told of every image.
        keep: called with every image's id and segmentation (*), class numbers.
    """
    scores = []
    for image_id, found in _segmented(segmenter, store, images, mirror_axes, progress, "score"):
        label = class_numbers(store.label(image_id)[0], store.classes)
        scores.append(
            score_image(found, label, store.row(image_id), classes=len(store.classes) + 1, tolerance_mm=tolerance_mm)
        )
        if keep is not None:
            keep(image_id, found)
    return tuple(scores)


def dice_on(segmenter: Segmenter, store: Store, images: Sequence[str]) -> float:
    """Return the mean over patients of the Dice on whole images, without the cost of surfaces and mirroring."""
    table, patients = [], []
    for image_id, found in _segmented(segmenter, store, images, (), silent, "look"):
        label = class_numbers(store.label(image_id)[0], store.classes)
        table.append(dice(found, label, len(store.classes) + 1))
        patients.append(store.row(image_id).subject_id)
    return float(mean_of(per_patient(mean_of(np.array(table), 1)[None], patients)))


def predict_mirrored(segmenter: Segmenter, image: Tensor, axes: Sequence[int]) -> Tensor:
    """Return the mean of a segmenter's logits over an image and its mirror images, turned back.

    Args:
        segmenter: in eval mode.
        image: normalised, (1, C, *).
        axes: spatial axes, mirrored in all combinations; none asks the segmenter once.

    Returns:
        (1, K, *) float32.

    Raises:
        RecipeError: the image has no such axis.

    Source: Isensee et al. 2021, Nature Methods 18, which averages window by window.
    """
    if any(axis >= image.ndim - 2 for axis in axes):
        raise RecipeError(
            f"axis {max(axes)} cannot be mirrored in an image of {image.ndim - 2} axes, counted from 0",
            where="finetune.mirror_axes",
            fix=f"name axes from 0 to {image.ndim - 3}",
        )
    distinct = sorted(set(axes))
    subsets = [s for n in range(len(distinct) + 1) for s in itertools.combinations(distinct, n)]
    total = segmenter.predict(image)
    for subset in subsets[1:]:
        turned = [axis + 2 for axis in subset]
        total += segmenter.predict(image.flip(turned)).flip(turned)
    return total / len(subsets)


def _segmented(
    segmenter: Segmenter,
    store: Store,
    images: Sequence[str],
    mirror_axes: Sequence[int],
    progress: Progress,
    phase: str,
) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Yield every image's id and its segmentation (*), class numbers, with the segmenter in eval mode."""
    training, device = segmenter.training, next(segmenter.parameters()).device
    segmenter.eval()
    try:
        for done, image_id in enumerate(images):
            progress(phase, done, len(images))
            voxels = torch.from_numpy(store.read(image_id))
            intensity = torch.tensor([store.row(image_id).intensity], dtype=torch.float32)
            image = scaled(voxels[None], intensity).to(device)
            yield image_id, predict_mirrored(segmenter, image, mirror_axes)[0].argmax(0).cpu().numpy()
    finally:
        segmenter.train(training)
    progress(phase, len(images), len(images))


def score_image(
    found: NDArray[np.int64], label: NDArray[np.int64], row: Any, *, classes: int, tolerance_mm: float = 1.0
) -> ImageScore:
    """Compare one segmentation with its label map, (*) class numbers each; `row` is the image's `StoreRow`."""
    spacing = row.spacing_mm or (1.0,) * label.ndim
    far, near = surface_measures(found, label, spacing, tolerance_mm=tolerance_mm, classes=classes)
    has_volume = row.spacing_mm is not None and label.ndim == 3
    error = volume_error_ml(found, label, spacing, classes) if has_volume else np.full(classes - 1, np.nan)
    tables = (dice(found, label, classes), far, near, error)
    return ImageScore(row.image_id, row.subject_id, *(tuple(_finite(v) for v in t.tolist()) for t in tables))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def dice_of(scores: Sequence[ImageScore]) -> NDArray[np.float64]:
    """Return (images, K - 1) with nan for None."""
    return table_of(scores, "dice")


def hausdorff_of(scores: Sequence[ImageScore]) -> NDArray[np.float64]:
    """Return (images, K - 1) mm with nan for None."""
    return table_of(scores, "hausdorff95_mm")


def table_of(scores: Sequence[ImageScore], measure: str) -> NDArray[np.float64]:
    """Return one of the measures of `ImageScore`, by its name, for all images: (images, K - 1) with nan for None."""
    return np.array(
        [[np.nan if v is None else v for v in getattr(score, measure)] for score in scores], dtype=np.float64
    )


def patient_dice(scores: Sequence[ImageScore]) -> NDArray[np.float64]:
    """Return (P,): the Dice of each patient in sorted order, the mean over classes and then over its images."""
    table = per_patient(mean_of(dice_of(scores), 1)[None], [score.subject_id for score in scores])
    return np.asarray(table[0], dtype=np.float64)
