"""How much features change where the patient does not: under noise, a shift in mm, and another gamma.

Good features tell patients apart and hardly notice what another scan of the same patient would change. Each of a few
images is changed in known ways and embedded again. Three numbers a change, 1 is best for all:

- agreement: the cosine of changed and unchanged features, standardised over the images;
- reliability: the intraclass correlation of changed and unchanged features, ICC(1) of Shrout and Fleiss 1979,
  Psychological Bulletin 86 (2), with its sums of squares taken over all features; 0 for unrelated ones;
- recognised: the share of changed images whose nearest unchanged image is their own.

Shapes: S seeds, I images, F features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..batch import hash64
from ..errors import DataError
from ..metrics import Interval, bootstrap, draw_images, holm, per_patient
from ..metrics.retrieval import cosine_similarity
from ..progress import Progress, silent
from ..store import Store
from ..views.spatial import warp
from .config import ENCODER, RANDOM, ProbeConfig, StabilityConfig
from .heads import Table, standardized
from .outside import with_random_weights
from .pooling import Pooler
from .windows import Picture, read_picture

if TYPE_CHECKING:
    from ..nets.encoder import Encoder

AGREEMENT, RELIABILITY, RECOGNISED = "agreement", "reliability", "recognised"


@dataclass(frozen=True)
class StabilityResult:
    """How stable features are under each change, and how much more so than random weights'."""

    scores: Mapping[str, Mapping[str, Mapping[str, float]]]
    """Change, such as `noise 0.1`, to arm to measure to its mean over seeds."""
    differences: Mapping[str, Interval]
    """Change to the encoder's agreement minus that of random weights, corrected for the number of changes (Holm)."""
    images: int
    patients: int
    split: str

    def __str__(self) -> str:
        lines = [
            f"stability of frozen features: {self.images} {self.split} images of {self.patients} patients",
            f"  {'':<30}{AGREEMENT:>12}{RELIABILITY:>14}{RECOGNISED:>12}",
        ]
        for change, arms in self.scores.items():
            for arm, found in arms.items():
                numbers = f"{found[AGREEMENT]:>12.3f}{found[RELIABILITY]:>14.3f}{found[RECOGNISED]:>12.2f}"
                line = f"  {change if arm == ENCODER else '':<14}{arm:<16}{numbers}"
                if arm == RANDOM:
                    interval = self.differences[change]
                    line += f"   encoder {interval} {interval.verdict}"
                    line += f": {interval.doubt}" if interval.doubt else ""
                lines.append(line)
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "scores": {c: {arm: dict(found) for arm, found in arms.items()} for c, arms in self.scores.items()},
            "differences": {change: interval.to_dict() for change, interval in self.differences.items()},
            "images": self.images,
            "patients": self.patients,
            "split": self.split,
        }


def probe_stability(
    encoder: Encoder | Path | str,
    store: Store | Path | str,
    config: ProbeConfig | None = None,
    *,
    seeds: int = 3,
    progress: Progress = silent,
) -> StabilityResult:
    """Measure how far an encoder's pooled features move under changes that another scan of a patient would bring.

    Args:
        encoder: an encoder, its folder, or the run that holds it.
        store: prepared images in the split `config.split`.
        config: `config.stability` says which changes.
        seeds: each draws noise and random weights anew.
        progress: told of every seed.

    Raises:
        DataError: fewer than two images.
    """
    from ..nets.encoder import Encoder, load_encoder

    config = config or ProbeConfig()
    encoder = encoder if isinstance(encoder, Encoder) else load_encoder(encoder)
    store = store if isinstance(store, Store) else Store.open(store)
    subjects = {i: store.row(i).subject_id for i in store.ids_of(config.split)}
    if len(subjects) < 2:
        raise DataError(
            f"{len(subjects)} images in split {config.split!r}, 2 wanted",
            where=str(store.folder),
            fix="name another split (probe.split)",
        )
    images = draw_images(subjects, min(config.stability.images, len(subjects)), 0)
    changes = _changes(config.stability)
    tables: dict[str, dict[str, list[tuple[Table, float, float]]]] = {change: {} for change in changes}
    for seed in range(seeds):
        progress("probe stability", seed, seeds)
        for arm, judged in {ENCODER: encoder, RANDOM: with_random_weights(encoder, seed)}.items():
            before, after = _embedded(judged, store, images, config, seed)
            for change in changes:
                tables[change].setdefault(arm, []).append(_compared(before, after[change]))
    progress("probe stability", seeds, seeds)
    patients = [subjects[image_id] for image_id in images]
    return StabilityResult(
        scores={c: {arm: _mean(found) for arm, found in arms.items()} for c, arms in tables.items()},
        differences=holm(
            {
                change: bootstrap(
                    per_patient(np.stack([row[0] for row in arms[ENCODER]]), patients)
                    - per_patient(np.stack([row[0] for row in arms[RANDOM]]), patients),
                    confidence=config.confidence,
                )
                for change, arms in tables.items()
            }
        ),
        images=len(images),
        patients=len(set(patients)),
        split=config.split,
    )


def _embedded(
    encoder: Encoder, store: Store, images: tuple[str, ...], config: ProbeConfig, seed: int
) -> tuple[Table, dict[str, Table]]:
    """Return the images' vectors (I, F), and those after each change, with one image in memory at a time."""
    pooler = Pooler(encoder, window=config.window, slice_axis=config.slice_axis)
    changes = _changes(config.stability)
    before: list[Table] = []
    after: dict[str, list[Table]] = {change: [] for change in changes}
    for image_id in images:
        picture = read_picture(store, image_id)
        before.append(pooler.whole(picture))
        for change, (kind, amount) in changes.items():
            after[change].append(pooler.whole(changed(picture, kind, amount, hash64(seed, change, image_id))))
    return np.stack(before), {change: np.stack(rows) for change, rows in after.items()}


def _changes(config: StabilityConfig) -> dict[str, tuple[str, float]]:
    out = {}
    for kind, unit in (("noise", ""), ("shift_mm", " mm"), ("gamma", "")):
        for amount in getattr(config, kind):
            out[f"{kind.removesuffix('_mm')} {amount:g}{unit}"] = (kind, float(amount))
    return out


def changed(picture: Picture, kind: str, amount: float, key: int = 0) -> Picture:
    """Return an image with noise, moved by millimetres along every axis, or with another gamma.

    Args:
        picture: left as it is.
        kind: `noise`, `shift_mm` or `gamma`.
        amount: standard deviations of the image, millimetres, or the exponent.
        key: of the noise.
    """
    image = picture.image
    if kind == "noise":
        random = torch.Generator().manual_seed(key & ((1 << 63) - 1))
        new = image + torch.randn(image.shape, generator=random) * (amount * image.std())
    elif kind == "shift_mm":
        new = _shifted(image, picture, amount)
    elif kind == "gamma":
        low, high = image.min(), image.max()
        span = (high - low).clamp_min(1e-6)
        new = ((image - low) / span) ** amount * span + low
    else:
        raise ValueError(f"change {kind!r} is none of noise, shift_mm, gamma")
    return Picture(new, picture.outside, picture.affine, picture.spacing_mm, picture.box)


def _shifted(image: Tensor, picture: Picture, amount: float) -> Tensor:
    n = len(picture.shape)
    matrix = torch.cat([torch.eye(n), torch.full((n, 1), amount)], 1)[None]
    return warp(image[None], matrix, torch.tensor([picture.spacing_mm]), picture.shape)[0]


def _compared(before: Table, after: Table) -> tuple[Table, float, float]:
    """Return agreement of each image (I,), reliability and the share recognised, of features (I, F)."""
    same, other = standardized(before, after)
    agreement = np.diagonal(cosine_similarity(other, same)).copy()
    # One-way analysis of variance of two copies of each image, summed over features.
    within = 0.5 * float(((same - other) ** 2).sum(1).mean())
    between = 2 * float(((same + other) / 2).var(0, ddof=1).sum())
    distance = ((other[:, None] - same[None]) ** 2).sum(-1)
    recognised = float((distance.argmin(1) == np.arange(len(same))).mean())
    reliability = (between - within) / (between + within) if between + within > 0 else 0.0
    return agreement, reliability, recognised


def _mean(found: list[tuple[Table, float, float]]) -> dict[str, float]:
    return {
        AGREEMENT: float(np.mean([row[0] for row in found])),
        RELIABILITY: float(np.mean([row[1] for row in found])),
        RECOGNISED: float(np.mean([row[2] for row in found])),
    }
