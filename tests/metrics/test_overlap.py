"""Laws of overlap and surface distance."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from medssl.metrics import class_numbers, dice, hausdorff95
from medssl.metrics.overlap import _surface

label_maps = hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=7).flatmap(
    lambda shape: st.tuples(*[hnp.arrays(np.uint8, shape, elements=st.integers(0, 2))] * 2)
)


@given(pair=label_maps)
def test_dice_is_symmetric_and_between_zero_and_one(pair: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> None:
    a, b = pair
    there, back = dice(a, b, 3), dice(b, a, 3)
    np.testing.assert_array_equal(there, back)
    assert ((there >= 0) & (there <= 1) | np.isnan(there)).all()


@given(pair=label_maps)
def test_dice_of_a_map_with_itself_is_one_where_the_class_is_present(
    pair: tuple[NDArray[np.uint8], NDArray[np.uint8]],
) -> None:
    score = dice(pair[0], pair[0], 3)
    present = np.array([(pair[0] == k).any() for k in (1, 2)])
    np.testing.assert_array_equal(score[present], 1.0)
    assert np.isnan(score[~present]).all()


def test_dice_of_a_class_found_where_there_is_none_is_zero() -> None:
    assert dice(np.ones((3, 3), int), np.zeros((3, 3), int), 2)[0] == 0


def test_dice_equals_the_formula_by_hand() -> None:
    prediction, label = np.array([1, 1, 1, 0, 2]), np.array([1, 1, 0, 0, 2])
    np.testing.assert_allclose(dice(prediction, label, 4), [4 / 5, 1.0, np.nan])


@given(pair=label_maps, spacing=st.tuples(*[st.floats(0.3, 7)] * 3))
def test_hausdorff_equals_all_pairs_of_surface_voxels(
    pair: tuple[NDArray[np.uint8], NDArray[np.uint8]], spacing: tuple[float, ...]
) -> None:
    a, b = pair
    mm = np.array(spacing[: a.ndim])
    for k, found in enumerate(hausdorff95(a, b, mm), start=1):
        p, q = (np.argwhere(_surface(x == k)) * mm for x in pair)
        if len(p) and len(q):
            apart = cdist(p, q)
            want = max(np.percentile(apart.min(1), 95), np.percentile(apart.min(0), 95))
            assert found == pytest.approx(want, rel=1e-9, abs=1e-12)
        else:
            assert np.isnan(found) if not len(p) and not len(q) else np.isinf(found)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 1.3, 5.0)], ids=["isotropic", "thick slices"])
def test_hausdorff_equals_monai_on_blobs(spacing: tuple[float, ...]) -> None:
    from scipy.ndimage import gaussian_filter

    random = np.random.default_rng(3)
    field = gaussian_filter(random.normal(size=(2, 18, 21, 15)), (0, 2, 2, 2))
    a, b = ((x > 0.05).astype(int) for x in (field[0], field[0] + 0.5 * field[1]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # monai's own imports
        import torch
        from monai.metrics import compute_hausdorff_distance

        want = compute_hausdorff_distance(
            torch.tensor(a)[None, None],
            torch.tensor(b)[None, None],
            include_background=True,
            percentile=95,
            spacing=spacing,
        )
    assert hausdorff95(a, b, spacing)[0] == pytest.approx(float(want), rel=1e-5)


def test_hausdorff_scales_with_the_spacing() -> None:
    random = np.random.default_rng(0)
    a, b = (random.random((2, 9, 9, 9)) > 0.8).astype(int)
    np.testing.assert_allclose(hausdorff95(a, b, (2, 2, 2)), 2 * hausdorff95(a, b, (1, 1, 1)))


def test_hausdorff_of_shifted_planes_is_their_distance_in_mm() -> None:
    a, b = np.zeros((10, 6, 6), int), np.zeros((10, 6, 6), int)
    a[2], b[6] = 1, 1
    np.testing.assert_allclose(hausdorff95(a, b, (2.5, 1, 1)), [10.0])


def test_maps_of_different_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        dice(np.zeros((2, 2), int), np.zeros((2, 3), int), 2)


def test_class_numbers_follow_the_values() -> None:
    np.testing.assert_array_equal(class_numbers(np.array([0, 255, 3, 0]), (3, 255)), [0, 2, 1, 0])
