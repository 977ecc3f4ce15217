"""PNG is read as Pillow reads it, and refused where that would change its numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from medssl.index import Location
from medssl.reading import ReadError, read_header, read_label, read_voxels


def location(path: Path) -> Location:
    return Location((str(path),), "png")


def saved(folder: Path, picture: Image.Image) -> Path:
    picture.save(folder / "x.png")
    return folder / "x.png"


def noise(*shape: int, high: int = 256, dtype: str = "u1") -> NDArray[np.generic]:
    return np.random.default_rng(0).integers(0, high, shape).astype(dtype)


@pytest.mark.parametrize(
    ("array", "kind"),
    [
        pytest.param(noise(5, 7), "image2d", id="grey"),
        pytest.param(noise(5, 7, 3), "rgb2d", id="colour"),
        pytest.param(noise(5, 7, high=60000, dtype="u2"), "image2d", id="grey of 16 bits"),
    ],
)
def test_pixels_come_back_in_rows_and_columns(tmp_path: Path, array: NDArray[np.generic], kind: str) -> None:
    path = saved(tmp_path, Image.fromarray(array))
    voxels, header = read_voxels(location(path)), read_header(location(path))
    np.testing.assert_array_equal(voxels.array, array)
    assert voxels.affine is None
    assert (header.kind, header.shape, header.spacing_mm) == (kind, (5, 7), None)


def test_opaque_transparency_is_dropped_and_any_other_refused(tmp_path: Path) -> None:
    array = noise(5, 7, 4)
    array[..., 3] = 255
    np.testing.assert_array_equal(read_voxels(location(saved(tmp_path, Image.fromarray(array)))).array, array[..., :3])
    array[2, 3, 3] = 254
    with pytest.raises(ReadError) as caught:
        read_voxels(location(saved(tmp_path, Image.fromarray(array))))
    assert caught.value.code == "png-pixels"


def test_a_palette_gives_its_colours_as_image_and_its_numbers_as_label(tmp_path: Path) -> None:
    picture = Image.fromarray(noise(5, 7, high=3)).convert("P")
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    picture.putdata(noise(5, 7, high=3).ravel().tolist())
    path = saved(tmp_path, picture)
    np.testing.assert_array_equal(read_voxels(location(path)).array, np.asarray(picture.convert("RGB")))
    np.testing.assert_array_equal(read_label(location(path)).array, noise(5, 7, high=3))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_a_truncated_picture_is_refused(tmp_path: Path, share: float) -> None:
    path = saved(tmp_path, Image.fromarray(noise(64, 64)))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ReadError) as caught:
        read_header(location(path))
    assert caught.value.code in {"file-truncated", "file-corrupt"}
