"""Files to images: each judged, or left out with a problem."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..index import Location, ProblemRow
from ..progress import Progress, silent
from ..reading import Header, ReadError, read_voxels
from ..reading.dicom import assemble, decode
from ..reading.instance import Instance, instance_of, is_directory, read_dataset
from ..reading.nifti import nifti_digest, read_nifti_header
from ..reading.picture import picture_digest, read_picture_header
from ..reading.source import guarded
from .scan import Found, case_name, problem


@dataclass(frozen=True)
class Image:
    """An image that can be used, under its real names; these never leave this package.

    Attributes:
        case: the file's name without extension, or the name of a DICOM series' folder.
        patient: as the header has it; empty where it has none.
        relation: what images of one patient share where the patient is not named: study or frame of reference.
        noted: codes of warnings that stand among the problems already, under the path they are about.
        instances: SOP Instance UIDs of a DICOM series, in the volume's order.
    """

    case: str
    header: Header
    digest: str
    location: Location
    patient: str = ""
    relation: str = ""
    study: str = ""
    series: str = ""
    scanner: str = ""
    groups: tuple[tuple[str, str], ...] = ()
    noted: tuple[str, ...] = ()
    instances: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """The file, or the folder of a DICOM series."""
        first = Path(self.location.paths[0])
        return str(first if len(self.location.paths) == 1 else first.parent)


def read_images(
    found: Found, problems: list[ProblemRow], *, check: bool = False, progress: Progress = silent
) -> Iterator[Image]:
    """Yield every image that can be used, files first, then DICOM series; append what is wrong to `problems`.

    Args:
        check: read all voxels too, not only the headers and the file's end.
    """
    total = len(found.files) + len(found.dicom)
    for done, (path, kind) in enumerate(found.files):
        progress("reading headers", done, total)
        try:
            with guarded(str(path)):
                image = _from_file(str(path), kind)
                image = _checked(image) if check else image
        except ReadError as error:
            problems.append(problem(error.code, path, error.message))
        else:
            yield image
    for instances, noted in _series(found.dicom, problems, progress, total):
        folder = str(Path(instances[0].path).parent)
        try:
            with guarded(folder):
                image = replace(_from_series(instances), noted=noted)
                image = _checked(image) if check else _decodable(image, instances)
        except ReadError as error:
            problems.append(problem(error.code, error.where or folder, error.message))
        else:
            yield image
    progress("reading headers", total, total)


def _from_file(path: str, kind: str) -> Image:
    header = read_nifti_header(path) if kind == "nifti" else read_picture_header(path)
    digest = nifti_digest(path) if kind == "nifti" else picture_digest(path)
    return Image(case_name(path), header, digest, Location((path,), kind))


def _from_series(instances: Sequence[Instance]) -> Image:
    series = assemble(instances)
    first = series.instances[0]
    return Image(
        case=Path(first.path).parent.name,
        header=series.header,
        digest=series.digest,
        location=Location(tuple(instance.path for instance in series.instances), "dicom"),
        patient=first.patient,
        relation=first.study or first.frame,
        study=first.study,
        series=first.series,
        scanner=first.scanner,
        groups=first.groups,
        instances=tuple(instance.uid for instance in series.instances),
    )


def _series(
    paths: Sequence[Path], problems: list[ProblemRow], progress: Progress, total: int
) -> Iterator[tuple[tuple[Instance, ...], tuple[str, ...]]]:
    """Yield one series after the other: its instances, and codes of warnings that were appended to `problems`.

    A series is what bears one Series Instance UID, wherever its files lie. Where the UID is missing, the files of one
    folder and frame of reference are taken together, and `assemble` refuses them unless they fit.
    """
    series: dict[tuple[str, ...], list[Instance]] = {}
    unreadable: set[Path] = set()
    for done, path in enumerate(paths):
        progress("reading headers", total - len(paths) + done, total)
        try:
            with guarded(str(path)):
                dataset = read_dataset(str(path))
                if is_directory(dataset):
                    continue
                instance = instance_of(dataset, str(path))
        except ReadError as error:
            problems.append(problem(error.code, path, error.message))
            unreadable.add(path.parent)
            continue
        key = (instance.series,) if instance.series else ("", str(path.parent), instance.frame)
        series.setdefault(key, []).append(instance)
    for instances in series.values():
        folders = sorted({Path(instance.path).parent for instance in instances} & unreadable)
        problems.extend(problem("dicom-neighbour-unreadable", folder) for folder in folders)
        noted = ("dicom-neighbour-unreadable",) if folders else ()
        yield _without_copies(instances, problems), noted


def _without_copies(instances: Sequence[Instance], problems: list[ProblemRow]) -> tuple[Instance, ...]:
    """Drop slices equal to one in another folder: the series is kept twice. Equal ones in one folder stay: an error."""
    home: dict[str, Path] = {}
    kept, copies = [], Counter[Path]()
    for instance in instances:
        folder = Path(instance.path).parent
        if home.setdefault(instance.digest, folder) == folder:
            kept.append(instance)
        else:
            copies[folder] += 1
    for folder, count in copies.items():
        problems.append(problem("image-duplicate", folder, f"{count} slices are copies of others of their series"))
    return tuple(kept)


def _checked(image: Image) -> Image:
    """Read the voxels; a constant image gets a warning."""
    array = read_voxels(image.location).array
    if array.min() == array.max():
        return _warned(image, "voxels-constant")
    return image


def _decodable(image: Image, instances: Sequence[Instance]) -> Image:
    """Decode one slice of a compressed series: the next ones are compressed the same way."""
    if any(instance.compressed for instance in instances):
        decode(image.location.paths[len(image.location.paths) // 2])
    return image


def _warned(image: Image, code: str) -> Image:
    return replace(image, header=replace(image.header, warnings=(*image.header.warnings, code)))
