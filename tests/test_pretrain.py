"""A pretraining run that was killed and resumed ends as if nothing had happened, and is never mistaken for another."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import torch

from medssl import build_index, build_store, load_recipe
from medssl.batch import Batch
from medssl.cli import main
from medssl.demo_data import demo_folder
from medssl.ingest.subjects import Fractions, Names, split_of
from medssl.methods.catalogue import METHODS
from medssl.methods.method import Losses, Method, MethodConfig, Views
from medssl.pretrain import pretrain_encoder
from medssl.store import Store

KEY = b"a key of tests, no secret at all"
STEPS = 14
TRAIN = (
    f"train.steps={STEPS}",
    "train.log_steps=2",
    "train.checkpoint_steps=3",
    "train.warmup_steps=3",
    "loader.batch_size=2",
    "probe.every=5",
    "probe.images=1",
    "probe.points=200",
)
UNET = ("encoder.channels=[4,8,8]", "encoder.features=8")
SMALL_ANATOMY = (*TRAIN, *UNET, "loader.crop=[24,24,24]", "method.view=[16,16,16]", "method.points=16")
RECIPES = {
    "anatomy": ("anatomy-hippocampus", SMALL_ANATOMY),
    "masked voxels": ("mae-hippocampus", (*TRAIN, *UNET, "loader.crop=[16,24,16]")),
    "masked tokens": (
        "mae-hippocampus",
        (
            *TRAIN,
            "loader.crop=[16,24,16]",
            "encoder={name: vit, patch: 8, width: 24, depth: 2, heads: 2, mlp: 32}",
            "method={name: mae, form: tokens, decoder_width: 16, decoder_layers: 1, decoder_heads: 2}",
        ),
    ),
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums depend on the number of threads, which is no promise of resuming: all runs have one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Data:
    """Six shipped hippocampus volumes with labels, as index and as store."""

    index: Path
    store: Path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Real volumes of six patients, of whom some are in every split, so that the probe runs as well."""
    folder, source = tmp_path_factory.mktemp("data"), demo_folder() / "hippocampus"
    (folder / "images").mkdir()
    for path in sorted((source / "images").iterdir())[:6]:
        shutil.copy(path, folder / "images")
    subjects = [Names(KEY).of("subject", path.name.removesuffix(".nii.gz")) for path in (folder / "images").iterdir()]
    wanted = {"train": 3, "validation": 1, "test": 2}
    fractions = Fractions()

    def splits(seed: int) -> dict[str, int]:
        found = [split_of(subject, seed=seed, fractions=fractions) for subject in subjects]
        return {name: found.count(name) for name in wanted}

    seed = next(seed for seed in range(10_000) if splits(seed) == wanted)
    index = build_index(
        folder / "images", folder / "index", labels=source / "labels", key=KEY, seed=seed, modality="MR"
    ).folder
    return Data(index, build_store(index, load_recipe("anatomy-hippocampus").prepare, folder / "store").folder)


def words(name: str, store: Path, out: Path, *more: str, sets: Sequence[str] = ()) -> list[str]:
    """Return the command line of a recipe of `RECIPES`."""
    recipe, overrides = RECIPES[name]
    overrides = (*overrides, *sets)
    return ["pretrain", recipe, "--data", str(store), "--out", str(out), "--quiet", *more, *_sets(overrides)]


def _sets(overrides: Sequence[str]) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


@pytest.fixture(scope="module")
def unbroken(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the finished run of a recipe that nobody killed; trained once."""
    folder = tmp_path_factory.mktemp("unbroken")

    def run(name: str) -> Path:
        out = folder / name.replace(" ", "-")
        if not out.exists():
            assert main(words(name, data.store, out)) == 0
        return out

    return run


def outcome(run: Path) -> dict[str, bytes]:
    """Return what a run is for: its encoder's files, its numbers and its recipe."""
    files = [*(run / "encoder").iterdir(), *(run / "panels").glob("*"), run / "metrics.jsonl"]
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


def lines_of(run: Path) -> int:
    try:
        return (run / "metrics.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def writing(run: Path) -> bool:
    """Say whether a checkpoint is being written: its temporary folder is there."""
    try:
        return any(name.startswith(".step-") for name in os.listdir(run / "checkpoints"))  # noqa: PTH208
    except FileNotFoundError:
        return False


def kill_when(due: Callable[[], bool], command: Sequence[str]) -> None:
    """Start a command and kill it when `due`; it is stopped first, to make sure that it still is due."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    here = Path(__file__).parents[1]
    process = subprocess.Popen([sys.executable, "-m", "medssl", *command], env=environment, cwd=here)
    try:
        deadline = time.monotonic() + 240
        while process.poll() is None and time.monotonic() < deadline:
            if due():
                process.send_signal(signal.SIGSTOP)
                time.sleep(0.01)
                if due():
                    break
                process.send_signal(signal.SIGCONT)
            time.sleep(0.0005)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"


def resume_otherwise(name: str, data: Data, killed: Path, unbroken: Path) -> None:
    """Resume copies of a killed run with other workers and checkpoints, and compare each with the unbroken one."""
    wanted = outcome(unbroken)
    assert {"encoder/model.safetensors", "metrics.jsonl"} < set(wanted)
    for workers, checkpoint_steps in ((0, 3), (1, 4), (3, 1)):
        copy = killed.with_name(f"{killed.name}-{workers}")
        shutil.copytree(killed, copy)
        sets = (f"loader.workers={workers}", f"train.checkpoint_steps={checkpoint_steps}")
        assert main(words(name, data.store, copy, "--resume", sets=sets)) == 0
        found = outcome(copy)
        assert [key for key in wanted if found.get(key) != wanted[key]] == []
        assert set(found) == set(wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["anatomy", "masked tokens"])
def test_killed_at_a_drawn_step_and_resumed_a_run_ends_the_same(
    name: str, data: Data, unbroken: Callable[[str], Path], tmp_path: Path
) -> None:
    lines = random.Random(name).randrange(1, STEPS // 2 - 1)
    run = tmp_path / "run"
    kill_when(lambda: lines_of(run) >= lines, words(name, data.store, run))
    assert not (run / "encoder").exists()
    resume_otherwise(name, data, run, unbroken(name))


@pytest.mark.slow
def test_killed_while_it_writes_a_checkpoint_a_run_goes_on_from_the_one_before(
    data: Data, unbroken: Callable[[str], Path], tmp_path: Path
) -> None:
    run, name = tmp_path / "run", "masked voxels"
    least = random.Random(name).randrange(1, 5)
    command = words(name, data.store, run, sets=("train.checkpoint_steps=1",))
    kill_when(lambda: lines_of(run) >= least and writing(run), command)
    assert writing(run)
    assert not (run / "encoder").exists()
    resume_otherwise(name, data, run, unbroken(name))


@pytest.mark.parametrize("name", list(RECIPES))
def test_the_number_of_workers_decides_nothing_that_stays(
    name: str, data: Data, unbroken: Callable[[str], Path], tmp_path: Path
) -> None:
    assert main(words(name, data.store, tmp_path / "run", sets=("loader.workers=0", "loader.ahead=1"))) == 0
    assert outcome(tmp_path / "run") == outcome(unbroken(name))


def test_a_checkpoint_damaged_on_disk_is_passed_over_for_the_one_before(
    data: Data, unbroken: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(unbroken("anatomy"), run)
    shutil.rmtree(run / "encoder")
    newest = max((run / "checkpoints").glob("step-*"))
    content = bytearray((newest / "method.safetensors").read_bytes())
    content[-1] ^= 1
    (newest / "method.safetensors").write_bytes(content)
    assert main(words("anatomy", data.store, run, "--resume")) == 0
    assert f"{newest.name} is damaged" in capsys.readouterr().err
    assert outcome(run) == outcome(unbroken("anatomy"))


def test_a_finished_run_that_is_resumed_stays_as_it_is(
    data: Data, unbroken: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(unbroken("masked voxels"), run)
    before = {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}
    assert main(words("masked voxels", data.store, run, "--resume", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["training"]["resumed_from"] == STEPS
    after = {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}
    assert [path.name for path in before if after[path] != before[path]] == []
    assert set(after) == set(before)


def test_what_a_kill_left_half_written_is_swept_by_the_next_checkpoint(
    data: Data, unbroken: Callable[[str], Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(unbroken("masked voxels"), run)
    shutil.rmtree(max((run / "checkpoints").glob("step-*")))
    (run / "checkpoints" / ".step-00000013.4711").mkdir()
    (run / "checkpoints" / ".step-00000013.4711" / "method.safetensors").write_bytes(b"half")
    assert main(words("masked voxels", data.store, run, "--resume")) == 0
    assert not writing(run)


def test_resuming_where_nothing_was_begun_starts_anew_and_says_so(
    data: Data, unbroken: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words("masked voxels", data.store, tmp_path / "run", "--resume")) == 0
    captured = capsys.readouterr()
    assert "started anew" in captured.out
    assert outcome(tmp_path / "run") == outcome(unbroken("masked voxels"))


def test_resuming_before_the_first_checkpoint_starts_anew_and_says_so(
    data: Data, unbroken: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(unbroken("masked voxels"), run)
    for name in ("checkpoints", "encoder", "panels"):
        shutil.rmtree(run / name)
    assert main(words("masked voxels", data.store, run, "--resume")) == 0
    assert "started anew" in capsys.readouterr().out
    assert outcome(run) == outcome(unbroken("masked voxels"))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        pytest.param("train.learning_rate=0.5", "train.learning_rate was 0.002, is 0.5", id="rate"),
        pytest.param("method.ratio=0.4", "method.ratio was 0.6, is 0.4", id="knob of the method"),
        pytest.param("train.seed=1", "train.seed was 0, is 1", id="seed"),
        pytest.param("prepare.spacing_mm=[2, 2, 2]", "prepare.spacing_mm was", id="preparation"),
    ],
)
def test_resuming_with_another_recipe_is_refused_and_the_key_named(
    override: str,
    says: str,
    data: Data,
    unbroken: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    shutil.copytree(unbroken("masked voxels"), run)
    assert main(words("masked voxels", data.store, run, "--resume", sets=(override,))) == 1
    error = capsys.readouterr().err
    assert error.startswith("medssl: the run was started with another recipe: ")
    assert says in error
    assert len(error.splitlines()) == 1
    assert outcome(run) == outcome(unbroken("masked voxels"))


def test_resuming_on_other_data_is_refused(
    data: Data, unbroken: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(unbroken("masked voxels"), run)
    prepare = load_recipe("mae-hippocampus", ["prepare.orientation=LPS"]).prepare
    other = build_store(data.index, prepare, tmp_path / "other").folder
    assert main(words("masked voxels", other, run, "--resume")) == 1
    error = capsys.readouterr().err
    assert error.startswith("medssl: the run was started on other data")
    assert len(error.splitlines()) == 1
    assert outcome(run) == outcome(unbroken("masked voxels"))


def test_a_run_that_is_there_is_not_begun_again_unless_asked_to_resume(
    data: Data, unbroken: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = unbroken("masked voxels")
    before = outcome(run)
    assert main(words("masked voxels", data.store, run)) == 1
    assert "already there" in capsys.readouterr().err
    assert outcome(run) == before


def test_python_and_the_command_train_the_same_encoder(
    data: Data, unbroken: Callable[[str], Path], tmp_path: Path
) -> None:
    recipe, overrides = RECIPES["masked voxels"]
    result = pretrain_encoder(load_recipe(recipe, overrides), Store.open(data.store), tmp_path / "run")
    assert result.encoder == tmp_path / "run" / "encoder"
    assert outcome(tmp_path / "run") == outcome(unbroken("masked voxels"))


def test_an_index_in_the_place_of_a_store_is_prepared_first_and_trains_the_same(
    data: Data, unbroken: Callable[[str], Path], tmp_path: Path
) -> None:
    assert main(words("masked voxels", data.index, tmp_path / "run")) == 0
    assert outcome(tmp_path / "run") == outcome(unbroken("masked voxels"))


class Both(Method):
    """A method of two streams, which brings the features of both to nought: enough to see who got which store."""

    class Config(MethodConfig):
        name: Literal["both"] = "both"

    several_streams = True
    needs = ("image", "key")

    def views(self, batch: Batch, step: int) -> Views:
        return {name: stream["image"] for name, stream in batch.items()}

    def forward(self, views: Views) -> Losses:
        return Losses.of(**{name: self.encoder(image)[0].square().mean() for name, image in views.items()})


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Overrides for the method `Both`, which a recipe may name while the test runs."""
    monkeypatch.setitem(METHODS, "both", (__name__, "Both", "a method of these tests"))
    return (*TRAIN, *UNET, STREAMS, "method={name: both}")


def test_two_streams_are_named_on_the_command_line_and_resumed_by_name(
    data: Data, both: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare = load_recipe("mae-hippocampus", ["prepare.spacing_mm=[2, 2, 2]"]).prepare
    coarse = build_store(data.index, prepare, tmp_path / "coarse").folder

    def command(one: Path, two: Path, out: str, *more: str) -> list[str]:
        pairs = ["--data", f"two={two}", "--data", f"one={one}"]
        return ["pretrain", "mae-hippocampus", *pairs, "--out", str(tmp_path / out), "--quiet", *more, *_sets(both)]

    assert main(command(data.store, coarse, "run")) == 0
    known = json.loads((tmp_path / "run" / "environment.json").read_text())["stores"]
    assert known == {"one": Store.open(data.store).fingerprint, "two": Store.open(coarse).fingerprint}
    wanted = outcome(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "encoder")
    shutil.rmtree(max((tmp_path / "run" / "checkpoints").glob("step-*")))
    assert main(command(data.store, coarse, "run", "--resume", "--set", "loader.workers=0")) == 0
    assert outcome(tmp_path / "run") == wanted
    capsys.readouterr()
    assert main(command(coarse, data.store, "run", "--resume")) == 1
    assert "other data" in capsys.readouterr().err
    assert main(command(coarse, data.store, "swapped")) == 0
    assert outcome(tmp_path / "swapped")["encoder/model.safetensors"] != wanted["encoder/model.safetensors"]


STREAMS = (
    "loader={batch_size: 4, crop: [16, 16, 16], streams: {"
    "one: {crop: [16, 16, 16]}, two: {crop: [16, 16, 16], split: all, sampling: foreground}}}"
)


def test_a_recipe_of_one_stream_is_told_that_two_stores_are_too_many(
    data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = ["--data", f"one={data.store}", "--data", f"two={data.store}"]
    command = ["pretrain", "mae-hippocampus", *pairs, "--out", str(tmp_path / "run"), "--quiet", *_sets(TRAIN + UNET)]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith("medssl: ")
    assert len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("pairs", "says"),
    [
        pytest.param(["STORE", "STORE"], "need names", id="no names"),
        pytest.param(["one=STORE", "one=STORE"], "one name", id="a name twice"),
        pytest.param(["one=STORE", "three=STORE"], "streams one, two", id="a name that is no stream"),
        pytest.param(["STORE"], "streams one, two", id="one store for two streams"),
    ],
)
def test_stores_that_do_not_go_with_the_streams_are_refused(
    pairs: list[str], says: str, data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [word for pair in pairs for word in ("--data", pair.replace("STORE", str(data.store)))]
    overrides = (*TRAIN, *UNET, STREAMS)
    command = ["pretrain", "mae-hippocampus", *given, "--out", str(tmp_path / "run"), "--quiet", *_sets(overrides)]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith("medssl: ")
    assert says in error
    assert len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_run_from_given_weights_names_no_folder_and_goes_on_without_them(
    data: Data, unbroken: Callable[[str], Path], tmp_path: Path
) -> None:
    first = tmp_path / "of a patient" / "first"
    shutil.copytree(unbroken("masked voxels"), first)
    begun = tmp_path / "run"
    given = (f"encoder.weights={first}",)
    assert main(words("masked voxels", data.store, begun, sets=given)) == 0
    for path in begun.rglob("*"):
        assert not path.is_file() or b"of a patient" not in path.read_bytes()
    assert "matched" in (begun / "receipt.txt").read_text(encoding="utf-8")
    end = (begun / "encoder" / "model.safetensors").read_bytes()
    shutil.rmtree(first)
    shutil.rmtree(begun / "encoder")
    for later in sorted((begun / "checkpoints").glob("step-*"))[1:]:
        shutil.rmtree(later)
    assert main(words("masked voxels", data.store, begun, "--resume", sets=given)) == 0
    assert (begun / "encoder" / "model.safetensors").read_bytes() == end


def test_resuming_from_other_weights_is_refused(
    data: Data, unbroken: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, begun = tmp_path / "first", tmp_path / "run"
    shutil.copytree(unbroken("masked voxels"), first)
    given = (f"encoder.weights={first}",)
    assert main(words("masked voxels", data.store, begun, sets=given)) == 0
    shutil.copytree(begun / "encoder", first / "encoder", dirs_exist_ok=True)
    assert main(words("masked voxels", data.store, begun, "--resume", sets=given)) == 1
    assert "started from other weights" in capsys.readouterr().err
