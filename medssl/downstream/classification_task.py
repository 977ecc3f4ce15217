"""The task classification: findings, classes, grades or measures of every image, scored patient by patient."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from ..batch import Facts, hash64
from ..errors import DataError, RecipeError
from ..loading import Loader, LoaderConfig
from ..metrics import mean_of
from ..nets.classifier import Classifier, classifier_for
from ..nets.encoder import Encoder
from ..nets.segmenter import load_encoder_into
from ..nets.task_network import TaskNetwork
from ..progress import Progress, silent
from ..store import Store
from ..views.scaling import scaled
from .classification import Classification
from .classification_config import ClassificationConfig
from .classification_scores import MEASURES, ImageAnswer, all_measures, described, main_parts, main_table, united
from .classification_targets import Told, read_told
from .config import FinetuneConfig
from .layers import add_low_rank
from .start import Design
from .task import Keep, Task

_LARGEST = {2: 256, 3: 96}


class ClassificationTask(Task):
    """Whole images; measured by AUROC (findings, classes), quadratic kappa (grades) or skill (measures)."""

    name: ClassVar[str] = "classification"
    measure: ClassVar[str] = "score"

    def measured(self, store: Store, config: FinetuneConfig) -> str:
        """Return AUROC, quadratic kappa or skill, as the kind of the targets has it."""
        return MEASURES.get(read_told(store, config.classification).kind, "AUROC")

    def images(self, store: Store, split: str, config: FinetuneConfig) -> tuple[str, ...]:
        """Return the images of a split of which a target is known."""
        told = read_told(store, config.classification)
        found = tuple(image_id for image_id in store.ids_of(split) if image_id in told.truth)
        if not found:
            raise DataError(
                f"no image in split {split!r} has {' or '.join(told.targets)}",
                where=str(store.folder),
                fix="name other targets (finetune.classification.targets), or score another split (finetune.split)",
            )
        return found

    def settle(self, config: FinetuneConfig, design: Design, store: Store) -> FinetuneConfig:
        """Name targets and kind, where they were left to the data."""
        told = read_told(store, config.classification)
        named = config.classification.model_copy(update={"targets": told.targets, "kind": told.kind})
        return super().settle(config, design, store).model_copy(update={"classification": named})

    def build(self, design: Design, store: Store, config: FinetuneConfig, images: Sequence[str]) -> Classifier:
        """Build a classifier for the store's targets, with class weights or units of the images to train on."""
        return build_classifier(design, store, config, images)

    def loader(self, network: TaskNetwork, store: Store, config: FinetuneConfig, images: Sequence[str]) -> Loader:
        """Return crops of whole images, in an order that `config.seed` alone decides."""
        slices: Any = "none" if len(store.shape(images[0])) == len(network.shape) else config.slice_axis
        section = LoaderConfig(batch_size=config.batch_size, crop=network.shape, slices=slices, workers=config.workers)
        return Loader(store, section, config.seed, ids=tuple(images))

    def method(
        self, network: TaskNetwork, store: Store, config: FinetuneConfig, images: Sequence[str], facts: Facts
    ) -> Classification:
        """Return the loss that fits the kind."""
        assert isinstance(network, Classifier)
        truth = read_told(store, config.classification).truth
        return Classification(config, network, facts, truth={image: truth[image] for image in images})

    def score(
        self,
        network: TaskNetwork,
        store: Store,
        config: FinetuneConfig,
        images: Sequence[str],
        *,
        progress: Progress = silent,
        keep: Keep | None = None,
    ) -> tuple[ImageAnswer, ...]:
        """Tell of whole images; `keep` is given (K,) numbers with the names of classes or targets as fields."""
        assert isinstance(network, Classifier)
        told = read_told(store, config.classification)
        training, device = network.training, next(network.parameters()).device
        network.eval()
        scores = []
        try:
            for done, image_id in enumerate(images):
                progress("score", done, len(images))
                row = store.row(image_id)
                intensity = torch.tensor([row.intensity], dtype=torch.float32)
                image = scaled(torch.from_numpy(store.read(image_id))[None], intensity).to(device)
                found = network.answer(network.predict(image))[0].tolist()
                truth = tuple(None if math.isnan(v) else v for v in told.truth[image_id])
                scores.append(ImageAnswer(image_id, row.subject_id, tuple(found), truth, told.kind))
                if keep is not None:
                    keep(image_id, np.array(tuple(found), dtype=[(name, "f8") for name in network.names]))
        finally:
            network.train(training)
        progress("score", len(images), len(images))
        return tuple(scores)

    def score_from(self, value: Mapping[str, Any]) -> ImageAnswer:
        """Take a score back; numbers that are none raise ValueError."""
        score = ImageAnswer.from_dict(value)
        score.check()
        return score

    def table(self, scores: Sequence[ImageAnswer], store: Store, config: FinetuneConfig) -> NDArray[np.float64]:
        """Return each patient's share of the measure; answers of a patient are averaged first."""
        told = read_told(store, config.classification)
        check_answers(scores, told)
        return main_table(united(scores), main_parts(told, training_medians(told, store)))

    def further(self, scores: Sequence[ImageAnswer], store: Store, config: FinetuneConfig) -> dict[str, float]:
        """Return means over the targets that have a value: AUPRC and Brier score, or absolute errors in their units."""
        told = read_told(store, config.classification)
        check_answers(scores, told)
        units, every = united(scores), all_measures(told, config.classification, training_medians(told, store))
        out = {}
        for name in ("mae",) if told.kind == "regression" else ("auprc", "brier"):
            found = [units.measured(measures[name][0]) for measures in every.values() if name in measures]
            out[name] = float(mean_of(np.array(found)))
        return out

    def summary(self, scores: Sequence[ImageAnswer], store: Store, config: FinetuneConfig) -> dict[str, Any]:
        """Return every measure with its interval over patients, by target and by subgroup, and confusions."""
        knobs, told = config.classification, read_told(store, config.classification)
        check_answers(scores, told)
        units, reference = united(scores), training_medians(told, store)
        return {
            "kind": told.kind,
            "told_by": MEASURES.get(told.kind, "AUROC"),
            "targets": list(told.targets),
            "classes": list(told.classes),
            "images": len(scores),
            "training_medians": list(reference),
            **described(units, told, knobs, config.confidence, reference),
            "by": _by_group(scores, told, store, knobs, config.confidence, reference),
            "confidence": config.confidence,
        }

    def lines(self, summary: Mapping[str, Any]) -> list[str]:
        """Return the measure with its interval, then a line a target, then one a subgroup."""
        return lines_of(summary)

    def keeper(self, folder: Path, store: Store) -> Keep:
        """Keep answers as `answers.csv`: one line an image, a column for each class, finding or measure."""
        path, started = folder / "answers.csv", False

        def keep(image_id: str, found: NDArray[Any]) -> None:
            nonlocal started
            folder.mkdir(parents=True, exist_ok=True)
            names = found.dtype.names or ()
            with path.open("a" if started else "w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file)
                if not started:
                    writer.writerow(["image_id", *names])
                writer.writerow([image_id, *(f"{float(found[name]):.6g}" for name in names)])
            started = True

        return keep

    def card(self, network: TaskNetwork, config: FinetuneConfig) -> str:
        """Return what is told, and how it was learned."""
        assert isinstance(network, Classifier)
        spec = network.spec
        if network.task_kind == "regression":
            told = ", ".join(
                f"{name} (in training {mean:.4g}, standard deviation {spread:.4g})"
                for name, mean, spread in zip(network.targets, spec["mean"], spec["spread"])
            )
            return f"- Tells, in the units of the training data: {told}."
        weighed = " Class weights of training are taken off again." if spec["weights"] is not None else ""
        what = f"{network.targets[0]}: {', '.join(network.classes)}" if network.classes else ", ".join(network.targets)
        return f"- Tells ({network.task_kind}) probabilities of {what}, as frequent as in training.{weighed}"


def build_classifier(design: Design, store: Store, config: FinetuneConfig, images: Sequence[str]) -> Classifier:
    """Build the task network for a store's targets, and put the encoder's weights into it.

    The new weights are drawn from `config.seed` alone: with equal seeds, all arms begin with the same head.

    Raises:
        DataError: the images have another number of channels than the encoder, or no image has a target.
        RecipeError: crop and network do not fit.
    """
    knobs, told = config.classification, read_told(store, config.classification)
    channels, crop = _channels(design, store, images), config.crop or _default_crop(design, store, images)
    volumes = len(store.shape(images[0])) == 3
    if len(crop) == 3 and not volumes:
        raise RecipeError("a network of volumes cannot see 2D images", where="finetune.crop", fix="give two numbers")
    balanced = knobs.class_weights == "balanced"
    mean, spread = told.scale(images) if told.kind == "regression" else ((), ())
    with torch.random.fork_rng(devices=[]):  # weights are drawn on the CPU
        torch.default_generator.manual_seed(hash64(config.seed, "classifier weights") & ((1 << 63) - 1))
        classifier = classifier_for(
            design.network,
            told.kind,
            told.targets,
            told.classes,
            shape=crop,
            channels=channels,
            overlap=config.overlap,
            slice_axis=config.slice_axis if volumes and len(crop) == 2 else None,
            windows=knobs.windows,
            ordinal=knobs.ordinal,
            pooling=knobs.pooling,
            queries=knobs.heads,
            dropout=knobs.dropout,
            weights=told.class_weights(images, knobs.most_weight) if balanced else None,
            mean=mean,
            spread=spread,
        )
    if design.encoder is not None:
        load_encoder_into(classifier, design.encoder)
    if config.train == "lora":
        add_low_rank(classifier, config)
    classifier.preparation = dict(store.preparation)
    return classifier


def _channels(design: Design, store: Store, images: Sequence[str]) -> int:
    channels = {store.row(image_id).channels for image_id in images}
    wanted = int(design.network.spec["channels"]) if isinstance(design.network, Encoder) else min(channels)
    if channels != {wanted}:
        raise DataError(
            f"the images have {', '.join(map(str, sorted(channels)))} channels, the network {wanted}",
            where=str(store.folder),
            fix="prepare images with as many channels as the encoder saw",
        )
    return wanted


def _default_crop(design: Design, store: Store, images: Sequence[str]) -> tuple[int, ...]:
    """Return the crop the encoder was trained on; for a section alone, the images' middle size in whole strides."""
    if isinstance(design.network, Encoder):
        return tuple(int(n) for n in design.network.spec["shape"])
    middle = np.median([store.shape(image_id) for image_id in images], axis=0)
    return tuple(int(min(math.ceil(n / 16) * 16, _LARGEST[len(middle)])) for n in middle)


def training_medians(told: Told, store: Store) -> tuple[float, ...]:
    """Return the median of each measure over the store's split `train`; none for other kinds.

    It is the same for all arms and numbers of labelled images, so that what is compared has one zero.

    Raises:
        DataError: no image of that split has a measure.
    """
    if told.kind != "regression":
        return ()
    images = [image_id for image_id in store.ids_of("train") if image_id in told.truth]
    truth = told.of(images) if images else np.full((1, len(told.targets)), np.nan)
    if np.isnan(truth).all(0).any():
        raise DataError(
            "no image in split 'train' has a measure that is scored", where=str(store.folder), fix="name another target"
        )
    return tuple(float(value) for value in np.nanmedian(truth, 0))


def check_answers(scores: Sequence[ImageAnswer], told: Told) -> None:
    """Raise ValueError where a score does not fit the targets, or holds no such numbers."""
    for score in scores:
        fits = len(score.answer) == len(told.names) and len(score.truth) == (1 if told.classes else len(told.targets))
        if score.kind != told.kind or not fits:
            raise ValueError(f"image {score.image_id}: {len(score.answer)} numbers ({score.kind}) for {told.kind}")
        score.check()


def _by_group(
    scores: Sequence[ImageAnswer],
    told: Told,
    store: Store,
    config: ClassificationConfig,
    confidence: float,
    reference: Sequence[float],
) -> dict[str, dict[str, Any]]:
    """Return the measures of each subgroup with enough patients; of others, how many there are.

    Images of one patient may stand in several, as those of two scanners do: answers are averaged within each.
    """
    rows = [store.row(score.image_id).groups for score in scores]
    known = sorted({name for row in rows for name in row})
    if missing := [name for name in config.by if name not in known]:
        raise DataError(
            f"no scored image has a group {missing[0]!r}; there are: {', '.join(known) or 'none'}",
            where="finetune.classification.by",
            fix="give groups to `medssl index --groups`, or name another",
        )
    out: dict[str, dict[str, Any]] = {}
    for name in (n for n in (config.by or known) if n not in told.targets):
        out[name] = {}
        for value in sorted({row[name] for row in rows if name in row}):
            part = united([score for score, row in zip(scores, rows) if row.get(name) == value])
            few = len(part.patients) < config.fewest
            out[name][value] = (
                {"patients": len(part.patients), "units": len(part.owner)}
                if few
                else described(part, told, config, confidence, reference)
            )
    return out


_WORDS = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "brier": "Brier",
    "ece": "ECE",
    "balanced_accuracy": "balanced accuracy",
    "quadratic_kappa": "quadratic kappa",
    "mae_grades": "mean error in grades",
    "mae": "MAE",
    "rmse": "RMSE",
    "r2": "R2",
    "within_tolerance": "within tolerance",
}


def lines_of(summary: Mapping[str, Any]) -> list[str]:
    """Return a summary as a person reads it."""
    first = f"{summary['told_by']} {_shown(summary['overall'])}"
    if summary["units"] < summary["images"]:
        first += f" (answers to {summary['images']} images averaged to {summary['units']}, by patient and truth)"
    lines = [first]
    for about, measures in summary["measures"].items():
        words = [f"{_WORDS.get(name, name)} {_shown(found)}" for name, found in measures.items()]
        lines.append(f"{about}: {', '.join(words)}")
    for about, table in summary.get("confusion", {}).items():
        lines.append(f"{about}, true by row, told by column: {table}")
    for about, found in summary.get("agreement", {}).items():
        low, high = found["limits"]
        if low is not None:
            lines.append(f"{about}: limits of agreement {low:.4g} to {high:.4g}")
    for group, values in summary["by"].items():
        for value, found in values.items():
            told = _shown(found["overall"]) if "overall" in found else "too few to tell"
            lines.append(f"{group} {value} ({found['patients']} patients): {told}")
    return lines


def _shown(found: Mapping[str, float | None]) -> str:
    if found["value"] is None:
        return "unknown"
    return f"{found['value']:.3f}" + ("" if found["low"] is None else f" [{found['low']:.3f}, {found['high']:.3f}]")
