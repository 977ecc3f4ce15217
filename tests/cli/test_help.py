"""Help answers at once and names everything; wrong usage is told apart from failure by its exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from medssl.cli import app

from .conftest import say

HEAVY = ("torch", "monai", "SimpleITK", "pydicom", "transformers", "nibabel", "matplotlib", "tensorboard", "timm")
FRESH = """
import contextlib, io, json, sys
from medssl.cli import main
codes = {}
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        codes[" ".join(words)] = main(words)
    assert out.getvalue().strip(), words
print(json.dumps({"codes": codes, "heavy": [name for name in json.loads(sys.argv[2]) if name in sys.modules]}))
"""


def commands() -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command, the groups among them, with the words that call it."""

    def walk(words: tuple[str, ...], command: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
        yield words, command
        for name, child in getattr(command, "commands", {}).items():
            yield from walk((*words, name), child)

    return walk((), typer.main.get_command(app))


def test_there_are_the_commands_of_the_spine() -> None:
    names = {" ".join(words) for words, _ in commands()}
    assert names >= {"index", "prepare", "pretrain", "probe", "finetune segmentation", "compare", "export", "report"}
    assert names >= {"demo", "recipes", "methods"}


def test_help_of_every_command_imports_nothing_heavy() -> None:
    asked = [["--version"], *([*words, "--help"] for words, _ in commands())]
    here = Path(__file__).parents[2]
    words = [sys.executable, "-c", FRESH, json.dumps(asked), json.dumps(HEAVY)]
    done = subprocess.run(words, cwd=here, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["heavy"] == []
    assert len(found["codes"]) == len(asked)
    assert set(found["codes"].values()) == {0}


@pytest.mark.parametrize("words", [pytest.param(words, id=" ".join(words) or "medssl") for words, _ in commands()])
def test_help_names_and_explains_every_option(words: tuple[str, ...]) -> None:
    command = dict(commands())[words]
    text = say(*words, "--help").out
    assert command.help.split(".")[0].split()[0] in text
    for parameter in command.params:
        assert parameter.help, parameter.name
        shown = parameter.opts if parameter.param_type_name == "option" else [(parameter.metavar or parameter.name)]
        for name in shown:
            assert name.lower() in text.lower(), name
    for name in getattr(command, "commands", {}):
        assert name in text


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["nonsense"], id="no such command"),
        pytest.param(["finetune", "nonsense"], id="no such task"),
        pytest.param(["index"], id="no path"),
        pytest.param(["prepare", "INDEX"], id="no recipe"),
        pytest.param(["pretrain", "mae-ct", "--nonsense"], id="no such option"),
        pytest.param(["compare", "--encoder", "none", "--data", "S", "--out", "O", "--seeds", "many"], id="no number"),
        pytest.param(["probe", "ENCODER", "--data", "STORE", "--seeds", "0"], id="number out of range"),
        pytest.param(["export", "RUN", "--to", "onnx", "--out", "O"], id="no such form"),
        pytest.param(["pretrain", "mae-ct", "--data"], id="an option without its value"),
    ],
)
def test_wrong_usage_exits_with_2_and_prints_no_result(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = say(*words)
    assert said.code == 2
    assert said.out == ""
    assert said.err.strip()
    assert "Traceback" not in said.err
    assert list(tmp_path.iterdir()) == []


def test_medssl_alone_shows_its_help() -> None:
    said = say()
    assert "pretrain" in said.out + said.err


def test_debug_shows_where_it_failed_and_keeps_the_line_and_the_code(tmp_path: Path) -> None:
    words = ("report", tmp_path / "nowhere")
    plain, before, after = say(*words), say("--debug", *words), say(*words, "--debug")
    assert plain.err.startswith("medssl: ")
    assert "Traceback" not in plain.err
    for said in (before, after):
        assert "Traceback (most recent call last)" in said.err
        assert said.err.endswith(plain.err)
        assert said.code == plain.code == 1
