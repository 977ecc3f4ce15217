"""What can be wrong with images: a code, how grave it is, what it means and what to do about it.

`error`: the image is left out. `warning`: it is used, but look at it. `note`: the file is none of the images medssl
reads, and was passed by.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One kind of problem: `severity` is error, warning or note."""

    severity: str
    meaning: str
    remedy: str


def _error(meaning: str, remedy: str) -> Problem:
    return Problem("error", meaning, remedy)


def _warning(meaning: str, remedy: str) -> Problem:
    return Problem("warning", meaning, remedy)


def _note(meaning: str, remedy: str) -> Problem:
    return Problem("note", meaning, remedy)


PROBLEMS: dict[str, Problem] = {
    # files
    "file-empty": _error("the file has no bytes", "copy the file again"),
    "file-unreadable": _error("the file or folder cannot be opened", "check permissions, links and the disk"),
    "file-truncated": _error("the file ends before its data does", "copy the file again"),
    "file-corrupt": _error("the file's content contradicts itself", "copy the file again, or export it anew"),
    "file-not-as-named": _error("the file's name promises an image its content is not", "export the image anew"),
    "file-name-encoding": _error("the name of the file, or of a folder above it, is not UTF-8", "rename it"),
    "format-unknown": _note("the content is of no format known here", "convert it to NIfTI if it is an image"),
    "format-unsupported": _note("an image format that is not read", "convert it to NIfTI or PNG"),
    "image-duplicate": _warning("the same content was found before; the first one is used", "remove one of the two"),
    # geometry, any format
    "affine-not-finite": _error("the affine holds NaN or infinity", "export the image anew"),
    "affine-singular": _error("the affine maps different voxels to one place", "export the image anew"),
    "affine-sheared": _error("the voxel axes are not perpendicular", "resample the image to perpendicular axes"),
    "shape-empty": _error("an axis has no voxels", "export the image anew"),
    # voxels
    "voxels-not-finite": _error("voxels are NaN or infinite", "replace them by the background's value"),
    "voxels-not-numbers": _error("voxels are colours, complex or other compound values", "convert to plain numbers"),
    "voxels-constant": _warning("every voxel has the same value", "look at the image"),
    "voxels-out-of-range": _error("values do not fit 32 bits", "rescale the image"),
    # NIfTI
    "nifti-pair": _error("header and voxels are in two files (.hdr and .img)", "convert to one .nii file"),
    "nifti-dimensions": _error("the image is not three-dimensional", "split series over time into volumes"),
    "nifti-orientation-unknown": _error("neither qform nor sform is set", "convert from the original again"),
    "nifti-units": _error("lengths are stated in metres or micrometres", "write the affine in millimetres"),
    "nifti-spacing-differs": _warning("pixdim and affine disagree on the spacing; the affine is used", "look at it"),
    "nifti-forms-differ": _warning("qform and sform disagree; the sform is used", "look at the orientation"),
    # DICOM
    "dicom-unsupported": _note("DICOM that is no CT or MR image", "nothing, unless you expected an image here"),
    "dicom-no-preamble": _error("DICOM without preamble and prefix (PS3.10, 7.1)", "rewrite it, with dcmconv say"),
    "dicom-multiframe": _error("several frames in one file are not read yet", "convert it by dcm2niix"),
    "dicom-mosaic": _error("the file is a mosaic: a whole volume as tiles", "convert it by dcm2niix"),
    "dicom-geometry-missing": _error("position, orientation or pixel spacing is missing", "export the series again"),
    "dicom-too-few-slices": _error("less than three slices: no gap to compare with", "copy the whole series"),
    "dicom-slices-missing": _error("slices are not evenly spaced", "copy the series again"),
    "dicom-slices-duplicate": _error("two slices have the same position", "remove the copies"),
    "dicom-several-volumes": _error("each position occurs several times", "split phases or echoes into series"),
    "dicom-mixed": _error("slices differ in what must be equal in a volume", "split the series into its parts"),
    "dicom-tilted": _error("slices are shifted against each other (tilted gantry)", "correct it by dcm2niix"),
    "dicom-orientation-invalid": _error("row and column directions are not perpendicular", "export it again"),
    "dicom-rescale-missing": _error("no slope and intercept to trust, or CT not in HU", "export the original series"),
    "dicom-pixels": _error("pixel data of a kind that is not read", "convert it by dcm2niix"),
    "dicom-undecodable": _error(
        "compressed pixels cannot be decoded",
        "install `medssl[jpeg]` if they are lossless or 12-bit JPEG, else decompress them, with gdcmconv --raw say",
    ),
    "dicom-lossy": _warning("pixels were compressed with loss", "use the originals if there are any"),
    "dicom-slices-apart": _warning("the gap between slices exceeds half their thickness", "check for missing slices"),
    "dicom-series-unnamed": _warning("no series UID; files of one folder are taken as one series", "check them"),
    "dicom-patient-unnamed": _warning("no patient ID; each series counts as a subject", "name patients in a table"),
    "dicom-neighbour-unreadable": _warning("a file of the series' folder cannot be read", "check for missing slices"),
    # pictures
    "jpeg-pixels": _error("a JPEG that is not 8-bit grey or RGB of the usual kinds", "save it as PNG"),
    "jpeg-orientation": _error(
        "EXIF turns the picture, but not what was drawn on it", "turn its pixels and drop the tag"
    ),
    "png-pixels": _error("a PNG with transparency or a kind of pixels that is not read", "save as grey or RGB"),
    # labels and subjects
    "label-shape": _warning("label and image differ in shape; the label is left out", "redraw or resample the label"),
    "label-affine": _warning("label and image differ in affine; the label is left out", "resample the label"),
    "label-values": _warning("label values are not small whole numbers; it is left out", "save it as integers"),
    "label-unreadable": _warning("the label cannot be read; it is left out", "copy the label again"),
    "label-ambiguous": _warning("several labels or images bear this name; none is used", "give each its own name"),
    "label-without-image": _warning("no image bears this label's name", "check the names"),
    "subject-missing": _warning("the table of subjects lacks this image; its own name is used", "complete the table"),
    "subject-by-name": _warning(
        "nothing but the file's name tells the patient: each name counts as a subject of its own",
        "give a table of case and patient (--subjects), or names as in BIDS (sub-01_...)",
    ),
    "subject-shared": _warning(
        "images of one name in different folders count as one subject, in one split",
        "give a table (--subjects) and each patient's files a name of their own, or folders as in BIDS (sub-01/)",
    ),
    # tables and boxes
    "table-without-image": _warning("no image bears the name in this line of a table", "check the names"),
    "table-ambiguous": _warning("several images bear the name in this line; it is not used", "give each its own name"),
    "group-all-different": _warning("no two cases share a group: it could be an identifier", "leave the column out"),
    "box-unreadable": _warning("the boxes cannot be read; the image counts as not looked at", "export them again"),
    "box-ambiguous": _warning("several files or images bear this name; none is used", "give each its own name"),
    "box-without-image": _warning("no image, and no slice of one, bears the name of these boxes", "check the names"),
    "box-dimensions": _warning("boxes and image differ in axes or size; the boxes are left out", "check the names"),
    "box-without-area": _warning("a box has no area; it is left out", "draw it again"),
    "box-outside": _warning("a box lies outside its image; it is left out", "check whether voxels or mm were meant"),
    "box-cut": _warning("a box leaves its image and is cut at the border", "look at it"),
    # preparation
    "preparation-failed": _error("the image could not be prepared", "look at it, and at the recipe's transforms"),
}
"""Every code that may stand in problems.csv or in the column `problems`."""
