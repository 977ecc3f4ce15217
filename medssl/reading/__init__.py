"""Reading images by their content: NIfTI, DICOM series, PNG and JPEG to arrays whose place in the patient is known.

Arrays are in the file's axis order: volumes (i, j, k), grey pictures (row, column), colour pictures (row, column, 3).
The affine maps (i, j, k) to RAS+ mm, as nibabel has it. DICOM slices are (column, row, slice), sorted along the normal.
What cannot be trusted raises `ReadError` with a code of `medssl.problems.PROBLEMS`; nothing is guessed in silence.
"""

from __future__ import annotations

from .read import read_header, read_label, read_voxels
from .source import Header, ReadError, Source, Voxels

__all__ = ["Header", "ReadError", "Source", "Voxels", "read_header", "read_label", "read_voxels"]
