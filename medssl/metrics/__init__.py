"""Measures, pure: how good a segmentation is, how many directions features use, how sure a difference is."""

from .certainty import Interval, bootstrap
from .features import effective_rank
from .overlap import class_numbers, dice, hausdorff95, surface_dice, surface_measures, volume_error_ml
from .pairing import draw_images, mean_of, per_patient

__all__ = [
    "Interval",
    "bootstrap",
    "class_numbers",
    "dice",
    "draw_images",
    "effective_rank",
    "hausdorff95",
    "mean_of",
    "per_patient",
    "surface_dice",
    "surface_measures",
    "volume_error_ml",
]
