"""Boxes: matched to images by name or by slice, and joined over the slices of a volume."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DataError, UsageError
from ..index import ProblemRow
from ..progress import Progress, silent
from ..reading import ReadError
from ..reading.boxes import Box, check_names, fitted, in_grid, read_entry, read_voc, terms_of
from ..reading.datalist import read_datalist
from ..reading.source import guarded
from .images import Image
from .scan import case_name, problem

LEAST_SHARE = 0.5
"""Share of the smaller of two boxes in neighbouring slices that must lie in the other, for both to be one finding."""


@dataclass
class Boxes:
    """What was found, by `Image.digest`: an image without an entry is one that nobody looked at."""

    of: dict[str, tuple[Box, ...]] = field(default_factory=dict)
    warned: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


def match_boxes(
    images: Sequence[Image],
    path: Path | str,
    problems: list[ProblemRow],
    *,
    mode: str | None = None,
    space: str | None = None,
    progress: Progress = silent,
) -> Boxes:
    """Find the boxes of each image, in voxels of its array.

    Args:
        path: a folder of Pascal VOC's XML, or a datalist of MONAI. An XML file bears the name of its picture, or of a
            DICOM slice (SOP Instance UID). Boxes of one class in neighbouring slices are one finding where at least
            half of the smaller lies in the larger (`LEAST_SHARE`); each box goes to at most one in the next slice, the
            pair that overlaps most (intersection over union) first, and the finding's box is the box around all of
            its slices. Observers draw each slice anew, so boxes differ by some pixels, and grow from one to the next.
            A slice without a box ends a finding. An image is looked at where one file names it or a slice of it.
        mode: of a datalist's boxes, one of MONAI's; `xyxy` or `xyzxyz` unless the file states another.
        space: what they count: `voxel`, `ras` or `lps` (mm); must be given unless the file states it.

    Raises:
        UsageError: the path does not exist.
        DataError: there are no boxes in it, or the datalist cannot be understood.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError("this path does not exist", where=str(path), fix="check its spelling")
    if path.is_file() and path.suffix.lower() != ".xml":
        found = _from_datalist(images, path, problems, mode, space)
    elif mode or space:
        raise UsageError(
            "box mode and space are a datalist's; Pascal VOC has its own", where=str(path), fix="omit them"
        )
    else:
        found = _from_voc(images, path, problems, progress)
    check_names([box for boxes in found.of.values() for box in boxes], str(path))
    return found


def joined(slices: Mapping[int, Sequence[Box]]) -> tuple[Box, ...]:
    """Join boxes (x, y) of slices, by slice number, into boxes (x, y, slice); see `match_boxes`."""
    done: list[list[tuple[int, Box]]] = []
    open_: list[list[tuple[int, Box]]] = []
    for k in sorted(slices):
        tracks = [track for track in open_ if track[-1][0] == k - 1]
        done += [track for track in open_ if track[-1][0] != k - 1]
        boxes = list(slices[k])
        pairs = sorted(
            (-_overlap(track[-1][1], box)[1], t, b)
            for t, track in enumerate(tracks)
            for b, box in enumerate(boxes)
            if track[-1][1][0] == box[0] and _overlap(track[-1][1], box)[0] >= LEAST_SHARE
        )
        taken: dict[int, int] = {}
        for _, t, b in pairs:
            if b not in taken and t not in taken.values():
                taken[b] = t
        open_ = [[*tracks[taken[b]], (k, box)] if b in taken else [(k, box)] for b, box in enumerate(boxes)]
        done += [track for t, track in enumerate(tracks) if t not in taken.values()]
    return tuple(sorted(_around(track) for track in [*done, *open_]))


def _around(track: Sequence[tuple[int, Box]]) -> Box:
    rectangles = [box[1] for _, box in track]
    low = [min(r[axis] for r in rectangles) for axis in (0, 1)]
    high = [max(r[axis] for r in rectangles) for axis in (2, 3)]
    return track[0][1][0], (*low, float(track[0][0]), *high, float(track[-1][0] + 1))


def _overlap(one: Box, two: Box) -> tuple[float, float]:
    """Return the shared area as a share of the smaller rectangle, and over their union."""
    a, b = one[1], two[1]
    shared = max(min(a[2], b[2]) - max(a[0], b[0]), 0.0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
    areas = [(r[2] - r[0]) * (r[3] - r[1]) for r in (a, b)]
    return shared / min(areas), shared / (sum(areas) - shared)


def _from_voc(images: Sequence[Image], path: Path, problems: list[ProblemRow], progress: Progress) -> Boxes:
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*.xml") if not file.name.startswith("."))
    if not files:
        raise DataError("no XML file with boxes was found", where=str(path), fix="name a folder of VOC's XML files")
    slices = {uid: (image, k) for image in images for k, uid in enumerate(image.instances) if uid}
    pictures = {image.case: image for image in images if not image.instances}
    named = Counter(image.case for image in images if not image.instances)
    written = Counter(file.stem for file in files)
    found, volumes = Boxes(), defaultdict[str, dict[int, tuple[Box, ...]]](dict)
    for done, file in enumerate(files):
        progress("reading boxes", done, len(files))
        image, k = slices.get(file.stem, (pictures.get(file.stem), -1))
        if image is None:
            problems.append(problem("box-without-image", file))
            continue
        try:
            if written[file.stem] > 1 or (k < 0 and named[file.stem] > 1):
                count = (written[file.stem], max(named[file.stem], 1))
                raise ReadError("box-ambiguous", f"{count[0]} files and {count[1]} images bear this name")
            with guarded(str(file)):
                boxes = _of_file(file, image, k, problems)
            if k < 0:
                found.of[image.digest] = boxes
            else:
                volumes[image.digest][k] = boxes
        except ReadError as error:
            _leave_out(found, image, error, file, problems)
    progress("reading boxes", len(files), len(files))
    found.of |= {digest: joined(rows) for digest, rows in volumes.items() if digest not in found.warned}
    return found


def _of_file(file: Path, image: Image, k: int, problems: list[ProblemRow]) -> tuple[Box, ...]:
    """Return the boxes of a picture, (row, column), or of a slice, (column, row)."""
    size, boxes = read_voc(file)
    shape = image.header.shape
    wanted = shape if k < 0 else (shape[1], shape[0])
    if size is not None and size != wanted:
        sizes = [f"{rows} rows and {columns} columns" for rows, columns in (size, wanted[:2])]
        raise ReadError("box-dimensions", f"the file is about a picture of {sizes[0]}, the image has {sizes[1]}")
    boxes = boxes if k >= 0 else in_grid(boxes, "voxel", image.header)
    kept, flaws = fitted(boxes, shape[:2] if k >= 0 else shape)
    problems.extend(problem(code, file, message) for code, message in flaws)
    return kept


def _from_datalist(
    images: Sequence[Image], path: Path, problems: list[ProblemRow], mode: str | None, space: str | None
) -> Boxes:
    content, entries = read_datalist(path)
    terms = terms_of(content, path, mode=mode, space=space)
    boxed = [entry for _, entry in entries if "box" in entry]
    if not boxed:
        raise DataError("no entry of the datalist has a box", where=str(path), fix="write box and label, [] for none")
    by_case = {image.case: image for image in images}
    named = Counter(image.case for image in images)
    written = Counter(case_name(entry["image"]) for entry in boxed)
    found = Boxes()
    for number, entry in enumerate(boxed):
        where = f"{path}, entry {number} with boxes"
        boxes = read_entry(entry, terms, where)
        name = case_name(entry["image"])
        if name not in by_case:
            problems.append(problem("box-without-image", where))
            continue
        image = by_case[name]
        try:
            if named[name] > 1 or written[name] > 1:
                raise ReadError("box-ambiguous", f"{written[name]} entries and {named[name]} images bear this name")
            kept, flaws = fitted(in_grid(boxes, terms.space, image.header), image.header.shape)
            problems.extend(problem(code, where, message) for code, message in flaws)
            found.of[image.digest] = kept
        except ReadError as error:
            _leave_out(found, image, error, where, problems)
    return found


def _leave_out(found: Boxes, image: Image, error: ReadError, where: Path | str, problems: list[ProblemRow]) -> None:
    """Name what kept an image's boxes from being used: the image then counts as one nobody looked at."""
    code = error.code if error.code.startswith("box-") else "box-unreadable"
    problems.append(problem(code, where, error.message))
    found.warned[image.digest].append(code)
