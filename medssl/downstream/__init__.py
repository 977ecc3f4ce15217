"""What an encoder is worth: fine-tuned task networks, and the comparison with training from scratch."""

from .config import FinetuneConfig

__all__ = ["FinetuneConfig"]
