"""The small real data that ships: where it lies, and whether it is whole.

    hippocampus/    70 T1-weighted MR volumes of 46 patients with expert labels (images/, labels/, patients.tsv)
    ct/             one CT series of 20 DICOM slices

Each folder has its own LICENSE, which differs from that of the code; `data_cards/` tells source, citation and faults.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

__all__ = ["damaged_files", "demo_folder"]


def demo_folder() -> Path:
    """Return the folder of the shipped data; it may be read-only."""
    return Path(__file__).parent


def damaged_files() -> tuple[str, ...]:
    """Return the shipped files that are missing or changed, by their names in SHA256SUMS; empty when all is well."""
    folder = demo_folder()
    damaged = []
    for line in (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines():
        digest, name = line.split("  ", 1)
        path = folder / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            damaged.append(name)
    return tuple(damaged)
