"""From a table of targets to a bundle's answers, by commands alone."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medssl.store import Store

from .conftest import say

PATIENTS = 40
RECIPE = """\
prepare: {workers: 0}
loader: {crop: [16, 16]}
encoder: {name: dynunet, channels: [8, 8, 8], features: 8}
method: {name: mae, form: dense}
finetune:
  steps: 4
  crop: [16, 16]
  batch_size: 4
  workers: 0
  classification: {draws: 100}
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, bright in the middle where somebody is ill, with tables of targets and groups, indexed and prepared."""
    folder, random = tmp_path_factory.mktemp("told"), np.random.default_rng(0)
    (folder / "images").mkdir()
    targets, groups = [["case", "ill", "age"]], [["case", "sex"]]
    for n in range(PATIENTS):
        picture = random.integers(60, 120, (24, 20))
        picture[8:16, 6:14] += 90 * (n % 2)
        Image.fromarray(picture.astype(np.uint8)).save(folder / "images" / f"case{n:02d}.png")
        targets.append([f"case{n:02d}", str(n % 2), "" if n == 3 else str(40 + n)])
        groups.append([f"case{n:02d}", "mf"[n // 2 % 2]])
    for name, rows in (("targets", targets), ("groups", groups)):
        (folder / f"{name}.tsv").write_text("\n".join("\t".join(row) for row in rows) + "\n")
    tables = ("--targets", folder / "targets.tsv", "--groups", folder / "groups.tsv")
    (folder / "recipe.yaml").write_text(RECIPE)
    steps = (
        ("index", folder / "images", *tables, "--out", folder / "index", "--quiet"),
        ("prepare", folder / "index", "--recipe", folder / "recipe.yaml", "--out", folder / "store", "--quiet"),
    )
    for words in steps:
        said = say(*words)
        assert said.code == 0, said.err
    return folder


def _where(prepared: Path, out: Path) -> tuple[object, ...]:
    recipe = ("--recipe", prepared / "recipe.yaml")
    return ("--encoder", "none", "--data", prepared / "store", "--out", out, *recipe)


def _tuned(prepared: Path, out: Path, *words: object) -> Any:
    said = say("finetune", "classification", *_where(prepared, out), *words, "--json", "--quiet")
    assert said.code == 0, said.err
    return json.loads(said.out)


@pytest.mark.slow
def test_targets_of_a_table_are_told_scored_by_subgroup_and_exported(prepared: Path, tmp_path: Path) -> None:
    found = _tuned(prepared, tmp_path / "run", "--target", "ill", "--export", tmp_path / "bundle")
    assert (found["kind"], found["told_by"], found["classes"]) == ("binary", "AUROC", [])
    assert set(found["by"]) == {"sex"}
    store = Store.open(prepared / "store")
    assert len(found["scores"]) == len(store.ids_of("test"))
    assert {score["truth"][0] for score in found["scores"]} <= {0.0, 1.0}
    with (tmp_path / "run" / "predictions" / "answers.csv").open(newline="") as file:
        kept = {line["image_id"]: float(line["ill"]) for line in csv.DictReader(file)}
    assert kept == pytest.approx({s["image_id"]: s["answer"][0] for s in found["scores"]}, rel=1e-4)
    config = json.loads((tmp_path / "bundle" / "configs" / "inference.json").read_text())
    assert config["answer"]["kind"] == "binary"


@pytest.mark.slow
def test_a_measure_is_told_in_its_unit_where_it_is_known(prepared: Path, tmp_path: Path) -> None:
    found = _tuned(prepared, tmp_path / "run", "--target", "age")
    assert (found["kind"], found["told_by"]) == ("regression", "skill")
    assert all(40 <= score["truth"][0] <= 40 + PATIENTS for score in found["scores"])
    assert all(20 < score["answer"][0] < 60 + PATIENTS for score in found["scores"])  # years, not standard deviations
    assert set(found["measures"]["age"]) == {"skill", "mae", "rmse", "bias", "r2"}


def test_an_unknown_target_is_refused_in_one_line(prepared: Path, tmp_path: Path) -> None:
    said = say("finetune", "classification", *_where(prepared, tmp_path / "run"), "--target", "weight", "--quiet")
    assert said.code != 0
    assert "no image has a target 'weight'; there are: age, ill, sex" in said.err
    assert len(said.err.strip().splitlines()) == 1
