"""A mistake is one clear line on standard error, exit code 1 or 2, and nothing that looks like a result."""

from __future__ import annotations

import gzip
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from medssl.recipe import recipe_names

from .conftest import TINY, Chain, Said, say, sets

TRAIN = ["pretrain", "mae-hippocampus", *sets(TINY)]


def is_one_line(said: Said, code: int, says: str) -> None:
    """Check what a mistake must look like."""
    assert said.code == code, said.err
    assert said.out == ""
    assert len(said.err.splitlines()) == 1, said.err
    assert said.err.startswith("medssl: ")
    assert said.err.endswith("\n")
    assert says.lower() in said.err.lower()


def entries(folder: Path) -> dict[str, bytes]:
    """Return every file and folder below a folder, hidden ones too, with its content."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in sorted(folder.rglob("*"))}


@pytest.fixture
def places(chain: Chain, images: Path, tmp_path: Path) -> Mapping[str, Path]:
    """Folders and files that something is wrong with, by the word that stands for them below."""
    scan = sorted(images.iterdir())[0]
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious.txt").write_text("kept")
    (tmp_path / "file").write_text("a file where a folder is wanted")
    for name in ("truncated", "garbage", "hollow"):
        (tmp_path / name).mkdir()
    (tmp_path / "truncated" / scan.name).write_bytes(scan.read_bytes()[:-3000])
    (tmp_path / "garbage" / scan.name).write_bytes(gzip.compress(b"no image at all " * 100))
    (tmp_path / "garbage" / "scan.nii").write_bytes(bytes(348))
    (tmp_path / "hollow" / scan.name).write_bytes(b"")
    shutil.copytree(chain.folder / "run" / "encoder", tmp_path / "cut")
    weights = (tmp_path / "cut" / "model.safetensors").read_bytes()
    (tmp_path / "cut" / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    shutil.copytree(chain.folder / "store", tmp_path / "unfinished")
    (tmp_path / "unfinished" / "store.parquet").unlink()
    (tmp_path / "cut.json").write_text('{"split": "tes')
    names = {path.stem.upper() if path.suffix == "" else path.name.upper(): path for path in tmp_path.iterdir()}
    made = {name.upper(): chain.folder / name for name in ("index", "store", "run", "tuned")}
    return {**names, **made, "SCAN": scan, "NOWHERE": tmp_path / "nowhere", "OUT": tmp_path / "out"}


def spoken(words: list[str], places: Mapping[str, Path]) -> list[str]:
    return [str(places.get(word, word)) for word in words]


MISTAKES: dict[str, tuple[list[str], int, str]] = {
    "index: empty folder": (["index", "EMPTY", "--out", "OUT"], 1, "no image was found"),
    "index: truncated gzip": (["index", "TRUNCATED", "--out", "OUT"], 1, "truncated"),
    "index: garbage": (["index", "GARBAGE", "--out", "OUT"], 1, "no image can be used"),
    "index: empty file": (["index", "HOLLOW", "--out", "OUT"], 1, "has no bytes"),
    "index: text file": (["index", "FILE", "--out", "OUT"], 1, "no image was found"),
    "index: no such path": (["index", "NOWHERE", "--out", "OUT"], 2, "does not exist"),
    "index: filled output": (["index", "SCAN", "--out", "FULL"], 1, "already there"),
    "prepare: no such index": (["prepare", "NOWHERE", "--recipe", "mae-ct", "--out", "OUT"], 1, ""),
    "prepare: a folder that is no index": (["prepare", "FULL", "--recipe", "mae-ct", "--out", "OUT"], 1, ""),
    "prepare: no such recipe": (["prepare", "INDEX", "--recipe", "mae-cd", "--out", "OUT"], 2, "did you mean mae-ct"),
    "prepare: nothing of that modality": (["prepare", "INDEX", "--recipe", "mae-ct", "--out", "OUT"], 1, "modality"),
    "prepare: filled output": (
        ["prepare", "INDEX", "--recipe", "mae-hippocampus", "--out", "FULL"],
        1,
        "already there",
    ),
    "pretrain: no such store": ([*TRAIN, "--data", "NOWHERE", "--out", "OUT"], 1, ""),
    "pretrain: unfinished store": ([*TRAIN, "--data", "UNFINISHED", "--out", "OUT"], 1, "not finished"),
    "pretrain: a folder that is no store": ([*TRAIN, "--data", "FULL", "--out", "OUT"], 1, ""),
    "pretrain: filled output": ([*TRAIN, "--data", "STORE", "--out", "FULL"], 1, "already there"),
    "pretrain: filled output, to resume": (
        [*TRAIN, "--data", "STORE", "--out", "FULL", "--resume"],
        1,
        "already there",
    ),
    "pretrain: override without a value": (
        [*TRAIN, "--data", "STORE", "--out", "OUT", "--set", "train.steps"],
        2,
        "section.key=value",
    ),
    "pretrain: misspelt override": (
        [*TRAIN, "--data", "STORE", "--out", "OUT", "--set", "train.stpes=3"],
        2,
        "did you mean train.steps",
    ),
    "pretrain: network of another method": (
        [*TRAIN, "--data", "STORE", "--out", "OUT", "--set", "method.form=tokens"],
        1,
        "needs a ViT",
    ),
    "pretrain: no weights": (
        [*TRAIN, "--data", "STORE", "--out", "OUT", "--set", "encoder.weights=nowhere.safetensors"],
        1,
        "nowhere.safetensors",
    ),
    "pretrain: crop of two numbers": (
        [*TRAIN, "--data", "STORE", "--out", "OUT", "--set", "loader.crop=[16,16]"],
        2,
        "crop",
    ),
    "pretrain: several streams for a method of one": (
        [
            *TRAIN,
            *("--data", "a=STORE", "--data", "b=STORE", "--out", "OUT", "--set"),
            "loader={batch_size: 2, streams: {a: {crop: [16, 16, 16]}, b: {crop: [16, 16, 16]}}}",
        ],
        2,
        "stream",
    ),
    "probe: no such encoder": (["probe", "NOWHERE", "--data", "STORE"], 1, ""),
    "probe: weights cut short": (["probe", "CUT", "--data", "STORE"], 1, ""),
    "probe: no such store": (["probe", "RUN", "--data", "NOWHERE"], 1, ""),
    "finetune: no such encoder": (
        ["finetune", "segmentation", "--encoder", "NOWHERE", "--data", "STORE", "--out", "OUT"],
        1,
        "",
    ),
    "finetune: weights cut short": (
        ["finetune", "segmentation", "--encoder", "CUT", "--data", "STORE", "--out", "OUT"],
        1,
        "",
    ),
    "finetune: no such store": (
        ["finetune", "segmentation", "--encoder", "RUN", "--data", "NOWHERE", "--out", "OUT"],
        1,
        "",
    ),
    "finetune: filled output": (
        ["finetune", "segmentation", "--encoder", "RUN", "--data", "STORE", "--out", "FULL"],
        1,
        "already there",
    ),
    "finetune: filled output, to resume": (
        ["finetune", "segmentation", "--encoder", "RUN", "--data", "STORE", "--out", "FULL", "--resume"],
        1,
        "already there",
    ),
    "compare: no such encoder": (["compare", "--encoder", "NOWHERE", "--data", "STORE", "--out", "OUT"], 1, ""),
    "compare: no such store": (["compare", "--encoder", "none", "--data", "NOWHERE", "--out", "OUT"], 1, ""),
    "compare: counts that are none": (
        ["compare", "--encoder", "none", "--data", "STORE", "--out", "OUT", "--counts", "few"],
        2,
        "--counts 2,4,8",
    ),
    "compare: more labels than there are": (
        ["compare", "--encoder", "none", "--data", "STORE", "--out", "OUT", "--counts", "999"],
        1,
        "999 labelled images wanted",
    ),
    "compare: filled output": (
        ["compare", "--encoder", "RUN", "--data", "STORE", "--out", "FULL", "--counts", "1", "--seeds", "1"],
        1,
        "already there",
    ),
    "export: no such run": (["export", "NOWHERE", "--to", "encoder", "--out", "OUT"], 1, ""),
    "export: a folder that is no run": (["export", "EMPTY", "--to", "encoder", "--out", "OUT"], 1, ""),
    "export: weights cut short": (["export", "CUT", "--to", "encoder", "--out", "OUT"], 1, ""),
    "export: an encoder as a bundle": (["export", "RUN", "--to", "monai-bundle", "--out", "OUT"], 1, ""),
    "export: filled output": (["export", "RUN", "--to", "encoder", "--out", "FULL"], 1, "already there"),
    "report: no such run": (["report", "NOWHERE", "--out", "OUT"], 1, "does not exist"),
    "report: a folder that is no run": (["report", "EMPTY", "--out", "OUT"], 1, "no pretraining run"),
    "report: result cut short": (["report", "RUN", "--probe", "CUT.JSON", "--out", "OUT"], 1, "cut.json"),
    "report: no such result": (["report", "RUN", "--compare", "NOWHERE", "--out", "OUT"], 1, ""),
    "recipes: no such recipe": (["recipes", "anatomy-hipocampus"], 2, "did you mean anatomy-hippocampus"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(MISTAKES))
def test_a_mistake_is_one_line_and_leaves_everything_as_it_was(
    name: str, places: Mapping[str, Path], tmp_path: Path
) -> None:
    words, code, says = MISTAKES[name]
    before = entries(tmp_path)
    quiet = [] if words[0] in ("export", "recipes") else ["--quiet"]
    stores = [f"{pair[:2]}{places['STORE']}" if pair.endswith("=STORE") else pair for pair in spoken(words, places)]
    is_one_line(say(*stores, *quiet), code, says)
    assert entries(tmp_path) == before


WRITING = {
    "index": ["index", "SCAN", "--quiet"],
    "prepare": ["prepare", "INDEX", "--recipe", "mae-hippocampus", "--quiet"],
    "pretrain": [*TRAIN, "--data", "STORE", "--quiet"],
    "finetune": ["finetune", "segmentation", "--encoder", "RUN", "--data", "STORE", "--quiet"],
    "compare": ["compare", "--encoder", "none", "--data", "STORE", "--counts", "1", "--seeds", "1", "--quiet"],
    "export": ["export", "RUN", "--to", "encoder"],
    "report": ["report", "RUN"],
}


@pytest.mark.slow
@pytest.mark.parametrize("command", list(WRITING))
def test_an_output_that_cannot_be_written_is_one_line_before_any_work(
    command: str, places: Mapping[str, Path], tmp_path: Path
) -> None:
    """Below a file, in /proc, and, for whoever the rights of a folder hold, in a read-only folder."""
    parents = [places["FILE"], Path("/proc/nonexistent")]
    if os.geteuid() != 0:
        (tmp_path / "locked").mkdir(mode=0o555)
        parents.append(tmp_path / "locked")
    before = entries(tmp_path)
    for parent in parents:
        is_one_line(say(*spoken(WRITING[command], places), "--out", parent / "out"), 1, "cannot be written")
    assert entries(tmp_path) == before


@pytest.mark.parametrize("command", ["prepare", "pretrain"])
def test_a_typo_in_a_recipe_is_one_line_with_its_line_and_the_nearest_key(command: str, tmp_path: Path) -> None:
    text = recipe_names()["mae-hippocampus"].read_text(encoding="utf-8")
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(text.replace("  learning_rate:", "  lerning_rate:"), encoding="utf-8")
    line = next(n for n, words in enumerate(recipe.read_text().splitlines(), 1) if "lerning_rate" in words)
    data = {"prepare": [tmp_path / "index", "--recipe", recipe], "pretrain": [recipe, "--data", tmp_path / "store"]}
    said = say(command, *data[command], "--out", tmp_path / "out", "--quiet")
    is_one_line(said, 2, f"recipe key train.lerning_rate is unknown ({recipe}, line {line}); did you mean")
    assert "train.learning_rate" in said.err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


def test_a_recipe_that_is_no_yaml_is_one_line_that_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("train:\n  steps: [3\n")
    said = say("pretrain", tmp_path / "mine.yaml", "--data", tmp_path, "--out", tmp_path / "out")
    is_one_line(said, 2, "mine.yaml, line ")


@pytest.mark.slow
def test_one_unreadable_file_among_good_ones_is_a_problem_and_not_a_failure(
    images: Path, places: Mapping[str, Path], tmp_path: Path
) -> None:
    said = say("index", images, places["TRUNCATED"], "--out", tmp_path / "index", "--quiet")
    assert said.code == 0
    assert said.err == ""
    assert "6 images of 6 subjects" in said.out
    assert "error file-truncated (1)" in said.out
