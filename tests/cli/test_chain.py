"""The whole way by commands: each ends well, says what it did as JSON when asked, and keeps quiet when asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medssl import load_encoder

from .conftest import Chain, say

COMMANDS = (
    "index",
    "prepare",
    "pretrain",
    "probe",
    "finetune",
    "compare",
    "export",
    "export bundle",
    "report",
    "recipes",
    "recipes --schema",
    "recipes mae-ct",
    "methods",
)
pytestmark = pytest.mark.slow


def test_every_command_of_the_chain_ends_well(chain: Chain) -> None:
    assert set(chain.said) == set(COMMANDS)
    assert {name: said.code for name, said in chain.said.items() if said.code} == {}


@pytest.mark.parametrize("name", COMMANDS)
def test_json_is_one_object_and_nothing_else(chain: Chain, name: str) -> None:
    out = chain.said[name].out
    found = json.loads(out)
    assert isinstance(found, dict)
    assert found
    assert out.endswith("\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_quiet_command_says_nothing_beside_its_result(chain: Chain, name: str) -> None:
    assert chain.said[name].err == ""


def test_what_the_commands_name_is_there(chain: Chain) -> None:
    def found(name: str, key: str) -> Path:
        return Path(json.loads(chain.said[name].out)[key])

    assert (found("index", "index") / "card.md").is_file()
    assert (found("prepare", "folder") / "store.parquet").is_file()
    assert (found("finetune", "network") / "model.safetensors").is_file()
    assert (found("export bundle", "out") / "configs" / "inference.json").is_file()
    assert found("report", "out").read_text(encoding="utf-8").lower().startswith("<!doctype html>")
    assert (chain.folder / "comparison" / "compare.json").is_file()
    trained, exported = (found("pretrain", "encoder"), found("export", "out"))
    assert (trained / "model.safetensors").read_bytes() == (exported / "model.safetensors").read_bytes()
    assert load_encoder(exported).spec == load_encoder(trained).spec


def test_the_probe_has_an_arm_for_each_control(chain: Chain) -> None:
    assert set(json.loads(chain.said["probe"].out)["dice"]) == {"encoder", "random weights", "no network"}


def test_the_comparison_pairs_the_encoder_with_scratch(chain: Chain) -> None:
    found = json.loads(chain.said["compare"].out)
    assert found["arms"] == ["run", "scratch"]
    assert found["computed"] == 2
    assert set(found["differences"]) == {"run"}


def test_a_finished_comparison_run_again_trains_nothing_and_finds_the_same(chain: Chain) -> None:
    arms = ("--encoder", chain.folder / "run", "--encoder", "none")
    few = ("--data", chain.folder / "store", "--counts", 1, "--seeds", 1)
    again = say("compare", *arms, *few, "--out", chain.folder / "comparison", "--json", "--quiet")
    assert again.code == 0
    assert json.loads(again.out) == json.loads(chain.said["compare"].out) | {"computed": 0}


def test_without_json_a_command_ends_with_a_sentence_and_where_it_wrote(chain: Chain, tmp_path: Path) -> None:
    said = say("export", chain.folder / "run", "--to", "encoder", "--out", tmp_path / "encoder")
    assert said.code == 0
    assert str(tmp_path / "encoder") in said.out
    assert not said.out.startswith("{")


def test_a_recipe_printed_by_name_or_file_is_the_file(chain: Chain, tmp_path: Path) -> None:
    printed = say("recipes", "mae-ct")
    assert printed.code == 0
    (tmp_path / "mine.yaml").write_text(printed.out, encoding="utf-8")
    assert say("recipes", tmp_path / "mine.yaml").out == printed.out
    as_json = json.loads(chain.said["recipes mae-ct"].out)
    assert as_json["method"]["form"] == "tokens"
