"""Boxes around findings: read from Pascal VOC's XML and MONAI's datalists, and moved from grid to grid.

A box is a class's name and (low corner, high corner) in voxels of an array, where voxel i spans [i, i + 1): the box of
a mask is (least index, greatest index + 1).

Shapes: M boxes, n axes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .source import Header, ReadError

Box = tuple[str, tuple[float, ...]]
Floats = NDArray[np.float64]

MODES = {
    4: ("xyxy", "xxyy", "xywh", "ccwh"),
    6: ("xyzxyz", "xxyyzz", "xyxyzz", "xyzwhd", "cccwhd"),
}
"""MONAI's box modes (`monai.utils.enums.BoxModeName`) by numbers of a box; the first is MONAI's standard."""

SPACES = ("voxel", "ras", "lps")
"""What the numbers of a box may count: voxels, or mm to Right, Anterior, Superior, or to Left, Posterior, Superior."""

MOST_NAMES = 100
"""Different classes: with more their names could be free text."""

_LARGEST_XML = 10_000_000
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def corners_of(boxes: Floats, mode: str) -> Floats:
    """Turn boxes (M, 2 n) of one of `MODES` into corners (M, 2 n), low then high."""
    n = boxes.shape[1] // 2
    if mode in ("xyxy", "xyzxyz"):
        return boxes
    if mode in ("xxyy", "xxyyzz"):
        return np.concatenate([boxes[:, 0::2], boxes[:, 1::2]], axis=1)
    if mode == "xyxyzz":
        return boxes[:, [0, 1, 4, 2, 3, 5]]
    first, size = boxes[:, :n], boxes[:, n:]
    low = first if mode in ("xywh", "xyzwhd") else first - size / 2
    return np.concatenate([low, low + size], axis=1)


def hulls(corners: Floats, matrix: Floats) -> Floats:
    """Map boxes (M, 2 n) by an affine map (n + 1, n + 1) and return the boxes around what comes of them."""
    n = corners.shape[1] // 2
    ends = corners.reshape(-1, 2, n)
    every = np.stack([ends[:, choice, range(n)] for choice in itertools.product((0, 1), repeat=n)], axis=1)
    mapped = every @ matrix[:n, :n].T + matrix[:n, n]  # (M, 2 ** n, n)
    return np.concatenate([mapped.min(axis=1), mapped.max(axis=1)], axis=1)


def moved(boxes: Sequence[Box], matrix: Floats, n: int) -> tuple[Box, ...]:
    """Move boxes to another grid by the affine map (4, 4) of voxel centres' indices, old to new."""
    if not boxes:
        return ()
    centred = np.eye(n + 1)
    centred[:n, :n], centred[:n, n] = matrix[:n, :n], matrix[:n, 3] + 0.5 - 0.5 * matrix[:n, :n].sum(axis=1)
    corners = hulls(np.asarray([corners for _, corners in boxes], dtype=np.float64), centred)
    return tuple((name, tuple(line)) for (name, _), line in zip(boxes, corners.tolist()))


def fitted(boxes: Sequence[Box], shape: Sequence[int]) -> tuple[tuple[Box, ...], list[tuple[str, str]]]:
    """Keep what lies in an array of `shape`; return the boxes, and code and message of each that was left out or cut.

    Raises:
        ReadError: a box has another number of axes than the array.
    """
    n = len(shape)
    kept: list[Box] = []
    problems = []
    for name, corners in boxes:
        if len(corners) != 2 * n:
            raise ReadError("box-dimensions", f"the box has {len(corners) // 2} axes, the image {n}")
        shown = ", ".join(f"{value:g}" for value in corners)
        low, high = corners[:n], corners[n:]
        inside = [(max(a, 0.0), min(b, float(whole))) for a, b, whole in zip(low, high, shape)]
        if any(a >= b for a, b in zip(low, high)):
            problems.append(("box-without-area", f"a box from {shown}"))
        elif any(a >= b for a, b in inside):
            problems.append(("box-outside", f"a box from {shown}, the image is {' x '.join(map(str, shape))}"))
        else:
            cut = (*(a for a, _ in inside), *(b for _, b in inside))
            if cut != tuple(corners):
                problems.append(("box-cut", f"a box from {shown}, the image is {' x '.join(map(str, shape))}"))
            kept.append((name, cut))
    return tuple(kept), problems


class _WithoutEntities(ElementTree.TreeBuilder):
    """Refuses a document type, in whatever encoding, before the entities it defines could grow without end."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self._where = where

    def doctype(self, name: str, public: str | None, system: str | None) -> None:
        raise ReadError("box-unreadable", "the XML has a document type, which may define entities", where=self._where)


def read_voc(path: Path | str) -> tuple[tuple[int, int] | None, tuple[Box, ...]]:
    """Read a file of Pascal VOC's XML: (rows, columns) where it states them, and boxes in (x, y) of its picture.

    The numbers are taken for edges, counted in pixels from the picture's corner, as LabelImg and its successors write
    them; 1 is the border itself, for VOC counts from there and LabelImg writes 1 where it means 0. Read as VOC's
    devkit wrote in 2007 (first and last pixel, from 1), a box would begin one pixel earlier, no more.

    Raises:
        ReadError: the file is none, or lacks a name or a number.
    """
    where = str(path)
    if Path(path).stat().st_size > _LARGEST_XML:
        raise ReadError("box-unreadable", "the XML is too long", where=where)
    parser = ElementTree.XMLParser(target=_WithoutEntities(where))
    try:
        root = ElementTree.fromstring(Path(path).read_bytes(), parser)
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # also of an encoding that is none
        raise ReadError("box-unreadable", "the XML cannot be parsed", where=where) from error
    if root.tag != "annotation":
        raise ReadError("box-unreadable", "the XML holds no element annotation", where=where)
    boxes = []
    for item in root.iter("object"):
        name = (item.findtext("name") or "").strip()
        numbers = [_finite(item.findtext(f"bndbox/{key}")) for key in _CORNERS]
        if not name or None in numbers:
            raise ReadError("box-unreadable", "an object has no name, or a box without numbers", where=where)
        left, top, right, bottom = (float(number) for number in numbers if number is not None)
        boxes.append((name, (0.0 if left == 1 < right else left, 0.0 if top == 1 < bottom else top, right, bottom)))
    height, width = (_finite(root.findtext(f"size/{key}")) for key in ("height", "width"))
    return (int(height), int(width)) if height and width else None, tuple(boxes)


@dataclass(frozen=True)
class BoxTerms:
    """How a datalist's boxes are to be read.

    Attributes:
        mode: one of `MODES`; empty for MONAI's standard (`xyxy`, `xyzxyz`).
        space: one of `SPACES`; empty where neither the file nor the caller says, and boxes are then refused.
        names: class names by the labels' numbers, as a Decathlon datalist has them under `labels`.
    """

    mode: str = ""
    space: str = ""
    names: Mapping[str, str] | None = None


def terms_of(content: Mapping[str, Any], path: Path, *, mode: str | None, space: str | None) -> BoxTerms:
    """Return what a datalist's `box_mode`, `box_space` and `labels` and the caller say together.

    Raises:
        DataError: they contradict each other, or say what is not known.
    """
    known = [name for names in MODES.values() for name in names]
    found = {}
    for key, given, choices in (("box_mode", mode, known), ("box_space", space, SPACES)):
        stated = content.get(key)
        if given and stated and given != stated:
            raise DataError(
                f"the datalist states another {key} than was given", where=str(path), fix="give one of them"
            )
        found[key] = given or stated or ""
        if found[key] and found[key] not in choices:
            raise DataError(f"{key} is none of {', '.join(choices)}", where=str(path), fix="correct it")
    names = content.get("labels")
    return BoxTerms(found["box_mode"], found["box_space"], names if isinstance(names, dict) else None)


def read_entry(entry: Mapping[str, Any], terms: BoxTerms, where: str) -> tuple[Box, ...]:
    """Read `box` and `label` of a datalist's entry: boxes as (low corner, high corner), in the space of `terms`.

    Raises:
        DataError: they are no lists of one length, the numbers do not suit the mode, or nothing states the space.
    """
    boxes, labels = entry["box"], entry.get("label", [])
    if not isinstance(boxes, list) or not isinstance(labels, list) or len(boxes) != len(labels):
        raise DataError("box and label must be lists of one length", where=where, fix="give each box its label")
    if not boxes:
        return ()
    if not terms.space:
        raise DataError(
            "nothing says whether boxes are in voxels or in mm",
            where=where,
            fix=f"state box_space in the file ({', '.join(SPACES)}), or give --box-space",
        )
    numbers = len(boxes[0]) if isinstance(boxes[0], list) else 0
    mode = terms.mode or MODES.get(numbers, ("",))[0]
    rows = [[_finite(value) for value in box] if isinstance(box, list) else [] for box in boxes]
    if mode not in MODES.get(numbers, ()) or any(len(row) != numbers or None in row for row in rows):
        raise DataError(
            f"a box is not {'4 or 6' if not mode else 4 if mode in MODES[4] else 6} numbers as {mode or 'corners'}",
            where=where,
            fix="state box_mode in the file, or give --box-mode",
        )
    corners = corners_of(np.asarray(rows, dtype=np.float64), mode).tolist()
    return tuple((_name_of(label, terms, where), tuple(line)) for label, line in zip(labels, corners))


def in_grid(boxes: Sequence[Box], space: str, header: Header) -> tuple[Box, ...]:
    """Turn boxes of a datalist or of VOC, x first, into boxes of the image's array: (row, column) of pictures.

    Raises:
        ReadError: boxes have another number of axes than the image, or are in mm and the image has no place.
    """
    n = len(header.shape)
    if any(len(corners) != 2 * n for _, corners in boxes):
        raise ReadError("box-dimensions", f"a box of another number of axes than the image's {n}")
    if space in ("", "voxel"):
        if n == 3:
            return tuple(boxes)
        return tuple((name, (top, left, bottom, right)) for name, (left, top, right, bottom) in boxes)
    if header.affine is None or n != 3:
        raise ReadError("box-dimensions", "boxes are in mm, and the image has no place in the patient")
    world = np.diag([-1.0, -1.0, 1.0, 1.0]) if space == "lps" else np.eye(4)
    matrix = np.linalg.solve(header.affine, world)
    matrix[:3, 3] += 0.5  # voxel centres have whole indices, and lie half a voxel from their lower edges
    corners = hulls(np.asarray([c for _, c in boxes], dtype=np.float64).reshape(-1, 6), matrix).tolist()
    return tuple((name, tuple(line)) for (name, _), line in zip(boxes, corners))


def check_names(boxes: Sequence[Box], where: str) -> None:
    """Raise DataError where boxes have more than `MOST_NAMES` classes."""
    if (count := len({name for name, _ in boxes})) > MOST_NAMES:
        raise DataError(
            f"the boxes have {count} classes, at most {MOST_NAMES} are taken: their names could be free text",
            where=where,
            fix="name findings by a fixed list",
        )


def _name_of(label: Any, terms: BoxTerms, where: str) -> str:
    if isinstance(label, bool) or not isinstance(label, (int, str)) or not str(label).strip():
        raise DataError("a label of a box is neither a whole number nor a name", where=where, fix="correct it")
    key = str(label).strip()
    name = (terms.names or {}).get(key, key)
    return name if isinstance(name, str) else key


def _finite(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):  # JSON's whole numbers have no end
        return None
    return number if math.isfinite(number) and "_" not in str(value) else None
