"""One small real run with all that can be measured of it; six steps are enough, the page is what is tested."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from medssl.downstream import CompareResult, FinetuneConfig, compare_encoders, finetune
from medssl.pretrain import RunResult, pretrain_encoder
from medssl.probe import ProbeConfig, ProbeResult, probe_encoder
from medssl.recipe import Recipe, parse_recipe
from medssl.store import Store

from ..labelled_store import ellipsoids, write_labelled_store

SPLITS = ("train",) * 4 + ("validation",) * 2 + ("test",) * 4
RECIPE: dict[str, Any] = {
    "prepare": {"scaling": {"name": "zscore"}},
    "loader": {"crop": [16, 16, 16], "batch_size": 2, "workers": 0},
    "encoder": {"name": "dynunet", "channels": [4, 8, 8], "strides": [2, 2, 2], "features": 4},
    "method": {"name": "mae", "form": "dense", "block": 4},
    "train": {"steps": 6, "warmup_steps": 1, "log_steps": 1, "checkpoint_steps": 6, "device": "cpu"},
    "probe": {"images": 2, "points": 200, "every": 3},
}


@dataclass(frozen=True)
class Made:
    """A run and everything measured of it."""

    run: RunResult
    recipe: Recipe
    store: Store
    probe: ProbeResult
    compare: CompareResult
    runs: dict[str, Path]
    """Arm to its fine-tuned run."""


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Pretrained, probed, fine-tuned and compared on ellipsoids; patients have telling names, to be looked for."""
    folder = tmp_path_factory.mktemp("Smith-John")
    images, labels = zip(*(ellipsoids((16, 16, 16), seed) for seed in range(len(SPLITS))))
    subjects = [f"SUBJECT-{k:03d}" for k in range(len(SPLITS))]
    store = write_labelled_store(
        folder / "store", images, labels, splits=SPLITS, subjects=subjects, spacing_mm=(1.0, 1.0, 2.0)
    )
    (store.folder / "card.md").write_text("# Data card\n\n10 images <b>of</b> 10 subjects.\n")
    recipe = parse_recipe(RECIPE)
    run = pretrain_encoder(recipe, store, folder / "run")
    config = FinetuneConfig(steps=2, batch_size=2, crop=(16, 16, 16), workers=0, warmup_steps=1, device="cpu")
    probe = probe_encoder(run.encoder, store, ProbeConfig(images=2, points=200), seeds=2)
    compare = compare_encoders(
        [run.encoder, None],
        data=store,
        counts=(1, 2),
        seeds=2,
        out=folder / "compare",
        config=config,
        names=["encoder", "scratch"],
    )
    runs = {"encoder": folder / "tuned", "scratch": folder / "plain"}
    for arm, out in runs.items():
        finetune(run.encoder if arm == "encoder" else None, store, out, config, network=recipe.encoder)
    return Made(run, recipe, store, probe, compare, runs)
