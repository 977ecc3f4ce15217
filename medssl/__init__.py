"""medssl: self-supervised pretraining for medical images, with proof that it helped.

The public names are loaded when they are first used, so that `import medssl` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .errors import MedsslError
from .version import __version__ as __version__

_HOME = {
    "build_index": "ingest",
    "build_store": "prepare",
    "load_recipe": "recipe",
    "Recipe": "recipe",
    "pretrain_encoder": "pretrain",
    "load_encoder": "nets.encoder",
    "Encoder": "nets.encoder",
    "Method": "methods.method",
    "Losses": "methods.method",
    "probe_encoder": "probe",
    "finetune": "downstream",
    "embed_images": "embed",
    "compare_encoders": "downstream",
    "export_run": "export",
    "write_report": "report",
}

__all__ = ["MedsslError", *sorted(_HOME)]

if TYPE_CHECKING:
    from .downstream import compare_encoders as compare_encoders
    from .downstream import finetune as finetune
    from .embed import embed_images as embed_images
    from .export import export_run as export_run
    from .ingest import build_index as build_index
    from .methods.method import Losses as Losses
    from .methods.method import Method as Method
    from .nets.encoder import Encoder as Encoder
    from .nets.encoder import load_encoder as load_encoder
    from .prepare import build_store as build_store
    from .pretrain import pretrain_encoder as pretrain_encoder
    from .probe import probe_encoder as probe_encoder
    from .recipe import Recipe as Recipe
    from .recipe import load_recipe as load_recipe
    from .report import write_report as write_report


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'medssl' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
