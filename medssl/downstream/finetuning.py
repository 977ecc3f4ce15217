"""Fine-tuning: an encoder, or nothing, and a few labels to a segmenter that is scored on other patients."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import Section, fingerprint, result_fields
from ..errors import DataError, RunError
from ..files import check_new, without, write_json
from ..metrics import mean_of, per_patient
from ..nets.config import DynUNetConfig
from ..nets.encoder import save_network
from ..nets.segmenter import Segmenter
from ..nets.weights import Receipt
from ..prepare import PrepareConfig
from ..progress import Progress, silent
from ..store import Store
from ..train import TrainResult, train
from .config import FinetuneConfig
from .layers import merge_low_rank
from .plan import by_plan, planned_preparation
from .scoring import MEASURES, ImageScore, patient_dice, score_images, table_of
from .segmentation import Segmentation
from .start import (
    Design,
    Start,
    as_encoder,
    build_segmenter,
    label_loader,
    labelled,
    one_process,
    open_data,
    settled,
    train_config,
)
from .stopping import BestWeights


@dataclass(frozen=True)
class FinetuneResult:
    """A fine-tuned segmenter and its scores."""

    out: Path
    segmenter: Path
    """Network folder."""
    start: str
    """`encoder` or `scratch`."""
    scores: tuple[ImageScore, ...]
    classes: tuple[int, ...]
    """The values of the label map that `scores` go through."""
    split: str
    labelled: int
    """Images it was trained on."""
    training: TrainResult
    receipt: Receipt | None
    has_mm: bool = True
    tolerance: float = 1.0
    """Of surface Dice, in mm or, without spacing, in voxels."""
    bundle: Path | None = None
    """The MONAI bundle, where one was asked for."""

    @property
    def dice(self) -> float:
        """The mean over patients."""
        return float(mean_of(patient_dice(self.scores)))

    @property
    def best_step(self) -> int | None:
        """The step whose weights were kept, where validation images decided."""
        step = self.training.metrics.get("validation/best_step")
        return None if step is None else int(step)

    @property
    def by_label(self) -> dict[int, dict[str, float]]:
        """Label value to measure to the mean over patients; nan where no patient has one."""
        patients = [score.subject_id for score in self.scores]
        means = {name: mean_of(per_patient_classes(table_of(self.scores, name), patients), 0) for name in MEASURES}
        return {
            value: {name: float(column[k]) for name, column in means.items()} for k, value in enumerate(self.classes)
        }

    def _line(self, measures: Mapping[str, float]) -> str:
        unit = "mm" if self.has_mm else "voxels (no spacing is known)"
        words = [
            f"Dice {measures['dice']:.3f}",
            f"95% Hausdorff {measures['hausdorff95_mm']:.2f} {unit}",
            f"surface Dice {measures['surface_dice']:.3f} at {self.tolerance:g} {unit.partition(' ')[0]}",
        ]
        if math.isfinite(error := measures["volume_error_ml"]):
            words.append(f"volume {error:+.2f} ml")
        return ", ".join(words)

    def __str__(self) -> str:
        patients = [score.subject_id for score in self.scores]
        missed = _missed(self.scores)
        lines = [
            f"segmenter from {self.start}, {self.labelled} labelled images: Dice {self.dice:.3f} on "
            f"{len(set(patients))} {self.split} patients",
            *(f"  label {value}: {self._line(measures)}" for value, measures in self.by_label.items()),
        ]
        if self.best_step is not None:
            lines.append(f"  weights of step {self.best_step}, the best on validation images")
            if self.split == "validation":
                lines.append("  these images chose the weights: on others expect less")
        if missed:
            lines.append(f"  not counted in distances: {missed} times a structure was missed or made up whole")
        lines.append(f"network: {self.segmenter}")
        return "\n".join([*lines, *([f"bundle: {self.bundle}"] if self.bundle is not None else [])])

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "out": str(self.out),
            "segmenter": str(self.segmenter),
            "start": self.start,
            "split": self.split,
            "labelled_images": self.labelled,
            "classes": list(self.classes),
            "dice": self.dice,
            "labels": {
                str(value): {name: number if math.isfinite(number) else None for name, number in measures.items()}
                for value, measures in self.by_label.items()
            },
            "surface_tolerance": self.tolerance,
            "missed": _missed(self.scores),
            "distance_unit": "mm" if self.has_mm else "voxel",
            "scores": [score.to_dict() for score in self.scores],
            "training": self.training.to_dict(),
            "best_step": self.best_step,
            "receipt": self.receipt.to_dict() if self.receipt is not None else None,
            "bundle": str(self.bundle) if self.bundle is not None else None,
        }


def per_patient_classes(table: NDArray[np.float64], patients: Sequence[str]) -> NDArray[np.float64]:
    """Average the images of each patient class by class: (images, K - 1) to (P, K - 1)."""
    return per_patient(table.T, patients).T


def _missed(scores: Sequence[ImageScore]) -> int:
    return sum(d is not None and h is None for s in scores for d, h in zip(s.dice, s.hausdorff95_mm))


def finetune(
    encoder: Start,
    data: Store | Path | str,
    out: Path | str,
    config: FinetuneConfig | None = None,
    *,
    images: Sequence[str] | None = None,
    network: Section | None = None,
    prepare: PrepareConfig | None = None,
    allow_partial: bool = False,
    resume: bool = False,
    progress: Progress = silent,
) -> FinetuneResult:
    """Train a segmenter on labelled images and score it on patients it has not seen.

    Args:
        encoder: an encoder, its folder or run; None (or "none") trains from scratch.
        data: a store, an index, or a datalist (JSON); what is no store is prepared into `out/store` first.
        out: the run: `segmenter/` (network folder), `scores.json`, `predictions/`, `metrics.jsonl`, `checkpoints/`.
        config: the recipe's section `finetune`.
        images: ids of the labelled images to train on; all of the split `train` unless given.
        network: the section `encoder` to build from scratch; a small DynUNet unless given.
        prepare: how to prepare data that is no store, where there is no encoder that knows.
        allow_partial: accept an encoder folder that lacks weights.
        resume: go on from the newest checkpoint in `out`.
        progress: told of phases and steps.

    Raises:
        DataError: there are no labelled images to train on or to score.
        RunError: `out` holds another run.
        WeightsError: the encoder's weights do not fill the network.
    """
    one_process("fine-tuning")
    config, out = config or FinetuneConfig(), Path(out)
    loaded = as_encoder(encoder, allow_partial=allow_partial)
    design = Design(loaded, loaded if loaded is not None else network or DynUNetConfig())
    if not resume or not any((out / name).exists() for name in ("finetune.json", "store")):
        check_new(out)
    if config.plan and loaded is None and not isinstance(data, Store):
        prepare = planned_preparation(data, prepare or PrepareConfig())
    store = open_data(
        data,
        out / "store",
        preparation=loaded.preparation if loaded is not None else None,
        prepare=prepare,
        progress=progress,
    )
    config = by_plan(config, design, store)
    chosen = tuple(images) if images is not None else labelled(store, "train")
    scored = {store.row(image_id).subject_id for image_id in labelled(store, config.split)}
    if both := [image_id for image_id in chosen if store.row(image_id).subject_id in scored]:
        raise DataError(
            f"{len(both)} of the images to train on are of patients that are scored",
            where=f"image {both[0]}",
            fix=f"leave the split {config.split} out of them",
        )
    _claim(out, design, store, config, chosen)
    segmenter, training = train_segmenter(design, store, config, chosen, out, resume=resume, progress=progress)
    return _finish(out, design, store, config, chosen, segmenter, training, progress)


def _finish(
    out: Path,
    design: Design,
    store: Store,
    config: FinetuneConfig,
    chosen: Sequence[str],
    segmenter: Segmenter,
    training: TrainResult,
    progress: Progress,
) -> FinetuneResult:
    """Save a trained segmenter, score it, and write its scores beside it."""
    scored = labelled(store, config.split)
    saved = save_network(
        out / "segmenter",
        segmenter,
        preparation=store.preparation,
        card=_card(design, store, config, chosen, segmenter),
    )
    scores = score_images(
        segmenter,
        store,
        scored,
        mirror_axes=config.mirror_axes,
        tolerance_mm=config.surface_tolerance_mm,
        progress=progress,
        keep=_keeper(out / "predictions", store),
    )
    result = FinetuneResult(
        out=out,
        segmenter=saved,
        start="encoder" if design.encoder is not None else "scratch",
        scores=scores,
        classes=store.classes,
        split=config.split,
        labelled=len(chosen),
        training=training,
        receipt=segmenter.receipt,
        has_mm=all(store.row(image_id).spacing_mm is not None for image_id in scored),
        tolerance=config.surface_tolerance_mm,
    )
    write_json(out / "scores.json", without(result.to_dict(), "out", "segmenter", "bundle"))
    return result


def train_segmenter(
    design: Design,
    store: Store,
    config: FinetuneConfig,
    images: Sequence[str],
    out: Path,
    *,
    resume: bool = False,
    progress: Progress = silent,
) -> tuple[Segmenter, TrainResult]:
    """Build a segmenter and train it on these images.

    Returns:
        The segmenter in eval mode, on the device it was trained on, and what the training came to. With
        `config.stop_after` its weights are those of the best look at the validation images.
    """
    config = by_plan(settled(config, design), design, store)
    segmenter = build_segmenter(design, store, config, images)
    best = BestWeights(store, labelled(store, "validation"), config) if config.stop_after else None
    loader = label_loader(store, config, segmenter.shape, images)
    try:
        method = Segmentation(config, segmenter, loader.facts(config.steps), classes=store.classes)
        result = train(
            method,
            loader,
            train_config(config),
            out,
            observers=[best] if best is not None else [],
            resume=resume,
            progress=progress,
            name="fine-tune",
        )
    finally:
        loader.close()
    if best is not None:
        best.restore(segmenter)
        known = {"validation/best_dice": best.best_dice, "validation/best_step": float(best.best_step)}
        result = replace(result, metrics={**result.metrics, **known})
    merge_low_rank(segmenter)
    return segmenter.eval(), result


def _claim(out: Path, design: Design, store: Store, config: FinetuneConfig, images: Sequence[str]) -> None:
    """Write what decides the run into its folder, or check that it is the same run that is there."""
    known = {
        "task": "segmentation",
        "start": design.fingerprint,
        "from_scratch": design.encoder is None,
        "store": store.fingerprint,
        "images": list(images),
        "finetune": result_fields(config),
    }
    path = out / "finetune.json"
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        if fingerprint(before) != fingerprint(known):
            changed = [key for key in known if before.get(key) != known[key]]
            raise RunError(
                f"the run was started otherwise: another {', '.join(changed)}",
                where=str(out),
                fix="resume with the same values, or name a new folder",
            )
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, known)


def _keeper(folder: Path, store: Store) -> Callable[[str, NDArray[np.int64]], None]:
    """Return a function that keeps a segmentation as NIfTI, in the label map's own values, on the store's grid."""
    values = np.array((0, *store.classes))
    dtype = np.uint8 if values.max() < 256 else np.int16

    def keep(image_id: str, found: NDArray[np.int64]) -> None:
        import nibabel

        folder.mkdir(parents=True, exist_ok=True)
        picture = nibabel.Nifti1Image(values[found].astype(dtype), store.affine(image_id))
        nibabel.save(picture, folder / f"{image_id}.nii.gz")

    return keep


def _card(design: Design, store: Store, config: FinetuneConfig, images: Sequence[str], segmenter: Segmenter) -> str:
    patients = len({store.row(image_id).subject_id for image_id in images})
    origin = "a pretrained encoder" if design.encoder is not None else "random weights"
    axes = ", ".join(str(axis) for axis in config.mirror_axes)
    mirrored = f", the mean over images mirrored along axes {axes}; the network alone does not mirror" * bool(axes)
    values = ", ".join(f"{k} = {name}" for k, name in enumerate(segmenter.labels))
    return f"""# segmenter

A {segmenter.spec["encoder"]["name"]} for segmentation of {sum(p.numel() for p in segmenter.parameters()):,} parameters,
trained from {origin}.

- Classes: {values} (the value in the label maps it learned from).
- Data: {len(images)} labelled images of {patients} patients, {config.steps} steps of {config.batch_size} crops of
  {" x ".join(str(n) for n in segmenter.shape)} voxels.
- Preparation: `preparation.json`; images must go through it first.
- Scores: `scores.json` of its run, on the split `{config.split}`{mirrored}.

Not known: how it does on other scanners, sites or patients than those it saw. It is no medical device.
"""
