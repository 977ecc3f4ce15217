"""Dispatch by format; the formats' libraries are imported only when one is read."""

from __future__ import annotations

from .source import Header, ReadError, Source, Voxels, guarded


def read_header(source: Source) -> Header:
    """Read what is known of an image without its voxels.

    Raises:
        ReadError: it cannot be read or trusted.
    """
    _check_format(source)
    with guarded(source.paths[0]):
        if source.format == "nifti":
            from .nifti import read_nifti_header

            return read_nifti_header(source.paths[0])
        if source.format == "dicom":
            from .dicom import read_series_header

            return read_series_header(source.paths)
        from .picture import read_picture_header

        return read_picture_header(source.paths[0])


def read_voxels(source: Source) -> Voxels:
    """Read an image's voxels, rescaled once, in the file's axis order.

    Raises:
        ReadError: it cannot be read or trusted.
    """
    _check_format(source)
    with guarded(source.paths[0]):
        if source.format == "nifti":
            from .nifti import read_nifti

            return read_nifti(source.paths[0])
        if source.format == "dicom":
            from .dicom import read_series

            return read_series(source.paths)
        from .picture import read_picture

        return read_picture(source.paths[0])


def read_label(source: Source) -> Voxels:
    """Read a label map: whole numbers from 0, uint8 where they fit, else int16.

    Raises:
        ReadError: it cannot be read, or its values are no small whole numbers (code `label-values`).
    """
    from .numbers import as_label

    with guarded(source.paths[0]):
        if source.format in ("png", "jpeg"):
            from .picture import read_picture

            voxels = read_picture(source.paths[0], label=True)
        else:
            voxels = read_voxels(source)
        try:
            return Voxels(as_label(voxels.array), voxels.affine)
        except ReadError as error:
            raise ReadError(error.code, error.message, where=source.paths[0]) from error


def _check_format(source: Source) -> None:
    if source.format not in ("nifti", "dicom", "png", "jpeg"):
        raise ValueError(f"format {source.format!r} is none of nifti, dicom, png, jpeg")
