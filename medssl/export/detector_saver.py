"""What a detector's bundle writes: the boxes of every image, as JSON and as CSV. A bundle carries a copy of this file.

It needs torch, numpy and MONAI alone.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch


class BoxSaver:
    """Finds boxes in prepared images and writes them on the grid of the files they came from.

    Args:
        detector: gives boxes (D, 2n) in voxels of the prepared image, scores (D,) and class numbers (D,).
        output_dir: created; files of an earlier run are replaced.
        classes: names of the classes.
        device: where the detector runs.
    """

    def __init__(self, detector: Any, output_dir: str, classes: Sequence[str], device: torch.device) -> None:
        self.detector, self.folder, self.device = detector, Path(output_dir), device
        self.classes = list(classes)

    def __call__(self, dataset: Iterable[Mapping[str, Any]]) -> None:
        """Write `boxes.json` and `boxes.csv`.

        Corners are low first, in voxels of the file, of which voxel i spans [i, i + 1); of volumes in RAS+ mm too. A
        box that was turned on the way is the least one that holds it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        found: list[dict[str, Any]] = []
        for item in dataset:
            image = item["image"]
            boxes, scores, classes = self.detector(image.as_tensor().to(self.device))
            lines: list[dict[str, Any]] = [
                {"class": self.classes[int(k)], "score": float(score), **place(image, box)}
                for box, score, k in zip(boxes.double().cpu().numpy(), scores, classes)
            ]
            found.append({"image": Path(str(image.meta["filename_or_obj"])).name, "boxes": lines})
        text = json.dumps({"classes": self.classes, "images": found}, indent=1) + "\n"
        (self.folder / "boxes.json").write_text(text, encoding="utf-8")
        with (self.folder / "boxes.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["image", "class", "score", "box", "box_mm"])
            for one in found:
                for line in one["boxes"]:
                    corners = (" ".join(f"{v:.3f}" for v in line.get(key, ())) for key in ("box", "box_mm"))
                    table.writerow([one["image"], line["class"], f"{line['score']:.6f}", *corners])


def place(image: Any, box: Any) -> dict[str, list[float]]:
    """Return a box (2n,) of a prepared image in voxels of its file, and of a volume in RAS+ mm.

    Args:
        image: MONAI's `MetaTensor`, (C, ...), whose affine maps its voxels where `original_affine` maps the file's.
        box: low corner, then high corner.
    """
    n = len(box) // 2
    own = image.meta.get("original_affine", np.eye(n + 1))  # a picture has none
    now, before = _square(image.affine, n), _square(own, n)
    corners = np.array(list(itertools.product(*zip(box[:n], box[n:])))) - 0.5  # affines map voxel centres
    world = corners @ now[:n, :n].T + now[:n, n]
    back = np.linalg.inv(before)
    file = world @ back[:n, :n].T + back[:n, n] + 0.5
    out = {"box": [*file.min(0).tolist(), *file.max(0).tolist()]}
    return {**out, "box_mm": [*world.min(0).tolist(), *world.max(0).tolist()]} if n == 3 else out


def _square(affine: Any, n: int) -> Any:
    """Return (n + 1, n + 1) of an affine of as many axes or more."""
    whole = np.asarray(affine, dtype=np.float64)
    rows = [*range(n), len(whole) - 1]
    return whole[np.ix_(rows, rows)]
