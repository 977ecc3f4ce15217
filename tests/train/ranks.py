"""What each of two gloo processes runs: every toy on two ranks, and on two ranks with two microbatches."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist

from medssl.train import TrainConfig, train
from tests.methods.toys import TOYS, make

STEPS = 3


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
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
