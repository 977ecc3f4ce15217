"""Laws of windows: where they stand in mm, and what lies around an image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from medssl.probe.windows import context_of, crop_of, picture_of

from ..labelled_store import write_labelled_store
from .pixels import Pixels


@pytest.mark.parametrize("axes", [2, 3])
def test_a_windows_first_voxel_lies_where_it_lies_in_the_image(tmp_path: Path, axes: int) -> None:
    shape = (9, 8, 7)[:axes]
    store = write_labelled_store(tmp_path / "store", [np.zeros(shape, np.float32)], [None], splits=["test"])
    turned = np.array([[0.0, -2, 0, 11], [-3, 0, 0.5, -4], [0, 0.25, 4, 7], [0, 0, 0, 1]])
    picture = picture_of(replace(store.rows[0], affine=tuple(map(tuple, turned))), store.read("image00"))
    encoder = Pixels(axes=axes)
    encoder.needs = ("affine",)
    starts = [(3, 5, 2)[:axes], (0, 0, 0)[:axes]]
    for start, affine in zip(starts, context_of(encoder, picture, starts)["affine"], strict=True):
        for step in np.eye(4)[:axes]:
            there = turned @ (np.array([*start, *[0] * (3 - axes), 1]) + step)
            np.testing.assert_allclose(affine.numpy() @ (np.array([0, 0, 0, 1]) + step), there, rtol=1e-5)


def test_around_an_image_lies_what_is_as_dark_as_its_intensities_go(tmp_path: Path) -> None:
    low, high = -1000.0, 500.0
    image = np.linspace(-2000, 1500, 6 * 5 * 4).reshape(6, 5, 4).astype(np.int16)
    store = write_labelled_store(
        tmp_path / "store", [image], [None], splits=["test"], intensity=(low, high, 100.0, 250.0)
    )
    picture = picture_of(store.rows[0], store.read("image00"))
    assert picture.outside == pytest.approx(float(picture.image.min()))
    crop = crop_of(picture, (4, 0, 0), (4, 5, 8), None)
    torch.testing.assert_close(crop[:, :2, :, :4], picture.image[:, 4:])
    for around in (crop[:, 2:], crop[:, :, :, 4:]):
        torch.testing.assert_close(around, torch.full_like(around, picture.outside))
