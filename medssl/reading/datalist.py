"""MONAI's (Decathlon's) datalist: the JSON file many groups have already."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import DataError

SPLITS = {"training": "train", "validation": "validation", "test": "test"}


def read_datalist(path: Path) -> tuple[Mapping[str, Any], list[tuple[str, Mapping[str, Any]]]]:
    """Return the file's content, and (split, entry) for every entry; a bare path becomes an entry of an image alone.

    Raises:
        DataError: the file is no datalist.
    """
    fix = 'write {"training": [{"image": ..., "label": ...}], "validation": [...], "test": [...]}'
    try:
        content = json.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"the datalist cannot be read: {type(error).__name__}", where=str(path), fix=fix) from error
    if not isinstance(content, dict) or not any(isinstance(content.get(name), list) for name in SPLITS):
        raise DataError("the file holds none of training, validation, test", where=str(path), fix=fix)
    entries: list[tuple[str, Mapping[str, Any]]] = []
    for name, split in SPLITS.items():
        listed = content.get(name) or []
        if not isinstance(listed, list):
            raise DataError(f"{name} is no list", where=str(path), fix=fix)
        for number, entry in enumerate(listed):
            entry = {"image": entry} if isinstance(entry, str) else entry
            if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
                raise DataError(f"entry {number} of {name} names no image", where=str(path), fix=fix)
            entries.append((split, entry))
    return content, entries
