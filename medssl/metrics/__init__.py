"""Measures, pure: of segmentations, classes, boxes, measures, neighbours and features, and how sure a difference is."""

from .certainty import Interval, bootstrap, holm, standard_error
from .classification import (
    auroc,
    average_precision,
    balanced_accuracy,
    brier,
    by_group,
    calibration_error,
    confusion,
    quadratic_kappa,
)
from .detection import (
    Found,
    Froc,
    Matched,
    box_average_precision,
    box_mean_average_precision,
    box_overlap,
    found_in,
    froc,
    match_boxes,
)
from .features import effective_rank
from .overlap import class_numbers, dice, hausdorff95, surface_dice, surface_measures, volume_error_ml
from .pairing import draw_images, mean_of, per_patient
from .regression import RegressionErrors, regression_errors
from .retrieval import cosine_similarity, knn, mean_average_precision, ndcg_at, recall_at
from .saving import Saving, label_saving
from .shares import shares

__all__ = [
    "Found",
    "Froc",
    "Interval",
    "Matched",
    "RegressionErrors",
    "Saving",
    "auroc",
    "average_precision",
    "balanced_accuracy",
    "bootstrap",
    "box_average_precision",
    "box_mean_average_precision",
    "box_overlap",
    "brier",
    "by_group",
    "calibration_error",
    "class_numbers",
    "confusion",
    "cosine_similarity",
    "dice",
    "draw_images",
    "effective_rank",
    "found_in",
    "froc",
    "hausdorff95",
    "holm",
    "knn",
    "label_saving",
    "match_boxes",
    "mean_average_precision",
    "mean_of",
    "ndcg_at",
    "per_patient",
    "quadratic_kappa",
    "recall_at",
    "regression_errors",
    "shares",
    "standard_error",
    "surface_dice",
    "surface_measures",
    "volume_error_ml",
]
