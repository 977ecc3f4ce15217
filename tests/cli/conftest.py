"""The whole way, gone once by commands on a few shipped volumes; what each command said is kept."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from medssl.cli import main
from medssl.demo_data import demo_folder
from medssl.ingest.subjects import Fractions, Names, split_of

KEY = b"a key of tests, no secret at all"
TINY = (
    "train.steps=4",
    "train.log_steps=2",
    "train.warmup_steps=1",
    "loader.crop=[16,24,16]",
    "loader.batch_size=2",
    "encoder.channels=[4,8,8]",
    "encoder.features=8",
    "probe.images=1",
    "probe.points=200",
    "probe.every=4",
    "finetune.steps=3",
    "finetune.warmup_steps=1",
    "finetune.batch_size=2",
    "finetune.crop=[16,24,16]",
    "finetune.overlap=0",
)


def sets(overrides: Sequence[str]) -> list[str]:
    """Return overrides as words of a command line."""
    return [word for override in overrides for word in ("--set", override)]


@dataclass(frozen=True)
class Said:
    """What a command came to."""

    code: int
    out: str
    err: str


def say(*words: object) -> Said:
    """Run a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in words])
    return Said(code, out.getvalue(), err.getvalue())


@dataclass
class Chain:
    """Folders the commands wrote, and what each of them said."""

    folder: Path
    said: dict[str, Said] = field(default_factory=dict)

    def run(self, name: str, *words: object) -> Any:
        """Run a command, keep what it said under a name, and return its JSON object."""
        said = self.said[name] = say(*words)
        assert said.code == 0, said.err
        return json.loads(said.out)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six shipped hippocampus volumes, every one of its own patient here."""
    folder = tmp_path_factory.mktemp("scans") / "images"
    folder.mkdir()
    for path in sorted((demo_folder() / "hippocampus" / "images").iterdir())[:6]:
        shutil.copy(path, folder)
    return folder


def seed_that_fills_all_splits(images: Path) -> int:
    """Return a seed by which three images are for training, one for validation, two for the test."""
    subjects = [Names(KEY).of("subject", path.name.removesuffix(".nii.gz")) for path in images.iterdir()]
    for seed in range(10_000):
        found = [split_of(subject, seed=seed, fractions=Fractions()) for subject in subjects]
        if (found.count("train"), found.count("validation")) == (3, 1):
            return seed
    raise AssertionError("no seed fills all splits")


@pytest.fixture(scope="session")
def chain(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """Index, prepare, pretrain, probe, fine-tune, compare, export and report, each with `--json`."""
    folder = tmp_path_factory.mktemp("chain")
    with pytest.MonkeyPatch.context() as patch:
        (folder / "key").write_bytes(KEY)
        patch.setenv("MEDSSL_KEY_FILE", str(folder / "key"))
        return _gone(Chain(folder), images)


def _gone(chain: Chain, images: Path) -> Chain:
    at, both = chain.folder, ("--json", "--quiet")
    labels = ("--labels", demo_folder() / "hippocampus" / "labels")
    seed = seed_that_fills_all_splits(images)
    chain.run("index", "index", images, *labels, "--seed", seed, "--modality", "MR", "--out", at / "index", *both)
    chain.run("prepare", "prepare", at / "index", "--recipe", "mae-hippocampus", "--out", at / "store", *both)
    data = ("--data", at / "store")
    chain.run("pretrain", "pretrain", "mae-hippocampus", *data, "--out", at / "run", *sets(TINY), *both)
    chain.run("probe", "probe", at / "run", *data, "--seeds", 1, *both)
    (at / "probe.json").write_text(chain.said["probe"].out)
    task = ("finetune", "segmentation", "--encoder", at / "run", *data)
    chain.run("finetune", *task, "--out", at / "tuned", *both)
    arms = ("--encoder", at / "run", "--encoder", "none")
    few = ("--counts", 1, "--seeds", 1)
    chain.run("compare", "compare", *arms, *data, *few, "--out", at / "comparison", *both)
    chain.run("export", "export", at / "run", "--to", "encoder", "--out", at / "encoder", "--json")
    chain.run("export bundle", "export", at / "tuned", "--to", "monai-bundle", "--out", at / "bundle", "--json")
    results = ("--store", at / "store", "--probe", at / "probe.json", "--compare", at / "comparison")
    chain.run("report", "report", at / "run", *results, *both)
    for words in (["recipes"], ["recipes", "--schema"], ["recipes", "mae-ct"], ["methods"]):
        chain.run(" ".join(words), *words, "--json")
    return chain
