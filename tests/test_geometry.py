"""Geometry agrees with nibabel and SimpleITK, and its maps undo each other."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from medssl import geometry
from medssl.demo_data import demo_folder

Floats = NDArray[np.float64]
NIFTI = sorted((demo_folder() / "hippocampus").rglob("*.nii.gz"))


@st.composite
def affines(draw: st.DrawFn) -> Floats:
    """Any rotation or reflection, spacing 0.2 to 8 mm, any origin within two metres."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rotation, _ = np.linalg.qr(generator.normal(size=(3, 3)))
    out = np.eye(4)
    out[:3, :3] = rotation * generator.uniform(0.2, 8, 3)
    out[:3, 3] = generator.uniform(-2000, 2000, 3)
    return out


@given(affines())
def test_spacing_and_orientation_are_nibabels_for_any_oblique_affine(affine: Floats) -> None:
    np.testing.assert_allclose(geometry.spacing_of(affine), nib.affines.voxel_sizes(affine))
    assert geometry.orientation_of(affine) == "".join(nib.aff2axcodes(affine))


@pytest.mark.parametrize("axes", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
@pytest.mark.parametrize("flips", [(i, j, k) for i in (1, -1) for j in (1, -1) for k in (1, -1)])
def test_all_48_orientations_are_named_as_nibabel_names_them(axes: tuple[int, ...], flips: tuple[int, ...]) -> None:
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, axes] * flips
    assert geometry.orientation_of(affine) == "".join(nib.aff2axcodes(affine))


@given(affines(), st.integers(0, 2**32 - 1))
def test_mm_to_voxel_undoes_voxel_to_mm(affine: Floats, seed: int) -> None:
    points = np.random.default_rng(seed).uniform(-500, 500, (2, 5, 3))
    np.testing.assert_allclose(geometry.to_voxel(affine, geometry.to_mm(affine, points)), points, atol=1e-6)


@given(affines(), st.tuples(*[st.integers(-50, 500)] * 3))
def test_a_crop_leaves_every_voxel_where_it_was(affine: Floats, start: tuple[int, int, int]) -> None:
    inside = np.array([3.0, 4.0, 5.0])
    moved = geometry.to_mm(geometry.cropped(affine, start), inside)
    np.testing.assert_allclose(moved, geometry.to_mm(affine, inside + start), atol=1e-6)


@given(affines())
def test_lps_and_ras_are_each_others_inverse(affine: Floats) -> None:
    np.testing.assert_array_equal(geometry.from_lps(geometry.from_lps(affine)), affine)


@given(affines())
def test_rotations_and_reflections_are_neither_sheared_nor_singular(affine: Floats) -> None:
    assert not geometry.is_sheared(affine)
    assert not geometry.is_singular(affine)


@given(affines(), st.floats(0.02, 0.5))
def test_an_axis_that_leans_on_another_is_sheared(affine: Floats, lean: float) -> None:
    affine[:3, 0] += lean * affine[:3, 1] * np.linalg.norm(affine[:3, 0]) / np.linalg.norm(affine[:3, 1])
    assert geometry.is_sheared(affine)


@given(affines(), st.integers(0, 2))
def test_an_axis_without_length_or_in_the_plane_of_the_others_is_singular(affine: Floats, axis: int) -> None:
    flat = affine.copy()
    flat[:3, axis] = affine[:3, (axis + 1) % 3] + affine[:3, (axis + 2) % 3]
    affine[:3, axis] = 0
    assert geometry.is_singular(flat)
    assert geometry.is_singular(affine)


@given(affines(), st.integers(0, 2))
def test_same_place_notices_a_shift_and_no_rounding(affine: Floats, axis: int) -> None:
    shifted = affine.copy()
    shifted[axis, 3] += 0.06 * min(geometry.spacing_of(affine))
    assert not geometry.same_place(affine, shifted, (5, 6, 7))
    assert geometry.same_place(affine, affine.astype(np.float32), (5, 6, 7))


def test_shipped_nifti_lie_where_nibabel_and_simpleitk_put_them() -> None:
    for path in NIFTI:
        affine = nib.load(path).affine
        image = sitk.ReadImage(str(path))
        np.testing.assert_allclose(geometry.spacing_of(affine), image.GetSpacing(), rtol=1e-6)
        for corner in ((0, 0, 0), tuple(n - 1 for n in image.GetSize())):
            lps = image.TransformIndexToPhysicalPoint(corner)
            np.testing.assert_allclose(geometry.to_mm(affine, corner), np.array(lps) * (-1, -1, 1), atol=1e-4)
