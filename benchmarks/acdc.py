"""Does pretraining help where labels are few? ACDC short axis, frozen and fine-tuned, against scratch and scratch x 3.

THE ANALYSIS, fixed before any test patient was scored (`measure` refuses other scripts and recipes than those of the
commit it is told):

- Patients: 40, split anew into 20 training, 5 validation, 15 test, with as many of every disease group (`acdc_data`).
- Pretraining: images of the 20 training patients and of 15 Sunnybrook patients, no labels; seeds 0 and 1.
- Arms: U-Net from scratch, `anatomy`, `mae` form dense; ViT from scratch, `mae` form tokens. Both scratch arms also
  with three times the steps. Each recipe's opponent is the scratch arm of its own architecture.
- Labels: 1, 3, 8 labelled training patients; five label seeds, which choose patients, new weights, order and
  augmentation, the same in all arms.
- Rates: every arm, scratch x3 too, chooses from one grid by the mean Dice of the validation patients with 3 labelled
  patients and label seed 0 (encoders of pretraining seed 0). The chosen rate holds for all counts.
- Measure: Dice of right ventricle, myocardium and left ventricle of a test patient (both phases in one volume), mean
  over the three.
- Combination: the Dice of a recipe is the mean of its two pretraining seeds, by label seed and patient, (5, 15).
  Bootstrap over label seeds and patients. The interval speaks of these two encoders; each is shown by itself as well.
- Primary endpoint: recipe minus scratch, mean over the three counts; Holm over the three recipes. It "helps" if the 95%
  interval lies above 0; medssl's stricter verdict is shown too.
- Secondary, each its own Holm family: recipe minus scratch at each count (9); recipe minus scratch x3 over all counts
  (3) and at each count (9); frozen dense probe, encoder minus random weights and minus no network, over all counts and
  at each count. No arm, count, seed or patient is left out.

    python -m benchmarks.acdc --out result.json                         # the whole, in a temporary folder
    python -m benchmarks.acdc tune --work FOLDER                        # validation patients only
    python -m benchmarks.acdc measure --work FOLDER --analysis COMMIT --out result.json   # goes on where it stopped

Shapes: L label seeds, P patients.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medssl.downstream import compare_encoders
from medssl.metrics import Interval, bootstrap, draw_images, holm, mean_of, per_patient
from medssl.nets.encoder import Encoder, load_encoder
from medssl.prepare import build_store_from_datalist
from medssl.pretrain import pretrain_encoder
from medssl.probe.arms import Arm, EncoderArm, NoNetworkArm
from medssl.probe.dense import fit_arm, score_image
from medssl.probe.outside import with_random_weights
from medssl.recipe import load_recipe
from medssl.store import Store

from .acdc_data import SPLIT_SEED, write_datalist
from .machine import machine

RECIPES = {"anatomy": "anatomy-short-axis", "mae dense": "mae-short-axis", "mae tokens": "mae-short-axis-vit"}
OPPONENT = {"anatomy": "scratch", "mae dense": "scratch", "mae tokens": "ViT scratch"}
RANDOM = {"scratch": "U-Net, random weights", "ViT scratch": "ViT, random weights"}
LONGER = 3
PRETRAINING_SEEDS = (0, 1)
LABEL_SEEDS = 5
COUNTS = (1, 3, 8)
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
TUNED_COUNT, TUNED_SEEDS = 3, 1
ANALYSIS = ("benchmarks/acdc.py", "benchmarks/acdc_data.py", *(f"recipes/{name}.yaml" for name in RECIPES.values()))
Table = NDArray[np.float64]
ByCount = dict[int, Table]


class Bench:
    """Everything that is made once in a working folder; asked again, what is there is taken."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.recipes = {arm: load_recipe(Path(__file__).parents[1] / f"recipes/{n}.yaml") for arm, n in RECIPES.items()}
        self.store = self._store()
        self.seconds: dict[str, float] = {}

    def _store(self) -> Store:
        if not (self.work / "store").is_dir():
            first, *others = (recipe.prepare for recipe in self.recipes.values())
            if any(other != first for other in others):
                raise ValueError("the recipes prepare images differently")
            build_store_from_datalist(write_datalist(self.work / "data"), first, self.work / "store")
        return Store.open(self.work / "store")

    def encoder(self, recipe: str, seed: int) -> Path:
        """Pretrain, unless it was done; return the run."""
        run = self.work / f"{RECIPES[recipe]}-{seed}"
        if not (run / "encoder").is_dir():
            wanted = load_recipe(Path(__file__).parents[1] / f"recipes/{RECIPES[recipe]}.yaml", [f"train.seed={seed}"])
            began = time.perf_counter()
            pretrain_encoder(wanted, self.store, run, resume=run.is_dir())
            seconds = round(time.perf_counter() - began, 1)
            (run / "seconds.json").write_text(json.dumps(seconds), encoding="utf-8")
        self.seconds[f"pretraining {recipe}, seed {seed}"] = json.loads((run / "seconds.json").read_text("utf-8"))
        return run

    def arms(self, seeds: Sequence[int]) -> dict[str, tuple[str, int | None, int]]:
        """Return arm to (recipe whose architecture it has, pretraining seed or None, times the steps)."""
        out: dict[str, tuple[str, int | None, int]] = {}
        for recipe, opponent in OPPONENT.items():
            out.setdefault(opponent, (recipe, None, 1))
            out.setdefault(f"{opponent} x{LONGER}", (recipe, None, LONGER))
            out |= {f"{recipe}, seed {seed}": (recipe, seed, 1) for seed in seeds}
        return out

    def fine_tuned(self, arm: str, rate: float, counts: Sequence[int], seeds: int, split: str) -> ByCount:
        """Return the Dice of an arm at one rate: count to (L, P)."""
        recipe, seed, times = self.arms(PRETRAINING_SEEDS)[arm]
        # Scratch is built as the encoder is, down to the positions of a ViT, but keeps its random weights.
        architecture: Any = load_encoder(self.encoder(recipe, PRETRAINING_SEEDS[0]))
        section = self.recipes[recipe].finetune
        config = section.model_copy(update={"split": split, "steps": section.steps * times})
        found = compare_encoders(
            [None if seed is None else self.encoder(recipe, seed)],
            data=self.store,
            counts=counts,
            seeds=seeds,
            out=self.work / "compare" / f"{split}, {arm}, {rate:g}",
            config=config,
            network=architecture,
            learning_rates=(rate,),
            predictions=False,
        )
        return {n: np.asarray(table, dtype=np.float64) for n, table in found.values[found.arms[0]].items()}

    def tune(self) -> dict[str, dict[str, float]]:
        """Return arm to rate to the mean Dice of the validation patients."""
        out: dict[str, dict[str, float]] = {}
        for arm in self.arms(PRETRAINING_SEEDS[:1]):
            found = {
                f"{rate:g}": self.fine_tuned(arm, rate, (TUNED_COUNT,), TUNED_SEEDS, "validation") for rate in RATES
            }
            out[arm] = {rate: float(mean_of(by_count[TUNED_COUNT])) for rate, by_count in found.items()}
            _say(f"tuned {arm}: {out[arm]}")
        return out

    def probes(self, split: str, seeds: int, counts: Sequence[int]) -> dict[str, ByCount]:
        """Return the frozen dense probe's Dice: arm to count to (L, P)."""
        makers: dict[str, Callable[[int], Arm]] = {}
        for recipe, opponent in OPPONENT.items():
            for seed in PRETRAINING_SEEDS:
                encoder = load_encoder(self.encoder(recipe, seed))
                makers[f"{recipe}, seed {seed}"] = _fixed(EncoderArm(encoder))
            makers.setdefault(RANDOM[opponent], _random(encoder))
        makers["no network"] = _fixed(NoNetworkArm(self.recipes["anatomy"].probe.sigmas_mm))
        out: dict[str, ByCount] = {}
        for arm, make in makers.items():
            out[arm] = {n: np.stack([self._probe(make(s), split, n, s) for s in range(seeds)]) for n in counts}
            _say(f"probed {arm}: {[round(float(mean_of(table)), 3) for table in out[arm].values()]}")
        return out

    def _probe(self, arm: Arm, split: str, count: int, seed: int) -> Table:
        labelled = {i: self.store.row(i).subject_id for i in self.store.ids_of("train") if self.store.row(i).labelled}
        images = draw_images(labelled, count, seed)
        readout = fit_arm(arm, self.store, images, self.recipes["anatomy"].probe, seed)
        scored = self.store.ids_of(split)
        scores = np.stack([score_image(arm, self.store, image_id, readout) for image_id in scored])  # (I, 3)
        return np.asarray(per_patient(mean_of(scores, 1)[None], [self.store.row(i).subject_id for i in scored])[0])


def _fixed(arm: Arm) -> Callable[[int], Arm]:
    return lambda seed: arm


def _random(encoder: Encoder) -> Callable[[int], Arm]:
    return lambda seed: EncoderArm(with_random_weights(encoder, seed))


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


def best_rates(tuned: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return each arm's rate; encoders of the other pretraining seeds take that of the first."""
    best = {arm: float(max(by_rate, key=lambda rate: by_rate[rate])) for arm, by_rate in tuned.items()}
    first = f", seed {PRETRAINING_SEEDS[0]}"
    for arm in [arm for arm in best if arm.endswith(first)]:
        best |= {f"{arm.removesuffix(first)}, seed {seed}": best[arm] for seed in PRETRAINING_SEEDS}
    return best


def over_seeds(dice: Mapping[str, ByCount], recipe: str) -> ByCount:
    """Return the mean of a recipe's pretraining seeds, by label seed and patient: count to (L, P)."""
    tables = [dice[f"{recipe}, seed {seed}"] for seed in PRETRAINING_SEEDS]
    return {n: np.asarray(mean_of([table[n] for table in tables], 0)) for n in tables[0]}


def gap(first: ByCount, second: ByCount) -> ByCount:
    """Return the paired difference at each count, and under 0 that of the mean over counts."""
    gaps = {n: first[n] - second[n] for n in first}
    return {**gaps, 0: np.asarray(mean_of(list(gaps.values()), 0))}


def differences(dice: Mapping[str, ByCount], opponent: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return recipe to "all counts" or count to its interval; Holm within all counts, and within each count."""
    gaps = {recipe: gap(over_seeds(dice, recipe), dice[other]) for recipe, other in opponent.items()}
    overall = holm({recipe: bootstrap(tables[0]) for recipe, tables in gaps.items()})
    each = holm({(recipe, n): bootstrap(tables[n]) for recipe, tables in gaps.items() for n in tables if n})
    out: dict[str, dict[str, Any]] = {}
    for recipe, other in opponent.items():
        alone = {seed: gap(dice[f"{recipe}, seed {seed}"], dice[other])[0] for seed in PRETRAINING_SEEDS}
        cells, patients = gaps[recipe], mean_of(gaps[recipe][0], 0)
        up = [float(mean_of(row)) > 0 for n, table in cells.items() if n for row in table]
        out[recipe] = {
            "against": other,
            "all counts": _plain(overall[recipe]),
            "by count": {str(n): _plain(each[recipe, n]) for n in cells if n},
            "by pretraining seed": {str(seed): _plain(bootstrap(table)) for seed, table in alone.items()},
            "label seeds x counts up": f"{sum(up)} of {len(up)}",
            "patients up": f"{int((patients > 0).sum())} of {len(patients)}",
        }
    return out


def _plain(interval: Interval) -> dict[str, Any]:
    return interval.to_dict()


def summary(
    tuned: Mapping[str, Mapping[str, float]], tuned_dice: Mapping[str, ByCount], probe: Mapping[str, ByCount]
) -> dict[str, Any]:
    """Return every endpoint of the analysis."""
    longer = {recipe: f"{other} x{LONGER}" for recipe, other in OPPONENT.items()}
    random = {recipe: RANDOM[other] for recipe, other in OPPONENT.items()}
    return {
        "rates": best_rates(tuned),
        "validation_dice_by_rate": tuned,
        "dice": {arm: {str(n): float(mean_of(t)) for n, t in by.items()} for arm, by in tuned_dice.items()},
        "primary": differences(tuned_dice, OPPONENT),
        "against_longer": differences(tuned_dice, longer),
        "longer_against_scratch": {o: _gain(tuned_dice, f"{o} x{LONGER}", o) for o in dict.fromkeys(OPPONENT.values())},
        "probe": {arm: {str(n): float(mean_of(t)) for n, t in by.items()} for arm, by in probe.items()},
        "probe_against_random": differences(probe, random),
        "probe_against_no_network": differences(probe, dict.fromkeys(OPPONENT, "no network")),
        "patient_dice": {arm: {str(n): t.tolist() for n, t in by.items()} for arm, by in tuned_dice.items()},
        "probe_patient_dice": {arm: {str(n): t.tolist() for n, t in by.items()} for arm, by in probe.items()},
    }


def _gain(dice: Mapping[str, ByCount], first: str, second: str) -> dict[str, Any]:
    gaps = gap(dice[first], dice[second])
    return {"all counts" if n == 0 else str(n): _plain(bootstrap(table)) for n, table in gaps.items()}


def check_committed(commit: str) -> str:
    """Return the commit's short hash where the analysis stands as it is here.

    Raises:
        SystemExit: script, data or recipes are not those of the commit.
    """
    root = Path(__file__).parents[1]
    changed = subprocess.run(["git", "diff", "--quiet", commit, "--", *ANALYSIS], cwd=root, check=False).returncode
    if changed:
        raise SystemExit(f"the analysis differs from that of {commit}: commit it before test patients are scored")
    found = subprocess.run(
        ["git", "rev-parse", "--short", commit], cwd=root, capture_output=True, text=True, check=True
    )
    return found.stdout.strip()


def measure(bench: Bench, analysis: str) -> dict[str, Any]:
    """Score the test patients."""
    tuned = bench.tune()
    rates = best_rates(tuned)
    began = time.perf_counter()
    dice: dict[str, ByCount] = {}
    for arm in bench.arms(PRETRAINING_SEEDS):
        dice[arm] = bench.fine_tuned(arm, rates[arm], COUNTS, LABEL_SEEDS, "test")
        _say(f"measured {arm} after {time.perf_counter() - began:.0f} s")
    middle = time.perf_counter()
    probe = bench.probes("test", LABEL_SEEDS, COUNTS)
    recipes = bench.recipes.values()
    return {
        "command": f"python -m benchmarks.acdc measure --work FOLDER --analysis {analysis}",
        "machine": machine(),
        "analysis_commit": analysis,
        "patients": {split: len(bench.store.ids_of(split)) for split in ("train", "validation", "test")},
        "split_seed": SPLIT_SEED,
        "seeds": {"label": LABEL_SEEDS, "pretraining": list(PRETRAINING_SEEDS)},
        "counts": list(COUNTS),
        "recipes": RECIPES,
        "steps": {"fine-tuning": sorted({r.finetune.steps for r in recipes}), "times": LONGER},
        "slices_a_step": sorted({r.finetune.batch_size for r in recipes}),
        "pretraining_steps": {arm: recipe.train.steps for arm, recipe in bench.recipes.items()},
        "grid": list(RATES),
        "seconds": {
            **bench.seconds,
            "fine-tuning, test": round(middle - began, 1),
            "probes": round(time.perf_counter() - middle, 1),
        },
        **summary(tuned, dice, probe),
    }


def main() -> None:
    """Tune on validation patients, or measure on test patients."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("what", nargs="?", choices=("tune", "measure"), default="measure")
    parser.add_argument("--work", type=Path, help="keeps store, runs and cells; a temporary folder unless given")
    parser.add_argument("--analysis", default="HEAD", help="commit that fixed the analysis")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.what == "measure" and arguments.out is None:
        parser.error("measure needs --out")
    with tempfile.TemporaryDirectory() as folder:
        bench_folder = arguments.work or Path(folder)
        if arguments.what == "tune":
            Bench(bench_folder).tune()
            return
        analysis = check_committed(arguments.analysis)
        result = measure(Bench(bench_folder), analysis)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
