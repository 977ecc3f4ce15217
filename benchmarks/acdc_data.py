"""The short-axis scans of the benchmark `acdc`, as the files a user would have: NIfTI and a datalist.

ACDC (Bernard et al., IEEE TMI 37 (11), 2018, doi 10.1109/TMI.2018.2837502) as packed by WSL4MIS: HDF5, non-commercial
(CC BY-NC-SA 4.0), never shipped. Sunnybrook Cardiac Data (CC0): PNG. Both are found below `MEDSSL_SHARED_DATA`.

One patient is one volume: end-diastole and end-systole behind each other, so that a number of labelled images is a
number of patients. Both packings lost the spacing. A pixel counts as 1.5 mm (the ACDC paper says 1.37 to 1.68), a step
between slices as 10 mm; so millimetres here are nominal, and no distance is reported.
"""

from __future__ import annotations

import csv
import importlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SPLIT_SEED = 20261125
PER_GROUP = {"test": 3, "validation": 1, "training": 4}
"""Patients of each of the five disease groups; 8 in all."""
PIXEL_MM, SLICE_MM = 1.5, 10.0
Volume = NDArray[Any]


def shared_data() -> Path:
    """Return the folder of the scans that do not ship.

    Raises:
        SystemExit: it is not there.
    """
    path = Path(os.environ.get("MEDSSL_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (path / "noncommercial" / "acdc-short-axis" / "patients.tsv").is_file():
        raise SystemExit(f"ACDC short axis is not below {path}: set MEDSSL_SHARED_DATA to the folder that holds it")
    return path


def patients_of(folder: Path) -> list[dict[str, str]]:
    """Return the rows of `patients.tsv`: patient, group, and the names of the two frames, `ed` and `es`."""
    with (folder / "patients.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def split_patients(rows: list[dict[str, str]], seed: int = SPLIT_SEED) -> dict[str, list[str]]:
    """Split patients into test, validation and training, each with as many of every disease group."""
    random = np.random.Generator(np.random.PCG64(seed))
    out: dict[str, list[str]] = {split: [] for split in PER_GROUP}
    for group in sorted({row["group"] for row in rows}):
        names = sorted(row["patient"] for row in rows if row["group"] == group)
        if len(names) != sum(PER_GROUP.values()):
            raise ValueError(f"group {group} has {len(names)} patients, {sum(PER_GROUP.values())} wanted")
        drawn = iter(random.permutation(names).tolist())
        for split, n in PER_GROUP.items():
            out[split] += [next(drawn) for _ in range(n)]
    return {split: sorted(names) for split, names in out.items()}


def read_patient(folder: Path, row: dict[str, str]) -> tuple[Volume, Volume]:
    """Return image (float32) and label (uint8) of a patient, column x row x slice, end-diastole first."""
    h5py: Any = importlib.import_module("h5py")
    images, labels = [], []
    for frame in (row["ed"], row["es"]):
        with h5py.File(folder / "volumes" / f"{row['patient']}_{frame}.h5") as file:
            images.append(file["image"][()].astype(np.float32))
            labels.append(file["label"][()].astype(np.uint8))
    return np.concatenate(images).transpose(2, 1, 0), np.concatenate(labels).transpose(2, 1, 0)


def read_sunnybrook(folder: Path) -> dict[str, Volume]:
    """Return the slices of each patient, column x row x slice, uint8, by patient."""
    from PIL import Image

    slices: dict[str, list[Volume]] = {}
    for path in sorted((folder / "Images").rglob("*.png")):
        patient = path.name.split("-IM-")[0]
        slices.setdefault(patient, []).append(np.asarray(Image.open(path).convert("L")).T)
    return {patient: np.stack(found, 2) for patient, found in sorted(slices.items())}


def write_datalist(out: Path) -> Path:
    """Write every patient as NIfTI, and a datalist that says who is in which split; return the datalist.

    Sunnybrook's patients stand in training, without labels. A label of a training patient is used for fine-tuning and
    the probe's readout; pretraining reads images of the split `train` alone, and no label.
    """
    import nibabel

    root = shared_data()
    acdc = root / "noncommercial" / "acdc-short-axis"
    rows = patients_of(acdc)
    affine = np.diag([PIXEL_MM, PIXEL_MM, SLICE_MM, 1.0])

    def save(name: str, voxels: Volume) -> str:
        nibabel.save(nibabel.Nifti1Image(voxels, affine), out / name)
        return name

    out.mkdir(parents=True, exist_ok=True)
    by_name = {row["patient"]: row for row in rows}
    entries: dict[str, list[dict[str, str]]] = {}
    for split, names in split_patients(rows).items():
        entries["test" if split == "test" else split] = [_entry(name, by_name[name], acdc, save) for name in names]
    for name, voxels in read_sunnybrook(root / "sunnybrook-cine").items():
        entries["training"].append({"image": save(f"{name}.nii.gz", voxels), "subject": name})
    path = out / "datalist.json"
    path.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    return path


def _entry(name: str, row: dict[str, str], folder: Path, save: Any) -> dict[str, str]:
    image, label = read_patient(folder, row)
    return {
        "image": save(f"{name}.nii.gz", image),
        "label": save(f"{name}_label.nii.gz", label),
        "subject": name,
    }
