"""Laws of choosing labelled images and of counting patients once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medssl.metrics import draw_images, mean_of, per_patient

TWO_SIDES = {f"image{i}": f"patient{i // 2}" for i in range(12)}


@given(seed=st.integers(0, 99), count=st.integers(1, 6))
def test_images_come_from_different_patients_while_there_are_some(seed: int, count: int) -> None:
    assert len({TWO_SIDES[image] for image in draw_images(TWO_SIDES, count, seed)}) == count


@given(seed=st.integers(0, 99), count=st.integers(1, 12))
def test_a_larger_choice_holds_the_smaller_one_and_repeats_no_image(seed: int, count: int) -> None:
    whole = draw_images(TWO_SIDES, 12, seed)
    assert whole[:count] == draw_images(TWO_SIDES, count, seed)
    assert len(set(whole)) == 12


def test_the_choice_ignores_the_order_images_are_listed_in_but_not_the_seed() -> None:
    backwards = dict(reversed(TWO_SIDES.items()))
    assert draw_images(backwards, 4, 1) == draw_images(TWO_SIDES, 4, 1)
    assert len({draw_images(TWO_SIDES, 3, seed) for seed in range(20)}) > 10


def test_more_images_than_there_are_is_an_error() -> None:
    with pytest.raises(ValueError, match="13 images wanted of 12"):
        draw_images(TWO_SIDES, 13, 0)


def test_a_patient_with_many_images_counts_once() -> None:
    scores = per_patient([[0.0, 0.0, 0.0, 1.0]], ["a", "a", "a", "b"])
    np.testing.assert_array_equal(scores, [[0.0, 1.0]])


def test_what_was_not_measured_is_left_out_of_means_without_a_warning() -> None:
    np.testing.assert_array_equal(mean_of([[1.0, np.nan], [np.nan, np.nan]], 1), [1.0, np.nan])
