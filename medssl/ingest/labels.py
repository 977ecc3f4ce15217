"""Label maps: matched to images by name, and used only where they lie on the same voxels."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from .. import geometry
from ..index import Location, ProblemRow
from ..progress import Progress, silent
from ..reading import ReadError, read_header, read_label
from ..reading.source import guarded
from .images import Image
from .scan import case_name, find_images, problem


def match_labels(
    images: Sequence[Image], folders: Sequence[Path | str], problems: list[ProblemRow], progress: Progress = silent
) -> tuple[dict[str, Location], dict[str, list[str]]]:
    """Find the label map of each image: the file of the same name, without extension, under `folders`.

    Returns:
        The label's location, and codes of warnings, both by `Image.digest`. A label that does not fit is left out.
    """
    found = find_images(folders, progress=progress)
    problems.extend(found.problems)
    problems.extend(problem("format-unsupported", path, "labels are read from NIfTI and PNG") for path in found.dicom)
    by_name: dict[str, list[Location]] = defaultdict(list)
    for path, kind in found.files:
        if kind == "jpeg":
            problems.append(problem("format-unsupported", path, "labels are read from NIfTI and PNG"))
            continue
        by_name[case_name(path)].append(Location((str(path),), kind))
    named = Counter(image.case for image in images)
    labels: dict[str, Location] = {}
    warned: dict[str, list[str]] = defaultdict(list)
    for done, image in enumerate(images):
        progress("reading labels", done, len(images))
        candidates = by_name.get(image.case, [])
        if not candidates:
            continue
        label = candidates[0]
        try:
            if len(candidates) > 1 or named[image.case] > 1:
                message = f"{len(candidates)} labels and {named[image.case]} images bear this name"
                raise ReadError("label-ambiguous", message)
            with guarded(label.paths[0]):
                _check_fit(image, label)
            labels[image.digest] = label
        except ReadError as error:
            code = error.code if error.code.startswith("label-") else "label-unreadable"
            problems.append(problem(code, label.paths[0], error.message))
            warned[image.digest].append(code)
    for name in sorted(set(by_name) - set(named)):
        problems.extend(problem("label-without-image", label.paths[0]) for label in by_name[name])
    return labels, warned


def _check_fit(image: Image, label: Location) -> None:
    """Raise ReadError unless the label's voxels are the image's, and its values small whole numbers."""
    header = read_header(label)
    if header.shape != image.header.shape:
        sizes = [" x ".join(map(str, shape)) for shape in (header.shape, image.header.shape)]
        raise ReadError("label-shape", f"the label is {sizes[0]}, the image {sizes[1]}")
    one, two = header.affine, image.header.affine
    if one is not None and two is not None and not geometry.same_place(one, two, header.shape):
        raise ReadError("label-affine", "label and image lie in different places")
    array = read_label(label).array
    if array.ndim != len(header.shape):
        raise ReadError("label-values", "the label is a colour picture")
