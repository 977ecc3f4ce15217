"""Do the intervals of a comparison hold what they say? Simulated tables of seeds and patients, the truth known.

How often a 95% interval holds the true difference, beside that of the percentiles alone; how often a table in which
nothing differs claims something, uncorrected, corrected by Holm, and as the verdict has it; how often a difference of
the size that a table says it could see is found.

python -m benchmarks.intervals --out result.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medssl.metrics import bootstrap, holm, label_saving

from .machine import command, machine

TRUTH = 0.3
COVERAGE = (
    # seeds, patients, and the standard deviations of seeds, patients and the rest
    (2, 12, 0.5, 0.5, 0.5),
    (3, 12, 0.5, 0.5, 0.5),
    (5, 12, 0.5, 0.5, 0.5),
    (10, 25, 0.5, 0.5, 0.5),
    (2, 12, 1.0, 0.2, 0.5),
    (3, 12, 1.0, 0.2, 0.5),
    (5, 12, 1.0, 0.2, 0.5),
    (5, 12, 0.2, 1.0, 0.5),
    (5, 12, 0.0, 0.0, 1.0),
)


def table(random: np.random.Generator, seeds: int, patients: int, spreads: tuple[float, ...]) -> NDArray[np.float64]:
    """Draw scores (seeds, patients) that differ by seed, by patient, and by the rest."""
    by_seed, by_patient, rest = spreads
    sizes = ((by_seed, (seeds, 1)), (by_patient, (1, patients)), (rest, (seeds, patients)))
    return np.asarray(sum(random.normal(0, spread, size) for spread, size in sizes), dtype=np.float64)


def percentiles(values: NDArray[np.float64], draws: int, seed: int) -> tuple[float, float]:
    """Return the plain percentile interval of the two-level bootstrap."""
    random = np.random.default_rng(seed)
    seeds, patients = values.shape
    rows = random.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws) @ values
    means = (rows * random.multinomial(patients, np.full(patients, 1 / patients), size=draws)).sum(1) / values.size
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def coverage(trials: int) -> list[dict[str, Any]]:
    """Count how often intervals hold the truth."""
    rows = []
    for seeds, patients, *spreads in COVERAGE:
        random, ours, plain = np.random.default_rng(seeds), 0, 0
        for trial in range(trials):
            values = TRUTH + table(random, seeds, patients, tuple(spreads))
            found = bootstrap(values, draws=500, seed=trial)
            ours += found.low <= TRUTH <= found.high
            low, high = percentiles(values, 500, trial)
            plain += low <= TRUTH <= high
        rows.append(
            {"seeds": seeds, "patients": patients, "spreads": spreads}
            | {"interval": ours / trials, "percentiles": plain / trials}
        )
    return rows


def families(trials: int) -> list[dict[str, Any]]:
    """Count how often anything is claimed of four arms that do not differ, six comparisons on 12 patients."""
    rows = []
    for seeds in (2, 3, 5, 10):
        random, alone, corrected, claimed = np.random.default_rng(seeds), 0, 0, 0
        for trial in range(trials):
            arms = [table(random, seeds, 12, (1.0, 1.0, 1.0)) for _ in range(4)]
            gaps = {(i, j): arms[i] - arms[j] for i in range(4) for j in range(i)}
            found = holm({key: bootstrap(gap, draws=500, seed=trial) for key, gap in gaps.items()}).values()
            alone += any((one.p or 0) < 0.05 for one in found)
            corrected += any((one.p_corrected or 0) <= 0.05 for one in found)
            claimed += any(one.verdict != "undecided" for one in found)
        counts = {"uncorrected": alone, "holm": corrected, "verdict": claimed}
        rows.append({"seeds": seeds, **{name: n / trials for name, n in counts.items()}})
    return rows


def power(trials: int) -> list[dict[str, Any]]:
    """Count how often a difference of the mean smallest size is found, on 12 patients."""
    rows, spreads = [], (0.5, 0.5, 0.5)
    for seeds in (3, 5, 10):
        random = np.random.default_rng(seeds)
        sizes = [bootstrap(table(random, seeds, 12, spreads), draws=50).smallest or 0.0 for _ in range(trials)]
        smallest, significant, better = float(np.mean(sizes)), 0, 0
        for trial in range(trials):
            found = bootstrap(smallest + table(random, seeds, 12, spreads), draws=500, seed=trial)
            significant += (found.p or 0) < 0.05
            better += found.verdict == "better"
        rows.append({"seeds": seeds, "test": significant / trials, "verdict": better / trials})
    return rows


def savings(trials: int) -> dict[str, float]:
    """Count how often the interval of the labels saved holds the true number: scratch's Dice rises by .1 a doubling."""
    random, counts, hits = np.random.default_rng(3), (1, 2, 4, 8), 0
    for _ in range(trials):
        patient = random.normal(0, 0.1, (1, 12))
        scratch = {n: 0.4 + 0.1 * k + patient + table(random, 5, 12, (0.02, 0, 0.03)) for k, n in enumerate(counts)}
        found = label_saving(0.55 + patient + table(random, 5, 12, (0.02, 0, 0.03)), scratch, 2)
        hits += (found.low or 0.0) <= 2 * 2**0.5 <= (found.high or np.inf)
    return {"seeds": 5, "patients": 12, "interval": hits / trials}


def main() -> None:
    """Simulate, and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=1500)
    arguments = parser.parse_args()
    trials: int = arguments.trials
    found = {
        "command": command(),
        "machine": machine(),
        "trials": trials,
        "coverage": coverage(trials),
        "families": families(trials // 2),
        "power": power(trials // 2),
        "savings": savings(trials // 5),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
