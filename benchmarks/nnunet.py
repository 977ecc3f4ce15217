"""Training from scratch with all labels, beside nnU-Net v2 with its own short trainer of 10 epochs.

Both see the same training images for as many steps of as many crops of the same size; both are scored by the same
function on the same test patients, on the images' own grid. nnU-Net plans its network and augmentation and mirrors, in
training and at inference, as it is made to; ours does not mirror; its fold is our split. It is given 0.2 GB to plan
for: with its usual 8 GB a step of 5 crops took more than four seconds on two cores, and 10 epochs would have taken
three hours. Its commands come from an environment of its own:

    python -m venv NNU && NNU/bin/pip install nnunetv2
    python -m benchmarks.nnunet --nnunet NNU/bin --data msd-hippocampus --out result.json

`--keep FOLDER` keeps stores and runs there and goes on where they are.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

import medssl
from medssl.downstream import FinetuneConfig, finetune
from medssl.downstream.scoring import ImageScore, patient_dice, score_image
from medssl.ingest import build_index
from medssl.ingest.subjects import Fractions
from medssl.metrics import bootstrap, class_numbers
from medssl.nets.config import DynUNetConfig
from medssl.prepare import PrepareConfig, ZScore
from medssl.store import Store

from .machine import command, machine

NAME, NUMBER, TRAINER, PLANS = "Dataset004_Hippocampus", "4", "nnUNetTrainer_10epochs", "nnUNetPlansSmall"
MEMORY_GB = "0.2"
EPOCHS, ITERATIONS = 10, 250
CHANNELS = (32, 64, 128)
"""Of our network, whose stem halves the resolution."""
KEY = b"medssl benchmark: public data, so this key is no secret"
FRACTIONS = Fractions(train=0.5, validation=0.2, test=0.3)


def hippocampus_store(data: Path, folder: Path) -> Store:
    """Prepare all hippocampus scans, split by patient."""
    if not (folder / "store").is_dir():
        build_index(
            data / "images",
            folder / "index",
            labels=data / "labels",
            subjects=data / "patients.tsv",
            key=KEY,
            fractions=FRACTIONS,
            modality="MR",
        )
        config = PrepareConfig(modalities=("MR",), spacing_mm=(1.0, 1.0, 1.0), scaling=ZScore())
        medssl.build_store(folder / "index", config, folder / "store")
    return Store.open(folder / "store")


def write_dataset(store: Store, raw: Path) -> None:
    """Write the store's images as nnU-Net reads them: training and validation images, and test images apart."""
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (raw / part).mkdir(parents=True, exist_ok=True)
    kept = (*store.ids_of("train"), *store.ids_of("validation"))
    for image_id in (*kept, *store.ids_of("test")):
        affine, part = store.affine(image_id), "imagesTr" if image_id in kept else "imagesTs"
        image = nibabel.Nifti1Image(store.read(image_id)[0].astype(np.float32), affine)
        nibabel.save(image, raw / part / f"{image_id}_0000.nii.gz")
        if image_id in kept:
            label = class_numbers(store.label(image_id)[0], store.classes).astype(np.uint8)
            nibabel.save(nibabel.Nifti1Image(label, affine), raw / "labelsTr" / f"{image_id}.nii.gz")
    about = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, **{f"label {value}": k + 1 for k, value in enumerate(store.classes)}},
        "numTraining": len(kept),
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(about), encoding="utf-8")


def run_nnunet(store: Store, commands: Path, folder: Path, threads: int) -> dict[str, Any]:
    """Plan, train and predict by nnU-Net's own commands; return its plan and how long it trained."""
    places = {part: folder / part for part in ("raw", "preprocessed", "results")}
    environment = {**os.environ, **{f"nnUNet_{part}": str(path) for part, path in places.items()}}
    environment |= {"nnUNet_n_proc_DA": "2", "nnUNet_compile": "f", "OMP_NUM_THREADS": str(threads)}

    def run(program: str, *words: str) -> None:
        subprocess.run([commands / program, *words], env=environment, check=True, stdout=sys.stderr)

    plans, splits = places["preprocessed"] / NAME / f"{PLANS}.json", places["preprocessed"] / NAME
    if not plans.is_file():
        write_dataset(store, places["raw"] / NAME)
        words = ("-gpu_memory_target", MEMORY_GB, "-overwrite_plans_name", PLANS, "-np", "2", "-npfp", "2")
        run("nnUNetv2_plan_and_preprocess", "-d", NUMBER, "-c", "3d_fullres", *words)
    split = {"train": list(store.ids_of("train")), "val": list(store.ids_of("validation"))}
    (splits / "splits_final.json").write_text(json.dumps([split]), encoding="utf-8")
    trained = places["results"] / NAME / f"{TRAINER}__{PLANS}__3d_fullres" / "fold_0"
    clock = folder / "seconds.json"
    if not (trained / "checkpoint_final.pth").is_file():
        began = time.perf_counter()
        run("nnUNetv2_train", NUMBER, "3d_fullres", "0", "-tr", TRAINER, "-p", PLANS, "-device", "cpu")
        clock.write_text(json.dumps(time.perf_counter() - began), encoding="utf-8")
    if len(list((folder / "found").glob("*.nii.gz"))) < len(store.ids_of("test")):
        given = ["-i", str(places["raw"] / NAME / "imagesTs"), "-o", str(folder / "found"), "-f", "0", "-tr", TRAINER]
        given += ["-p", PLANS, "-d", NUMBER, "-c", "3d_fullres", "-device", "cpu", "-npp", "1", "-nps", "1"]
        run("nnUNetv2_predict", *given)
    return {**read_plan(folder), "train_seconds": round(json.loads(clock.read_text(encoding="utf-8")), 1)}


def read_plan(folder: Path) -> dict[str, Any]:
    """Return what nnU-Net planned."""
    path = folder / "preprocessed" / NAME / f"{PLANS}.json"
    plan = json.loads(path.read_text(encoding="utf-8"))["configurations"]["3d_fullres"]
    architecture = plan["architecture"]["arch_kwargs"]
    return {
        "memory_gb": float(MEMORY_GB),
        "patch": plan["patch_size"],
        "batch": plan["batch_size"],
        "channels": architecture["features_per_stage"],
        "strides": architecture["strides"],
    }


def nnunet_scores(store: Store, folder: Path) -> list[ImageScore]:
    """Score what nnU-Net found."""
    scores = []
    for image_id in store.ids_of("test"):
        found = np.asanyarray(nibabel.load(folder / "found" / f"{image_id}.nii.gz").dataobj).astype(np.int64)
        label = class_numbers(store.label(image_id)[0], store.classes)
        scores.append(score_image(found, label, store.row(image_id), classes=len(store.classes) + 1))
    return scores


def main() -> None:
    """Run both and write what they scored."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nnunet", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=("nnunet", "medssl"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        store = hippocampus_store(arguments.data, folder)
        if arguments.only != "medssl":
            theirs = run_nnunet(store, arguments.nnunet.absolute(), folder, arguments.threads)
            if arguments.only:
                return
        planned = read_plan(folder)
        config = FinetuneConfig(steps=EPOCHS * ITERATIONS, batch_size=planned["batch"], crop=tuple(planned["patch"]))
        network = DynUNetConfig(channels=CHANNELS, strides=(2, 2, 2))
        resume = (folder / "ours").is_dir()
        ours = finetune(None, store, folder / "ours", config, network=network, resume=resume)
        lines = (folder / "ours" / "times.jsonl").read_text(encoding="utf-8").splitlines()
        seconds = sum(json.loads(line)["seconds"] for line in lines)
        if arguments.only:
            return
        scores = nnunet_scores(store, folder)
    gap = patient_dice(ours.scores) - patient_dice(scores)
    result = {
        "command": command(),
        "machine": machine(),
        "images": {split: len(store.ids_of(split)) for split in ("train", "validation", "test")},
        "patients": len(gap),
        "steps": config.steps,
        "nnunet": {**theirs, "dice": float(patient_dice(scores).mean())},
        "medssl": {
            "patch": list(config.crop or ()),
            "batch": config.batch_size,
            "channels": list(network.channels),
            "strides": list(network.strides),
            "dice": float(patient_dice(ours.scores).mean()),
            "train_seconds": round(seconds, 1),
        },
        "medssl_minus_nnunet": bootstrap(gap[None]).to_dict(),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
