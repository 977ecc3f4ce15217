"""Detection the whole way on real files: pictures and boxes as they came, an index, a store, a detector, a bundle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from medssl.downstream import FinetuneConfig, finetune
from medssl.downstream.detection_boxes import true_boxes
from medssl.downstream.detection_config import DetectionConfig
from medssl.export import export_run
from medssl.ingest import Fractions, build_index
from medssl.nets.config import DynUNetConfig
from medssl.nets.encoder import load_network
from medssl.prepare import PrepareConfig, build_store
from medssl.store import Store


def test_blood_cells_of_voc_files_are_learned_from_scored_and_exported(shared: Path, tmp_path: Path) -> None:
    source, mine = shared / "bccd-detection", tmp_path / "cells"
    for kind, ending in (("images", "jpg"), ("annotations", "xml")):
        (mine / kind).mkdir(parents=True)
        for path in sorted((source / kind).glob(f"*.{ending}"))[:6]:
            shutil.copy(path, mine / kind)
    halves = Fractions(train=0.5, validation=0.0, test=0.5)
    build_index(
        [mine / "images"], tmp_path / "index", boxes=mine / "annotations", fractions=halves, key=b"k" * 32, seed=1
    )
    prepare = PrepareConfig(orientation=None, spacing_mm=None)
    store = Store.open(build_store(tmp_path / "index", prepare, tmp_path / "store").store)
    assert store.box_names == ("Platelets", "RBC", "WBC")
    config = FinetuneConfig(
        steps=2,
        batch_size=2,
        crop=(128, 128),
        overlap=0.0,
        workers=0,
        warmup_steps=1,
        detection=DetectionConfig(overlaps=(0.5,)),
    )
    network = DynUNetConfig(channels=(8, 8, 8), features=8, strides=(2, 2, 2))
    result = finetune(None, store, tmp_path / "run", config, task="detection", network=network)
    assert set(result.summary["classes"]) == {"Platelets", "RBC", "WBC"}
    assert result.summary["unit"] == "voxel"
    detector: Any = load_network(tmp_path / "run" / "detector")
    sides = np.concatenate(
        [t[:, 2:] - t[:, :2] for t in (true_boxes(store, i, config.detection).corners for i in store.ids_of("train"))]
    )
    anchors = np.array(detector.spec["anchors"]).reshape(-1, 2)
    assert np.quantile(sides, 0.1) / 2 < np.median(anchors) < np.quantile(sides, 0.9) * 2
    for path in (tmp_path / "run" / "predictions").iterdir():
        assert all(len(box["box"]) == 4 for box in json.loads(path.read_text())["boxes"])
    bundle = export_run(tmp_path / "run", "monai-bundle", tmp_path / "bundle")
    assert "scripts/retinanet.py" in bundle.files
    config_json = json.loads((tmp_path / "bundle" / "configs" / "inference.json").read_text())
    assert config_json["saver"]["classes"] == ["Platelets", "RBC", "WBC"]
