"""Two gloo processes take the step that one takes, for every toy; one pool of processes serves all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from medssl.nets.encoder import save_network
from medssl.train import TrainConfig, train

from ..methods.toys import REAL, TOYS, assert_same_gradient, gradients, make, small_encoder
from .ranks import STEPS

pytestmark = pytest.mark.ddp


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_network(tmp_path_factory.mktemp("weights") / "encoder", small_encoder(7), preparation={}, card="")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "tests.train.ranks"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    both = [
        subprocess.Popen(
            [*command, str(rank), str(folder), str(weights)],
            cwd=root,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(said)
    return folder


@pytest.mark.parametrize("micros", [1, 2], ids=["two ranks", "two ranks of two microbatches"])
@pytest.mark.parametrize("name", TOYS)
def test_two_ranks_take_the_same_step_as_one(
    name: str, micros: int, ranks: Path, weights: Path, tmp_path: Path
) -> None:
    method, loader = make(name, steps=6, weights=weights if name == "second stage" else None)
    method.double()
    train(method, loader, TrainConfig(steps=STEPS, warmup_steps=1, device="cpu", clip=0), tmp_path)
    states = [torch.load(ranks / f"{name}-{micros}-{rank}.pt", weights_only=True) for rank in range(2)]
    for key, value in method.state_dict().items():
        assert torch.equal(states[0][key], states[1][key]), f"{key} differs between the ranks"
        torch.testing.assert_close(
            states[0][key].double(), value.double(), rtol=1e-7, atol=1e-9, msg=lambda m, k=key: f"{k}: {m}"
        )


def test_where_one_rank_asks_to_stop_all_do(ranks: Path) -> None:
    assert [(ranks / f"stopped-{rank}").read_text() for rank in range(2)] == ["2", "2"]


@pytest.mark.parametrize("micros", [1, 2], ids=["two ranks", "two ranks of two microbatches"])
@pytest.mark.parametrize("name", REAL)
def test_two_ranks_give_the_gradient_of_one_for_shipped_methods(name: str, micros: int, ranks: Path) -> None:
    one, two = (torch.load(ranks / f"{name}-{micros}-{rank}.pt", weights_only=True) for rank in range(2))
    assert_same_gradient(gradients(name), {key: (one[key] + two[key]) / 2 for key in one})
