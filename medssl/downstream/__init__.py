"""What an encoder is worth: fine-tuned task networks, and the comparison with training from scratch."""

from .compared import CompareResult
from .comparison import compare_encoders
from .config import FinetuneConfig
from .finetuning import FinetuneResult, finetune
from .plan import Plan, plan_segmentation
from .scoring import ImageScore
from .segmentation import Segmentation

__all__ = [
    "CompareResult",
    "FinetuneConfig",
    "FinetuneResult",
    "ImageScore",
    "Plan",
    "Segmentation",
    "compare_encoders",
    "finetune",
    "plan_segmentation",
]
