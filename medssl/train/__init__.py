"""The engine: trains any Method, whatever the layout, and resumes as if nothing had happened."""

from .config import TrainConfig
from .engine import Batches, Observer, TrainResult, png, train
from .log import read_metrics

__all__ = ["Batches", "Observer", "TrainConfig", "TrainResult", "png", "read_metrics", "train"]
