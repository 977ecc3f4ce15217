"""What a comparison found: one table, one sentence an encoder, and the numbers behind them.

Shapes: S seeds, P test patients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..metrics import Interval, Saving, bootstrap, holm, label_saving, mean_of

SCRATCH = "scratch"
Table = NDArray[np.float64]
Scores = Mapping[str, Mapping[int, Table]]
"""Arm and count to the measure, (S, P)."""


@dataclass(frozen=True)
class Difference:
    """One arm minus another, at each count and over all of them."""

    first: str
    second: str
    by_count: Mapping[int, Interval]
    overall: Interval

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "first": self.first,
            "second": self.second,
            "by_count": {str(count): interval.to_dict() for count, interval in self.by_count.items()},
            "overall": self.overall.to_dict(),
        }


def all_differences(
    values: Scores, *, control: str = "", confidence: float = 0.95, draws: int = 2000
) -> tuple[Difference, ...]:
    """Compare every pair of arms, and correct for how many comparisons that makes.

    Encoders come first in a difference, scratch last. Two families are corrected by Holm's method, each for itself: the
    differences over all counts, which the sentences speak of, and those at each count.

    Args:
        values: same seeds and patients everywhere.
        control: the arm that is scratch trained longer; before scratch, behind the encoders.
        confidence: of the intervals, and 1 minus the chance of a wrong claim in a family.
        draws: of each bootstrap.
    """
    rank = {SCRATCH: 2, control or SCRATCH + " trained longer": 1}
    arms = sorted(values, key=lambda arm: rank.get(arm, 0))  # stable: encoders stay in their order
    pairs = [(a, b) for i, a in enumerate(arms) for b in arms[i + 1 :]]
    counts = tuple(next(iter(values.values())))
    gaps = {(a, b, n): values[a][n] - values[b][n] for a, b in pairs for n in counts}
    by_count = holm({key: bootstrap(gap, confidence=confidence, draws=draws) for key, gap in gaps.items()})
    overall = holm(
        {
            (a, b): bootstrap(mean_of([gaps[a, b, n] for n in counts], 0), confidence=confidence, draws=draws)
            for a, b in pairs
        }
    )
    return tuple(Difference(a, b, {n: by_count[a, b, n] for n in counts}, overall[a, b]) for a, b in pairs)


def all_savings(values: Scores, arms: Sequence[str], confidence: float) -> dict[str, dict[int, Saving]]:
    """Tell for each encoder and count how many labels scratch needs; nothing without scratch or with one count."""
    if SCRATCH not in values or len(values[SCRATCH]) < 2:
        return {}
    return {
        arm: {n: label_saving(t, values[SCRATCH], n, confidence=confidence) for n, t in values[arm].items()}
        for arm in arms
    }


@dataclass(frozen=True)
class CompareResult:
    """The measure of every arm on the same patients, and how far the arms differ."""

    out: Path | None
    """Folder of the cells; None where nothing was kept."""
    task: str
    measure: str
    """What `values` are, in the field's words; more is better."""
    arms: tuple[str, ...]
    counts: tuple[int, ...]
    seeds: int
    split: str
    patients: tuple[str, ...]
    steps: int
    values: Scores
    further: Mapping[str, Mapping[str, Mapping[int, float]]]
    """Other numbers by name, arm and count. For segmentation `hausdorff95_mm`, the mean over structures that were
    found, in voxels where images have no spacing."""
    rates: Mapping[str, Mapping[int, float]]
    """Arm and count to the learning rate that was chosen."""
    searched: tuple[float, ...]
    pairs: tuple[Difference, ...]
    """Every two arms, encoders first, scratch last."""
    computed: int
    """Cells trained now; the others were there."""
    savings: Mapping[str, Mapping[int, Saving]] = field(default_factory=dict)
    """Encoder and count to the labels with which scratch comes as far."""
    all_images: int | None = None
    """The count that is all labelled images, where it was asked for."""
    control: str = ""
    """The arm that is scratch trained longer."""
    control_steps: int = 0

    @property
    def encoders(self) -> tuple[str, ...]:
        """Arms that began with pretrained weights."""
        return tuple(arm for arm in self.arms if arm not in (SCRATCH, self.control))

    @property
    def differences(self) -> dict[str, Mapping[int, Interval]]:
        """Encoder and count to its value minus that of scratch; empty where scratch is no arm."""
        return {pair.first: pair.by_count for pair in self._against_scratch()}

    @property
    def overall(self) -> dict[str, Interval]:
        """Encoder to the difference averaged over counts."""
        return {pair.first: pair.overall for pair in self._against_scratch()}

    def _against_scratch(self) -> list[Difference]:
        return [pair for pair in self.pairs if pair.second == SCRATCH and pair.first != self.control]

    def __str__(self) -> str:
        lines = [self.heading, *self._table(_cells), *self.sentences]
        if self.seeds < 5 and self.overall:
            lines.append(f"{_seeds(self.seeds)}: more of them see smaller differences")
        return "\n".join(lines)

    @property
    def heading(self) -> str:
        """What the table shows."""
        rates = ", ".join(f"{rate:g}" for rate in self.searched)
        searched = f", learning rate chosen by validation from {rates}" if self.searched else ""
        longer = f", {self.control} {self.control_steps}" if self.control else ""
        patients = f"{len(self.patients)} {self.split} patient{'s' * (len(self.patients) != 1)}"
        return f"{self.measure} on {patients}, {_seeds(self.seeds, 'paired ')}, {self.steps} steps{longer}{searched}"

    def _table(self, row: Callable[[str, Sequence[str]], str]) -> list[str]:
        """Return the lines of the table, each made by `row` from its name and a cell for each count."""
        names = [f"{count} (all)" if count == self.all_images else str(count) for count in self.counts]
        lines = [row("labelled images", names)]
        for arm in self.arms:
            lines.append(row(arm, [f"{mean_of(self.values[arm][count]):.3f}" for count in self.counts]))
        for pair in self.pairs:
            intervals = [pair.by_count[count] for count in self.counts]
            lines.append(row(f"{pair.first} minus {pair.second}", [str(interval) for interval in intervals]))
            lines.append(row("  could see, verdict", [_could_see(interval) for interval in intervals]))
        if self.savings:
            for arm in self.encoders:
                lines.append(row(f"{arm} is worth scratch with", [str(self.savings[arm][n]) for n in self.counts]))
        return lines

    @property
    def markdown(self) -> str:
        """The table and the sentences, for a document."""
        rows = self._table(lambda name, cells: "| " + " | ".join((name.strip(), *cells)) + " |")
        rule = "|" + " --- |" * (len(self.counts) + 1)
        sentences = [f"{sentence[:1].upper()}{sentence[1:]}." for sentence in self.sentences]
        return "\n".join([self.heading + ".", "", rows[0], rule, *rows[1:], "", *sentences]) + "\n"

    @property
    def sentences(self) -> tuple[str, ...]:
        """One for each encoder: what it is worth, how sure that is, and the labels it saves."""
        chosen = self._against_scratch() or list(self.pairs)
        lines = [self._sentence(pair) for pair in chosen]
        if len(self.pairs) > 1:
            lines.append(
                "p is a bootstrap's, corrected by Holm among the differences over all counts; those at each count are "
                "corrected among themselves"
            )
        return tuple(lines)

    def _sentence(self, pair: Difference) -> str:
        interval = pair.overall
        numbers = (
            f"{interval.mean:+.3f} {self.measure} over all counts, {100 * interval.confidence:.0f}% interval "
            f"[{interval.low:+.3f}, {interval.high:+.3f}]"
        )
        if interval.p_corrected is not None:
            numbers += f", p {_p(interval.p_corrected)}"
        if interval.smallest is not None:
            numbers += f", smallest difference it could see {interval.smallest:.3f}"
        if interval.verdict == "undecided":
            words = f"{pair.first} against {pair.second} is undecided, {interval.doubt}: {numbers}"
        else:
            words = f"{pair.first} is {interval.verdict} than {pair.second}: {numbers}"
        saving = self.savings.get(pair.first, {}) if pair.second == SCRATCH else {}
        return f"{words}; {saving[min(saving)].sentence}" if saving else words

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        by = {arm: {str(c): _plain(table) for c, table in counts.items()} for arm, counts in self.values.items()}
        return {
            "task": self.task,
            "measure": self.measure,
            "out": None if self.out is None else str(self.out),
            "arms": list(self.arms),
            "counts": list(self.counts),
            "all_images": self.all_images,
            "seeds": self.seeds,
            "split": self.split,
            "patients": list(self.patients),
            "steps": self.steps,
            "control": {"arm": self.control, "steps": self.control_steps} if self.control else None,
            "values": {a: _keyed({n: float(mean_of(t)) for n, t in c.items()}) for a, c in self.values.items()},
            "further": {name: {arm: _keyed(by) for arm, by in arms.items()} for name, arms in self.further.items()},
            "learning_rates": list(self.searched),
            "chosen_rates": {arm: _keyed(rates) for arm, rates in self.rates.items()},
            "differences": {
                arm: {str(c): interval.to_dict() for c, interval in counts.items()}
                for arm, counts in self.differences.items()
            },
            "overall": {arm: {**interval.to_dict(), **self._ups(arm)} for arm, interval in self.overall.items()},
            "pairs": [pair.to_dict() for pair in self.pairs],
            "savings": {a: {str(n): saving.to_dict() for n, saving in by.items()} for a, by in self.savings.items()},
            "sentences": list(self.sentences),
            "patient_values": by,
            "computed": self.computed,
        }

    def _ups(self, arm: str) -> dict[str, str]:
        """Count the cells and the patients in which an encoder is above scratch."""
        gaps = np.stack(
            [self.values[arm][count] - self.values[SCRATCH][count] for count in self.counts]
        )  # (counts, S, P)
        cells, patients = mean_of(gaps, 2) > 0, mean_of(mean_of(gaps, 0), 0) > 0
        return {
            "cells_up": f"{int(cells.sum())} of {cells.size}",
            "patients_up": f"{int(patients.sum())} of {patients.size}",
        }


def _keyed(values: Mapping[int, float]) -> dict[str, float | None]:
    return {str(key): value if math.isfinite(value) else None for key, value in values.items()}


def _plain(table: Table) -> list[list[float | None]]:
    return [[value if math.isfinite(value) else None for value in row] for row in table.tolist()]


def _cells(name: str, cells: Sequence[str]) -> str:
    return "  " + name.ljust(30) + "".join(cell.rjust(28) for cell in cells)


def _could_see(interval: Interval) -> str:
    return f"{'–' if interval.smallest is None else f'{interval.smallest:.3f}'}, {interval.verdict}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _seeds(n: int, kind: str = "") -> str:
    return f"{n} {kind}seed{'s' * (n != 1)}"


def with_comparisons(result: CompareResult, confidence: float) -> CompareResult:
    """Return a result with the differences and savings that its values tell."""
    pairs = all_differences(result.values, control=result.control, confidence=confidence)
    return replace(result, pairs=pairs, savings=all_savings(result.values, result.encoders, confidence))
