"""PNG and JPEG are read as Pillow reads it, and refused where that would change its numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from PIL import Image

from medssl.index import Location
from medssl.reading import ReadError, read_header, read_label, read_voxels


def location(path: Path) -> Location:
    return Location((str(path),), "jpeg" if path.suffix == ".jpg" else "png")


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
@pytest.mark.parametrize("name", ["x.png", "x.jpg"])
def test_a_truncated_picture_is_refused(tmp_path: Path, share: float, name: str) -> None:
    path = tmp_path / name
    Image.fromarray(noise(64, 64)).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ReadError) as caught:
        read_header(location(path))
    assert caught.value.code in {"file-truncated", "file-corrupt"}


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("colour", [False, True])
def test_a_jpeg_is_decoded_as_another_decoder_does(tmp_path: Path, colour: bool, progressive: bool) -> None:
    smooth = np.add.outer(np.arange(40), np.arange(56)).astype("u1")
    array = np.stack([smooth, 255 - smooth, smooth // 2], -1) if colour else smooth
    path = tmp_path / "x.jpg"
    Image.fromarray(array).save(path, quality=95, progressive=progressive)
    ours, header = read_voxels(location(path)).array, read_header(location(path))
    other = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    assert np.abs(ours.astype(int) - other).max() <= 3, "two libraries may round otherwise"
    assert np.abs(ours.astype(int) - array).max() < 12, "rows and columns, red and blue are where they were"
    kind = "rgb2d" if colour else "image2d"
    assert (header.format, header.kind, header.shape, header.dtype) == ("jpeg", kind, (40, 56), "uint8")


def test_a_jpeg_that_exif_turns_is_refused_and_an_upright_one_read(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(noise(8, 16)).save(path, exif=exif)
        if orientation == 1:
            assert read_header(location(path)).shape == (8, 16)
            continue
        with pytest.raises(ReadError, match=f"orientation is {orientation}") as caught:
            read_voxels(location(path))
        assert caught.value.code == "jpeg-orientation"


def test_a_jpeg_of_other_pixels_or_a_label_map_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    Image.fromarray(noise(8, 16, 4), mode="CMYK").save(path)
    with pytest.raises(ReadError, match="4 components of 8 bits") as caught:
        read_header(location(path))
    assert caught.value.code == "jpeg-pixels"
    Image.fromarray(noise(8, 16)).save(path)
    with pytest.raises(ReadError) as caught:
        read_label(location(path))
    assert caught.value.code == "label-values"
    content = bytearray(path.read_bytes())
    content[content.index(b"\xff\xc0") + 4] = 12
    path.write_bytes(content)
    with pytest.raises(ReadError, match="1 components of 12 bits"):
        read_header(location(path))


def test_real_jpegs_baseline_and_progressive_are_read(shared: Path) -> None:
    cells = shared / "bccd-detection" / "images" / "BloodImage_00000.jpg"
    heart = next((shared / "sunnybrook-endo-epi" / "images").rglob("*.jpg"))
    for path, kind, shape in ((cells, "rgb2d", (480, 640)), (heart, "image2d", (256, 256))):
        header = read_header(location(path))
        assert (header.kind, header.shape) == (kind, shape)
        np.testing.assert_array_equal(read_voxels(location(path)).array, np.asarray(Image.open(path)))
