"""A MONAI (Decathlon) datalist to store: the JSON file many groups have already."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config import fingerprint
from ..errors import DataError
from ..index import Location
from ..progress import Progress, silent
from ..reading import Header, ReadError, read_header
from ..reading.boxes import Box, BoxTerms, check_names, in_grid, read_entry, terms_of
from ..reading.datalist import read_datalist
from ..reading.table import MOST_WORDS
from .build import StoreResult, fill_store
from .config import PrepareConfig
from .voxels import ToPrepare

_MOST = 1e300
"""Of a target's number; JSON's may have no end, or be infinite or nan."""
_PICTURES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg"}


def build_store_from_datalist(
    datalist: Path | str,
    config: PrepareConfig,
    out: Path | str,
    *,
    box_mode: str | None = None,
    box_space: str | None = None,
    progress: Progress = silent,
) -> StoreResult:
    """Prepare the images of a datalist into a store.

    The file reads `{"training": [{"image": ..., "label": ..., "subject": ...}], "validation": [...], "test": [...]}`,
    with paths relative to it; a bare path stands for an image without a label. Without `subject` each image's name
    counts as its subject. Neither names nor paths go into the store.

    For detection `box` lists boxes and `label` their classes (whole numbers, named by the file's `labels` if it has
    them, or names); `"box": []` says that there are none. `box_mode` and `box_space` stand beside `training`, as in
    `{"box_space": "voxel", "training": [...]}`, or are given here. `targets` holds numbers of the whole image by name
    (null where missing), `groups` words such as a site.

    Args:
        box_mode: of all boxes, one of MONAI's; `xyxy` or `xyzxyz` (two corners) unless the file states another.
        box_space: what they count: `voxel` (i spans [i, i + 1); x is a picture's column), `ras` or `lps` (mm).

    Raises:
        DataError: the file is no datalist, an image is missing or named twice, a subject is in two splits, or boxes,
            targets or groups cannot be understood.
    """
    path = Path(datalist)
    content, entries = read_datalist(path)
    items, subjects, labels = _items(path, entries, terms_of(content, path, mode=box_mode, space=box_space))
    check_names([box for item in items for box in item.boxes or ()], str(path))
    _check_groups(path, items)
    _check_subjects(path, items, subjects)
    held: dict[str, list[str]] = {}
    for item in items:
        held.setdefault(subjects[item.image_id], []).append(item.image_id)
    # A subject's id comes from its images, so that it tells nothing of the name, not even to one who guesses names.
    named = {subject: _digest("".join(sorted(ids)).encode()) for subject, ids in held.items()}
    items = [replace(item, subject_id=named[subjects[item.image_id]]) for item in items]
    rows = [[item.image_id, item.subject_id, item.split, labels[item.image_id], *_further(item)] for item in items]
    source = fingerprint(rows)
    card = f"# Data\n\n{len(items)} images of {len(named)} subjects, from a datalist.\n"
    return fill_store(items, config, Path(out), source=source, card=card, progress=progress)


def _items(
    path: Path, entries: list[tuple[str, Mapping[str, Any]]], terms: BoxTerms
) -> tuple[list[ToPrepare], dict[str, str], dict[str, str]]:
    """Return the images, and by image id the subject's name and the hash of the label map's file."""
    items: list[ToPrepare] = []
    subjects: dict[str, str] = {}
    labels: dict[str, str] = {}
    for number, (split, entry) in enumerate(entries):
        location = _location(path, entry["image"])
        image_id = _hash(Path(location.paths[0]), path)
        if image_id in subjects:
            raise DataError("an image is named twice", where=location.paths[0], fix="name each image once")
        header = _header(location)
        label = entry.get("label")
        place = _location(path, label) if isinstance(label, str) else None
        name = Path(location.paths[0]).name.split(".")[0]
        subjects[image_id] = str(entry.get("subject", name))
        labels[image_id] = _hash(Path(place.paths[0]), path) if place else ""
        items.append(
            ToPrepare(
                image_id=image_id,
                subject_id="",
                # Of an image that cannot be read nothing is known; preparing it will name it.
                kind="volume" if header is None else header.kind,
                shape=() if header is None else header.shape,
                source=location,
                label_source=place,
                split=split,
                modality="" if header is None else header.modality,
                **_known(entry, terms, header, f"{path}, entry {number}"),
            )
        )
    return items, subjects, labels


def _header(location: Location) -> Header | None:
    try:
        return read_header(location)
    except ReadError:
        return None


def _known(entry: Mapping[str, Any], terms: BoxTerms, header: Header | None, where: str) -> dict[str, Any]:
    """Return what an entry says of the whole image: boxes in voxels of its array, targets and groups."""
    targets, groups = entry.get("targets") or {}, entry.get("groups") or {}
    if not isinstance(targets, dict) or not isinstance(groups, dict):
        raise DataError("targets and groups must be objects", where=where, fix='write {"targets": {"age": 61}}')
    for name, value in targets.items():
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, (int, float)) or not -_MOST < value < _MOST
        ):
            raise DataError(
                f"target {name} is no number", where=where, fix="write a number, or null where it is missing"
            )
    if wrong := [name for name, value in groups.items() if not isinstance(value, str) or not value.strip()]:
        raise DataError(f"group {wrong[0]} is no word", where=where, fix="write a word, or leave it out")
    boxes: tuple[Box, ...] | None = None
    if "box" in entry:
        boxes = read_entry(entry, terms, where)
        try:
            boxes = None if header is None else in_grid(boxes, terms.space, header)
        except ReadError as error:
            raise ReadError(error.code, error.message, where=where) from error
    elif isinstance(entry.get("label"), list):
        raise DataError("an entry has a list of labels, and no box", where=where, fix="give each label its box")
    numbers = {name: float(value) for name, value in targets.items() if value is not None}
    return {"labels": numbers, "groups": {name: word.strip() for name, word in groups.items()}, "boxes": boxes}


def _check_groups(path: Path, items: list[ToPrepare]) -> None:
    words: dict[str, set[str]] = {}
    for item in items:
        for name, word in item.groups.items():
            words.setdefault(name, set()).add(word)
    for name, found in words.items():
        if len(found) > MOST_WORDS:
            raise DataError(
                f"group {name} has {len(found)} different words, at most {MOST_WORDS} are taken: it could be an "
                "identifier",
                where=str(path),
                fix="leave it out, or give broader groups",
            )


def _further(item: ToPrepare) -> list[Any]:
    """Return what else makes a store another one; nothing where nothing else is said of an image."""
    if not item.labels and not item.groups and item.boxes is None:
        return []
    return [sorted(item.labels.items()), sorted(item.groups.items()), item.boxes]


def _check_subjects(path: Path, items: list[ToPrepare], subjects: Mapping[str, str]) -> None:
    splits: dict[str, set[str]] = {}
    for item in items:
        splits.setdefault(subjects[item.image_id], set()).add(item.split)
    shared = sorted(subject for subject, found in splits.items() if len(found) > 1)
    if shared:
        raise DataError(
            f"{len(shared)} of {len(splits)} subjects are in more than one split, the first {shared[0]}",
            where=str(path),
            fix="keep all images of a subject in one split",
        )


def _location(path: Path, name: str) -> Location:
    file = (path.parent / name).resolve()
    kind = "nifti" if file.name.endswith((".nii", ".nii.gz")) else _PICTURES.get(file.suffix.lower(), "")
    if not kind:
        raise DataError(
            "a datalist names .nii, .nii.gz, .png and .jpg files", where=str(file), fix="use `medssl index`"
        )
    return Location((str(file),), kind)


def _hash(file: Path, path: Path) -> str:
    try:
        return _digest(file.read_bytes())
    except OSError as error:
        raise DataError("a file of the datalist cannot be read", where=str(file), fix=f"correct {path}") from error


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
