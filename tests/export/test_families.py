"""Every family of encoders goes the whole way of every task: weights in, trained, scored, out as a bundle."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medssl.downstream import FinetuneConfig, finetune
from medssl.export import export_run
from medssl.nets.encoder import (
    DynUNetConfig,
    SegResNetConfig,
    SwinConfig,
    TimmConfig,
    ViTConfig,
    build_encoder,
    load_network,
)
from medssl.nets.segmenter import Segmenter
from medssl.prepare import PrepareConfig, preparation_of
from medssl.store import Store

from ..labelled_store import ellipsoids, write_labelled_store

SWIN = SwinConfig(width=12, depths=(1, 1, 1, 1), heads=(1, 2, 2, 2), window=4)
VIT = ViTConfig(patch=8, width=24, depth=3, heads=2, mlp=24)
# The encoder, its crop, and what else the section `finetune` says.
FAMILIES: dict[str, tuple[Any, tuple[int, ...], dict[str, Any]]] = {
    "dynunet": (DynUNetConfig(channels=(8, 8, 8), features=8), (16, 16, 16), {"deep_supervision": True}),
    "segresnet": (SegResNetConfig(channels=8, blocks_down=(1, 1), blocks_up=(1,)), (16, 16, 16), {}),
    "vit, UNETR-like": (VIT, (16, 16, 16), {}),
    "vit, light": (VIT, (16, 16, 16), {"decoder": "light"}),
    "swin": (SWIN, (32, 64, 32), {}),
    "swin, light, of slices": (SWIN, (32, 32), {"decoder": "light"}),
    "timm convnext, of slices": (TimmConfig(model="test_convnext"), (32, 32), {}),
    "timm resnet, of slices": (TimmConfig(model="test_resnet"), (64, 32), {}),
    "timm vit, of slices": (TimmConfig(model="test_vit"), (32, 32), {}),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Three volumes with two ellipsoids each: one to train on, one to choose by, one to score."""
    volumes = [ellipsoids((18, 16, 13), seed) for seed in range(3)]
    return write_labelled_store(
        tmp_path_factory.mktemp("families") / "store",
        [image for image, _ in volumes],
        [label for _, label in volumes],
        splits=("train", "validation", "test"),
        spacing_mm=(1.0, 1.0, 2.0),
        preparation=preparation_of(PrepareConfig(workers=0)),
    )


@pytest.fixture(scope="module")
def told(store: Store) -> Store:
    """The volumes, with a finding."""
    rows = [replace(row, labels={"finding": float(k != 1)}) for k, row in enumerate(store.rows)]
    return Store(store.folder, rows, {}, store.preparation)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Three pictures with two ellipses each."""
    drawn = [ellipsoids((40, 36), seed) for seed in range(3)]
    return write_labelled_store(
        tmp_path_factory.mktemp("families") / "pictures",
        [image for image, _ in drawn],
        [label for _, label in drawn],
        splits=("train", "validation", "test"),
        preparation=preparation_of(PrepareConfig(workers=0)),
    )


@pytest.mark.parametrize("task", ["detection", "classification"])
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "vit, light"])
def test_every_family_of_encoders_detects_and_classifies(
    family: str, task: str, told: Store, pictures: Store, tmp_path: Path
) -> None:
    config, crop, _ = FAMILIES[family]
    store = pictures if task == "detection" and len(crop) == 2 else told
    torch.manual_seed(0)
    encoder = build_encoder(config, channels=1, shape=crop, spacing_mm=(1.0, 1.0, 2.0)[: len(crop)])
    section = FinetuneConfig(steps=1, batch_size=2, crop=crop, warmup_steps=0, workers=0, overlap=0.0)
    run = finetune(encoder, store, tmp_path / "run", section, task=task)
    assert [score.image_id for score in run.scores] == ["image02"]
    network: Any = load_network(run.network)
    start = dict(encoder.net.named_parameters())
    near = [
        (tensor - start[name]).abs().max() < 0.1
        for name, tensor in network.body().named_parameters()
        if not name.startswith(network.new_names())
    ]
    assert near
    assert all(near)
    assert run.receipt is not None
    bundle = export_run(run.out, "monai-bundle", tmp_path / "bundle")
    assert "configs/inference.json" in bundle.files
    image = torch.from_numpy(np.asarray(store.read("image02"), dtype=np.float32))[None]
    found = network.predict(image)
    again = load_network(run.network).predict(image)  # type: ignore[operator]
    for one, two in zip(found, again, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_family_of_encoders_is_fine_tuned_scored_and_exported(family: str, store: Store, tmp_path: Path) -> None:
    config, crop, more = FAMILIES[family]
    torch.manual_seed(0)
    encoder = build_encoder(config, channels=1, shape=crop, spacing_mm=(1.0, 1.0, 2.0)[: len(crop)])
    section = FinetuneConfig(
        steps=1, batch_size=2, crop=crop, warmup_steps=0, workers=0, overlap=0.0, checkpoint_steps=10, **more
    )
    finetune(encoder, store, tmp_path / "run", section)
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert scores
    segmenter = load_network(tmp_path / "run" / "segmenter")
    assert isinstance(segmenter, Segmenter)
    # It began with the encoder's weights: one step of a small rate leaves them near.
    start = dict(encoder.net.named_parameters())
    near = [
        (tensor - start[name]).abs().max() < 0.1
        for name, tensor in segmenter.body().named_parameters()
        if not name.startswith(segmenter.new_names())
    ]
    assert near
    assert all(near)
    export_run(tmp_path / "run", "monai-bundle", tmp_path / "bundle")
    image = torch.from_numpy(np.asarray(store.read("image02"), dtype=np.float32))[None]
    assert segmenter.predict(image).shape == (1, 3, 18, 16, 13)
