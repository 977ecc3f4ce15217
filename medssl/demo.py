"""The demo: the whole way on the scans that ship, from a folder to a report and a bundle, on a laptop's CPU.

Every step is what the command of the same name does. Killed and run again it goes on where it was.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .demo_data import demo_folder
from .downstream import CompareResult, compare_encoders, finetune
from .errors import RunError
from .export import export_run
from .files import check_new, without, write_json
from .ingest import build_index
from .ingest.subjects import Fractions
from .metrics import draw_images
from .prepare import build_store
from .pretrain import pretrain_encoder
from .probe import ProbeResult, probe_encoder
from .progress import Progress, silent
from .recipe import load_recipe
from .report import read_examples, write_report
from .store import Store
from .version import __version__

RECIPE = "anatomy-hippocampus"
LABELLED = 2
"""Labelled volumes each arm may learn from: few enough for labels to be what is missing."""
SEEDS = 3
_KEY = b"medssl demo: public data, so this key is no secret"
_FRACTIONS = Fractions(train=0.5, validation=0.2, test=0.3)


@dataclass(frozen=True)
class DemoResult:
    """What the demo found, and where it lies."""

    out: Path
    probe: ProbeResult
    comparison: CompareResult
    encoder: Path
    bundle: Path
    report: Path
    seconds: float

    def __str__(self) -> str:
        return "\n".join(
            [
                str(self.probe),
                str(self.comparison),
                "An illustration: one small data set, a minute of training, few seeds. It is no claim about your data.",
                "",
                f"report   {self.report}",
                f"encoder  {self.encoder}",
                f"bundle   {self.bundle}",
                f"all of it took {self.seconds:.0f} s",
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "out": str(self.out),
            "report": str(self.report),
            "encoder_folder": str(self.encoder),
            "bundle": str(self.bundle),
            "seconds": self.seconds,
            "probe": self.probe.to_dict(),
            "comparison": self.comparison.to_dict(),
            "illustration": True,
        }


def run_demo(
    out: Path | str, *, overrides: tuple[str, ...] = (), seeds: int = SEEDS, progress: Progress = silent
) -> DemoResult:
    """Index, prepare, pretrain, probe, fine-tune, compare, export and report on the shipped scans.

    Args:
        out: a new folder, or the one of an earlier demo, which is finished.
        overrides: of the recipe, as `--set` has them.
        seeds: paired seeds of the probe and of the comparison.
        progress: told of every phase.

    Raises:
        RunError: `out` holds another demo.
    """
    out, began = Path(out), time.perf_counter()
    _claim(out, {"medssl": __version__, "overrides": list(overrides), "seeds": seeds})
    recipe = load_recipe(RECIPE, overrides)
    index = out / "index"
    if not (index / "index.parquet").is_file():
        build_demo_index(index, progress=progress)
    store = Store.open(build_store(index, recipe.prepare, out / "store", progress=progress).store)
    run = pretrain_encoder(recipe, store, out / "run", resume=(out / "run").exists(), progress=progress)
    probe = probe_encoder(run.encoder, store, recipe.probe, seeds=seeds, progress=progress)
    write_json(out / "probe.json", probe.to_dict())
    comparison = compare_encoders(
        [run.encoder, None],
        data=store,
        counts=(LABELLED,),
        seeds=seeds,
        out=out / "comparison",
        config=recipe.finetune,
        names=("encoder", "scratch"),
        progress=progress,
    )
    # Two trainings more, with the first seed's labels: their networks are kept, for the bundle and the pictures.
    train = {i: store.row(i).subject_id for i in store.ids_of("train") if store.row(i).labelled}
    images = draw_images(train, LABELLED, 0)
    kept = {}
    for arm, start in (("encoder", run.encoder), ("scratch", None)):
        kept[arm] = out / f"segmenter-from-{arm}"
        finetune(
            start,
            store,
            kept[arm],
            recipe.finetune,
            images=images,
            network=recipe.encoder,
            resume=kept[arm].exists(),
            progress=progress,
        )
    bundle = out / "bundle"
    if not bundle.exists():
        export_run(kept["encoder"], "monai-bundle", bundle)
    page = write_report(
        run.run,
        probe=probe,
        compare=comparison,
        bundle=bundle,
        store=store,
        examples=read_examples(store, kept),
        illustration=True,
        out=out / "report.html",
    )
    seconds = time.perf_counter() - began
    result = DemoResult(out, probe, comparison, run.encoder, bundle, page.out, seconds)
    folders = ("out", "report", "encoder_folder", "bundle")
    write_json(out / "summary.json", without(result.to_dict(), *folders))
    return result


def build_demo_index(out: Path, *, progress: Progress = silent) -> Path:
    """Index the shipped scans: MR volumes with label maps and a table of patients, and one CT series."""
    data = demo_folder()
    hippocampus = data / "hippocampus"
    build_index(
        data,
        out,
        labels=hippocampus / "labels",
        subjects=hippocampus / "patients.tsv",
        key=_KEY,
        fractions=_FRACTIONS,
        modality="MR",
        progress=progress,
    )
    return out


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Take a new folder for this demo, or the one in which it was begun."""
    mark = out / "demo.json"
    if mark.is_file():
        if json.loads(mark.read_text(encoding="utf-8")) == settings:
            return
        raise RunError(
            "another demo was begun here", where=str(out), fix="name a new folder with --out, or remove this one"
        )
    check_new(out)
    out.mkdir(exist_ok=True)
    write_json(mark, settings)
