"""Segmentations beside each other: truth as a line, what each arm found as a hatched area, its Dice below.

Shapes: H rows from top to bottom, W columns from left to right of the picture.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..geometry import orientation_of
from ..metrics import mean_of
from ..store import Store
from .parts import Picture, count, number

_CLASSES = (
    ("#E69F00", "////", "orange with lines rising"),
    ("#56B4E9", "....", "blue with dots"),
    ("#CC79A7", "\\\\\\\\", "pink with lines falling"),
    ("#009E73", "xxxx", "green with crosses"),
    ("#F0E442", "----", "yellow with level lines"),
)
"""Colour and hatching of the classes in turn, and how both are called."""

_SIDES = dict(
    zip("RLAPSI", ("the patient's right", "the patient's left", "anterior", "posterior", "superior", "inferior"))
)
_OPPOSITE = dict(zip("RLAPSI", "LRPAIS"))


@dataclass(frozen=True)
class Example:
    """One slice of one patient. All arrays are (H, W) as they are seen: first row on top, first column left."""

    image: NDArray[Any]
    """Any intensities; shown from the 1st to the 99th percentile."""
    truth: NDArray[Any]
    """Label map, 0 is background."""
    predictions: Mapping[str, NDArray[Any]]
    """Arm to its label map, in the values of `truth`."""
    dice: Mapping[str, float]
    """Arm to its Dice on the whole image."""
    title: str
    """Why this one is shown; never a name or an id."""
    aspect: float = 1.0
    """Height of a voxel divided by its width."""
    note: str = ""
    """How it lies, say `anterior is up`."""


def read_examples(store: Store | Path | str, runs: Mapping[str, Path | str], *, split: str = "test") -> list[Example]:
    """Choose the best, the median and the worst patient of the first arm from what `finetune` kept.

    Args:
        store: the store the runs were scored on.
        runs: arm to the folder `finetune` wrote (`scores.json`, `predictions/`); the first decides the choice.
        split: images of other splits are passed over.

    Returns:
        Up to three, in the plane of the first two axes, through the middle of what is labelled.

    Raises:
        DataError: a folder is no fine-tuned run, or the runs have no scored image in common.
    """
    store = store if isinstance(store, Store) else Store.open(store)
    kept = {arm: _scores(Path(run)) for arm, run in runs.items()}
    scores = {arm: by for arm, (by, _) in kept.items()}
    labelled = sorted({n for _, n in kept.values()})
    common = set.intersection(*(set(by) for by in scores.values())) & set(store.ids_of(split))
    first = next(iter(runs), "")
    order = sorted(
        (i for i in common if store.row(i).kind in ("volume", "image2d") and np.isfinite(scores[first][i])),
        key=lambda i: (-scores[first][i], i),
    )
    if not order:
        where = ", ".join(str(run) for run in runs.values())
        raise DataError("the runs have no scored image in common", where=where, fix="score the same store")
    places = {len(order) // 2: "Median", len(order) - 1: "Worst", 0: "Best"}
    trained = f"trained on {count(labelled[0], 'labelled image')}" if len(labelled) == 1 else ""
    return [
        _example(
            store,
            order[k],
            runs,
            scores,
            title=f"{name} of {count(len(order), split + ' image')} by Dice of {first}",
            trained=trained,
        )
        for k, name in sorted(places.items())
    ]


def legend(example: Example) -> str:
    """Say which area is which label."""
    classes = _labels_of(example)
    words = [f"label {value}: {_CLASSES[k % len(_CLASSES)][2]}" for k, value in enumerate(classes)]
    return "; ".join(words)


def panels(example: Example) -> list[Picture]:
    """Draw the truth, then each arm."""
    title = example.title
    out = [
        Picture(
            alt=f"{title}: the slice with the true outline.",
            caption="truth",
            png=_png(example, None),
            width=260,
        )
    ]
    for arm, found in example.predictions.items():
        dice = number(example.dice.get(arm))
        picture = _png(example, found)
        out.append(
            Picture(
                f"{title}: what {arm} found, over the true outline; Dice {dice}.",
                f"{arm}: Dice {dice}",
                "",
                picture,
                260,
            )
        )
    return out


def _labels_of(example: Example) -> list[int]:
    maps = (example.truth, *example.predictions.values())
    return sorted({int(value) for found in maps for value in np.unique(found)} - {0})


def _png(example: Example, found: NDArray[Any] | None) -> bytes:
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    image = np.asarray(example.image, dtype=float)
    height = 2.6 * image.shape[0] * example.aspect / image.shape[1]
    classes = _labels_of(example)
    with rc_context({"hatch.linewidth": 1.0}):
        figure = Figure(figsize=(2.6, min(max(height, 0.8), 6.0)), dpi=130, facecolor="black")
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0, 0, 1, 1))
        low, high = np.nanpercentile(image, (1, 99))
        axes.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=example.aspect)
        if found is not None:
            for k, value in enumerate(classes):
                colour, hatch, _ = _CLASSES[k % len(_CLASSES)]
                _area(axes, found == value, colour, hatch)
        for value in classes:
            _outline(axes, example.truth == value)
        axes.set_axis_off()
        data = io.BytesIO()
        figure.savefig(data, format="png", facecolor="black", metadata={"Software": None})
    return data.getvalue()


def _outline(axes: Any, mask: NDArray[np.bool_]) -> None:
    if mask.any() and not mask.all():
        for width, colour in ((3.2, "black"), (1.5, "white")):
            axes.contour(_wide(mask), [0.5], colors=colour, linewidths=width, extent=_extent(mask))


def _area(axes: Any, mask: NDArray[np.bool_], colour: str, hatch: str) -> None:
    if mask.any():
        wide = _wide(mask)
        axes.contourf(wide, [0.5, 1.5], colors=[colour], alpha=0.35, extent=_extent(mask))
        filled = axes.contourf(wide, [0.5, 1.5], colors="none", hatches=[hatch], extent=_extent(mask))
        filled.set_edgecolor(colour)
        filled.set_linewidth(0.0)
        axes.contour(wide, [0.5], colors=colour, linewidths=1.2, extent=_extent(mask))


def _wide(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Enlarge a mask fourfold with a margin, so that its outline follows the voxels' edges."""
    return np.pad(np.kron(mask.astype(float), np.ones((4, 4))), 1)


def _extent(mask: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    """Place an enlarged mask over an image whose voxel centres are whole numbers."""
    rows, columns = mask.shape
    return (-0.5 - 0.125, columns - 0.5 + 0.125, -0.5 - 0.125, rows - 0.5 + 0.125)


def _scores(run: Path) -> tuple[dict[str, float], int]:
    """Return the Dice of every image, the mean over classes, and the number of images the run was trained on."""
    try:
        known = json.loads((run / "scores.json").read_text(encoding="utf-8"))
        scores, labelled = known["scores"], int(known["labelled_images"])
        dice = {s["image_id"]: float(mean_of([np.nan if d is None else d for d in s["dice"]])) for s in scores}
        return dice, labelled
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            "this is no fine-tuned run: it has no scores", where=str(run), fix="make one by `medssl finetune`"
        ) from error


def _example(
    store: Store,
    image_id: str,
    runs: Mapping[str, Path | str],
    scores: Mapping[str, Mapping[str, float]],
    *,
    title: str,
    trained: str,
) -> Example:
    row = store.row(image_id)
    image, truth = store.read(image_id)[0], store.label(image_id)[0]
    low, high, _, _ = row.intensity
    found = {arm: _prediction(Path(run), image_id, truth.shape) for arm, run in runs.items()}
    flip: tuple[int, ...] = ()
    spacing = row.spacing_mm or (1.0,) * truth.ndim
    note, volume = "", truth.ndim == 3
    if volume:
        labelled = np.flatnonzero(truth.any((0, 1)))
        at = int(labelled[len(labelled) // 2]) if len(labelled) else truth.shape[2] // 2
        image, truth, found = image[..., at], truth[..., at], {arm: m[..., at] for arm, m in found.items()}
        note = f"slice {at + 1} of {row.shape[2]}, the middle of what is labelled"
        if row.affine is not None:
            right, down, _ = tuple(orientation_of(row.affine))
            flip = ((1,) if right == "L" else ()) + ((0,) if down in "AS" else ())
            up = down if 0 in flip else _OPPOSITE[down]
            note += f"; {_SIDES[up]} is up, {_SIDES[_OPPOSITE[right] if 1 in flip else right]} is on the right"

    def seen(array: NDArray[Any]) -> NDArray[Any]:
        return np.flip(array.T if volume else array, flip)

    return Example(
        image=seen(np.clip(image, low, high)),
        truth=seen(truth),
        predictions={arm: seen(mask) for arm, mask in found.items()},
        dice={arm: scores[arm][image_id] for arm in runs},
        title=title,
        aspect=spacing[1] / spacing[0] if volume else spacing[0] / spacing[1],
        note="; ".join(text for text in (trained, note) if text),
    )


def _prediction(run: Path, image_id: str, shape: tuple[int, ...]) -> NDArray[Any]:
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    path = run / "predictions" / f"{image_id}.nii.gz"
    try:
        found: NDArray[Any] = np.asanyarray(nibabel.load(path).dataobj)
    except (OSError, ValueError, ImageFileError) as error:
        raise DataError(
            "a prediction cannot be read", where=str(run), fix="fine-tune again into a new folder"
        ) from error
    found = found.reshape(found.shape[: len(shape)]) if found.size == int(np.prod(shape)) else found
    if found.shape != shape:
        raise DataError("a prediction has another shape than its image", where=str(run), fix="score the same store")
    return found
