"""What a number was measured on; imported first, it lets torch's threads sleep while they wait."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from medssl.cli.app import share_cores

share_cores()


def machine() -> dict[str, Any]:
    """Return processor, threads and versions; no name of the machine or of who runs it."""
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return {
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": accelerator.type if accelerator else "none",
        "python": platform.python_version(),
        "commit": _commit(),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "monai", "numpy")},
    }


def command() -> str:
    """Return the command as it was given, without where its result goes."""
    module = Path(sys.argv[0]).stem
    words = sys.argv[1:]
    if "--out" in words:
        at = words.index("--out")
        words = words[:at] + words[at + 2 :]
    return " ".join(["python -m", f"benchmarks.{module}", *words])


def _commit() -> str:
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"
