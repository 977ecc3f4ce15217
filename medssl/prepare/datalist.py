"""A MONAI (Decathlon) datalist to store: the JSON file many groups have already."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config import fingerprint
from ..errors import DataError
from ..index import Location
from ..progress import Progress, silent
from ..reading import ReadError, read_header
from .build import StoreResult, fill_store
from .config import PrepareConfig
from .voxels import ToPrepare

_PICTURES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg"}
_SPLITS = {"training": "train", "validation": "validation", "test": "test"}


def build_store_from_datalist(
    datalist: Path | str, config: PrepareConfig, out: Path | str, *, progress: Progress = silent
) -> StoreResult:
    """Prepare the images of a datalist into a store.

    The file reads `{"training": [{"image": ..., "label": ..., "subject": ...}], "validation": [...], "test": [...]}`,
    with paths relative to it; a bare path stands for an image without a label. Without `subject` each image's name
    counts as its subject. Neither names nor paths go into the store.

    Raises:
        DataError: the file is no datalist, an image is missing or named twice, or a subject is in two splits.
    """
    path = Path(datalist)
    items, subjects, labels = _items(path, _entries(path))
    _check_subjects(path, items, subjects)
    held: dict[str, list[str]] = {}
    for item in items:
        held.setdefault(subjects[item.image_id], []).append(item.image_id)
    # A subject's id comes from its images, so that it tells nothing of the name, not even to one who guesses names.
    named = {subject: _digest("".join(sorted(ids)).encode()) for subject, ids in held.items()}
    items = [replace(item, subject_id=named[subjects[item.image_id]]) for item in items]
    source = fingerprint([[item.image_id, item.subject_id, item.split, labels[item.image_id]] for item in items])
    card = f"# Data\n\n{len(items)} images of {len(named)} subjects, from a datalist.\n"
    return fill_store(items, config, Path(out), source=source, card=card, progress=progress)


def _entries(path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    """Return (split, entry) for every entry of the file."""
    fix = 'write {"training": [{"image": ..., "label": ...}], "validation": [...], "test": [...]}'
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"the datalist cannot be read: {type(error).__name__}", where=str(path), fix=fix) from error
    if not isinstance(content, dict) or not any(isinstance(content.get(name), list) for name in _SPLITS):
        raise DataError("the file holds none of training, validation, test", where=str(path), fix=fix)
    entries: list[tuple[str, Mapping[str, Any]]] = []
    for name, split in _SPLITS.items():
        for number, entry in enumerate(content.get(name) or []):
            entry = {"image": entry} if isinstance(entry, str) else entry
            if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
                raise DataError(f"entry {number} of {name} names no image", where=str(path), fix=fix)
            entries.append((split, entry))
    return entries


def _items(
    path: Path, entries: list[tuple[str, Mapping[str, Any]]]
) -> tuple[list[ToPrepare], dict[str, str], dict[str, str]]:
    """Return the images, and by image id the subject's name and the hash of the label map's file."""
    items: list[ToPrepare] = []
    subjects: dict[str, str] = {}
    labels: dict[str, str] = {}
    for split, entry in entries:
        location = _location(path, entry["image"])
        image_id = _hash(Path(location.paths[0]), path)
        if image_id in subjects:
            raise DataError("an image is named twice", where=location.paths[0], fix="name each image once")
        kind, shape, modality = _described(location)
        label = entry.get("label")
        place = _location(path, label) if isinstance(label, str) else None
        name = Path(location.paths[0]).name.split(".")[0]
        subjects[image_id] = str(entry.get("subject", name))
        labels[image_id] = _hash(Path(place.paths[0]), path) if place else ""
        items.append(
            ToPrepare(
                image_id=image_id,
                subject_id="",
                kind=kind,
                shape=shape,
                source=location,
                label_source=place,
                split=split,
                modality=modality,
            )
        )
    return items, subjects, labels


def _described(location: Location) -> tuple[str, tuple[int, ...], str]:
    """Return kind, shape and modality; of an image that cannot be read nothing, for preparing it will name it."""
    try:
        header = read_header(location)
    except ReadError:
        return "volume", (), ""
    return header.kind, header.shape, header.modality


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
