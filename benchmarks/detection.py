"""Is our detector a fair one, and does pretraining help it? Beside MONAI's own RetinaNet in MONAI's own loop.

- Lesions: tumour patches of the Decathlon's lung CT (13 patients, ten patches each, some without a tumour), boxes from
  masks, overlap in mm. Patients are halved, each half scored by a detector of the other, with other halves each seed.
- Blood cells: pictures with boxes of three classes, at a fifth of their size, split once; overlap in voxels. Here a
  third arm begins with an encoder pretrained by `mae` on the training pictures alone, without their boxes.

MONAI's arm is that of its LUNA16 tutorial with a smaller backbone (a residual network of 10 layers with FPN, ATSS, hard
negatives, SGD), with our anchors, and the tutorial's rates; it takes as many steps of as many crops of the same size
from the same images as ours. Crops are mirrored in all arms. No rate was searched, for any arm. Few steps: this tells
whether the arms are of a kind, not how well either could do.

    python -m benchmarks.detection --out result.json

Shapes: S seeds, P patients.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch
from monai.apps.detection.networks.retinanet_detector import RetinaNetDetector
from monai.apps.detection.networks.retinanet_network import RetinaNet, resnet_fpn_feature_extractor
from monai.apps.detection.transforms.dictionary import RandCropBoxByPosNegLabeld, RandFlipBoxd, RandZoomBoxd
from monai.apps.detection.utils.anchor_utils import AnchorGeneratorWithAnchorShape
from monai.data import DataLoader, Dataset
from monai.data.utils import no_collation
from monai.networks.nets.resnet import ResNet, ResNetBlock, get_inplanes
from monai.transforms import Compose, RandGaussianNoised
from monai.utils import set_determinism
from numpy.typing import NDArray
from PIL import Image

from medssl.downstream import FinetuneConfig, finetune
from medssl.downstream.detection import score_image
from medssl.downstream.detection_anchors import planned_anchors
from medssl.downstream.detection_boxes import boxed, class_names, true_boxes
from medssl.downstream.detection_config import DetectionConfig
from medssl.downstream.detection_scores import DetectionScore, Group
from medssl.metrics import bootstrap, holm
from medssl.nets.config import DynUNetConfig
from medssl.nets.retinanet import Detections
from medssl.pretrain import pretrain_encoder
from medssl.recipe import load_recipe
from medssl.store import Store, StoreRow, array_path, write_array, write_table
from medssl.views.scaling import scaled
from medssl.views.spatial import SpatialConfig

from .machine import command, machine

OURS, PRETRAINED, MONAI = "ours", "ours, pretrained (mae)", "MONAI"
NETWORK = DynUNetConfig(channels=(16, 32, 64), strides=(1, 2, 2), features=16)
SMALLER = 5
"""Blood cells: how much the pictures are reduced."""
CELLS_TRAIN, CELLS_UNUSED = 40, 8
"""Blood cells: pictures to train on, and of the split nothing looks at; the rest is test."""
LESION_PIXELS = 4
"""Lesions: pixels of the smallest object; single pixels at the rim of a mask are none."""
LESION_CROP, CELL_CROP = (48, 48), (64, 64)
LESION_OVERLAPS = (0.1, 0.2, 0.3, 0.4, 0.5)
LEVELS = [(4, 4), (8, 8), (16, 16)]
"""Strides of MONAI's pyramid."""
Scores = list[DetectionScore]


def shared_data() -> Path:
    """Return the folder of the shared scans."""
    found = Path(os.environ.get("MEDSSL_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not found.is_dir():
        sys.exit(f"the shared scans are not at {found}; set MEDSSL_SHARED_DATA")
    return found


def write_store(folder: Path, rows: Sequence[tuple[StoreRow, NDArray[Any], NDArray[Any] | None]]) -> Store:
    """Write rows, each with its image (C, H, W) and label map (H, W) or None, as a store."""
    (folder / "arrays").mkdir(parents=True)
    points = {}
    for row, image, label in rows:
        write_array(array_path(folder, row.image_id), image)
        if label is not None:
            write_array(array_path(folder, row.image_id, label=True), label[None])
            at = np.argwhere(label)
            points[row.image_id] = np.concatenate([label[tuple(at.T)][:, None], at], 1).astype("<i4")
    (folder / "preparation.json").write_text(json.dumps({"fingerprint": "benchmarks.detection"}))
    write_table(folder / "store.parquet", [row for row, _, _ in rows], points)
    return Store.open(folder)


def plain_row(name: str, patient: str, split: str, image: NDArray[Any], scale: tuple[float, float]) -> StoreRow:
    """Return the row of a picture (C, H, W), normalised by a mean and a deviation."""
    shape = tuple(image.shape[1:])
    return StoreRow(
        image_id=name,
        subject_id=patient,
        kind="image2d",
        shape=shape,
        channels=len(image),
        dtype=str(image.dtype),
        affine=None,
        spacing_mm=None,
        foreground_box=((0, 0), shape),
        intensity=(float(image.min()), float(image.max()), *scale),
        split=split,
        content=name,
    )


def lung_store(folder: Path, test: Sequence[int]) -> Store:
    """Write the lung patches; patients of these numbers are the test split."""
    import h5py

    with h5py.File(shared_data() / "msd-lung-patches" / "val_patches.h5") as file:
        images, labels = np.asarray(file["images"], np.float32), np.asarray(file["labels"])
    images, labels = images.reshape(130, 1, 48, 48), (labels.reshape(130, 48, 48) > 0.5).astype(np.uint8)
    scale, rows = (float(images.mean()), float(images.std())), []
    for i, (image, label) in enumerate(zip(images, labels)):
        patient = i // 10
        row = plain_row(f"patch{i:03d}", f"patient{patient:02d}", "test" if patient in test else "train", image, scale)
        known: dict[str, Any] = {"spacing_mm": (2.0, 2.0), "labelled": True, "label_dtype": "uint8"}
        known["classes"] = (1,) if label.any() else ()
        known["affine"] = ((2.0, 0, 0, 0), (0, 2.0, 0, 0), (0, 0, 2.0, 0), (0, 0, 0, 1.0))
        rows.append((replace(row, **known), image, label))
    return write_store(folder, rows)


def cell_store(folder: Path) -> Store:
    """Write the blood cells at a fifth of their size, with their boxes; boxes without area are left out."""
    source, rows = shared_data() / "bccd-detection", []
    random, paths = np.random.default_rng(0), sorted((source / "images").glob("*.jpg"))
    order = random.permutation(len(paths))
    for place, number in enumerate(order):
        path = paths[number]
        picture = Image.open(path)
        small = picture.resize((picture.width // SMALLER, picture.height // SMALLER), Image.Resampling.BOX)
        image = np.ascontiguousarray(np.asarray(small).transpose(2, 0, 1))
        boxes = []
        for item in ElementTree.parse(source / "annotations" / f"{path.stem}.xml").iter("object"):
            at = [float(item.findtext(f"bndbox/{key}") or 0) for key in ("ymin", "xmin", "ymax", "xmax")]
            # VOC counts pixels from 1, the last one inside
            corners = tuple(v / SMALLER for v in (at[0] - 1, at[1] - 1, at[2], at[3]))
            if at[2] > at[0] and at[3] > at[1]:
                boxes.append((str(item.findtext("name")), corners))
        split = "train" if place < CELLS_TRAIN else "validation" if place < CELLS_TRAIN + CELLS_UNUSED else "test"
        row = plain_row(f"cells{number:03d}", f"picture{number:03d}", split, image, (128.0, 64.0))
        rows.append((replace(row, boxes=tuple(boxes)), image, None))
    return write_store(folder, rows)


def section(seed: int, steps: int, crop: tuple[int, int], overlaps: tuple[float, ...]) -> FinetuneConfig:
    """Return what all arms train by."""
    return FinetuneConfig(
        steps=steps,
        batch_size=4,
        crop=crop,
        seed=seed,
        workers=0,
        warmup_steps=10,
        spatial=SpatialConfig(rotation=0.2, scale=0.2, shift_mm=4.0, flips=(0, 1)),
        detection=DetectionConfig(overlaps=overlaps, froc_overlap=overlaps[0], smallest=LESION_PIXELS),
        checkpoint_steps=10_000,
        device="cpu",
    )


def ours(start: Path | None, store: Store, config: FinetuneConfig) -> Scores:
    """Train our detector, from scratch or from an encoder, and score it on the test split."""
    with tempfile.TemporaryDirectory() as folder:
        result = finetune(start, store, Path(folder) / "run", config, task="detection", network=NETWORK)
    return list(result.scores)


def monai_items(store: Store, config: FinetuneConfig) -> list[dict[str, Any]]:
    """Return the training images as MONAI's detection transforms take them."""
    items = []
    for image_id in boxed(store, "train", config.detection):
        truth = true_boxes(store, image_id, config.detection)
        voxels = torch.from_numpy(store.read(image_id))
        image = scaled(voxels[None], torch.tensor([store.row(image_id).intensity]))[0]
        boxes, label = torch.from_numpy(truth.corners).float(), torch.from_numpy(truth.classes)
        items.append({"image": image, "box": boxes, "label": label})
    return items


def monai_transforms(crop: Sequence[int]) -> Compose:
    """Return the tutorial's crops about boxes and its augmentation, in 2D."""
    return Compose(
        [
            RandCropBoxByPosNegLabeld(
                image_keys=["image"],
                box_keys="box",
                label_keys="label",
                spatial_size=crop,
                whole_box=True,
                num_samples=1,
            ),
            RandZoomBoxd(
                image_keys=["image"],
                box_keys=["box"],
                box_ref_image_keys=["image"],
                prob=0.5,
                min_zoom=0.8,
                max_zoom=1.2,
                keep_size=True,
                padding_mode="edge",
            ),
            *(RandFlipBoxd(["image"], ["box"], ["image"], prob=0.5, spatial_axis=axis) for axis in range(len(crop))),
            RandGaussianNoised(keys="image", prob=0.2, std=0.1),
        ]
    )


def monai_detector(store: Store, config: FinetuneConfig, items: Sequence[Mapping[str, Any]]) -> RetinaNetDetector:
    """Build MONAI's RetinaNet with the tutorial's parts and our anchors."""
    sides = torch.cat([item["box"][:, 2:] - item["box"][:, :2] for item in items])
    shapes = planned_anchors(sides.numpy(), LEVELS, config.detection.anchors)[0]
    backbone = ResNet(
        block=ResNetBlock,
        layers=[1, 1, 1, 1],
        block_inplanes=get_inplanes(),
        spatial_dims=2,
        n_input_channels=store.rows[0].channels,
        conv1_t_stride=2,
        conv1_t_size=7,
    )
    features = resnet_fpn_feature_extractor(backbone, 2, False, [1, 2], None)
    classes = len(class_names(store, config.detection))
    network = RetinaNet(2, classes, len(shapes), features, size_divisible=16)
    detector = RetinaNetDetector(network, AnchorGeneratorWithAnchorShape((1, 2, 4), shapes))
    detector.set_atss_matcher(num_candidates=4, center_in_gt=False)
    detector.set_hard_negative_sampler(batch_size_per_image=64, positive_fraction=0.3, pool_size=20, min_neg=16)
    detector.set_target_keys(box_key="box", label_key="label")
    detector.set_box_selector_parameters(score_thresh=0.02, topk_candidates_per_level=1000, nms_thresh=0.22)
    assert config.crop is not None
    detector.set_sliding_window_inferer(config.crop, overlap=0.25, mode="gaussian")
    return detector


def monai(store: Store, config: FinetuneConfig) -> Scores:
    """Train MONAI's RetinaNet by the tutorial's loop, and score it on the test split."""
    assert config.crop is not None
    set_determinism(config.seed)
    items = monai_items(store, config)
    detector = monai_detector(store, config, items).train()
    wanted = config.steps * config.batch_size
    dataset = Dataset([items[i % len(items)] for i in range(wanted)], monai_transforms(config.crop))
    weights = detector.network.parameters()
    optimiser = torch.optim.SGD(weights, 1e-2, momentum=0.9, weight_decay=3e-5, nesterov=True)
    warm = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1.0, (step + 1) / config.warmup_steps))
    loader = DataLoader(dataset, batch_size=config.batch_size, shuffle=True, num_workers=0, collate_fn=no_collation)
    for batch in loader:
        crops = [item for entry in batch for item in (entry if isinstance(entry, list) else [entry])]
        targets = [{"box": crop["box"], "label": crop["label"]} for crop in crops]
        optimiser.zero_grad()
        losses = detector([crop["image"].as_tensor() for crop in crops], targets)
        (losses["classification"] + losses["box_regression"]).backward()
        optimiser.step()
        warm.step()
    set_determinism(None)
    return monai_scores(detector.eval(), store, config)


def monai_scores(detector: RetinaNetDetector, store: Store, config: FinetuneConfig) -> Scores:
    """Score MONAI's detector on whole images of the test split."""
    out = []
    for image_id in boxed(store, config.split, config.detection):
        row = store.row(image_id)
        image = scaled(torch.from_numpy(store.read(image_id))[None], torch.tensor([row.intensity]))
        with torch.no_grad():
            (found,) = detector([image[0]], use_inferer=True)
        order = found["label_scores"].argsort(descending=True)[: config.detection.most]
        boxes = Detections(*(found[key][order] for key in ("box", "label_scores", "label")))
        out.append(score_image(boxes, true_boxes(store, image_id, config.detection), row))
    return out


def pretrained(store: Path, folder: Path, steps: int) -> Path:
    """Pretrain the same network by masked autoencoding on the images of the training split, without boxes."""
    network = NETWORK.model_dump()
    changes = [
        f"loader.crop={list(CELL_CROP)}",
        "loader.slices=none",
        "loader.workers=0",
        "method.spatial.shift_mm=4.0",
        f"train.steps={steps}",
        *(f"encoder.{key}={list(network[key])}" for key in ("channels", "strides")),
        f"encoder.features={network['features']}",
    ]
    encoder = pretrain_encoder(load_recipe("mae-short-axis", changes), Store.open(store), folder).encoder
    tell("cells, pretraining")
    return encoder


def compared(
    scores: Mapping[str, Mapping[int, Scores]], config: FinetuneConfig, names: Sequence[str]
) -> dict[str, Any]:
    """Return each arm's measures, means over seeds, and the differences of mAP to ours with their intervals."""
    groups = {arm: [Group(s, config.detection, names) for s in by_seed.values()] for arm, by_seed in scores.items()}
    tables = {arm: np.stack([group.by_patient() for group in found]) for arm, found in groups.items()}  # (S, P)
    arms: dict[str, Any] = {}
    for arm, found in groups.items():
        told = [group.summary() for group in found]
        overlaps = told[0]["overlaps"]
        arms[arm] = {
            "map": [group["map"] for group in told],
            "overlaps": {o: _mean([one["overlaps"][o] for one in told]) for o in overlaps},
            "classes": {
                name: {o: _mean([one["classes"][name][o] for one in told]) for o in overlaps} for name in names
            },
            "froc": _mean([one["froc"]["score"] for one in told]),
            "sensitivity": [_mean(list(at)) for at in zip(*(one["froc"]["sensitivity"] for one in told))],
            "interval": bootstrap(tables[arm]).to_dict(),
        }
    gaps = holm({arm: bootstrap(tables[arm] - tables[OURS]) for arm in tables if arm != OURS})
    counts = {key: told[0][key] for key in ("images", "images_without_box", "patients", "true_boxes")}
    rates = told[0]["froc"]["rates"]
    return {"arms": arms, "minus_ours": {arm: gap.to_dict() for arm, gap in gaps.items()}, "rates": rates, **counts}


def _mean(values: Sequence[float | None]) -> float:
    return float(np.mean([np.nan if v is None else v for v in values]))


def tell(what: str) -> None:
    """Say how far it is."""
    print(f"{time.process_time():6.0f} s  {what}", file=sys.stderr, flush=True)


def lesion_half(arm: str, seed: int, half: int, steps: int) -> Scores:
    """Score one half of the patients by a detector of the other; every seed halves them anew."""
    order = np.random.default_rng(seed).permutation(13)
    with tempfile.TemporaryDirectory() as folder:
        store = lung_store(Path(folder) / "store", (order[:6], order[6:])[half].tolist())
        config = section(seed, steps, LESION_CROP, LESION_OVERLAPS)
        found = ours(None, store, config) if arm == OURS else monai(store, config)
    tell(f"lesions, seed {seed}, half {half}, {arm}")
    return found


def cell_run(arm: str, seed: int, steps: int, encoder: Path | None) -> Scores:
    """Score the test pictures by a detector of the training pictures."""
    with tempfile.TemporaryDirectory() as folder:
        store, config = cell_store(Path(folder) / "store"), section(seed, steps, CELL_CROP, (0.5,))
        found = monai(store, config) if arm == MONAI else ours(encoder, store, config)
    tell(f"cells, seed {seed}, {arm}")
    return found


def measured(seeds: int, steps: int, folder: Path, pool: ProcessPoolExecutor) -> dict[str, Any]:
    """Run all arms of both parts, some at once, and compare them."""
    store = cell_store(folder / "cells")
    start = pool.submit(pretrained, store.folder, folder / "mae", 2 * steps)
    halves = {
        (arm, seed): [pool.submit(lesion_half, arm, seed, half, steps) for half in (0, 1)]
        for arm in (MONAI, OURS)
        for seed in range(seeds)
    }
    runs = {
        (arm, seed): pool.submit(cell_run, arm, seed, steps, None) for arm in (MONAI, OURS) for seed in range(seeds)
    }
    encoder = start.result()
    runs |= {(PRETRAINED, seed): pool.submit(cell_run, PRETRAINED, seed, steps, encoder) for seed in range(seeds)}
    lesions = {
        arm: {seed: [score for half in halves[arm, seed] for score in half.result()] for seed in range(seeds)}
        for arm in (OURS, MONAI)
    }
    cells = {arm: {seed: runs[arm, seed].result() for seed in range(seeds)} for arm in (OURS, PRETRAINED, MONAI)}
    about = {"seeds": seeds, "steps": steps}
    first = section(0, steps, LESION_CROP, LESION_OVERLAPS)
    second = section(0, steps, CELL_CROP, (0.5,))
    return {
        "lesions": {**about, "crop": list(LESION_CROP), **compared(lesions, first, ("label 1",))},
        "cells": {
            **about,
            "crop": list(CELL_CROP),
            "pretraining_steps": 2 * steps,
            "training_images": CELLS_TRAIN,
            **compared(cells, second, class_names(store, second.detection)),
        },
    }


def main() -> None:
    """Measure, and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--processes", type=int, default=4)
    arguments = parser.parse_args()
    begin = time.perf_counter()
    found: dict[str, Any] = {"command": command(), "machine": machine()}
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(
            arguments.processes, get_context("spawn"), initializer=warnings.simplefilter, initargs=("ignore",)
        ) as pool,
    ):
        found |= measured(arguments.seeds, arguments.steps, Path(folder), pool)
    found["seconds"] = time.perf_counter() - begin
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    found["processor_seconds"] = time.process_time() + used.ru_utime + used.ru_stime
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
