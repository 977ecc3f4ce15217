"""Can whole hearts be told of? Ejection fraction and disease group on ACDC, heart failure on Sunnybrook.

Every patient is scored once, by networks that saw neither patient nor label (folds with as many of every group in
each; pretraining sees the images of the fold's training patients alone). ACDC: end-diastole and end-systole of a slice
are the two channels of a picture; the ejection fraction, in percent, follows from the expert's contours of the left
ventricle. Networks see single slices, answers are the mean over a patient's slices.

Beside a network from scratch and one pretrained by `mae` stand what needs no network: how large the scan is (rows,
columns, slices: nothing of the heart), and that with brightness (mean and spread of each phase and of their
difference), both by ridge or logistic regression. Both networks learn at the default rates: nothing was chosen.
The measure is shared out among patients; intervals are over seeds and patients, corrected for all comparisons.

    python -m benchmarks.classification --out result.json

Shapes: C channels, X Y Z voxels, S seeds, P patients.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medssl.downstream import FinetuneConfig, finetune
from medssl.downstream.classification_config import ClassificationConfig
from medssl.downstream.classification_scores import MEASURES, ImageAnswer, main_parts, main_table, united
from medssl.downstream.classification_targets import Told, read_told
from medssl.metrics import bootstrap, holm, regression_errors
from medssl.pretrain import pretrain_encoder
from medssl.probe.readout import logistic
from medssl.recipe import load_recipe
from medssl.store import Store, StoreRow, array_path, write_array
from medssl.views.spatial import SpatialConfig

from .acdc_data import patients_of, read_sunnybrook, shared_data
from .machine import command, machine

EDGE, HALF_MM = 64, 3.0
SCRATCH, PRETRAINED, SIZE, BRIGHTNESS = "scratch", "pretrained (mae)", "size of the scan", "size and brightness"
Volume = NDArray[np.float32]


@dataclass(frozen=True)
class Heart:
    """One patient: pictures of two phases or of one, and what is told of it."""

    patient: str
    group: str
    image: Volume
    """(C, X, Y, Z), normalised."""
    whole: tuple[int, ...]
    """Rows, columns and slices as they were given."""
    labels: Mapping[str, float]


def acdc() -> list[Heart]:
    """Read all 40 patients of ACDC."""
    h5py: Any = importlib.import_module("h5py")
    folder, out = shared_data() / "noncommercial" / "acdc-short-axis", []
    for row in patients_of(folder):
        phases, cavity = [], []
        for frame in (row["ed"], row["es"]):
            with h5py.File(folder / "volumes" / f"{row['patient']}_{frame}.h5") as file:
                phases.append(file["image"][()].astype(np.float32).transpose(2, 1, 0))
                cavity.append(int((file["label"][()] == 3).sum()))
        image = np.stack([_small(phase) for phase in phases])
        ejected = 100 * (cavity[0] - cavity[1]) / cavity[0]
        out.append(Heart(row["patient"], row["group"], image, phases[0].shape, {"ejection_fraction": ejected}))
    return out


def sunnybrook() -> list[Heart]:
    """Read all 15 patients of Sunnybrook; their group stands in their name: HF-I, HF-NI, HYP, N."""
    out = []
    for name, voxels in read_sunnybrook(shared_data() / "sunnybrook-cine").items():
        group = name.removeprefix("SC-").rpartition("-")[0]
        failing = float(group.startswith("HF"))
        image = _small(voxels.astype(np.float32))[None]
        out.append(Heart(name, group, image, voxels.shape, {"heart_failure": failing}))
    return out


def _small(volume: Volume) -> Volume:
    """Halve the resolution in plane, take the middle, and normalise: (EDGE, EDGE, Z)."""
    x, y, z = volume.shape[0] // 2, volume.shape[1] // 2, volume.shape[2]
    half = volume[: 2 * x, : 2 * y].reshape(x, 2, y, 2, z).mean((1, 3))
    padding = [(max(0, EDGE - n) // 2, max(0, EDGE - n + 1) // 2) for n in half.shape[:2]]
    half = np.pad(half, [*padding, (0, 0)], mode="edge")
    first = [(n - EDGE) // 2 for n in half.shape[:2]]
    middle = half[first[0] : first[0] + EDGE, first[1] : first[1] + EDGE]
    return np.ascontiguousarray((middle - middle.mean()) / middle.std(), dtype=np.float32)


def store_of(hearts: Sequence[Heart], folder: Path) -> Store:
    """Write the hearts as a store whose images are all of the split `train`."""
    (folder / "arrays").mkdir(parents=True)
    affine = tuple(tuple(float(v) for v in row) for row in np.diag([HALF_MM, HALF_MM, 10.0, 1.0]))
    rows = []
    for heart in hearts:
        write_array(array_path(folder, heart.patient), heart.image)
        shape = heart.image.shape[1:]
        rows.append(
            StoreRow(
                image_id=heart.patient,
                subject_id=heart.patient,
                kind="volume",
                shape=shape,
                channels=len(heart.image),
                dtype="float32",
                affine=affine,
                spacing_mm=(HALF_MM, HALF_MM, 10.0),
                foreground_box=((0, 0, 0), shape),
                intensity=(float(heart.image.min()), float(heart.image.max()), 0.0, 1.0),
                labels=dict(heart.labels),
                groups={"group": heart.group},
                content=heart.patient,
            )
        )
    return Store(folder, rows, {}, {"fingerprint": "benchmarks.classification"})


def folds_of(hearts: Sequence[Heart], count: int, seed: int = 0) -> dict[str, int]:
    """Number patients by fold, as many of every group in each as can be."""
    random, out, n = np.random.default_rng(seed), dict[str, int](), 0
    for group in sorted({heart.group for heart in hearts}):
        for patient in random.permutation(sorted(heart.patient for heart in hearts if heart.group == group)).tolist():
            out[patient] = n % count
            n += 1
    return out


def in_fold(store: Store, folds: Mapping[str, int], fold: int) -> Store:
    """Return the store with one fold as its split `test`."""
    rows = [replace(row, split="test" if folds[row.image_id] == fold else "train") for row in store.rows]
    return Store(store.folder, rows, {}, {**store.preparation, "fingerprint": f"fold {fold}"})


class Bench:
    """One set of hearts in folds, and the encoders that were pretrained without each fold's test patients."""

    def __init__(self, hearts: Sequence[Heart], count: int, work: Path, settings: argparse.Namespace) -> None:
        self.hearts, self.work, self.settings = {heart.patient: heart for heart in hearts}, work, settings
        self.store, folds = store_of(hearts, work / "store"), folds_of(hearts, count)
        self.folds = [in_fold(self.store, folds, fold) for fold in range(count)]
        self.recipe = load_recipe(
            Path(__file__).parents[1] / "recipes" / "mae-short-axis.yaml",
            [
                f"loader.crop=[{EDGE},{EDGE}]",
                "encoder.channels=[16,32,64]",
                "encoder.strides=[2,2,2]",
                f"train.steps={settings.pretraining}",
            ],
        )
        self.encoders = [work / f"encoder{fold}" for fold in range(count)]
        for store, run in zip(self.folds, self.encoders):
            pretrain_encoder(self.recipe, store, run)

    def networks(self, told: ClassificationConfig, seed: int) -> dict[str, list[ImageAnswer]]:
        """Return both networks' answers to all patients."""
        config = FinetuneConfig(
            steps=self.settings.steps,
            batch_size=16,
            crop=(EDGE, EDGE),
            slice_axis=2,
            spatial=SpatialConfig(rotation=0.4, scale=0.2, shift_mm=12.0),
            workers=0,
            seed=seed,
            classification=told,
        )
        out: dict[str, list[ImageAnswer]] = {SCRATCH: [], PRETRAINED: []}
        for fold, store in enumerate(self.folds):
            for arm, start in ((SCRATCH, None), (PRETRAINED, self.encoders[fold])):
                folder = self.work / f"{told.targets[0]}-{seed}-{fold}-{arm}"
                found = finetune(start, store, folder, config, task="classification", network=self.recipe.encoder)
                out[arm] += found.scores
        _say(f"{told.targets[0]}, seed {seed}")
        return out

    def without_network(self, told: Told, *, brightness: bool) -> list[ImageAnswer]:
        """Return answers from the size of the scan, with or without brightness."""
        out = []
        for store in self.folds:
            train, test = store.ids_of("train"), store.ids_of("test")
            x, q = (np.stack([_described(self.hearts[i], brightness) for i in ids]) for ids in (train, test))
            mean, spread = x.mean(0), np.maximum(x.std(0), 1e-9)
            found = _regressed((x - mean) / spread, told.of(train)[:, 0], (q - mean) / spread, told)
            for image_id, answer in zip(test, found):
                truth = tuple(float(v) for v in told.truth[image_id])
                out.append(ImageAnswer(image_id, image_id, tuple(float(v) for v in answer), truth, told.kind))
        return out

    def result(self, knobs: ClassificationConfig) -> dict[str, Any]:
        """Return what every arm reaches, and how networks compare with what needs none."""
        told = read_told(self.store, knobs)
        answers: dict[str, list[list[ImageAnswer]]] = {PRETRAINED: [], SCRATCH: []} | {
            arm: [self.without_network(told, brightness=brightness)] * self.settings.seeds
            for arm, brightness in ((SIZE, False), (BRIGHTNESS, True))
        }
        for seed in range(self.settings.seeds):
            for arm, scores in self.networks(knobs, seed).items():
                answers[arm].append(scores)
        reference = [float(np.median(told.of(self.store.ids)))] if told.kind == "regression" else []
        parts = main_parts(told, reference)
        tables = {arm: np.stack([main_table(united(one), parts) for one in found]) for arm, found in answers.items()}
        pairs = [(PRETRAINED, SCRATCH), *((arm, none) for arm in (SCRATCH, PRETRAINED) for none in (SIZE, BRIGHTNESS))]
        gaps = holm({pair: bootstrap(tables[pair[0]] - tables[pair[1]]) for pair in pairs})
        return {
            "targets": list(told.targets),
            "kind": told.kind,
            "measure": MEASURES.get(told.kind, "AUROC"),
            "patients": len(self.store.ids),
            "folds": len(self.folds),
            "classes": {name: int(n) for name, n in _counted(told).items()},
            "arms": {
                arm: {"value": bootstrap(table).to_dict(), **_errors(told, answers[arm])}
                for arm, table in tables.items()
            },
            "differences": [
                {"arm": one, "minus": other, **interval.to_dict()} for (one, other), interval in gaps.items()
            ],
        }


def _described(heart: Heart, brightness: bool) -> NDArray[np.float64]:
    size = [float(n) for n in heart.whole]
    if not brightness:
        return np.array(size)
    middle = heart.image[:, EDGE // 4 : -EDGE // 4, EDGE // 4 : -EDGE // 4]
    found = [value for phase in middle for value in (phase.mean(), phase.std())]
    if len(middle) == 2:
        change = middle[0] - middle[1]
        found += [change.mean(), change.std(), np.abs(change).mean()]
    return np.array([*size, *map(float, found)])


def _regressed(
    x: NDArray[np.float64], truth: NDArray[np.float64], q: NDArray[np.float64], told: Told
) -> NDArray[np.float64]:
    """Return answers (Q, K) by ridge or logistic regression on standardised numbers."""
    if told.kind == "regression":
        weight = np.linalg.solve(x.T @ x + len(x) * 0.1 * np.eye(x.shape[1]), x.T @ (truth - truth.mean()))
        return np.asarray((q @ weight + truth.mean())[:, None], dtype=np.float64)
    classes = len(told.classes) or 2
    weight, bias = logistic(x, truth.astype(int), classes, 0.1)
    scores = q @ weight.T + bias
    shares = np.exp(scores - scores.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    return np.asarray(shares if told.classes else shares[:, 1:], dtype=np.float64)


def _counted(told: Told) -> dict[str, int]:
    if told.kind == "regression":
        return {}
    numbers = [int(values[0]) for values in told.truth.values()]
    names = told.classes or (f"without {told.targets[0]}", f"with {told.targets[0]}")
    return {name: numbers.count(k) for k, name in enumerate(names)}


def _errors(told: Told, found: Sequence[Sequence[ImageAnswer]]) -> dict[str, float]:
    """Return errors of a measure in its unit, the mean over seeds."""
    if told.kind != "regression":
        return {}
    each = [regression_errors([s.answer[0] for s in one], [told.truth[s.image_id][0] for s in one]) for one in found]
    return {
        "mae": float(np.mean([e.mean_absolute for e in each])),
        "rmse": float(np.mean([e.root_mean_square for e in each])),
        "bias": float(np.mean([e.bias for e in each])),
        "r2": float(np.mean([e.r2 for e in each])),
        "low": float(np.mean([e.limits[0] for e in each])),
        "high": float(np.mean([e.limits[1] for e in each])),
    }


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


def main() -> None:
    """Run everything and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--pretraining", type=int, default=120)
    settings = parser.parse_args()
    began, busy, where = time.perf_counter(), time.process_time(), machine()  # of the commit that is run
    with tempfile.TemporaryDirectory() as folder:
        hearts = Bench(acdc(), 4, Path(folder) / "acdc", settings)
        _say(f"pretrained after {time.process_time() - busy:.0f} s of one core")
        tasks = {
            "ejection fraction, ACDC": hearts.result(ClassificationConfig(targets=("ejection_fraction",), draws=100)),
            "disease group, ACDC": hearts.result(ClassificationConfig(targets=("group",), draws=100)),
        }
        other = Bench(sunnybrook(), 3, Path(folder) / "sunnybrook", settings)
        tasks["heart failure, Sunnybrook"] = other.result(ClassificationConfig(targets=("heart_failure",), draws=100))
    result = {
        "command": command(),
        "machine": where,
        "seconds": round(time.perf_counter() - began, 1),
        "core_seconds": round(time.process_time() - busy, 1),
        "steps": settings.steps,
        "slices_a_step": 16,
        "pretraining_steps": settings.pretraining,
        "seeds": settings.seeds,
        "tasks": tasks,
    }
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    settings.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
