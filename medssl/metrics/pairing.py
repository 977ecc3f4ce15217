"""What makes arms comparable: every arm of a seed sees the same labelled images, and a patient counts once.

Shapes: S seeds, I images, P patients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def draw_images(subjects: Mapping[str, str], count: int, seed: int) -> tuple[str, ...]:
    """Choose images to have labels, from as many patients as possible.

    Patients stand in a random order; each gives one image, then each a second one, and so on. A larger count therefore
    holds the images of a smaller one with the same seed.

    Args:
        subjects: image to patient.
        count: how many images; at most as many as there are.
        seed: another seed, another choice.

    Returns:
        The chosen images, in the order of the choice.

    Raises:
        ValueError: there are fewer images.
    """
    if not 0 < count <= len(subjects):
        raise ValueError(f"{count} images wanted of {len(subjects)}")
    random = np.random.Generator(np.random.PCG64(seed))
    images: dict[str, list[str]] = {}
    for image in sorted(subjects):
        images.setdefault(subjects[image], []).append(image)
    order = [str(patient) for patient in random.permutation(sorted(images))]
    queues = [[str(image) for image in random.permutation(images[patient])] for patient in order]
    longest = max(len(queue) for queue in queues)
    turns = [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)]
    return tuple(turns[:count])


def per_patient(scores: ArrayLike, patients: Sequence[str]) -> NDArray[np.float64]:
    """Average the images of each patient: (S, I) to (S, P), patients in sorted order; nan is left out of means."""
    table = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    if table.shape[1] != len(patients):
        raise ValueError(f"{table.shape[1]} images but {len(patients)} patients")
    columns = [mean_of(table[:, [p == patient for p in patients]], axis=1) for patient in sorted(set(patients))]
    return np.stack(columns, axis=1)


def mean_of(values: ArrayLike, axis: int | None = None) -> NDArray[np.float64]:
    """Average along an axis what is not nan; nan where nothing is (numpy's `nanmean` warns there)."""
    table = np.asarray(values, dtype=np.float64)
    valid = ~np.isnan(table)
    count = valid.sum(axis)
    total = np.where(valid, table, 0.0).sum(axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
