"""Label-efficiency: what an encoder gains over training from scratch, with few labels and the same chances.

Every arm of a seed trains on the same labelled images, in the same order, with the same augmentation, for the same
number of steps, and may choose from the same learning rates by the validation images. What differs are the weights it
begins with. Differences are paired by seed and patient.

Shapes: S seeds, P test patients.
"""

from __future__ import annotations

import json
import logging
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import Section, fingerprint, result_fields
from ..errors import DataError, MedsslError, UsageError
from ..files import check_new, write_json
from ..metrics import Interval, bootstrap, draw_images, mean_of
from ..nets.config import DynUNetConfig
from ..nets.encoder import Encoder
from ..prepare import PrepareConfig
from ..progress import Progress, silent
from ..store import Store
from .config import FinetuneConfig
from .finetuning import train_segmenter
from .scoring import ImageScore, hausdorff_of, patient_dice, score_images
from .start import Design, Start, as_encoder, labelled, open_data

logger = logging.getLogger(__name__)

SCRATCH = "scratch"
FORMAT = 1


@dataclass(frozen=True)
class Cell:
    """One training: an arm, a number of labelled images, a seed and a learning rate."""

    arm: str
    count: int
    seed: int
    learning_rate: float


@dataclass(frozen=True)
class CompareResult:
    """Dice of every arm on the same patients, and each encoder's difference from scratch."""

    out: Path
    arms: tuple[str, ...]
    counts: tuple[int, ...]
    seeds: int
    split: str
    patients: tuple[str, ...]
    steps: int
    dice: Mapping[str, Mapping[int, NDArray[np.float64]]]
    """Arm and count to (S, P)."""
    hausdorff95_mm: Mapping[str, Mapping[int, float]]
    """Arm and count to the mean over structures that were found; in voxels where images have no spacing."""
    rates: Mapping[str, Mapping[int, float]]
    """Arm and count to the learning rate that was chosen."""
    searched: tuple[float, ...]
    differences: Mapping[str, Mapping[int, Interval]]
    """Encoder and count to its Dice minus that of scratch; empty where scratch is no arm."""
    overall: Mapping[str, Interval]
    """Encoder to the difference averaged over counts."""
    computed: int
    """Cells trained now; the others were there."""

    def __str__(self) -> str:
        s = "s" if self.seeds > 1 else ""
        lines = [
            f"Dice on {len(self.patients)} {self.split} patients, {self.seeds} paired seed{s}, {self.steps} steps"
            + (
                f", learning rate chosen by validation from {', '.join(f'{r:g}' for r in self.searched)}"
                * bool(self.searched)
            ),
            "  " + "labelled images".ljust(24) + "".join(str(count).rjust(26) for count in self.counts),
        ]
        for arm in self.arms:
            cells = [f"{self.dice[arm][count].mean():.3f}" for count in self.counts]
            lines.append("  " + arm.ljust(24) + "".join(cell.rjust(26) for cell in cells))
            if arm in self.differences:
                cells = [str(self.differences[arm][count]) for count in self.counts]
                lines.append("  " + "  minus scratch".ljust(24) + "".join(cell.rjust(26) for cell in cells))
        lines += [self._sentence(arm) for arm in self.overall]
        if self.seeds < 5 and self.overall:
            lines.append(
                f"{self.seeds} seed{s}: the interval is narrower than it should be; run more before you rely on it"
            )
        return "\n".join(lines)

    def _sentence(self, arm: str) -> str:
        interval = self.overall[arm]
        percent = f"{100 * interval.confidence:.0f}%"
        numbers = (
            f"{interval.mean:+.3f} Dice over all counts, {percent} interval [{interval.low:+.3f}, {interval.high:+.3f}]"
        )
        words = {
            "better": f"{arm} is better than scratch: {numbers}",
            "worse": f"{arm} is worse than scratch: {numbers}",
            "undecided": f"{arm} against scratch is undecided, {interval.doubt}: {numbers}",
        }
        return words[interval.verdict]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        by = {arm: {str(c): table.tolist() for c, table in counts.items()} for arm, counts in self.dice.items()}
        return {
            "task": "segmentation",
            "out": str(self.out),
            "arms": list(self.arms),
            "counts": list(self.counts),
            "seeds": self.seeds,
            "split": self.split,
            "patients": list(self.patients),
            "steps": self.steps,
            "dice": {arm: {c: float(np.mean(table)) for c, table in counts.items()} for arm, counts in by.items()},
            "hausdorff95_mm": {arm: _keyed(values) for arm, values in self.hausdorff95_mm.items()},
            "learning_rates": list(self.searched),
            "chosen_rates": {arm: _keyed(rates) for arm, rates in self.rates.items()},
            "differences": {
                arm: {str(c): interval.to_dict() for c, interval in counts.items()}
                for arm, counts in self.differences.items()
            },
            "overall": {arm: {**interval.to_dict(), **self._ups(arm)} for arm, interval in self.overall.items()},
            "patient_dice": by,
            "computed": self.computed,
        }

    def _ups(self, arm: str) -> dict[str, str]:
        """Count the cells and the patients in which an encoder is above scratch."""
        gaps = np.stack([self.dice[arm][count] - self.dice[SCRATCH][count] for count in self.counts])  # (counts, S, P)
        cells, patients = gaps.mean(2) > 0, gaps.mean((0, 1)) > 0
        return {
            "cells_up": f"{int(cells.sum())} of {cells.size}",
            "patients_up": f"{int(patients.sum())} of {patients.size}",
        }


def _keyed(values: Mapping[int, float]) -> dict[str, float | None]:
    return {str(key): value if math.isfinite(value) else None for key, value in values.items()}


def compare_encoders(
    encoders: Sequence[Start],
    task: str = "segmentation",
    *,
    data: Store | Path | str,
    counts: Sequence[int] = (2, 4, 8),
    seeds: int = 3,
    out: Path | str,
    config: FinetuneConfig | None = None,
    network: Section | None = None,
    prepare: PrepareConfig | None = None,
    learning_rates: Sequence[float] | None = None,
    names: Sequence[str] | None = None,
    progress: Progress = silent,
) -> CompareResult:
    """Fine-tune every encoder, and a network from scratch, on a few labels, and tell the differences apart from luck.

    Args:
        encoders: encoders, their folders or runs; None (or "none") is training from scratch, in the architecture of the
            first encoder.
        task: `segmentation`.
        data: a store, an index, or a datalist; what is no store is prepared into `out/store` first.
        counts: numbers of labelled images, from as many patients as possible.
        seeds: how many; each chooses labelled images, new weights, order and augmentation, the same for all arms.
        out: keeps `cells/`, one file a training, and `compare.json`. Run again, only what is missing is trained.
        config: the recipe's section `finetune`.
        network: the section `encoder` to build from scratch where no arm has an encoder.
        prepare: how to prepare data that is no store, where there is no encoder that knows.
        learning_rates: tried for every arm and count, the best on validation images taken; `config.learning_rates`
            unless given; with fewer than two there is no search and validation images are not used.
        names: of the arms; the names of their folders unless given.
        progress: told of the trainings.

    Raises:
        DataError: there are fewer labelled images than a count.
        UsageError: no arm, no count, no seed, or an unknown task.
    """
    config, out = config or FinetuneConfig(), Path(out)
    if task != "segmentation":
        raise UsageError(f"there is no task {task!r}", fix="use segmentation")
    counts = tuple(sorted(set(counts)))
    if not encoders or not counts or counts[0] < 1 or seeds < 1:
        raise UsageError("nothing to compare", fix="give an encoder or none, a count and a seed, each at least one")
    arms = _arms(encoders, network, names)
    preparations = [design.encoder.preparation for design in arms.values() if design.encoder is not None]
    preparation = next(iter(preparations), None)
    if not any((out / name).is_dir() for name in ("cells", "store")):
        check_new(out)
    store = open_data(data, out / "store", preparation=preparation, prepare=prepare, progress=progress)
    available = labelled(store, "train")
    if counts[-1] > len(available):
        raise DataError(
            f"{counts[-1]} labelled images wanted, the split 'train' has {len(available)}",
            where=str(store.folder),
            fix="compare with smaller --counts",
        )
    _make(out)
    rates = tuple(learning_rates if learning_rates is not None else config.learning_rates)
    rates = tuple(sorted(set(rates))) or (config.learning_rate,)
    bench = _Bench(arms, store, config, out, search=len(rates) > 1)
    cells = [Cell(arm, n, seed, rate) for n in counts for seed in range(seeds) for arm in arms for rate in rates]
    for done, cell in enumerate(cells):
        progress("compare", done, len(cells))
        bench.run(cell)
    progress("compare", len(cells), len(cells))
    result = bench.result(counts, seeds, rates)
    write_json(out / "compare.json", result.to_dict())
    return result


def parse_counts(text: str) -> tuple[int, ...]:
    """Read numbers with commas between, as the command line has them.

    Raises:
        UsageError: something else stands there.
    """
    try:
        counts = tuple(int(word) for word in text.split(","))
    except ValueError:
        counts = ()
    if not counts or min(counts) < 1:
        raise UsageError(f"--counts {text!r} are no numbers of images", fix="as in --counts 2,4,8")
    return counts


def _make(out: Path) -> None:
    try:
        (out / "cells").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise MedsslError(
            f"the output cannot be written: {reason}", where=str(out), fix="choose a folder you may write to"
        ) from error


def _arms(encoders: Sequence[Start], network: Section | None, names: Sequence[str] | None) -> dict[str, Design]:
    loaded = [as_encoder(start) for start in encoders]
    if names is not None and len(names) != len(encoders):
        raise UsageError(f"{len(names)} names for {len(encoders)} arms", fix="name every arm, or none")
    first: Encoder | Section = next((e for e in loaded if e is not None), None) or network or DynUNetConfig()
    arms: dict[str, Design] = {}
    for i, (start, encoder) in enumerate(zip(encoders, loaded)):
        name = SCRATCH if encoder is None else names[i] if names is not None else _name_of(start)
        if name in arms and encoder is None:
            raise UsageError("scratch is named twice", fix="give --encoder none once")
        while name in arms or (encoder is not None and name == SCRATCH):
            name += "'"
        arms[name] = Design(encoder, encoder if encoder is not None else first)
    return arms


def _name_of(start: Start) -> str:
    """Return the last part of a path that tells arms apart: a run's name rather than `encoder`."""
    if isinstance(start, Encoder) or start is None:
        return "encoder"
    path = Path(start).resolve()
    return path.parent.name if path.name == "encoder" else path.name


class _Bench:
    """Runs cells, or takes them from their files, and puts them together."""

    def __init__(
        self, arms: Mapping[str, Design], store: Store, config: FinetuneConfig, out: Path, *, search: bool
    ) -> None:
        self.arms, self.store, self.config, self.out, self.search = arms, store, config, out, search
        self.designs = {name: design.fingerprint for name, design in arms.items()}
        self.subjects = {i: store.row(i).subject_id for i in labelled(store, "train")}
        self.splits = (config.split, "validation") if search else (config.split,)
        self.scored = {split: labelled(store, split) for split in self.splits}
        self.cells: dict[Cell, dict[str, tuple[ImageScore, ...]]] = {}
        self.computed = 0

    def run(self, cell: Cell) -> None:
        """Train and score a cell, unless its file is there."""
        config = self.config.model_copy(update={"learning_rate": cell.learning_rate, "seed": cell.seed})
        images = draw_images(self.subjects, cell.count, cell.seed)
        decides = {
            "format": FORMAT,
            "design": self.designs[cell.arm],
            "store": self.store.fingerprint,
            "images": list(images),
            "scored": {split: list(ids) for split, ids in self.scored.items()},
            "finetune": {k: v for k, v in result_fields(config).items() if k not in ("learning_rates", "confidence")},
        }
        path = self.out / "cells" / f"{fingerprint(decides)}.json"
        found = _read_cell(path, decides)
        if found is None:
            found = self._train(cell, config, images)
            scores = {split: [score.to_dict() for score in values] for split, values in found.items()}
            shown = {"arm": cell.arm, "count": cell.count, "seed": cell.seed, "learning_rate": cell.learning_rate}
            write_json(path, {**shown, "decided_by": decides, "scores": scores})
            self.computed += 1
        self.cells[cell] = found

    def _train(self, cell: Cell, config: FinetuneConfig, images: Sequence[str]) -> dict[str, tuple[ImageScore, ...]]:
        config = config.model_copy(update={"checkpoint_steps": config.steps})
        with tempfile.TemporaryDirectory(prefix=".cell-", dir=self.out) as folder:
            segmenter, _ = train_segmenter(self.arms[cell.arm], self.store, config, images, Path(folder))
        return {split: score_images(segmenter, self.store, ids) for split, ids in self.scored.items()}

    def result(self, counts: tuple[int, ...], seeds: int, rates: tuple[float, ...]) -> CompareResult:
        """Choose learning rates and put the numbers together."""
        split = self.config.split
        chosen = {arm: {n: self._best_rate(arm, n, seeds, rates) for n in counts} for arm in self.arms}

        def scores(arm: str, n: int, seed: int) -> tuple[ImageScore, ...]:
            return self.cells[Cell(arm, n, seed, chosen[arm][n])][split]

        dice = {
            arm: {n: np.stack([patient_dice(scores(arm, n, seed)) for seed in range(seeds)]) for n in counts}
            for arm in self.arms
        }
        distances = {
            arm: {n: float(mean_of([hausdorff_of(scores(arm, n, seed)) for seed in range(seeds)])) for n in counts}
            for arm in self.arms
        }
        against = [arm for arm in self.arms if arm != SCRATCH] if SCRATCH in self.arms else []
        gaps = {arm: {n: dice[arm][n] - dice[SCRATCH][n] for n in counts} for arm in against}
        sure = self.config.confidence
        return CompareResult(
            out=self.out,
            arms=tuple(self.arms),
            counts=counts,
            seeds=seeds,
            split=split,
            patients=tuple(sorted({self.store.row(i).subject_id for i in self.scored[split]})),
            steps=self.config.steps,
            dice=dice,
            hausdorff95_mm=distances,
            rates=chosen,
            searched=rates if self.search else (),
            differences={a: {n: bootstrap(t, confidence=sure) for n, t in by.items()} for a, by in gaps.items()},
            overall={a: bootstrap(np.mean(list(by.values()), axis=0), confidence=sure) for a, by in gaps.items()},
            computed=self.computed,
        )

    def _best_rate(self, arm: str, count: int, seeds: int, rates: tuple[float, ...]) -> float:
        if not self.search:
            return rates[0]

        def on_validation(rate: float) -> float:
            by_seed = [patient_dice(self.cells[Cell(arm, count, s, rate)]["validation"]) for s in range(seeds)]
            return float(mean_of(by_seed))

        return max(rates, key=on_validation)


def _read_cell(path: Path, decides: Mapping[str, Any]) -> dict[str, tuple[ImageScore, ...]] | None:
    """Return a cell's scores by split, or None where it must be trained."""
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if fingerprint(value["decided_by"]) == fingerprint(decides):
            return {
                split: tuple(ImageScore.from_dict(score) for score in scores)
                for split, scores in value["scores"].items()
            }
    except (ValueError, KeyError, TypeError):
        pass
    logger.warning("cell %s is damaged and trained again", path.name)
    return None
