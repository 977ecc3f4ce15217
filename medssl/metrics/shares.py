"""A measure of a whole group, shared out among its patients.

Shapes: P patients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray


def shares(measure: Callable[[Sequence[int]], float], patients: int) -> NDArray[np.float64]:
    """Share a measure out among patients by the jackknife: (P,), whose mean is the measure.

    An area under a curve, or a precision over all boxes, is no mean over patients. Its share of a patient is the
    measure plus (P - 1) times what it falls by without that patient, moved so that the mean over patients is the
    measure itself. Resampling the shares stands for resampling patients and measuring anew, to first order; for the
    area under the ROC curve their spread is that of DeLong et al.

    Args:
        measure: gives the value for the patients of these numbers, nan where it has none.
        patients: P.

    Returns:
        nan everywhere where the whole group has no value; nan for a patient without whom the rest has none.

    Source: Tukey's pseudo-values, as in Efron and Tibshirani 1993, chapter 11; DeLong, DeLong and Clarke-Pearson 1988,
        Biometrics 44.
    """
    everyone = list(range(patients))
    whole = float(measure(everyone))
    if not np.isfinite(whole) or patients < 2:
        return np.full(patients, whole)
    without = np.array([measure([p for p in everyone if p != left]) for left in everyone], dtype=np.float64)
    values = whole + (patients - 1) * (whole - without)
    known = np.isfinite(values)
    if known.any():
        values += whole - values[known].mean()
    return np.asarray(values, dtype=np.float64)
