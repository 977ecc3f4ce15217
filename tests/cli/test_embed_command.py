"""medssl embed, as a command: one line, one file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import typer
from typer.testing import CliRunner

from medssl.cli.embed import embed
from medssl.demo_data import demo_folder
from medssl.nets.encoder import DynUNetConfig, build_encoder, save_network
from medssl.prepare import PrepareConfig, preparation_of


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small encoder with fresh weights."""
    torch.manual_seed(0)
    config = DynUNetConfig(channels=(8, 8, 8), features=4, strides=(2, 2, 2))
    network = build_encoder(config, channels=1, shape=(24, 32, 24), spacing_mm=None)
    folder = tmp_path_factory.mktemp("network") / "encoder"
    return save_network(folder, network, preparation=preparation_of(PrepareConfig()), card="")


def test_one_command_embeds_a_scan(encoder: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(embed)
    scan = sorted((demo_folder() / "hippocampus" / "images").iterdir())[0]
    shutil.copy(scan, tmp_path)
    words = [str(encoder), str(tmp_path / scan.name), "--out", str(tmp_path / "e.parquet"), "--json", "--quiet"]
    said = CliRunner().invoke(app, words)
    assert said.exit_code == 0, said.output
    found = json.loads(said.stdout)
    assert (found["images"], found["rows"], found["features"]) == (1, 1, 8)
    assert pq.read_table(tmp_path / "e.parquet").num_rows == 1
