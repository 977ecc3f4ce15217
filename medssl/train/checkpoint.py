"""Checkpoints that are whole or not there: a folder a step, written beside and renamed, checked when read.

A checkpoint holds the step, the method, the optimiser and the observers, and no random state: every random number is a
function of the seed, the step and the sample.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ..errors import RunError

logger = logging.getLogger(__name__)


def _plain_state(module: nn.Module) -> dict[str, Tensor]:
    # safetensors refuses tensors that share memory or are not contiguous (tied, expanded, transposed)
    return {name: value.detach().cpu().clone().contiguous() for name, value in module.state_dict().items()}


def save_checkpoint(
    folder: Path, *, step: int, method: nn.Module, optimiser: Any, observers: dict[str, Any], keep: int
) -> Path:
    """Write the state after `step` steps as `folder/step-00000123` and remove all but the newest `keep`."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{step:08d}"
    temporary = folder / f".{target.name}.{os.getpid()}"
    for leftover in folder.glob(".step-*"):  # of a run that was killed while it wrote; there is one writer
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir()
    rest = io.BytesIO()
    torch.save({"step": step, "optimiser": optimiser.adamw.state_dict(), "observers": observers}, rest)
    files = {"method.safetensors": save(_plain_state(method)), "rest.pt": rest.getvalue()}
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    files["sums.json"] = json.dumps(sums).encode()
    for name, data in files.items():
        with (temporary / name).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    if target.exists():
        shutil.rmtree(target)
    temporary.rename(target)
    for old in _newest_first(folder)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), reverse=True)


def _whole(path: Path) -> bool:
    try:
        sums = json.loads((path / "sums.json").read_text())
        return set(sums) == {"method.safetensors", "rest.pt"} and all(
            hashlib.sha256((path / name).read_bytes()).hexdigest() == value for name, value in sums.items()
        )
    except (OSError, ValueError):
        return False


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that is whole; damaged ones are passed over with a warning."""
    for path in _newest_first(folder):
        if _whole(path):
            return path
        logger.warning("checkpoint %s is damaged and left out", path.name)
    return None


def load_checkpoint(path: Path, *, method: nn.Module, optimiser: Any) -> tuple[int, dict[str, Any]]:
    """Put a checkpoint's state into a method and its optimiser.

    Returns:
        The number of steps done, and the states of the observers by name.

    Raises:
        RunError: the checkpoint belongs to another method.
    """
    try:
        state = load_file(path / "method.safetensors")
        method.load_state_dict(state, strict=True)
        rest = torch.load(path / "rest.pt", map_location="cpu", weights_only=True)
        optimiser.adamw.load_state_dict(rest["optimiser"])
    except (SafetensorError, RuntimeError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(
            f"the checkpoint does not fit this recipe: {reason}",
            where=path.name,
            fix="resume with the run's own recipe",
        ) from error
    return int(rest["step"]), dict(rest["observers"])
