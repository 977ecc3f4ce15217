"""What frozen features tell of whole images: by kNN, a linear layer, attentive pooling and retrieval; and their rank.

Each readout is fitted on training images and judged on images of other patients, for the encoder and two controls: the
same architecture with random weights, and no network at all (brightness and size). Features that do not beat both have
learned nothing that this target can use.

Shapes: S seeds, P patients, I images, F features, T tokens, K classes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..batch import hash64
from ..errors import DataError
from ..index import Index
from ..metrics import Interval, bootstrap, draw_images, effective_rank, holm, mean_of
from ..metrics.classification import auroc
from ..metrics.regression import regression_errors
from ..metrics.retrieval import cosine_similarity, mean_average_precision
from ..metrics.shares import shares
from ..progress import Progress, silent
from ..store import Store
from .config import ENCODER, NO_NETWORK, RANDOM, ProbeConfig
from .heads import Answers, Table, by_attention, by_linear_layer, by_neighbours, standardized
from .outside import with_random_weights
from .pooling import Pooler
from .targets import Target, read_target
from .windows import Picture, read_picture

if TYPE_CHECKING:
    from ..nets.encoder import Encoder

logger = logging.getLogger(__name__)
Tokens = NDArray[np.float32]
Features = Mapping[str, tuple[Table, Tokens]]
"""Image to its vector (F,) and its tokens (T, F)."""
_NO_TOKENS: Table = np.zeros((1, 1))
Metric = Callable[[NDArray[np.bool_]], Table]
"""From a choice of scored images, (I,), to what a readout reaches on them, (K,) a class or (1,) for all at once."""
KNN, LINEAR, ATTENTIVE, RETRIEVAL = "kNN", "linear", "attentive", "retrieval"


@dataclass(frozen=True)
class ImageProbeResult:
    """What each readout reaches with each arm's features, by seed, and what the encoder's are better by."""

    target: str
    """What was told of the images; empty where only the rank was asked for."""
    classes: tuple[str, ...]
    """Its classes; empty for a measure."""
    scores: Mapping[str, Mapping[str, tuple[float, ...]]]
    """Readout to arm to one number a seed: AUROC (classes), R2 (a measure), mean average precision (retrieval)."""
    differences: Mapping[str, Mapping[str, Interval]]
    """Readout to control to the encoder's score minus the control's, corrected for how many there are (Holm)."""
    rank: Mapping[str, float]
    """Arm to RankMe: how many directions the vectors of all images use."""
    largest_rank: int
    """What it could be: the number of images, or of features where that is smaller."""
    split: str
    labelled: int
    """Training images the readouts were fitted on."""
    images: int
    patients: int

    def measure(self, readout: str) -> str:
        """Return what the numbers of a readout are."""
        if readout == RETRIEVAL:
            return "mean average precision"
        return "AUROC" if self.classes else "R2"

    def __str__(self) -> str:
        lines = []
        if self.target:
            seeds = len(next(iter(next(iter(self.scores.values())).values())))
            lines.append(
                f"frozen image probe of {self.target}: {self.images} {self.split} images of {self.patients} patients, "
                f"{self.labelled} labelled images, {seeds} seed{'s' if seeds > 1 else ''}"
            )
        for readout, arms in self.scores.items():
            lines.append(f"  {readout}, {self.measure(readout)}")
            for arm, values in arms.items():
                line = f"    {arm:<16}{np.mean(values):.3f}"
                if interval := self.differences[readout].get(arm):
                    line += f"   encoder {interval} {interval.verdict}"
                    line += f": {interval.doubt}" if interval.doubt else ""
                lines.append(line)
        ranks = ", ".join(f"{arm} {value:.1f}" for arm, value in self.rank.items())
        return "\n".join([*lines, f"RankMe of at most {self.largest_rank}: {ranks}"])

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "target": self.target,
            "classes": list(self.classes),
            "measures": {readout: self.measure(readout) for readout in self.scores},
            "scores": {r: {arm: list(values) for arm, values in arms.items()} for r, arms in self.scores.items()},
            "differences": {
                r: {arm: interval.to_dict() for arm, interval in arms.items()} for r, arms in self.differences.items()
            },
            "rank": dict(self.rank),
            "largest_rank": self.largest_rank,
            "split": self.split,
            "labelled_images": self.labelled,
            "images": self.images,
            "patients": self.patients,
        }


def probe_images(
    encoder: Encoder | Path | str,
    store: Store | Path | str,
    target: str | Target = "",
    config: ProbeConfig | None = None,
    *,
    index: Index | Path | str | None = None,
    seeds: int = 3,
    progress: Progress = silent,
) -> ImageProbeResult:
    """Judge an encoder by what its frozen features tell of whole images.

    Args:
        encoder: an encoder, its folder, or the run that holds it; `as_encoder` makes one of any network.
        store: prepared images in the splits `train` and `config.split`.
        target: a finding or measure of the images, `modality`, `view`, or a group of the index, by its name; or your
            own values. Empty gives the rank of the features alone.
        config: `config.image` says how features are read, `config.split` which images are scored.
        index: where groups and labels are that the store does not hold.
        seeds: each draws its own labelled images, random weights and first queries.
        progress: told of every arm of every seed.

    Raises:
        DataError: no image has such a target, or too few have.
    """
    from ..nets.encoder import Encoder, load_encoder

    config = config or ProbeConfig()
    encoder = encoder if isinstance(encoder, Encoder) else load_encoder(encoder)
    store = store if isinstance(store, Store) else Store.open(store)
    if encoder.preparation and encoder.preparation.get("fingerprint") != store.preparation.get("fingerprint"):
        logger.warning("the store was prepared otherwise than the encoder's images; the probe may judge it too low")
    found = target if isinstance(target, Target) else read_target(store, target, index=index) if target else None
    split = _Split.of(store, config, found)
    return _Probe(encoder, store, config, found, split, seeds, progress).result()


@dataclass(frozen=True)
class _Split:
    """Training and scored images, and their patients."""

    train: tuple[str, ...]
    scored: tuple[str, ...]
    patients: tuple[str, ...]

    @classmethod
    def of(cls, store: Store, config: ProbeConfig, target: Target | None) -> _Split:
        train, scored = (
            tuple(i for i in store.ids_of(split) if target is None or i in target.values)
            for split in ("train", config.split)
        )
        for split, images in (("train", train), (config.split, scored)):
            if len(images) < 2:
                raise DataError(
                    f"{len(images)} images in split {split!r}{f' have {target.name}' if target else ''}, 2 wanted",
                    where=str(store.folder),
                    fix="name another target, or another split (probe.split)",
                )
            if target is not None and len({target.values[i] for i in images}) < 2:
                raise DataError(
                    f"all {len(images)} images in split {split!r} have the same {target.name}",
                    where=str(store.folder),
                    fix="name another target, or another split (probe.split)",
                )
        if config.image.images is not None and config.image.images > len(train):
            raise DataError(
                f"{len(train)} labelled training images, {config.image.images} wanted",
                where=str(store.folder),
                fix="ask for fewer (probe.image.images)",
            )
        return cls(train, scored, tuple(store.row(i).subject_id for i in scored))


@dataclass
class _Probe:
    encoder: Encoder
    store: Store
    config: ProbeConfig
    target: Target | None
    split: _Split
    seeds: int
    progress: Progress

    def result(self) -> ImageProbeResult:
        total = 2 + self.seeds
        self.progress("probe images", 0, total)
        fixed = {ENCODER: self._features(self._pooled_by(self.encoder))}
        self.progress("probe images", 1, total)
        fixed[NO_NETWORK] = self._features(_no_network)
        by_readout: dict[str, dict[str, list[Metric]]] = {}
        ranks: dict[str, list[float]] = {}
        for seed in range(self.seeds):
            self.progress("probe images", 2 + seed, total)
            fresh = self._features(self._pooled_by(with_random_weights(self.encoder, seed)))
            for arm, features in {ENCODER: fixed[ENCODER], RANDOM: fresh, NO_NETWORK: fixed[NO_NETWORK]}.items():
                ranks.setdefault(arm, []).append(effective_rank(np.stack([whole for whole, _ in features.values()])))
                for readout, metric in self._metrics(features, arm, seed).items():
                    by_readout.setdefault(readout, {}).setdefault(arm, []).append(metric)
        self.progress("probe images", total, total)
        every = np.ones(len(self.split.scored), bool)
        scores = {
            readout: {arm: tuple(float(mean_of(metric(every))) for metric in metrics) for arm, metrics in arms.items()}
            for readout, arms in by_readout.items()
        }
        width = len(next(iter(fixed[ENCODER].values()))[0])
        return ImageProbeResult(
            target=self.target.name if self.target else "",
            classes=self.target.classes if self.target else (),
            scores=scores,
            differences=self._differences(by_readout),
            rank={arm: float(np.mean(values)) for arm, values in ranks.items()},
            largest_rank=min(width, len(fixed[ENCODER])),
            split=self.config.split,
            labelled=self.config.image.images or len(self.split.train),
            images=len(self.split.scored),
            patients=len(set(self.split.patients)),
        )

    def _pooled_by(self, encoder: Encoder) -> Callable[[Picture], tuple[Table, Table]]:
        pooler = Pooler(encoder, window=self.config.window, slice_axis=self.config.slice_axis)
        if self.target is None:  # the rank is that of whole images
            return lambda picture: (pooler.whole(picture), _NO_TOKENS)
        return lambda picture: pooler.described(picture, self.config.image.tokens)

    def _features(self, describe: Callable[[Picture], tuple[Table, Table]]) -> Features:
        found = {}
        for image_id in (*self.split.train, *self.split.scored):
            whole, tokens = describe(read_picture(self.store, image_id))
            found[image_id] = (whole, tokens.astype(np.float32))  # of all images they are the most that is kept
        return found

    def _metrics(self, features: Features, arm: str, seed: int) -> dict[str, Metric]:
        """Fit every readout and return, for each, what it reaches on a choice of scored images."""
        if self.target is None:
            return {}
        wanted, knobs = self.target.values, self.config.image
        subjects = {i: self.store.row(i).subject_id for i in self.split.train}
        train = draw_images(subjects, knobs.images or len(subjects), seed)
        answers = Answers(
            np.array([wanted[i] for i in train]), tuple(subjects[i] for i in train), len(self.target.classes)
        )
        x, q = (np.stack([features[i][0] for i in images]) for images in (train, self.split.scored))
        found = {
            KNN: by_neighbours(x, answers, q, neighbours=knobs.neighbours, temperature=knobs.temperature),
            LINEAR: by_linear_layer(x, answers, q),
        }
        if arm != NO_NETWORK:
            found[ATTENTIVE] = by_attention(
                [features[i][1] for i in train],
                answers,
                [features[i][1] for i in self.split.scored],
                heads=knobs.heads,
                steps=knobs.steps,
                learning_rate=knobs.learning_rate,
                seed=hash64(seed, "attentive probe"),
            )
        truth = np.array([wanted[i] for i in self.split.scored])
        metrics = {name: _reached(value, truth, len(self.target.classes)) for name, value in found.items()}
        if self.target.kind == "classes":
            metrics[RETRIEVAL] = _found_again(x, answers, q, truth)
        return metrics

    def _differences(self, found: Mapping[str, Mapping[str, Sequence[Metric]]]) -> dict[str, dict[str, Interval]]:
        """Compare the encoder with each control by each readout, corrected for how many comparisons that is (Holm)."""
        flat: dict[tuple[str, str], Interval] = {}
        for readout, arms in found.items():
            tables = {arm: pseudo_values(metrics, self.split.patients) for arm, metrics in arms.items()}
            for arm in (arm for arm in tables if arm != ENCODER):
                flat[readout, arm] = bootstrap(tables[ENCODER] - tables[arm], confidence=self.config.confidence)
        out: dict[str, dict[str, Interval]] = {readout: {} for readout in found}
        for (readout, arm), interval in holm(flat).items():
            out[readout][arm] = interval
        return out


def _reached(found: Table, truth: Table, classes: int) -> Metric:
    """Return AUROC of each class against the rest, (K,), or for a measure R2, (1,)."""

    def metric(kept: NDArray[np.bool_]) -> Table:
        if not classes:
            return np.array([regression_errors(found[kept, 0], truth[kept]).r2])
        return np.array([auroc(found[kept, k], (truth[kept] == k).astype(float)) for k in range(classes)])

    return metric


def _found_again(train: Table, answers: Answers, scored: Table, truth: Table) -> Metric:
    """Return how early training images of the same class come when ordered by similarity to a scored one."""
    x, q = standardized(train, scored)
    similarity = cosine_similarity(q, x)
    relevant = truth[:, None] == answers.values[None]
    return lambda kept: np.array([mean_average_precision(similarity[kept], relevant[kept])])


def pseudo_values(metrics: Sequence[Metric], patients: Sequence[str]) -> Table:
    """Give each patient a share of a measure that is no mean over patients, (S, P), to be resampled like any score.

    They are `metrics.shares.shares` of each class, then the mean over classes, so that their mean is the measure. A
    class undefined without a patient, who alone has it, counts as unchanged there: it must not fall out of the mean.
    """
    names = sorted(set(patients))
    of = np.array([names.index(patient) for patient in patients])
    rows = []
    for metric in metrics:
        whole = metric(np.ones(len(patients), bool))  # (K,)
        without = [metric(of != n) for n in range(len(names))]  # P times (K,)

        def of_class(kept: Sequence[int], k: int, whole: Table = whole, without: list[Table] = without) -> float:
            left = set(range(len(without))) - set(kept)
            return float(without[left.pop()][k] if left else whole[k])

        table = np.stack([shares(partial(of_class, k=k), len(names)) for k in range(len(whole))])  # (K, P)
        rows.append(mean_of(np.where(np.isnan(table), whole[:, None], table), 0))
    return np.array(rows, dtype=np.float64)


def _no_network(picture: Picture) -> tuple[Table, Table]:
    """Describe an image by its brightness and its size in mm; there are no tokens."""
    image = picture.image.double().numpy()
    low, high = (np.array(corner, dtype=np.float64) for corner in picture.box)
    size = np.array([n * mm for n, mm in zip(picture.shape, picture.spacing_mm)])
    brightness = [image.mean(), image.std(), *np.percentile(image, [1, 5, 25, 50, 75, 95, 99])]
    return np.concatenate([brightness, size, (high - low) * np.array(picture.spacing_mm)]), _NO_TOKENS
