"""Index to store: images turned, resampled and cropped by MONAI's transforms, as the recipe names them."""

from __future__ import annotations

from .build import StoreResult, build_store
from .config import Percentiles, PrepareConfig, TransformConfig, Window, ZScore
from .datalist import build_store_from_datalist
from .preprocessing import config_of, monai_preprocessing, preparation_of

__all__ = [
    "Percentiles",
    "PrepareConfig",
    "StoreResult",
    "TransformConfig",
    "Window",
    "ZScore",
    "build_store",
    "build_store_from_datalist",
    "config_of",
    "monai_preprocessing",
    "preparation_of",
]
