"""Which recipe the demo runs: each is pretrained on the demo's training images and probed on its validation images.

Test images are not looked at here.

python -m benchmarks.demo_choice --out result.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from medssl.demo import build_demo_index
from medssl.prepare import build_store
from medssl.pretrain import pretrain_encoder
from medssl.probe import probe_encoder
from medssl.recipe import load_recipe
from medssl.store import Store

from .machine import command, machine

RECIPES = ("anatomy-hippocampus", "mae-hippocampus")


def main() -> None:
    """Pretrain and probe every recipe, and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        index = build_demo_index(Path(folder) / "index")
        for name in RECIPES:
            recipe = load_recipe(name)
            store = Store.open(build_store(index, recipe.prepare, Path(folder) / f"store-{name}"))
            began = time.perf_counter()
            run = pretrain_encoder(recipe, store, Path(folder) / f"run-{name}")
            seconds = time.perf_counter() - began
            config = recipe.probe.model_copy(update={"split": "validation"})
            probe = probe_encoder(run.encoder, store, config, seeds=arguments.seeds).to_dict()
            kept = {key: probe[key] for key in ("split", "labelled_images", "dice", "differences")}
            results[name] = {"seconds": round(seconds, 1), "steps": recipe.train.steps, **kept}
    found = {"command": command(), "machine": machine(), "recipes": results}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
