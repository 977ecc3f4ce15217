"""The frozen dense probe: how well one linear layer on an encoder's features segments, beside two controls.

The layer is fitted on voxels of a few labelled training images and scored by the Dice of whole other images. Three arms
see the same labelled images and voxels: the encoder; the same architecture with random weights; no network at all, only
position and blurred brightness. An encoder that does not beat both has learned nothing that this task can use. A good
probe does not promise a gain after fine-tuning: compare those too.

Shapes: S seeds, I scored images, K classes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..batch import hash64
from ..errors import DataError
from ..metrics import Interval, bootstrap, class_numbers, dice, draw_images, holm, mean_of, per_patient
from ..progress import Progress, silent
from ..store import Store
from .arms import Arm, EncoderArm, NoNetworkArm
from .config import ENCODER, NO_NETWORK, RANDOM, ProbeConfig
from .outside import with_random_weights
from .readout import Readout, draw_points, fit_readout
from .windows import read_picture

if TYPE_CHECKING:
    from ..methods.method import Method
    from ..nets.encoder import Encoder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProbeResult:
    """Dice of each arm on each image, by seed, and what the encoder's arm is better by."""

    scores: Mapping[str, NDArray[np.float64]]
    """Arm to (S, I, K - 1); nan where a class is in neither map."""
    images: tuple[str, ...]
    patients: tuple[str, ...]
    """The subject of each image."""
    classes: tuple[int, ...]
    split: str
    labelled: int
    """Images the readout was fitted on."""
    differences: Mapping[str, Interval]
    """Control to the encoder's Dice minus the control's, corrected for how many controls there are (Holm)."""

    def mean(self, arm: str) -> float:
        """Return an arm's Dice: the mean over classes, then images of a patient, then patients and seeds."""
        return float(mean_of(per_patient(mean_of(self.scores[arm], 2), self.patients)))

    def __str__(self) -> str:
        seeds, n = len(self.scores[ENCODER]), len(set(self.patients))
        lines = [
            f"frozen dense probe: Dice on {n} {self.split} patients, {self.labelled} labelled images, "
            f"{seeds} seed{'s' if seeds > 1 else ''}"
        ]
        for arm in self.scores:
            line = f"  {arm:<16}{self.mean(arm):.3f}"
            if arm in self.differences:
                interval = self.differences[arm]
                line += f"   encoder {interval} {_verdict(interval)}"
            lines.append(line)
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "split": self.split,
            "labelled_images": self.labelled,
            "classes": list(self.classes),
            "dice": {arm: self.mean(arm) for arm in self.scores},
            "differences": {arm: interval.to_dict() for arm, interval in self.differences.items()},
            "images": list(self.images),
            "patients": list(self.patients),
            "scores": {arm: _without_nan(table) for arm, table in self.scores.items()},
        }


def _verdict(interval: Interval) -> str:
    return f"{interval.verdict}: {interval.doubt}" if interval.doubt else interval.verdict


def _without_nan(table: NDArray[np.float64]) -> Any:
    if table.ndim > 1:
        return [_without_nan(row) for row in table]
    return [None if np.isnan(value) else float(value) for value in table]


def probe_encoder(
    encoder: Encoder | Path | str,
    store: Store | Path | str,
    config: ProbeConfig | None = None,
    *,
    seeds: int = 3,
    progress: Progress = silent,
) -> ProbeResult:
    """Judge an encoder by a linear layer on its frozen features, beside random features and no network.

    Args:
        encoder: an encoder, its folder, or the run that holds it.
        store: prepared images with label maps, in the splits `train` and `config.split`.
        config: how many images and voxels, and which split.
        seeds: each draws its own labelled images, voxels, and random weights.
        progress: told of every arm of every seed.

    Raises:
        DataError: there are no labelled images in a split, or fewer than wanted.
    """
    from ..nets.encoder import Encoder, load_encoder

    config = config or ProbeConfig()
    encoder = encoder if isinstance(encoder, Encoder) else load_encoder(encoder)
    store = store if isinstance(store, Store) else Store.open(store)
    if encoder.preparation and encoder.preparation.get("fingerprint") != store.preparation.get("fingerprint"):
        logger.warning("the store was prepared otherwise than the encoder's images; the probe may judge it too low")

    def arms(seed: int) -> dict[str, Arm]:
        fresh = with_random_weights(encoder, seed)
        return {
            ENCODER: EncoderArm(encoder, window=config.window, slice_axis=config.slice_axis),
            RANDOM: EncoderArm(fresh, window=config.window, slice_axis=config.slice_axis),
            NO_NETWORK: NoNetworkArm(config.sigmas_mm),
        }

    return _probe(store, config, arms, seeds, progress)


def _probe(
    store: Store, config: ProbeConfig, arms: Callable[[int], dict[str, Arm]], seeds: int, progress: Progress
) -> ProbeResult:
    train, scored = _labelled(store, "train", config.images), _labelled(store, config.split, 1)
    names = tuple(arms(0))
    tables: dict[str, list[NDArray[np.float64]]] = {name: [] for name in names}
    progress("probe", 0, seeds * len(names))
    for seed in range(seeds):
        subset = draw_images({i: store.row(i).subject_id for i in train}, config.images, seed)
        for name, arm in arms(seed).items():
            readout = fit_arm(arm, store, subset, config, seed)
            tables[name].append(np.stack([score_image(arm, store, image_id, readout) for image_id in scored]))
            progress("probe", sum(len(table) for table in tables.values()), seeds * len(names))
    scores = {name: np.stack(table) for name, table in tables.items()}
    patients = tuple(store.row(i).subject_id for i in scored)
    by_patient = {name: per_patient(mean_of(table, 2), patients) for name, table in scores.items()}
    differences = holm(
        {
            name: bootstrap(by_patient[ENCODER] - by_patient[name], confidence=config.confidence)
            for name in names
            if name != ENCODER
        }
    )
    return ProbeResult(scores, scored, patients, store.classes, config.split, config.images, differences)


def _labelled(store: Store, split: str, least: int) -> tuple[str, ...]:
    found = tuple(i for i in store.ids_of(split) if store.row(i).labelled)
    if len(found) < least:
        raise DataError(
            f"{len(found)} labelled images in split {split!r}, {least} wanted",
            where=str(store.folder),
            fix="give labels to `medssl index`, or ask for fewer images (probe.images) or another split (probe.split)",
        )
    return found


def fit_arm(arm: Arm, store: Store, images: Sequence[str], config: ProbeConfig, seed: int) -> Readout:
    """Fit a readout on an arm's features of drawn voxels of these images."""
    features, labels, counts = [], [], []
    for image_id in images:
        label = class_numbers(store.label(image_id)[0], store.classes)
        random = np.random.Generator(np.random.PCG64(hash64(seed, "probe points", image_id) & ((1 << 63) - 1)))
        voxels, of_class, stands_for = draw_points(label, config.points, random)
        features.append(arm.at(read_picture(store, image_id), voxels))
        labels.append(of_class)
        counts.append(stands_for)
    return fit_readout(
        np.concatenate(features),
        np.concatenate(labels),
        np.concatenate(counts),
        classes=len(store.classes) + 1,
        penalty=config.penalty,
    )


def score_image(arm: Arm, store: Store, image_id: str, readout: Readout) -> NDArray[np.float64]:
    """Return the Dice of each class of one image: (K - 1,)."""
    label = class_numbers(store.label(image_id)[0], store.classes)
    return dice(arm.predict(read_picture(store, image_id), readout), label, len(store.classes) + 1)


class DenseProbe:
    """The dense probe as an observer of pretraining: `probe/dice` beside `probe/no_network`, on validation images.

    Args:
        store: prepared images with label maps in the splits `train` and `validation`.
        config: `split` is not asked; choosing by test images would spoil them.
        name: which of the method's `encoders()` is judged.
        seed: decides the labelled images and voxels.
    """

    def __init__(self, store: Store, config: ProbeConfig, *, name: str = "encoder", seed: int = 0) -> None:
        self.store, self.config, self.name, self.seed = store, config, name, seed
        self.every = config.every
        train = _labelled(store, "train", config.images)
        self.images = draw_images({i: store.row(i).subject_id for i in train}, config.images, seed)
        self.scored = _labelled(store, "validation", 1)
        self.no_network: float | None = None
        self.history: list[list[float]] = []

    @staticmethod
    def possible(store: Store, config: ProbeConfig) -> bool:
        """Say whether a store has the labelled images that the probe needs."""
        train, scored = (sum(store.row(i).labelled for i in store.ids_of(s)) for s in ("train", "validation"))
        return train >= config.images and scored > 0

    def observe(self, step: int, method: Method, log: Callable[[str, float], None]) -> None:
        """Judge the encoder as it is now."""
        encoder: Any = method.encoders()[self.name]
        if self.no_network is None:
            self.no_network = self._dice(NoNetworkArm(self.config.sigmas_mm))
        found = self._dice(EncoderArm(encoder, window=self.config.window, slice_axis=self.config.slice_axis))
        self.history.append([float(step), found])
        log("probe/dice", found)
        log("probe/no_network", self.no_network)

    def _dice(self, arm: Arm) -> float:
        readout = fit_arm(arm, self.store, self.images, self.config, self.seed)
        scores = np.stack([score_image(arm, self.store, image_id, readout) for image_id in self.scored])
        patients = [self.store.row(image_id).subject_id for image_id in self.scored]
        return float(mean_of(per_patient(mean_of(scores, 1)[None], patients)))

    def state_dict(self) -> dict[str, Any]:
        """Return what was found so far."""
        return {"no_network": self.no_network, "history": [list(row) for row in self.history]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.no_network = state["no_network"]
        self.history = [list(row) for row in state["history"]]
