"""Is our training from scratch a fair opponent? It stands against MONAI's own networks in MONAI's own loop.

Both see the same labelled images, the same voxels, as many steps of as many crops of the same size, and are scored by
the same function on the same test patients. MONAI's arm follows its spleen tutorial (UNet 16-32-64-128-256 with two
residual units, batch norm, Dice, here with cross-entropy; crops around foreground and background alike; Adam; sliding
windows), with the tutorial's learning rate and with larger ones, chosen on validation images as ours is; once without
augmentation, as the tutorial, and once with MONAI's own.

    python -m benchmarks.scratch_baseline --out result.json
    python -m benchmarks.scratch_baseline --network swinunetr --crop 64,64 --crops 8 --out result.json

SwinUNETR (24 features instead of the 48 of MONAI's BTCV tutorial, AdamW, rates above that tutorial's 1e-4, for there
are few steps) stands against ours on slices, `--crop 64,64`, and with MONAI's augmentation alone, as there: in 3D one
of its steps took six seconds of a core.

The store is made from the shipped scans unless it is named:

    python -m benchmarks.scratch_baseline --store STORE --out result.json --counts 2,8 --seeds 3 --steps 200
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import DataLoader, Dataset
from monai.inferers import SliceInferer, SlidingWindowInferer
from monai.losses import DiceCELoss
from monai.networks.nets import SwinUNETR, UNet
from monai.transforms import (
    Compose,
    NormalizeIntensityd,
    RandAdjustContrastd,
    RandAffined,
    RandCropByPosNegLabeld,
    RandGaussianNoised,
    SpatialPadd,
)
from monai.utils import set_determinism

import medssl
from medssl.demo import build_demo_index
from medssl.downstream import FinetuneConfig, compare_encoders
from medssl.downstream.scoring import patient_dice, score_image
from medssl.metrics import bootstrap, class_numbers, draw_images
from medssl.nets.config import DynUNetConfig
from medssl.prepare import PrepareConfig, ZScore
from medssl.store import Store

from .machine import command, machine

MONAI_RATES = {"unet": (1e-4, 1e-3, 3e-3), "swinunetr": (3e-4, 1e-3)}
AUGMENTED = {"unet": (False, True), "swinunetr": (True,)}
OUR_RATES = (1e-3, 3e-3)


def shipped_store(folder: Path) -> Store:
    """Prepare the shipped hippocampus scans."""
    if (folder / "store").is_dir():
        return Store.open(folder / "store")
    config = PrepareConfig(modalities=("MR",), spacing_mm=(1.0, 1.0, 1.0), scaling=ZScore())
    return Store.open(medssl.build_store(build_demo_index(folder / "index"), config, folder / "store").folder)


def _item(store: Store, image_id: str) -> dict[str, torch.Tensor]:
    label = class_numbers(store.label(image_id)[0], store.classes)
    item = {"image": torch.from_numpy(store.read(image_id)).float(), "label": torch.from_numpy(label)[None]}
    return dict(NormalizeIntensityd(keys="image")(item))


def _items(store: Store, image_id: str, axes: int) -> list[dict[str, torch.Tensor]]:
    """Return the volume, or its slices along the third axis for a network of two."""
    item = _item(store, image_id)
    if axes == 3:
        return [item]
    return [{key: value[..., k] for key, value in item.items()} for k in range(item["image"].shape[-1])]


def _transforms(crop: Sequence[int], *, augment: bool) -> Compose:
    keys = ["image", "label"]
    steps: list[Any] = [
        SpatialPadd(keys=keys, spatial_size=crop),
        RandCropByPosNegLabeld(keys=keys, label_key="label", spatial_size=crop, pos=1, neg=1, num_samples=1),
    ]
    if augment:
        steps += [
            RandAffined(
                keys=keys,
                mode=("bilinear", "nearest"),
                prob=1.0,
                rotate_range=(0.4,) * (3 if len(crop) == 3 else 1),
                scale_range=(0.2,) * len(crop),
                translate_range=(5,) * len(crop),
                padding_mode="border",
            ),
            RandAdjustContrastd(keys="image", prob=0.5, gamma=(0.75, 1.35)),
            RandGaussianNoised(keys="image", prob=0.5, std=0.1),
        ]
    return Compose(steps)


def monai_network(name: str, axes: int, classes: int) -> torch.nn.Module:
    """Build one of MONAI's networks as MONAI's tutorials do."""
    if name == "swinunetr":
        return SwinUNETR(in_channels=1, out_channels=classes, feature_size=24, spatial_dims=axes)
    return UNet(
        spatial_dims=axes,
        in_channels=1,
        out_channels=classes,
        channels=(16, 32, 64, 128, 256),
        strides=(2, 2, 2, 2),
        num_res_units=2,
        norm="batch",
    )


def train_monai(
    name: str, store: Store, images: Sequence[str], config: FinetuneConfig, rate: float, *, augment: bool
) -> torch.nn.Module:
    """Train a network by the loop of MONAI's tutorials for `config.steps` steps of `config.batch_size` crops."""
    assert config.crop is not None
    set_determinism(config.seed)
    crop = config.crop
    network = monai_network(name, len(crop), len(store.classes) + 1)
    items = [item for image_id in images for item in _items(store, image_id, len(crop))]
    wanted = config.steps * config.batch_size
    order = np.random.default_rng(config.seed).permutation(len(items))
    dataset = Dataset([items[order[i % len(items)]] for i in range(wanted)], _transforms(crop, augment=augment))
    loss_function = DiceCELoss(to_onehot_y=True, softmax=True)
    weights = network.parameters()
    optimiser = (
        torch.optim.AdamW(weights, rate, weight_decay=1e-5) if name == "swinunetr" else torch.optim.Adam(weights, rate)
    )
    network.train()
    for batch in DataLoader(dataset, batch_size=config.batch_size, shuffle=True, num_workers=0):
        optimiser.zero_grad()
        loss = loss_function(network(batch["image"].as_tensor()), batch["label"].as_tensor())
        loss.backward()
        optimiser.step()
    set_determinism(None)
    return network.eval()


def monai_scores(network: torch.nn.Module, store: Store, split: str, config: FinetuneConfig) -> np.ndarray:
    """Return (P,): the Dice of each patient, by MONAI's sliding window, slice by slice for a network of two axes."""
    crop = config.crop or ()
    windows = {"sw_batch_size": 4, "overlap": config.overlap, "mode": "gaussian"}
    inferer: Any = (
        SlidingWindowInferer(crop, **windows) if len(crop) == 3 else SliceInferer(2, roi_size=crop, **windows)
    )
    scores = []
    for image_id in store.ids_of(split):
        item = _item(store, image_id)
        with torch.no_grad():
            found = inferer(item["image"][None], network)[0].argmax(0).numpy()
        classes = len(store.classes) + 1
        scores.append(score_image(found, item["label"][0].numpy(), store.row(image_id), classes=classes))
    return patient_dice(scores)


def run_monai(
    name: str, store: Store, config: FinetuneConfig, count: int, seeds: int, *, augment: bool
) -> tuple[np.ndarray, float, dict[str, float]]:
    """Return the test Dice (S, P) at the rate best on validation, that rate, and the validation Dice of every rate."""
    rates = MONAI_RATES[name]
    subjects = {i: store.row(i).subject_id for i in store.ids_of("train")}
    test: dict[float, list[np.ndarray]] = {rate: [] for rate in rates}
    validation: dict[float, list[float]] = {rate: [] for rate in rates}
    for seed in range(seeds):
        images = draw_images(subjects, count, seed)
        seeded = config.model_copy(update={"seed": seed})
        for rate in rates:
            network = train_monai(name, store, images, seeded, rate, augment=augment)
            test[rate].append(monai_scores(network, store, config.split, config))
            validation[rate].append(float(np.mean(monai_scores(network, store, "validation", config))))
            sys.stderr.write(f"{name}, augmented {augment}, {count} images, seed {seed}, rate {rate:g}\n")
    means = {rate: float(np.mean(values)) for rate, values in validation.items()}
    best = max(means, key=lambda rate: means[rate])
    return np.stack(test[best]), best, {f"{rate:g}": value for rate, value in means.items()}


def main() -> None:
    """Run both arms and write what they scored."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--network", choices=tuple(MONAI_RATES), default="unet")
    parser.add_argument("--counts", default="8")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--keep", type=Path, help="folder for the store and our trainings; goes on where it is")
    parser.add_argument("--crops", type=int, default=4, help="in a step")
    parser.add_argument("--crop", default="32,48,32")
    arguments = parser.parse_args()
    counts = [int(word) for word in arguments.counts.split(",")]
    crop = tuple(int(word) for word in arguments.crop.split(","))
    config = FinetuneConfig(steps=arguments.steps, batch_size=arguments.crops, crop=crop)
    with tempfile.TemporaryDirectory() as folder:
        keep: Path = arguments.keep or Path(folder)
        store = Store.open(arguments.store) if arguments.store else shipped_store(keep)
        began = time.perf_counter()
        ours = compare_encoders(
            [None],
            data=store,
            counts=counts,
            seeds=arguments.seeds,
            out=keep / "ours",
            config=config,
            network=DynUNetConfig(),
            learning_rates=OUR_RATES,
        )
        ours_seconds = time.perf_counter() - began
        rows = []
        for count in counts:
            for augment in AUGMENTED[arguments.network]:
                began = time.perf_counter()
                theirs, rate, validation = run_monai(
                    arguments.network, store, config, count, arguments.seeds, augment=augment
                )
                mine = ours.values["scratch"][count]
                row = {
                    "labelled_images": count,
                    "monai_augmented": augment,
                    "medssl_dice": float(mine.mean()),
                    "medssl_rate": ours.rates["scratch"][count],
                    "monai_dice": float(theirs.mean()),
                    "monai_rate": rate,
                    "monai_validation_dice": validation,
                    "medssl_minus_monai": bootstrap(mine - theirs).to_dict(),
                    "monai_seconds": round(time.perf_counter() - began, 1),
                }
                rows.append(row)
                sys.stderr.write(json.dumps(row) + "\n")
        result = {
            "command": command(),
            "machine": machine(),
            "network": arguments.network,
            "crop": list(crop),
            "patients": len(ours.patients),
            "seeds": arguments.seeds,
            "steps": arguments.steps,
            "crops_a_step": config.batch_size,
            "medssl_seconds": round(ours_seconds, 1),
            "rows": rows,
        }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
