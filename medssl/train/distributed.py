"""Where a process stands among its ranks. Launching is torchrun's work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist


def rank_and_ranks() -> tuple[int, int]:
    """Return this process's rank and the number of ranks; (0, 1) outside a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


@contextmanager
def process_group() -> Iterator[tuple[int, int]]:
    """Join the group that torchrun describes in the environment, if it does and none is open yet."""
    opened = False
    if "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        if torch.accelerator.is_available():
            torch.accelerator.set_device_index(int(os.environ.get("LOCAL_RANK", "0")))
        backend = dist.get_default_backend_for_device(pick_device("auto"))
        dist.init_process_group(backend)
        opened = True
    try:
        yield rank_and_ranks()
    finally:
        if opened:
            dist.destroy_process_group()


def pick_device(name: str) -> torch.device:
    """Return the device of that name, or for `auto` the accelerator torch finds, else the CPU."""
    if name != "auto":
        return torch.device(name)
    if torch.accelerator.is_available():
        device = torch.accelerator.current_accelerator()
        if device is not None:
            return torch.device(device.type, torch.accelerator.current_device_index())
    return torch.device("cpu")
