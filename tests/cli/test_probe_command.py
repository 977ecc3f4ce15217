"""medssl probe: one command, three questions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from medssl.nets.encoder import DynUNetConfig, build_encoder, save_network
from medssl.prepare import PrepareConfig, preparation_of
from medssl.store import write_table

from ..labelled_store import ellipsoids, write_labelled_store
from .conftest import say


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of a small encoder with fresh weights, and of a store with a finding."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("probe")
    config = DynUNetConfig(channels=(8, 8, 8), features=4, strides=(2, 2, 2))
    network = build_encoder(config, channels=1, shape=(16, 16, 16), spacing_mm=None)
    preparation = preparation_of(PrepareConfig())
    save_network(folder / "encoder", network, preparation=preparation, card="")
    volumes = [ellipsoids((13, 15, 10), seed) for seed in range(12)]
    store = write_labelled_store(
        folder / "store",
        [v[0] for v in volumes],
        [v[1] for v in volumes],
        splits=["train"] * 6 + ["test"] * 6,
        preparation=preparation,
    )
    rows = [replace(row, labels={"finding": float(i % 2)}) for i, row in enumerate(store.rows)]
    write_table(folder / "store" / "store.parquet", rows, {})
    return folder / "encoder", folder / "store"


@pytest.mark.parametrize(
    ("words", "has"),
    [
        pytest.param([], {"dice", "differences", "scores", "patients"}, id="dense"),
        pytest.param(["--kind", "image", "--target", "finding"], {"measures", "rank", "target"}, id="image"),
        pytest.param(["--kind", "image"], {"rank", "largest_rank"}, id="rank alone"),
        pytest.param(["--kind", "stability"], {"scores", "differences"}, id="stability"),
    ],
)
def test_each_question_prints_one_json_object(given: tuple[Path, Path], words: list[str], has: set[str]) -> None:
    encoder, store = given
    said = say("probe", encoder, "--data", store, *words, "--seeds", 1, "--json", "--quiet")
    assert said.code == 0, said.err
    assert said.err == ""
    assert set(json.loads(said.out)) >= has


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        pytest.param(["--target", "finding"], 2, "--kind image", id="a target of the dense probe"),
        pytest.param(["--kind", "image", "--target", "fnding"], 1, "there are: finding", id="no such target"),
    ],
)
def test_a_mistake_is_one_line(given: tuple[Path, Path], words: list[str], code: int, says: str) -> None:
    encoder, store = given
    said = say("probe", encoder, "--data", store, *words, "--quiet")
    assert said.code == code
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert says in said.err
