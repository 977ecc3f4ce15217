"""What each of two gloo processes runs: every toy on two ranks, and on two ranks with two microbatches."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from medssl.train import TrainConfig, train
from tests.methods.toys import REAL, TOYS, gradients, make

STEPS = 3


class StopsOnOneRank:
    """An observer that asks rank 1 alone to stop after two steps."""

    every = 1

    def __init__(self, rank: int) -> None:
        self.rank, self.stop = rank, False

    def observe(self, step: int, method: Any, log: Any) -> None:
        self.stop = step >= 2 and self.rank == 1

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def main(rank: int, folder: Path, weights: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=(folder / "meet").as_uri(), rank=rank, world_size=2)
    try:
        for name in TOYS:
            for micros in (1, 2):
                method, loader = make(name, steps=6, weights=weights if name == "second stage" else None)
                method.double()
                config = TrainConfig(steps=STEPS, warmup_steps=1, microbatches=micros, device="cpu", clip=0)
                with tempfile.TemporaryDirectory() as out:
                    train(method, loader, config, Path(out))
                torch.save(method.state_dict(), folder / f"{name}-{micros}-{rank}.pt")
        for name in REAL:
            for micros in (1, 2):
                torch.save(gradients(name, microbatches=micros), folder / f"{name}-{micros}-{rank}.pt")
        method, loader = make("queue")
        config = TrainConfig(steps=STEPS, warmup_steps=1, device="cpu")
        with tempfile.TemporaryDirectory() as out:
            stopped = train(method, loader, config, Path(out), observers=[StopsOnOneRank(rank)])
        (folder / f"stopped-{rank}").write_text(str(stopped.steps))
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
