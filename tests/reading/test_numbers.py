"""Numbers are rescaled once; integers stay integers where that loses nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medssl.reading import ReadError
from medssl.reading.numbers import as_label, rescaled

TYPES = st.sampled_from(["u1", "i1", "u2", "i2", "<i4", ">i2"])


@given(TYPES, st.integers(-3, 3), st.integers(-2000, 2000), st.integers(0, 2**32 - 1))
def test_whole_slopes_and_intercepts_give_exact_integers(dtype: str, slope: int, intercept: int, seed: int) -> None:
    kind = np.iinfo(dtype)
    low, high = max(kind.min, -(2**28)), min(kind.max, 2**28)
    stored = np.random.default_rng(seed).integers(low, high, 20, endpoint=True).astype(dtype)
    out = rescaled(stored, float(slope), float(intercept))
    assert out.dtype in (np.uint8, np.int16, np.int32)
    np.testing.assert_array_equal(out, stored.astype(object) * slope + intercept)


@given(TYPES, st.floats(0.01, 5).filter(lambda x: x != round(x)), st.floats(-2000, 2000))
def test_other_slopes_give_float32_of_the_exact_value(dtype: str, slope: float, intercept: float) -> None:
    stored = np.arange(100).astype(dtype)
    out = rescaled(stored, slope, intercept)
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, (stored.astype(np.float64) * slope + intercept).astype(np.float32))


def test_integers_beyond_32_bits_are_refused_and_not_wrapped() -> None:
    with pytest.raises(ReadError) as caught:
        rescaled(np.array([2**31 - 1], np.int32), 2.0, 0.0)
    assert caught.value.code == "voxels-out-of-range"


def test_labels_become_the_smallest_of_two_types() -> None:
    assert as_label(np.array([0.0, 255.0], np.float32)).dtype == np.uint8
    assert as_label(np.array([0, 256], np.int32)).dtype == np.int16
