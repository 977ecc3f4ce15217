"""Label-efficiency: what an encoder gains over training from scratch, with few labels and the same chances.

Every arm of a seed trains on the same labelled images, in the same order, with the same augmentation, for the same
number of steps, and may choose from the same learning rates by the validation images. What differs are the weights it
begins with. Differences are paired by seed and patient. One arm breaks a rule on purpose: a control from scratch with
more steps, which tells whether pretraining gave more than a head start.

Shapes: S seeds, P test patients.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..config import Section
from ..errors import DataError, MedsslError, UsageError
from ..files import check_new, without, write_json, write_text
from ..metrics import draw_images, mean_of
from ..nets.config import DynUNetConfig
from ..nets.encoder import Encoder
from ..prepare import PrepareConfig
from ..progress import Progress, silent
from ..store import Store
from .cells import Cell, Decides, Scores, read_cell, write_cell
from .compared import SCRATCH, CompareResult, with_comparisons
from .config import FinetuneConfig
from .figure import draw_comparison
from .finetuning import train_network
from .start import Design, Start, as_encoder, check_apart, one_process, open_data, warn_of_other_preparation
from .task import Task
from .tasks import task_named

Count = int | Literal["all"]


def compare_encoders(
    encoders: Sequence[Start],
    task: str = "segmentation",
    *,
    data: Store | Path | str,
    counts: Sequence[Count] = (2, 4, 8),
    seeds: int = 3,
    out: Path | str | None = None,
    config: FinetuneConfig | None = None,
    network: Section | None = None,
    prepare: PrepareConfig | None = None,
    learning_rates: Sequence[float] | None = None,
    names: Sequence[str] | None = None,
    scratch_longer: int = 1,
    predictions: bool = True,
    progress: Progress = silent,
) -> CompareResult:
    """Fine-tune every encoder, and a network from scratch, on a few labels, and tell the differences apart from luck.

    Args:
        encoders: encoders, their folders or runs; None (or "none") is training from scratch, in the architecture of the
            first encoder.
        task: `segmentation`, `detection` or `classification`.
        data: a store, an index, or a datalist; what is no store is prepared into `out/store` first.
        counts: numbers of labelled images, from as many patients as possible; `all` is all there are.
        seeds: how many; each chooses labelled images, new weights, order and augmentation, the same for all arms.
        out: keeps `cells/` (one file a training), `predictions/`, `compare.json`, `compare.md` (table and sentences)
            and `compare.svg` (the plot). Run again, only what is missing is trained. None keeps nothing.
        config: the recipe's section `finetune`.
        network: the section `encoder` to build from scratch where no arm has an encoder.
        prepare: how to prepare data that is no store, where there is no encoder that knows.
        learning_rates: tried for every arm and count, the best on validation images taken; `config.learning_rates`
            unless given; with fewer than two there is no search.
        names: of the arms; the names of their folders unless given.
        scratch_longer: above 1, an arm more: scratch with so many times the steps.
        predictions: whether what was found in scored images is kept beside the scores.
        progress: told of the trainings.

    Raises:
        DataError: there are fewer labelled images than a count, or patients both to train on and to score.
        UsageError: no arm, no count, no seed, or an unknown task.
    """
    one_process("a comparison")
    if out is None:
        keys: dict[str, Any] = {"data": data, "counts": counts, "seeds": seeds, "config": config, "network": network}
        keys |= {"prepare": prepare, "learning_rates": learning_rates, "names": names, "progress": progress}
        keys |= {"scratch_longer": scratch_longer, "predictions": False}
        with tempfile.TemporaryDirectory(prefix="medssl-compare-", ignore_cleanup_errors=True) as folder:
            result = compare_encoders(encoders, task, out=Path(folder) / "comparison", **keys)
        return replace(result, out=None)
    doing, config, out = task_named(task), config or FinetuneConfig(), Path(out)
    _check(encoders, counts, seeds, scratch_longer)
    control = f"{SCRATCH} x{scratch_longer}" if scratch_longer > 1 else ""
    arms = _arms(encoders, network, names, control)
    preparations = [design.encoder.preparation for design in arms.values() if design.encoder is not None]
    if not any((out / name).is_dir() for name in ("cells", "store")):
        check_new(out)
    preparation = next(iter(preparations), None)
    store = open_data(data, out / "store", preparation=preparation, prepare=prepare, progress=progress)
    for other in preparations[1:]:
        warn_of_other_preparation(store, other)
    numbers = _numbers(counts, store, doing.images(store, "train", config))
    rates = tuple(learning_rates if learning_rates is not None else config.learning_rates)
    rates = tuple(sorted(set(rates))) or (config.learning_rate,)
    if len(rates) > 1 and config.split == "validation":
        raise UsageError(
            "the learning rate would be chosen on the images that are scored", fix="set finetune.split to test"
        )
    _make(out)
    steps = {arm: config.steps * (scratch_longer if arm == control else 1) for arm in arms}
    bench = _Bench(doing, arms, steps, store, config, out, search=len(rates) > 1, keep=predictions)
    cells = [Cell(arm, n, seed, rate) for n in numbers for seed in range(seeds) for arm in arms for rate in rates]
    for done, cell in enumerate(cells):
        progress("compare", done, len(cells))
        bench.run(cell)
    progress("compare", len(cells), len(cells))
    all_images = numbers[-1] if "all" in counts else None
    result = bench.result(numbers, seeds, rates, control=control, all_images=all_images)
    write_json(out / "compare.json", without(result.to_dict(), "out"))
    write_text(out / "compare.md", result.markdown)
    draw_comparison(result, out / "compare.svg")
    return result


def parse_counts(text: str) -> tuple[Count, ...]:
    """Read numbers with commas between, as the command line has them; `all` is one too.

    Raises:
        UsageError: something else stands there.
    """
    counts: tuple[Count, ...]
    try:
        counts = tuple("all" if word.strip() == "all" else int(word) for word in text.split(","))
    except ValueError:
        counts = ()
    if not counts or any(count != "all" and count < 1 for count in counts):
        raise UsageError(f"--counts {text!r} are no numbers of images", fix="as in --counts 2,4,8,all")
    return counts


def _check(encoders: Sequence[Start], counts: Sequence[Count], seeds: int, scratch_longer: int) -> None:
    if not encoders or not counts or seeds < 1 or any(n != "all" and (isinstance(n, str) or n < 1) for n in counts):
        raise UsageError("nothing to compare", fix="give an encoder or none, a count and a seed, each at least one")
    if scratch_longer < 1:
        raise UsageError(
            f"scratch cannot be trained {scratch_longer} times as long", fix="give 2 or more, or 1 for none"
        )


def _numbers(counts: Sequence[Count], store: Store, available: Sequence[str]) -> tuple[int, ...]:
    """Return the counts as rising numbers."""
    numbers = tuple(sorted({len(available) if n == "all" else int(n) for n in counts}))
    if numbers[-1] > len(available):
        raise DataError(
            f"{numbers[-1]} labelled images wanted, the split 'train' has {len(available)}",
            where=str(store.folder),
            fix="compare with smaller --counts, or all",
        )
    return numbers


def _make(out: Path) -> None:
    try:
        (out / "cells").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise MedsslError(
            f"the output cannot be written: {reason}", where=str(out), fix="choose a folder you may write to"
        ) from error


def _arms(
    encoders: Sequence[Start], network: Section | None, names: Sequence[str] | None, control: str
) -> dict[str, Design]:
    loaded = [as_encoder(start) for start in encoders]
    if names is not None and len(names) != len(encoders):
        raise UsageError(f"{len(names)} names for {len(encoders)} arms", fix="name every arm, or none")
    first: Encoder | Section = next((e for e in loaded if e is not None), None) or network or DynUNetConfig()
    arms: dict[str, Design] = {}
    for i, (start, encoder) in enumerate(zip(encoders, loaded)):
        name = SCRATCH if encoder is None else names[i] if names is not None else _name_of(start)
        if name in arms and encoder is None:
            raise UsageError("scratch is named twice", fix="give --encoder none once")
        while name in arms or (encoder is not None and name in (SCRATCH, control)):
            name += "'"
        arms[name] = Design(encoder, encoder if encoder is not None else first)
    if control and SCRATCH not in arms:
        raise UsageError("there is no scratch to train longer", fix="give none as one of the encoders")
    return {**arms, control: arms[SCRATCH]} if control else arms


def _name_of(start: Start) -> str:
    """Return the last part of a path that tells arms apart: a run's name rather than `encoder`."""
    if isinstance(start, Encoder) or start is None:
        return "encoder"
    path = Path(start).resolve()
    return path.parent.name if path.name == "encoder" else path.name


class _Bench:
    """Runs cells, or takes them from their files, and puts them together."""

    def __init__(
        self,
        task: Task,
        arms: Mapping[str, Design],
        steps: Mapping[str, int],
        store: Store,
        config: FinetuneConfig,
        out: Path,
        *,
        search: bool,
        keep: bool,
    ) -> None:
        self.task, self.arms, self.steps, self.store, self.config, self.out = task, arms, steps, store, config, out
        self.search, self.keep = search, keep
        self.designs = {name: design.fingerprint for name, design in arms.items()}
        self.subjects = {i: store.row(i).subject_id for i in task.images(store, "train", config)}
        self.splits = (config.split, "validation") if search else (config.split,)
        self.scored = {split: task.images(store, split, config) for split in self.splits}
        looks = {"validation": task.images(store, "validation", config)} if config.stop_after else {}
        check_apart(store, tuple(self.subjects), {**looks, **self.scored})
        self.cells: dict[Cell, Scores] = {}
        self.computed = 0

    def run(self, cell: Cell) -> None:
        """Train and score a cell, unless its file is there."""
        changed = {"learning_rate": cell.learning_rate, "seed": cell.seed, "steps": self.steps[cell.arm]}
        config = self.config.model_copy(update=changed)
        images = draw_images(self.subjects, cell.count, cell.seed)
        decides = Decides(
            task=self.task.name,
            design=self.designs[cell.arm],
            store=self.store.fingerprint,
            images=images,
            scored=self.scored,
            finetune={k: v for k, v in self.task.decides(config).items() if k not in ("learning_rates", "confidence")},
        )
        found = read_cell(self.out, decides, self.task)
        if found is None:
            found, maps = self._train(cell, config, images)
            write_cell(self.out, cell, decides, found, maps if self.keep else None)
            self.computed += 1
        for split, scores in found.items():
            self._check_told(split, scores)
        self.cells[cell] = found

    def _check_told(self, split: str, scores: Sequence[Any]) -> None:
        """Raise DataError where the measure has no value on a split, as an AUROC of one class."""
        if np.isfinite(self._table(scores)).any():
            return
        measure = self.task.measured(self.store, self.config)
        patients = len({score.subject_id for score in scores})
        fix = f"score a split with two patients or more of each kind (finetune.split), not {split}"
        raise DataError(
            f"{measure} cannot be told apart on {patients} {split} patients",
            where=str(self.store.folder),
            fix=fix if split == self.config.split else "give one learning rate, or split the data otherwise",
        )

    def _train(
        self, cell: Cell, config: FinetuneConfig, images: Sequence[str]
    ) -> tuple[Scores, dict[str, NDArray[Any]]]:
        config = config.model_copy(update={"checkpoint_steps": config.steps})
        maps: dict[str, NDArray[Any]] = {}
        with tempfile.TemporaryDirectory(prefix=".cell-", dir=self.out) as folder:
            network, _ = train_network(self.task, self.arms[cell.arm], self.store, config, images, Path(folder))
        scores = {}
        for split, ids in self.scored.items():
            keep = maps.__setitem__ if split == config.split else None
            scores[split] = self.task.score(network, self.store, config, ids, keep=keep)
        return scores, maps

    def result(
        self, counts: tuple[int, ...], seeds: int, rates: tuple[float, ...], *, control: str, all_images: int | None
    ) -> CompareResult:
        """Choose learning rates and put the numbers together."""
        split = self.config.split
        chosen = {arm: {n: self._best_rate(arm, n, seeds, rates) for n in counts} for arm in self.arms}

        def scores(arm: str, n: int, seed: int) -> tuple[Any, ...]:
            return self.cells[Cell(arm, n, seed, chosen[arm][n])][split]

        values = {
            arm: {n: np.stack([self._table(scores(arm, n, seed)) for seed in range(seeds)]) for n in counts}
            for arm in self.arms
        }
        patients = tuple(sorted({self.store.row(i).subject_id for i in self.scored[split]}))
        measure = self.task.measured(self.store, self.config)
        beside = {
            arm: {
                n: [self.task.further(scores(arm, n, seed), self.store, self.config) for seed in range(seeds)]
                for n in counts
            }
            for arm in self.arms
        }
        names = dict.fromkeys(name for by in beside.values() for many in by.values() for one in many for name in one)
        further = {
            name: {
                arm: {n: float(mean_of(np.array([one.get(name, np.nan) for one in many]))) for n, many in by.items()}
                for arm, by in beside.items()
            }
            for name in names
        }
        found = CompareResult(
            out=self.out,
            task=self.task.name,
            measure=measure,
            arms=tuple(self.arms),
            counts=counts,
            seeds=seeds,
            split=split,
            patients=patients,
            steps=self.config.steps,
            values=values,
            further=further,
            rates=chosen,
            searched=rates if self.search else (),
            pairs=(),
            computed=self.computed,
            all_images=all_images,
            control=control,
            control_steps=self.steps[control] if control else 0,
        )
        return with_comparisons(found, self.config.confidence)

    def _best_rate(self, arm: str, count: int, seeds: int, rates: tuple[float, ...]) -> float:
        if not self.search:
            return rates[0]

        def on_validation(rate: float) -> float:
            by_seed = [self._table(self.cells[Cell(arm, count, s, rate)]["validation"]) for s in range(seeds)]
            return float(mean_of(by_seed))

        return max(rates, key=on_validation)

    def _table(self, scores: Sequence[Any]) -> NDArray[np.float64]:
        return self.task.table(scores, self.store, self.config)
