"""medssl probe, finetune segmentation and compare, as they are typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from medssl.cli import main
from medssl.nets.encoder import DynUNetConfig, build_encoder, save_network
from medssl.prepare import PrepareConfig, preparation_of
from medssl.store import Store

from ..labelled_store import ellipsoids, write_labelled_store

QUICK = [
    word
    for key in ("finetune.steps=2", "finetune.batch_size=2", "finetune.crop=[16, 16, 16]", "probe.images=1")
    for word in ("--set", key)
]
RECIPE = ["--recipe", "anatomy-hippocampus", *QUICK]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Four small labelled volumes, one of them for testing."""
    volumes = [ellipsoids((16, 16, 16), seed) for seed in range(4)]
    folder = tmp_path_factory.mktemp("commands") / "store"
    images, labels = zip(*volumes)
    return write_labelled_store(
        folder,
        images,
        labels,
        splits=("train",) * 3 + ("test",),
        spacing_mm=(1, 1, 1),
        preparation=preparation_of(PrepareConfig(workers=0)),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with a small encoder in it."""
    torch.manual_seed(0)
    config = DynUNetConfig(channels=(8, 8, 8), features=8, strides=(1, 2, 2))
    folder = tmp_path_factory.mktemp("commands") / "run"
    save_network(folder / "encoder", build_encoder(config, channels=1, shape=(16, 16, 16)), preparation={}, card="#\n")
    return folder


def _json(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    value = json.loads(out)
    assert isinstance(value, dict)
    return value


def test_probe_prints_one_object_with_all_three_arms(
    store: Store, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["probe", str(run), "--data", str(store.folder), "--seeds", "1", "--quiet", "--json", *RECIPE])
    assert code == 0
    assert set(_json(capsys)["dice"]) == {"encoder", "random weights", "no network"}  # type: ignore[call-overload]


@pytest.mark.parametrize("encoder", ["none", "run"])
def test_finetune_segmentation_leaves_a_network_and_scores(
    store: Store, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], encoder: str
) -> None:
    start, out = str(run) if encoder == "run" else "none", tmp_path / "out"
    words = ["--encoder", start, "--data", str(store.folder), "--out", str(out), "--quiet", "--json", *RECIPE]
    assert main(["finetune", "segmentation", *words]) == 0
    assert _json(capsys)["start"] == ("encoder" if encoder == "run" else "scratch")
    assert (out / "segmenter" / "model.safetensors").is_file()
    assert (out / "scores.json").is_file()
    assert main(["finetune", "segmentation", *words]) == 1
    assert "already there" in capsys.readouterr().err


def test_finetune_shows_a_plan_and_trains_nothing(
    store: Store, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["finetune", "segmentation", "--encoder", str(run), "--data", str(store.folder), "--plan"]
    assert main(words) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["crop", "(voxels)", "16", "x", "16", "x", "16"] in lines
    assert main([*words, "--json"]) == 0
    assert _json(capsys)["crop"] == [16, 16, 16]
    assert list(tmp_path.iterdir()) == []
    assert main(words[:-1]) == 2
    assert "--out is missing; name a folder for the run" in capsys.readouterr().err


def test_finetune_exports_a_bundle_or_says_before_it_trains_that_it_cannot(
    store: Store, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--encoder", str(run), "--data", str(store.folder), "--quiet", "--json", *RECIPE]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    export = ["--out", str(tmp_path / "none"), "--export", str(tmp_path / "full")]
    assert main(["finetune", "segmentation", *words, *export]) == 1
    assert "already there" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    export = ["--out", str(tmp_path / "out"), "--export", str(tmp_path / "bundle")]
    assert main(["finetune", "segmentation", *words, *export]) == 0
    assert _json(capsys)["bundle"] == str(tmp_path / "bundle")
    assert (tmp_path / "bundle" / "configs" / "inference.json").is_file()


def test_compare_names_its_arms_and_keeps_its_cells(
    store: Store, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--encoder", str(run), "--encoder", "none", "--data", str(store.folder), "--out", str(tmp_path / "out")]
    words += ["--counts", "1,2", "--seeds", "1", "--quiet", *RECIPE]
    assert main(["compare", *words]) == 0
    assert "run against scratch is undecided, one patient tells no spread" in capsys.readouterr().out
    assert main(["compare", *words, "--json"]) == 0
    assert _json(capsys)["computed"] == 0


def test_a_recipe_is_taken_from_the_encoders_run(
    store: Store, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--encoder", "none", "--data", str(store.folder), "--out", str(tmp_path / "out")]
    assert main(["compare", *words, "--set", "finetune.steps=2"]) == 2
    assert "--set has no recipe to change" in capsys.readouterr().err
    from medssl.recipe import load_recipe, recipe_yaml

    (run / "recipe.yaml").write_text(recipe_yaml(load_recipe("anatomy-hippocampus", ["probe.images=9"])))
    try:
        assert main(["probe", str(run), "--data", str(store.folder), "--quiet"]) == 1
    finally:
        (run / "recipe.yaml").unlink()
    assert "3 labelled images in split 'train', 9 wanted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["probe", "nowhere", "--data", "nowhere"], 1, "does not exist"),
        (["compare", "--encoder", "none", "--data", "nowhere", "--out", "x", "--counts", "few"], 2, "few"),
        (["finetune", "segmentation", "--encoder", "none", "--data", "nowhere", "--out", "x"], 1, "no store"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_leaves_nothing(
    words: list[str],
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == code
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []
