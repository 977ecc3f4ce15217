"""A DICOM series becomes the volume that dcm2niix, SimpleITK and a published mask say it is, or is refused.

Broken series are the shipped CT with elements changed by pydicom.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataelem import DataElement
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless
from scipy.spatial.transform import Rotation

from medssl import geometry
from medssl.demo_data import demo_folder
from medssl.index import Location
from medssl.reading import ReadError, Voxels, read_header, read_voxels

CT = sorted((demo_folder() / "ct").glob("CT*"))


def location(paths: list[Path]) -> Location:
    return Location(tuple(map(str, paths)), "dicom")


@pytest.fixture(scope="module")
def shipped() -> Voxels:
    """The shipped series, read once."""
    return read_voxels(location(CT))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Six slices of the shipped CT, pixels uncompressed and cut to 16 x 16, so that changing them is quick."""
    folder = tmp_path_factory.mktemp("small")
    paths = []
    for n, source in enumerate(CT[:6]):
        dataset = pydicom.dcmread(source)
        pixels = dataset.pixel_array[200:216, 240:256]
        dataset.PixelData, dataset.Rows, dataset.Columns = pixels.tobytes(), 16, 16
        dataset["PixelData"].VR = "OW"
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SOPClassUID, dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPClassUID, f"1.2.{n + 1}"
        dataset.save_as(folder / f"{n}.dcm", enforce_file_format=True)
        paths.append(folder / f"{n}.dcm")
    return paths


def changed(paths: list[Path], folder: Path, change: Callable[[int, Any], None]) -> list[Path]:
    out = []
    for n, path in enumerate(paths):
        dataset = pydicom.dcmread(path)
        change(n, dataset)
        dataset.save_as(folder / f"{n}.dcm")
        out.append(folder / f"{n}.dcm")
    return out


def code_of(paths: list[Path]) -> str:
    with pytest.raises(ReadError) as caught:
        read_voxels(location(paths))
    assert not any(str(path) in caught.value.message for path in paths)
    return caught.value.code


def test_the_shipped_series_is_dcm2niixs_volume_voxel_for_voxel(shipped: Voxels, tmp_path: Path) -> None:
    from dcm2niix import bin as dcm2niix

    command = [dcm2niix, "-o", str(tmp_path), "-f", "out", "-z", "n", str(CT[0].parent)]
    subprocess.run(command, check=True, capture_output=True)
    reference = nib.load(tmp_path / "out.nii")
    flipped = shipped.affine.copy()  # dcm2niix turns the rows round: j' = rows - 1 - j
    flipped[:3, 3] += flipped[:3, 1] * (shipped.array.shape[1] - 1)
    flipped[:3, 1] *= -1
    np.testing.assert_array_equal(flipped, reference.affine)
    np.testing.assert_array_equal(shipped.array[:, ::-1], np.asanyarray(reference.dataobj))


def test_the_shipped_series_is_simpleitks_volume(shipped: Voxels) -> None:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(CT[0].parent)))
    image = reader.Execute()
    np.testing.assert_array_equal(shipped.array, sitk.GetArrayFromImage(image).T)  # (k, j, i) to (i, j, k)
    for index in ((0, 0, 0), (511, 0, 3), (7, 511, 19)):
        lps = np.array(image.TransformIndexToPhysicalPoint(index))
        np.testing.assert_allclose(geometry.to_mm(shipped.affine, index), lps * (-1, -1, 1), atol=1e-6)


def test_the_shipped_series_is_in_hounsfield_units_as_int16(shipped: Voxels) -> None:
    assert shipped.array.dtype == np.int16
    assert (shipped.array.min(), shipped.array.max()) == (-1024, 1839)


def test_the_published_mask_lies_on_the_shipped_series(shipped: Voxels, shared: Path) -> None:
    mask = nib.load(shared / "totalsegmentator" / "example_seg_dicom.nii.gz")
    ours, theirs = (
        nib.as_closest_canonical(image).affine for image in (nib.Nifti1Image(shipped.array, shipped.affine), mask)
    )
    np.testing.assert_array_equal(ours, theirs)


def test_the_order_of_files_and_their_names_do_not_matter(shipped: Voxels, tmp_path: Path) -> None:
    paths = []
    for n, path in enumerate(CT):
        paths.append(tmp_path / f"{(7 * n) % len(CT):02}")
        shutil.copyfile(path, paths[-1])
    random.Random(0).shuffle(paths)
    voxels = read_voxels(location(paths))
    np.testing.assert_array_equal(voxels.array, shipped.array)
    np.testing.assert_array_equal(voxels.affine, shipped.affine)


@pytest.mark.parametrize("n", [1, 10, 18])
def test_a_missing_slice_is_refused(n: int) -> None:
    assert code_of(CT[:n] + CT[n + 1 :]) == "dicom-slices-missing"


def test_the_message_of_a_missing_slice_says_how_many_and_where() -> None:
    with pytest.raises(ReadError, match=r"19 of 20 slices found, gap of 4.00 mm between .* usual 2.00 mm"):
        read_header(location(CT[:4] + CT[5:]))


def test_a_doubled_slice_is_refused(tmp_path: Path) -> None:
    shutil.copyfile(CT[3], tmp_path / "again")
    assert code_of([*CT, tmp_path / "again"]) == "dicom-slices-duplicate"


def test_several_phases_in_one_series_are_refused(small: list[Path]) -> None:
    assert code_of([*small, *small]) == "dicom-several-volumes"


def test_two_slices_are_too_few_to_trust_their_gap() -> None:
    assert code_of(CT[:2]) == "dicom-too-few-slices"


def _delete(keyword: str) -> Callable[[int, Any], None]:
    return lambda n, dataset: delattr(dataset, keyword)


def _set(keyword: str, value: Any, *, only: int | None = None) -> Callable[[int, Any], None]:
    def change(n: int, dataset: Any) -> None:
        if only is None or n == only:
            setattr(dataset, keyword, value)

    return change


def _bare(keyword: str, value: str, *, only: int | None = None) -> Callable[[int, Any], None]:
    """Set a value that its VR forbids."""

    def change(n: int, dataset: Any) -> None:
        if only is None or n == only:
            element = dataset[keyword]
            dataset[keyword] = DataElement(element.tag, "DS", value, validation_mode=pydicom.config.IGNORE)

    return change


def _lean(n: int, dataset: Any) -> None:
    x, y, z = dataset.ImagePositionPatient
    dataset.ImagePositionPatient = [x, y + 0.3 * n, z]


def _twice(n: int, dataset: Any) -> None:
    dataset.PixelData = dataset.PixelData * 2


def _mosaic(n: int, dataset: Any) -> None:
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        pytest.param(_delete("ImagePositionPatient"), "dicom-geometry-missing", id="no position"),
        pytest.param(_delete("ImageOrientationPatient"), "dicom-geometry-missing", id="no orientation"),
        pytest.param(_delete("PixelSpacing"), "dicom-geometry-missing", id="no pixel spacing"),
        pytest.param(_set("PixelSpacing", [0.0, 1.0]), "dicom-geometry-missing", id="pixel spacing of 0"),
        pytest.param(_set("PixelSpacing", [1e-200, 1.0]), "affine-singular", id="pixels without extent"),
        pytest.param(_lean, "dicom-tilted", id="slices shifted sideways"),
        pytest.param(_set("GantryDetectorTilt", "12.5"), "dicom-tilted", id="tilt stated"),
        pytest.param(
            _set("ImageOrientationPatient", [1, 0, 0, 0, 0, 1], only=2), "dicom-mixed", id="a coronal slice among axial"
        ),
        pytest.param(_set("PixelSpacing", [1, 1], only=2), "dicom-mixed", id="another pixel spacing"),
        pytest.param(_set("PatientID", "other", only=2), "dicom-mixed", id="another patient"),
        pytest.param(_set("RescaleType", "US", only=2), "dicom-mixed", id="another rescale type"),
        pytest.param(
            _set("ImageOrientationPatient", [1, 0, 0, 0.5, 0.5, 0]), "dicom-orientation-invalid", id="not perpendicular"
        ),
        pytest.param(_delete("RescaleSlope"), "dicom-rescale-missing", id="CT without slope"),
        pytest.param(_set("RescaleType", "US"), "dicom-rescale-missing", id="CT not in HU"),
        pytest.param(_bare("RescaleSlope", "nan"), "dicom-rescale-missing", id="a slope of NaN"),
        pytest.param(_bare("RescaleSlope", "inf", only=2), "dicom-rescale-missing", id="one infinite slope"),
        pytest.param(_bare("RescaleIntercept", "-inf"), "dicom-rescale-missing", id="an infinite intercept"),
        pytest.param(_twice, "dicom-multiframe", id="two frames without a number of frames"),
        pytest.param(_set("NumberOfFrames", 2), "dicom-multiframe", id="two frames"),
        pytest.param(_mosaic, "dicom-mosaic", id="mosaic"),
        pytest.param(_set("PhotometricInterpretation", "MONOCHROME1"), "dicom-pixels", id="inverted greys"),
        pytest.param(_set("HighBit", 15), "dicom-pixels", id="bits at the top"),
        pytest.param(_delete("PixelData"), "file-truncated", id="no pixels"),
        pytest.param(_set("PixelData", b"\0" * 100, only=2), "file-truncated", id="too few pixels"),
        pytest.param(_set("SOPClassUID", "1.2.840.10008.5.1.4.1.1.2.1"), "dicom-multiframe", id="enhanced CT"),
        pytest.param(_set("SOPClassUID", "1.2.840.10008.5.1.4.1.1.88.11"), "dicom-unsupported", id="a report"),
    ],
)
def test_a_series_that_cannot_be_trusted_is_refused(
    small: list[Path], tmp_path: Path, change: Callable[[int, Any], None], code: str
) -> None:
    assert code_of(changed(small, tmp_path, change)) == code


def test_positions_rounded_to_a_tenth_of_a_millimetre_are_accepted(small: list[Path], tmp_path: Path) -> None:
    def rounded(n: int, dataset: Any) -> None:
        dataset.ImagePositionPatient = [0, 0, round(0.625 * n, 1)]

    header = read_header(location(changed(small, tmp_path, rounded)))
    assert header.spacing_mm is not None
    assert header.spacing_mm[2] == pytest.approx(0.625, abs=0.02)


def test_rows_and_columns_keep_their_own_spacing(small: list[Path], tmp_path: Path) -> None:
    """Pixel Spacing is (distance of rows, distance of columns); i counts columns."""
    header = read_header(location(changed(small, tmp_path, _set("PixelSpacing", [3.0, 0.5]))))
    assert header.spacing_mm == (0.5, 3.0, 2.0)


def test_bits_above_bits_stored_are_cleared_and_signs_extended(small: list[Path], tmp_path: Path) -> None:
    plain = read_voxels(location(small)).array

    def noisy(n: int, dataset: Any) -> None:
        stored = np.frombuffer(dataset.PixelData, np.uint16) | np.uint16(0xA000)
        dataset.PixelData = stored.tobytes()

    np.testing.assert_array_equal(read_voxels(location(changed(small, tmp_path, noisy))).array, plain)

    def signed(n: int, dataset: Any) -> None:
        stored = np.frombuffer(dataset.PixelData, np.uint16).astype(np.int16) - 1024
        dataset.PixelData = (stored & 0x0FFF).astype(np.uint16).tobytes()
        dataset.PixelRepresentation, dataset.RescaleIntercept = 1, 0
        for keyword in ("SmallestImagePixelValue", "LargestImagePixelValue"):
            delattr(dataset, keyword)

    np.testing.assert_array_equal(read_voxels(location(changed(small, tmp_path, signed))).array, plain)


def test_each_slice_is_rescaled_by_its_own_slope(small: list[Path], tmp_path: Path) -> None:
    plain = read_voxels(location(small)).array.astype(np.float64)

    def own(n: int, dataset: Any) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept = 1 + n / 4, 0

    scaled = read_voxels(location(changed(small, tmp_path, own))).array
    order = np.arange(6)[::-1]  # the shipped files run from head to feet
    np.testing.assert_allclose(scaled, (plain + 1024) * (1 + order / 4), rtol=1e-6)


def oblique(small: list[Path], folder: Path, *, decimals: int, tilt: float = 0.0) -> list[Path]:
    """The small series turned out of every plane and 300 mm long, its cosines rounded, its gantry tilted."""
    turned = Rotation.from_euler("xyz", [21.3, 33.8, 12.6], degrees=True).as_matrix()
    cosines = np.round([*turned[:, 0], *turned[:, 1]], decimals)
    along = Rotation.from_rotvec(np.radians(tilt) * turned[:, 0]).apply(turned[:, 2])

    def change(n: int, dataset: Any) -> None:
        dataset.ImageOrientationPatient = [f"{value:.10f}" for value in cosines]
        dataset.ImagePositionPatient = [f"{value:.8f}" for value in along * 60.0 * n]

    return changed(small, folder, change)


@pytest.mark.parametrize("decimals", [3, 4, 8])
def test_an_oblique_series_is_read_though_its_cosines_are_rounded(
    small: list[Path], tmp_path: Path, decimals: int
) -> None:
    header = read_header(location(oblique(small, tmp_path, decimals=decimals)))
    assert header.spacing_mm == pytest.approx((0.9765625, 0.9765625, 60.0), abs=1e-3)


@pytest.mark.parametrize("tilt", [0.5, -0.5, 12.0])
@pytest.mark.parametrize("decimals", [3, 8])
def test_a_tilted_gantry_is_refused_also_where_the_header_does_not_tell(
    small: list[Path], tmp_path: Path, decimals: int, tilt: float
) -> None:
    assert code_of(oblique(small, tmp_path, decimals=decimals, tilt=tilt)) == "dicom-tilted"


def test_one_shifted_slice_of_a_long_series_is_refused(small: list[Path], tmp_path: Path) -> None:
    def change(n: int, dataset: Any) -> None:
        dataset.ImagePositionPatient = [0.3 if n == 3 else 0.0, 0.0, 60.0 * n]

    assert code_of(changed(small, tmp_path, change)) == "dicom-tilted"


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless], ids=lambda uid: uid.name)
@pytest.mark.parametrize("offsets", [True, False], ids=["with offset table", "without offset table"])
def test_two_compressed_frames_without_a_number_of_frames_are_refused(
    small: list[Path], tmp_path: Path, syntax: Any, offsets: bool
) -> None:
    slices = CT[:4] if syntax == JPEG2000Lossless else small  # the shipped files are JPEG 2000

    def single(n: int, dataset: Any) -> None:
        if syntax != JPEG2000Lossless:
            dataset.compress(syntax, generate_instance_uid=False)

    def double(n: int, dataset: Any) -> None:
        single(n, dataset)
        [frame] = generate_frames(dataset.PixelData, number_of_frames=1)
        dataset.PixelData = encapsulate([frame, frame], has_bot=offsets)

    (tmp_path / "one").mkdir()
    voxels = read_voxels(location(changed(slices, tmp_path / "one", single)))
    np.testing.assert_array_equal(voxels.array, read_voxels(location(slices)).array)
    assert code_of(changed(slices, tmp_path, double)) == "dicom-multiframe"


def test_one_frame_in_several_fragments_is_read(tmp_path: Path) -> None:
    def split(n: int, dataset: Any) -> None:
        [frame] = generate_frames(dataset.PixelData, number_of_frames=1)
        dataset.PixelData = encapsulate([frame], fragments_per_frame=3, has_bot=False)

    voxels = read_voxels(location(changed(CT[:4], tmp_path, split)))
    np.testing.assert_array_equal(voxels.array, read_voxels(location(CT[:4])).array)


WITHOUT_EXTRA = """
import importlib.metadata, sys
everything = importlib.metadata.entry_points
def without(**params):
    return importlib.metadata.EntryPoints(e for e in everything(**params) if not e.value.startswith("libjpeg"))
importlib.metadata.entry_points = without
sys.modules["libjpeg"] = None
from medssl.index import Location
from medssl.problems import PROBLEMS
from medssl.reading import ReadError, read_voxels
try:
    print(read_voxels(Location(tuple(sys.argv[1:]), "dicom")).array.shape)
except ReadError as error:
    print(error.code, error)
"""


@pytest.mark.parametrize(
    ("case", "decoded"), [("j2k", True), ("jpegls", True), ("rle", True), ("jpeg", False)], ids=lambda value: str(value)
)
def test_without_the_extra_all_but_lossless_jpeg_is_read_and_the_remedy_names_it(
    shared: Path, case: str, decoded: bool
) -> None:
    folder = shared / "dicom-groundtruth" / "dicom2nifti" / f"generic/compressed_{case}/001"
    paths = [str(path) for path in sorted(folder.rglob("*")) if path.is_file()]
    out = subprocess.run([sys.executable, "-c", WITHOUT_EXTRA, *paths], check=True, capture_output=True, text=True)
    if decoded:
        assert out.stdout.startswith("(256, 256, ")
    else:
        assert out.stdout.startswith("dicom-undecodable")
        assert "medssl[jpeg]" in out.stdout


@pytest.mark.parametrize("share", [0.2, 0.5, 0.95])
def test_a_truncated_file_refuses_its_whole_series(small: list[Path], tmp_path: Path, share: float) -> None:
    content = small[5].read_bytes()
    (tmp_path / "cut.dcm").write_bytes(content[: int(len(content) * share)])
    assert code_of([*small[:5], tmp_path / "cut.dcm"]) in {"file-truncated", "file-corrupt", "dicom-geometry-missing"}


def test_damaged_compressed_pixels_are_refused(tmp_path: Path) -> None:
    dataset = pydicom.dcmread(CT[9])
    dataset.PixelData = dataset.PixelData[:60] + b"\x55" * 400 + dataset.PixelData[460:]
    dataset.save_as(tmp_path / "damaged")
    with pytest.raises(ReadError) as caught:
        read_voxels(location([*CT[:9], tmp_path / "damaged", *CT[10:]]))
    assert caught.value.code == "dicom-undecodable"


GOOD = [
    "anatomical/001",
    "ge/anatomical/001",
    "siemens/anatomical/001",
    "hitachi/anatomical/001",
    "generic/anatomical/001",
    "generic/anatomical/002_non_isotropic",
    "generic/compressed_j2k/001",
    "generic/compressed_jpeg/001",
    "generic/compressed_jpegls/001",
    "generic/compressed_rle/001",
]


@pytest.mark.parametrize("case", GOOD)
def test_scanners_and_codecs_give_the_published_volume(shared: Path, case: str) -> None:
    root = shared / "dicom-groundtruth" / "dicom2nifti"
    voxels = read_voxels(location([path for path in sorted((root / case).rglob("*")) if path.is_file()]))
    ours = nib.as_closest_canonical(nib.Nifti1Image(voxels.array, voxels.affine))
    theirs = nib.as_closest_canonical(nib.load(root / f"{case}_ground_truth.nii.gz"))
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=2e-4)
    np.testing.assert_allclose(ours.get_fdata(), theirs.get_fdata(), atol=1e-5)


@pytest.mark.parametrize(
    ("case", "code"),
    [
        ("dicom2nifti/failing/gantrytilting/001", "dicom-tilted"),
        ("dicom2nifti/failing/sliceorientation/001", "dicom-mixed"),
        ("dicom2nifti/failing/slicecount/001", "dicom-too-few-slices"),
        ("dicom2nifti/philips/fmri/001", "dicom-several-volumes"),
        ("dicom2nifti/philips_enhanced/anatomical/001", "dicom-multiframe"),
        ("dcm_qa/In/Orientation/ax/axasc35", "dicom-mosaic"),
        ("dcm_qa_enh/In/Siemens/XA10", "dicom-multiframe"),
        ("dcm_qa_xa30/In/5_anat-T1w_acq-tfl", "dicom-multiframe"),
        ("dcm_qa_philips/In/Magdeburg_2014/fmri", "dicom-several-volumes"),
    ],
)
def test_cases_that_must_fail_fail_for_the_right_reason(shared: Path, case: str, code: str) -> None:
    folder = shared / "dicom-groundtruth" / case
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix not in (".nii", ".json")]
    assert code_of(paths) == code
