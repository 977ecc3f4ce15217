"""A DICOM series to a volume: slices sorted along their normal, refused where their places cannot be trusted."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import geometry
from .instance import CT, Instance, instance_of, read_dataset, stored_pixels
from .numbers import rescaled
from .source import Header, ReadError, Voxels

POSITION_TOLERANCE_MM = 0.051
"""How far a slice may lie from its place: headers round positions to a tenth of a millimetre at the worst."""

_SAME_POSITION_MM = 1e-3
_UNIT_TOLERANCE = 2e-3  # of direction cosines, which some scanners round to three decimals
_TILT_TOLERANCE_DEGREES = 0.1  # cosines of three decimals turn the normal by up to 0.07 degrees


@dataclass(frozen=True)
class Series:
    """Slices in order along their normal, and the volume they make; arrays are (column, row, slice)."""

    instances: tuple[Instance, ...]
    header: Header

    @property
    def digest(self) -> str:
        """Hash of all slices' pixels and places, in order."""
        return hashlib.sha256("".join(instance.digest for instance in self.instances).encode()).hexdigest()


def assemble(instances: Sequence[Instance]) -> Series:
    """Order the slices of one series and derive its affine (PS3.3 C.7.6.2.1.1).

    Raises:
        ReadError: slices are missing, doubled, shifted, mixed, or say too little.
    """
    _check_each(instances)
    _check_equal(instances)
    _check_rescale(instances)
    if (tilt := max(abs(instance.tilt) for instance in instances)) > _TILT_TOLERANCE_DEGREES:
        raise ReadError("dicom-tilted", f"the gantry was tilted by {tilt:g} degrees")
    first = instances[0]
    assert first.orientation is not None
    assert first.pixel_spacing is not None
    row, column = np.array(first.orientation[:3]), np.array(first.orientation[3:])
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(row @ column)) > _UNIT_TOLERANCE:
        raise ReadError("dicom-orientation-invalid", "row and column directions are not perpendicular unit vectors")
    row, column = row / lengths[0], column / lengths[1]
    normal = np.cross(row, column)
    normal /= np.linalg.norm(normal)
    positions = np.array([instance.position for instance in instances], dtype=np.float64)  # (slices, 3)
    order = np.argsort(positions @ normal, kind="stable")
    spacing = _slice_spacing(positions[order], normal)
    affine = np.eye(4)
    # Pixel Spacing is (distance of rows, distance of columns); index i counts columns, along `row`.
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = (
        row * first.pixel_spacing[1],
        column * first.pixel_spacing[0],
        normal * spacing,
    )
    affine[:3, 3] = positions[order[0]]
    affine = geometry.from_lps(affine)
    if geometry.is_singular(affine):
        raise ReadError(
            "affine-singular", f"voxels are {' x '.join(f'{v:g}' for v in np.abs(affine).max(axis=0)[:3])} mm"
        )
    ordered = tuple(instances[n] for n in order)
    return Series(ordered, _header(ordered, affine, spacing))


def read_series_header(paths: Sequence[str]) -> Header:
    """Read what is known of a series without decoding its pixels.

    Raises:
        ReadError: a file cannot be read, or the slices make no volume.
    """
    return assemble([instance_of(read_dataset(path), path) for path in paths]).header


def read_series(paths: Sequence[str]) -> Voxels:
    """Read a series' voxels, (column, row, slice), each slice rescaled by its own slope and intercept.

    Raises:
        ReadError: as `read_series_header`, or the pixels cannot be decoded.
    """
    instances, slices = [], {}
    for path in paths:
        dataset = read_dataset(path)
        instance = instance_of(dataset, path)
        if instance.flaw:
            raise ReadError(*instance.flaw, where=path)
        slope = 1.0 if instance.slope is None else instance.slope
        intercept = 0.0 if instance.intercept is None else instance.intercept
        slices[path] = rescaled(stored_pixels(dataset, path), slope, intercept)
        instances.append(instance)
    series = assemble(instances)
    return Voxels(_stacked([slices[instance.path] for instance in series.instances]), series.header.affine)


def decode(path: str) -> None:
    """Decode one slice and forget it.

    Raises:
        ReadError: its pixels cannot be decoded.
    """
    stored_pixels(read_dataset(path), path)


def _stacked(slices: list[NDArray[Any]]) -> NDArray[Any]:
    kinds = {part.dtype for part in slices}
    dtype = np.dtype(np.float32) if np.dtype(np.float32) in kinds else np.result_type(*kinds)
    return np.stack([part.astype(dtype, copy=False) for part in slices], axis=2)


def _check_each(instances: Sequence[Instance]) -> None:
    flaws = Counter(instance.flaw for instance in instances if instance.flaw)
    if flaws:
        (code, message), count = flaws.most_common(1)[0]
        path = next(i.path for i in instances if i.flaw == (code, message))
        raise ReadError(code, f"{message} ({count} of {len(instances)} files)", where=path)
    for name in ("position", "orientation", "pixel_spacing"):
        lacking = [instance.path for instance in instances if not getattr(instance, name)]
        if lacking:
            word = name.replace("_", " ")
            message = f"{len(lacking)} of {len(instances)} slices have no {word}"
            raise ReadError("dicom-geometry-missing", message, where=lacking[0])
    if min(instances[0].pixel_spacing or (0.0,)) <= 0:
        raise ReadError("dicom-geometry-missing", f"the pixel spacing is {instances[0].pixel_spacing}")
    if len(instances) < 3:  # a gap is trusted because another one is equal
        raise ReadError("dicom-too-few-slices", f"the series has {len(instances)} slices", where=instances[0].path)


def _check_equal(instances: Sequence[Instance]) -> None:
    """Refuse a series whose slices differ in what is one in a volume: several parts, echoes, patients, a scout."""
    exact = {
        "matrix": "shape",
        "SOP class": "sop_class",
        "modality": "modality",
        "patient": "patient",
        "study": "study",
        "frame of reference": "frame",
        "rescale type": "rescale_type",
    }
    for word, name in exact.items():
        kinds = Counter(getattr(instance, name) for instance in instances)
        if len(kinds) > 1:
            counts = ", ".join(str(count) for _, count in kinds.most_common(4))
            raise ReadError("dicom-mixed", f"slices differ in {word}: {len(kinds)} kinds ({counts} slices)")
    for word, name, tolerance in (("orientation", "orientation", 1e-3), ("pixel spacing", "pixel_spacing", 1e-4)):
        values = np.array([getattr(instance, name) for instance in instances])
        if (apart := float(np.abs(values - values[0]).max())) > tolerance:
            raise ReadError("dicom-mixed", f"slices differ in {word} by up to {apart:.3g}")


def _check_rescale(instances: Sequence[Instance]) -> None:
    """Refuse CT that is not in Hounsfield units (PS3.3 C.8.2.1 makes slope and intercept mandatory there)."""
    half = [i for i in instances if (i.slope is None) != (i.intercept is None)]
    without = [i for i in instances if i.slope is None]
    if half or (instances[0].sop_class == CT and without) or 0 < len(without) < len(instances):
        message = f"{len(half or without)} of {len(instances)} slices have no rescale slope or intercept"
        raise ReadError("dicom-rescale-missing", message)
    if any(i.slope == 0 for i in instances):
        raise ReadError("dicom-rescale-missing", "the rescale slope is 0")
    if instances[0].sop_class == CT and instances[0].rescale_type not in ("", "HU"):
        raise ReadError("dicom-rescale-missing", "the rescale type is not HU")


def _slice_spacing(positions: NDArray[np.float64], normal: NDArray[np.float64]) -> float:
    """Return the distance of slices in mm from their sorted positions, (slices, 3)."""
    along = positions @ normal
    gaps = np.diff(along)
    if gaps.min() < _SAME_POSITION_MM:
        groups = np.split(along, np.flatnonzero(gaps >= _SAME_POSITION_MM) + 1)
        counts = {len(group) for group in groups}
        if len(counts) == 1:
            message = f"each of {len(groups)} positions has {counts.pop()} slices"
            raise ReadError("dicom-several-volumes", message)
        doubled = sum(len(group) > 1 for group in groups)
        raise ReadError("dicom-slices-duplicate", f"{doubled} of {len(groups)} positions have more than one slice")
    spacing = float((along[-1] - along[0]) / (len(along) - 1))
    even = along[0] + spacing * np.arange(len(along))
    tolerance = max(POSITION_TOLERANCE_MM, 0.02 * spacing)
    if np.abs(along - even).max() > tolerance:
        usual, worst = float(np.median(gaps)), int(np.argmax(np.abs(gaps - np.median(gaps))))
        expected = round((along[-1] - along[0]) / usual) + 1
        message = (
            f"{len(along)} of {expected} slices found, gap of {gaps[worst]:.2f} mm between {along[worst]:.1f} and "
            f"{along[worst + 1]:.1f} mm, usual {usual:.2f} mm"
        )
        raise ReadError("dicom-slices-missing", message)
    _check_shift(positions, along, normal)
    return spacing


def _check_shift(positions: NDArray[np.float64], along: NDArray[np.float64], normal: NDArray[np.float64]) -> None:
    """Refuse slices shifted across their normal, but for the even lean that comes of rounded direction cosines."""
    along = along - along.mean()
    sideways = positions - positions.mean(axis=0) - np.outer(along, normal)  # (slices, 3)
    lean = along @ sideways / (along @ along)  # mm sideways a mm along the normal
    shift = float(np.linalg.norm(lean) * np.ptp(along))
    degrees = math.degrees(math.atan(np.linalg.norm(lean)))
    if shift > POSITION_TOLERANCE_MM and degrees > _TILT_TOLERANCE_DEGREES:
        raise ReadError("dicom-tilted", f"slices lean by {degrees:.2f} degrees, {shift:.2f} mm from end to end")
    uneven = float(np.linalg.norm(sideways - np.outer(along, lean), axis=1).max())
    if uneven > POSITION_TOLERANCE_MM:
        raise ReadError("dicom-tilted", f"slices are shifted by up to {uneven:.2f} mm across their normal")


def _header(ordered: tuple[Instance, ...], affine: NDArray[np.float64], spacing: float) -> Header:
    first = ordered[0]
    warnings = []
    if any(instance.lossy for instance in ordered):
        warnings.append("dicom-lossy")
    if first.thickness and spacing > 1.5 * first.thickness:
        warnings.append("dicom-slices-apart")
    if not first.series:
        warnings.append("dicom-series-unnamed")
    if not first.patient:
        warnings.append("dicom-patient-unnamed")
    allocated, _, signed = first.bits
    return Header(
        format="dicom",
        kind="volume",
        shape=(*first.shape, len(ordered)),
        spacing_mm=geometry.spacing_of(affine),
        affine=affine,
        channels=1,
        dtype=f"{'' if signed else 'u'}int{allocated}",
        modality="CT" if first.sop_class == CT else "MR",
        warnings=tuple(warnings),
    )
