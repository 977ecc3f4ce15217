"""One training of a comparison, kept as a file: taken again only where it is whole and the same training was asked for.

A cell is `cells/NAME.json` with the scores of every image, and `predictions/NAME.npz` with what was found
(segmentations, say), where NAME is the fingerprint of all that decides the training. A seal over the file's
content tells changed ones.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import fingerprint
from ..files import write_bytes, write_json
from ..version import __version__
from .task import Task

logger = logging.getLogger(__name__)

FORMAT = 3
Scores = dict[str, tuple[Any, ...]]
"""Split to the scores of its images."""


@dataclass(frozen=True)
class Cell:
    """One training: an arm, a number of labelled images, a seed and a learning rate."""

    arm: str
    count: int
    seed: int
    learning_rate: float


@dataclass(frozen=True)
class Decides:
    """All that decides a training's numbers, by content."""

    task: str
    design: str
    """Fingerprint of architecture and first weights."""
    store: str
    images: tuple[str, ...]
    """Labelled images, in order."""
    scored: Mapping[str, Sequence[str]]
    """Split to images."""
    finetune: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "format": FORMAT,
            "task": self.task,
            "design": self.design,
            "store": self.store,
            "images": list(self.images),
            "scored": {split: list(ids) for split, ids in self.scored.items()},
            "finetune": dict(self.finetune),
        }

    @property
    def name(self) -> str:
        """Fingerprint that names the cell's files."""
        return fingerprint(self.to_dict())


def write_cell(
    out: Path, cell: Cell, decides: Decides, scores: Scores, predictions: Mapping[str, NDArray[Any]] | None
) -> None:
    """Keep a training's scores, and image by image what was found where it is given.

    Args:
        out: folder of the comparison.
        cell: what it is called; shown to people, decides nothing.
        decides: names the files.
        scores: of every split.
        predictions: image to an array, for segmentation class numbers (*); None keeps none.
    """
    kept = _write_predictions(out, decides.name, predictions) if predictions is not None else None
    value = {
        "arm": cell.arm,
        "count": cell.count,
        "seed": cell.seed,
        "learning_rate": cell.learning_rate,
        "medssl": __version__,
        "decided_by": decides.to_dict(),
        "scores": {split: [score.to_dict() for score in values] for split, values in scores.items()},
        "predictions_sha256": kept,
    }
    (out / "cells").mkdir(exist_ok=True)
    write_json(_path(out, decides), {**value, "seal": _seal(value)})


def read_cell(out: Path, decides: Decides, task: Task) -> Scores | None:
    """Return a cell's scores by split, or None where it must be trained.

    Not taken: a file that is cut or changed, one of another training under this name, one whose images are not those
    that are to be scored, one whose predictions were changed. Predictions that were removed are not missed.
    """
    path = _path(out, decides)
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        reason = _fault(out, value, decides)
        if not reason:
            return {split: tuple(map(task.score_from, value["scores"][split])) for split in decides.scored}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        reason = "is damaged"
    logger.warning("cell %s %s and is trained again", path.name, reason)
    return None


def _fault(out: Path, value: dict[str, Any], decides: Decides) -> str:
    """Say why a cell is not taken; nothing where it is."""
    if value["seal"] != _seal({key: item for key, item in value.items() if key != "seal"}):
        return "was changed"
    if fingerprint(value["decided_by"]) != decides.name:
        return "is of another training"
    for split, ids in decides.scored.items():
        scores = value["scores"][split]
        if sorted(score["image_id"] for score in scores) != sorted(ids):
            return "holds other images"
    kept = out / "predictions" / f"{decides.name}.npz"
    if kept.is_file() and hashlib.sha256(kept.read_bytes()).hexdigest() != value["predictions_sha256"]:
        return "has other predictions beside it"
    return ""


def read_predictions(out: Path | str, name: str) -> dict[str, NDArray[Any]]:
    """Return what a cell found: image to an array, for segmentation class numbers (*) on the store's grid.

    Args:
        out: folder of the comparison.
        name: of the cell's file, without `.json`.
    """
    with np.load(Path(out) / "predictions" / f"{name}.npz", allow_pickle=False) as file:
        return {image_id: file[image_id] for image_id in file.files}


def _write_predictions(out: Path, name: str, predictions: Mapping[str, NDArray[Any]]) -> str:
    import io

    data = io.BytesIO()
    with warnings.catch_warnings():
        # Names of classes outside Latin-1 need numpy's newest header, of which it warns.
        warnings.filterwarnings("ignore", message="Stored array in format 3.0")
        np.savez_compressed(data, **{image_id: _small(found) for image_id, found in predictions.items()})  # type: ignore[arg-type]
    (out / "predictions").mkdir(exist_ok=True)
    write_bytes(out / "predictions" / f"{name}.npz", data.getvalue())
    return hashlib.sha256(data.getvalue()).hexdigest()


def _small(found: NDArray[Any]) -> NDArray[Any]:
    """Return class numbers in few bytes, other numbers in float32; named fields as they are."""
    if found.dtype.names is not None:
        return found
    if not np.issubdtype(found.dtype, np.integer):
        return found.astype(np.float32)
    return found.astype(np.uint8 if found.max(initial=0) < 256 else np.uint16)


def _path(out: Path, decides: Decides) -> Path:
    return out / "cells" / f"{decides.name}.json"


def _seal(value: Mapping[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
