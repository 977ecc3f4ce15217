"""Measures, pure: how good a segmentation is, how many directions features use, how sure a difference is."""

from .certainty import Interval, bootstrap
from .features import effective_rank
from .overlap import dice, hausdorff95

__all__ = ["Interval", "bootstrap", "dice", "effective_rank", "hausdorff95"]
