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

from medssl.metrics import class_numbers, dice, hausdorff95, surface_dice, surface_measures, volume_error_ml
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


@pytest.mark.parametrize("value", [-1, 2, 4, 300], ids=["below 0", "before a class", "between classes", "above them"])
def test_a_value_that_is_no_class_is_refused_and_not_taken_for_its_neighbour(value: int) -> None:
    with pytest.raises(ValueError, match=f"holds {value}, which is none of the classes"):
        class_numbers(np.array([0, 3, value, 255]), (3, 255))


@pytest.mark.parametrize("tolerance", [0.0, 1.0, 2.5], ids=["exact", "one mm", "two and a half mm"])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 1.3, 5.0)], ids=["isotropic", "thick slices"])
def test_surface_dice_equals_monai_on_blobs(spacing: tuple[float, ...], tolerance: float) -> None:
    from scipy.ndimage import gaussian_filter

    random = np.random.default_rng(4)
    field = gaussian_filter(random.normal(size=(2, 18, 21, 15)), (0, 2, 2, 2))
    a, b = ((x > 0.05).astype(int) + (x > 0.12) for x in (field[0], field[0] + 0.5 * field[1]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # monai's own imports
        import torch
        from monai.metrics import compute_surface_dice

        hot = [torch.from_numpy(np.stack([x == k for k in range(3)]))[None] for x in (a, b)]
        want = compute_surface_dice(*hot, class_thresholds=[tolerance] * 2, spacing=spacing)
    found = surface_dice(a, b, spacing, tolerance_mm=tolerance, classes=3)
    np.testing.assert_allclose(found, want[0].numpy(), rtol=1e-6)


@given(pair=label_maps, spacing=st.tuples(*[st.floats(0.3, 7)] * 3), tolerance=st.floats(0, 5))
def test_surface_dice_is_symmetric_and_grows_with_the_tolerance(
    pair: tuple[NDArray[np.uint8], NDArray[np.uint8]], spacing: tuple[float, ...], tolerance: float
) -> None:
    a, b = pair
    mm = spacing[: a.ndim]
    one, other = (surface_dice(x, y, mm, tolerance_mm=tolerance, classes=3) for x, y in ((a, b), (b, a)))
    np.testing.assert_array_equal(one, other)
    assert ((one >= 0) & (one <= 1) | np.isnan(one)).all()
    wider = surface_dice(a, b, mm, tolerance_mm=tolerance + 1, classes=3)
    assert (np.isnan(wider) | (wider >= one)).all()


@given(pair=label_maps)
def test_both_surface_measures_at_once_are_each_alone(pair: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> None:
    a, b = pair
    mm = (0.5, 2.0, 1.0)[: a.ndim]
    far, near = surface_measures(a, b, mm, tolerance_mm=1.0, classes=3)
    np.testing.assert_array_equal(near, surface_dice(a, b, mm, tolerance_mm=1.0, classes=3))
    alone = hausdorff95(a, b, mm)
    np.testing.assert_array_equal(far[: len(alone)], alone)
    assert np.isnan(far[len(alone) :]).all()


def test_a_surface_moved_by_less_than_the_tolerance_is_right_and_by_more_is_wrong() -> None:
    a = np.zeros((12, 4, 4), int)
    b = a.copy()
    a[2:6], b[3:7] = 1, 1  # moved by 2.5 mm; both are cut by the image's border on four sides
    assert surface_dice(a, b, (2.5, 1, 1), tolerance_mm=2.5, classes=2)[0] == 1
    assert surface_dice(a, b, (2.5, 1, 1), tolerance_mm=2.4, classes=2)[0] < 1


def test_surface_dice_is_zero_where_a_class_was_missed_or_made_up_and_nan_where_it_is_nowhere() -> None:
    a, b = np.zeros((4, 4), int), np.zeros((4, 4), int)
    a[1, 1], b[2, 2] = 1, 2
    np.testing.assert_array_equal(surface_dice(a, b, (1, 1), tolerance_mm=9, classes=4), [0, 0, np.nan])


def test_volume_error_is_the_difference_in_millilitres() -> None:
    a, b = np.zeros((10, 10, 10), int), np.zeros((10, 10, 10), int)
    a[:5], b[:2], b[9] = 1, 1, 2
    np.testing.assert_allclose(
        volume_error_ml(a, b, (2.0, 1.0, 0.5), 4), [300 * 1e-3, -100 * 1e-3, np.nan], equal_nan=True
    )
    with pytest.raises(ValueError, match="three axes"):
        volume_error_ml(a[0], b[0], (1, 1), 2)


@given(pair=label_maps)
def test_swapping_the_maps_turns_the_volume_error_around(pair: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> None:
    a, b = (x.reshape(x.shape + (1,) * (3 - x.ndim)) for x in pair)
    np.testing.assert_array_equal(volume_error_ml(a, b, (1, 2, 3), 3), -volume_error_ml(b, a, (1, 2, 3), 3))
