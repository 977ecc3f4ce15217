"""build_index: from folders to an index, in one go."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import geometry
from ..errors import DataError
from ..files import check_new, new_folder
from ..index import Index, IndexRow, ProblemRow
from ..problems import PROBLEMS
from ..progress import Progress, silent
from .boxes import Boxes, match_boxes
from .card import SPLITS, card_of
from .images import Image, read_images
from .labels import match_labels
from .scan import find_images, problem
from .subjects import Fractions, Names, entity_of, read_subjects, site_key, split_of
from .tables import match_groups, match_targets

Paths = Path | str | Sequence[Path | str]


@dataclass(frozen=True)
class IndexResult:
    """What was indexed; stands for its folder wherever a path is taken.

    Attributes:
        splits: number of images by split.
        problems: number of problems by code.
    """

    folder: Path
    images: int
    subjects: int
    labelled: int
    kinds: dict[str, int]
    splits: dict[str, int]
    problems: dict[str, int]
    boxed: int = 0
    """Images that somebody looked at for boxes."""

    def __fspath__(self) -> str:
        return str(self.folder)

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds.items())
        splits = ", ".join(f"{count} {split}" for split, count in self.splits.items())
        boxed = f", {self.boxed} looked at for boxes" if self.boxed else ""
        lines = [
            f"{self.images} images of {self.subjects} subjects ({kinds}), {self.labelled} with a label map{boxed}",
            f"splits by subject: {splits} images",
        ]
        for code, count in self.problems.items():
            lines.append(f"{PROBLEMS[code].severity} {code} ({count}): {PROBLEMS[code].meaning}")
        if self.problems:
            lines.append(f"paths and values of the problems: {self.folder / 'private' / 'problems.csv'}")
        return "\n".join([*lines, f"index: {self.folder}"])

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        counts = {"kinds": self.kinds, "splits": self.splits, "problems": self.problems}
        numbers = {"images": self.images, "subjects": self.subjects, "labelled": self.labelled, "boxed": self.boxed}
        return {"index": str(self.folder), **numbers, **counts}


def build_index(
    paths: Paths,
    out: Path | str,
    *,
    labels: Paths | None = None,
    subjects: Path | str | None = None,
    targets: Path | str | None = None,
    groups: Path | str | None = None,
    boxes: Path | str | None = None,
    box_mode: str | None = None,
    box_space: str | None = None,
    key: bytes | None = None,
    seed: int = 0,
    fractions: Fractions | None = None,
    modality: str = "",
    check: bool = False,
    progress: Progress = silent,
) -> IndexResult:
    """Find every image under `paths`, name every problem, and write an index.

    A DICOM series becomes a volume if its slices leave no doubt about where they lie. An image with a problem of
    severity error is left out; see `medssl.problems.PROBLEMS`.

    Args:
        paths: folders and files, in any mixture.
        out: the index's folder; must not exist, or be empty.
        labels: folders of label maps, each named as its image; what lies there is no image.
        subjects: table (TSV or CSV with a head) of case and patient. A case is a file's name without extension, a
            DICOM patient ID, or the name of a series' folder. What it lacks is named by the DICOM patient ID, by BIDS
            (`sub-01` in the file's name, or else a folder of that name), or by the file's name: that one is a guess,
            and a warning says so.
        targets: table of case, as in `subjects`, and numbers: findings and measures of the whole image, a column each;
            empty where missing. What is said of a DICOM patient ID holds for each of the patient's images, under what
            is said of the case.
        groups: such a table of words (site, scanner, sex), at most 20 different in a column. Nothing else keeps an
            identifier of yours from the index: leave out columns that tell who somebody is.
        boxes: folder of Pascal VOC's XML files, or a datalist of MONAI; see `ingest.boxes.match_boxes`.
        box_mode: of a datalist's boxes.
        box_space: of a datalist's boxes, `voxel`, `ras` or `lps`; must be given unless the file states it.
        key: secret that subject ids are made with; unless given, that of the file MEDSSL_KEY_FILE names, or of
            `medssl/site.key` in the user's configuration folder, made where there is none. Another key gives other
            ids and splits; `Index.key_check` tells whether two indexes have the same.
        seed: of the splits.
        fractions: shares of train, validation and test.
        modality: of files that do not state theirs (NIfTI, PNG, JPEG), such as CT or MR.
        check: read every voxel; the default reads headers, files to their end, and one slice of a compressed series.

    Raises:
        DataError: no image was found.
        MedsslError: `out` is taken or cannot be written, a path does not exist, a table or the key cannot be read.
    """
    check_new(out)
    table = read_subjects(subjects) if subjects is not None else None
    names = Names(site_key() if key is None else key)
    label_folders = [] if labels is None else _listed(labels)
    found = find_images(_listed(paths), skip=label_folders, progress=progress)
    problems = list(found.problems)
    images = _distinct(list(read_images(found, problems, check=check, progress=progress)), problems)
    if not images:
        raise _nothing_found(paths, problems)
    places, warned = match_labels(images, label_folders, problems, progress) if label_folders else ({}, {})
    numbers = match_targets(images, targets, problems) if targets is not None else {}
    words = match_groups(images, groups, problems) if groups is not None else {}
    drawn = Boxes()
    if boxes is not None:
        drawn = match_boxes(images, boxes, problems, mode=box_mode, space=box_space, progress=progress)
    shared = _shared_names(images, table)
    rows, locations = [], {}
    for image in images:
        codes = [*image.header.warnings]
        subject_id = names.of("subject", _patient_of(image, table, shared, codes))
        problems.extend(problem(code, image.where) for code in codes)
        split = split_of(subject_id, seed=seed, fractions=fractions or Fractions())
        # These are named already, with the path they are about.
        codes += [*image.noted, *warned.get(image.digest, []), *drawn.warned.get(image.digest, [])]
        row = _row(image, names, subject_id, split, codes, label=image.digest in places, modality=modality)
        row = replace(row, groups={**row.groups, **words.get(image.digest, {})})
        row = replace(row, labels=numbers.get(image.digest, {}), boxes=drawn.of.get(image.digest))
        rows.append(row)
        locations[row.image_id] = image.location
        if row.labelled:
            locations[row.label_path] = places[image.digest]
    with new_folder(out) as folder:
        Index.write(folder, rows, locations, problems, card_of(rows, problems, seed=seed), key_check=names.check)
    return _result(Path(out), rows, problems)


def _listed(paths: Paths) -> list[Path | str]:
    return [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)


def _distinct(images: list[Image], problems: list[ProblemRow]) -> list[Image]:
    """Keep the first of images with equal content."""
    first: dict[str, Image] = {}
    for image in images:
        if image.digest in first:
            message = f"the same content as {first[image.digest].where}"
            problems.append(problem("image-duplicate", image.where, message))
        else:
            first[image.digest] = image
    return list(first.values())


def _shared_names(images: Sequence[Image], table: dict[str, str] | None) -> set[str]:
    """Return names that images in several folders bear, where nothing else tells the patient."""
    folders: dict[str, set[Path]] = defaultdict(set)
    for image in images:
        path = Path(image.location.paths[0])
        if image.location.format != "dicom" and not entity_of(path) and image.case not in (table or {}):
            folders[image.case].add(path.parent)
    return {name for name, found in folders.items() if len(found) > 1}


def _patient_of(image: Image, table: dict[str, str] | None, shared: set[str], codes: list[str]) -> str:
    """Return the patient by the table, by the header, by BIDS' name, or by what images of one patient share."""
    for name in (image.patient, image.case):
        if table and name in table:
            if "dicom-patient-unnamed" in codes:
                codes.remove("dicom-patient-unnamed")
            return table[name]
    if image.location.format != "dicom":
        if table is not None:
            codes.append("subject-missing")
        if entity := entity_of(image.location.paths[0]):
            return entity
        if table is None:
            codes.append("subject-by-name")
        if image.case in shared:
            codes.append("subject-shared")
        return image.case
    return image.patient or image.relation or image.digest


def _row(
    image: Image, names: Names, subject_id: str, split: str, codes: list[str], *, label: bool, modality: str
) -> IndexRow:
    header = image.header
    image_id = names.of("image", image.digest)
    groups = dict(image.groups)
    if image.scanner.strip():
        groups["scanner"] = names.of("scanner", image.scanner)
    return IndexRow(
        image_id=image_id,
        subject_id=subject_id,
        study_id=names.of("study", image.study) if image.study else "",
        series_id=names.of("series", image.series) if image.series else "",
        modality=header.modality or modality,
        kind=header.kind,
        format=header.format,
        shape=header.shape,
        spacing_mm=header.spacing_mm,
        affine=None if header.affine is None else geometry.as_tuple(header.affine),
        orientation="" if header.affine is None else geometry.orientation_of(header.affine),
        channels=header.channels,
        dtype=header.dtype,
        content_hash=names.of("content", image.digest),
        split=split,
        label_path=names.of("label", image.digest) if label else "",
        groups=groups,
        problems=tuple(sorted(set(codes))),
    )


def _nothing_found(paths: Paths, problems: list[ProblemRow]) -> DataError:
    where = ", ".join(str(path) for path in _listed(paths))
    if not problems:
        return DataError(
            "no image was found", where=where, fix="name a folder that holds NIfTI, DICOM, PNG or JPEG files"
        )
    worst = sorted(problems, key=lambda row: (row.severity != "error", row.code, row.path))[0]
    found = "1 problem was" if len(problems) == 1 else f"{len(problems)} problems were"
    return DataError(
        f"no image can be used, {found} found, such as {worst.code}: {worst.message}",
        where=worst.path,
        fix=PROBLEMS[worst.code].remedy,
    )


def _result(folder: Path, rows: list[IndexRow], problems: list[ProblemRow]) -> IndexResult:
    splits = Counter(row.split for row in rows)
    return IndexResult(
        folder=folder,
        images=len(rows),
        subjects=len({row.subject_id for row in rows}),
        labelled=sum(row.labelled for row in rows),
        kinds=dict(sorted(Counter(row.kind for row in rows).items())),
        splits={split: splits[split] for split in SPLITS},
        problems=dict(sorted(Counter(row.code for row in problems).items())),
        boxed=sum(row.boxes is not None for row in rows),
    )
