"""What a number was measured on; imported first, it lets torch's threads sleep while they wait."""

from __future__ import annotations

import importlib.metadata
import os
import platform
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
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "monai", "numpy")},
    }
