"""What an encoder is worth: fine-tuned task networks, and the comparison with training from scratch."""

from .comparison import CompareResult, compare_encoders
from .config import FinetuneConfig
from .finetuning import FinetuneResult, finetune
from .scoring import ImageScore
from .segmentation import Segmentation

__all__ = [
    "CompareResult",
    "FinetuneConfig",
    "FinetuneResult",
    "ImageScore",
    "Segmentation",
    "compare_encoders",
    "finetune",
]
