"""Whole images as a network sees them: normalised, and cut into windows where they are larger than one.

Shapes: C channels, * the image, n spatial axes, W windows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ..store import Store, StoreRow
from ..views.scaling import scale

if TYPE_CHECKING:
    from ..nets.encoder import Encoder

LARGEST = {2: 256, 3: 96}
"""Edge of the window a whole image is cut into where it is larger, by number of the encoder's spatial axes."""


@dataclass(frozen=True)
class Picture:
    """A whole image as a network sees it: normalised (C, *) float32, what lies around it, and where it stands."""

    image: Tensor
    outside: float
    affine: Tensor
    spacing_mm: tuple[float, ...]
    box: tuple[tuple[int, ...], tuple[int, ...]]

    @property
    def shape(self) -> tuple[int, ...]:
        """The spatial shape."""
        return tuple(self.image.shape[1:])


def picture_of(row: StoreRow, array: NDArray[Any]) -> Picture:
    """Normalise prepared voxels (C, *); spacing counts as 1 mm where none is known."""
    low, _, shift, width = row.intensity
    intensity = torch.tensor([row.intensity], dtype=torch.float32)
    image = scale({"image": torch.from_numpy(array)[None], "intensity": intensity})["image"][0]
    return Picture(
        image=image,
        outside=(low - shift) / width,
        affine=torch.as_tensor(np.eye(4) if row.affine is None else np.asarray(row.affine), dtype=torch.float32),
        spacing_mm=row.spacing_mm or (1.0,) * len(row.shape),
        box=row.foreground_box,
    )


def read_picture(store: Store, image_id: str) -> Picture:
    """Read and normalise a whole image of a store."""
    return picture_of(store.row(image_id), store.read(image_id))


def check_needs(encoder: Encoder) -> None:
    """Raise ValueError where an encoder wants more than pixels and their affine."""
    if unknown := set(encoder.needs) - {"affine"}:
        raise ValueError(f"a probe cannot give an encoder {sorted(unknown)}")


def window_on(
    encoder: Encoder,
    shape: tuple[int, ...],
    *,
    window: tuple[int, ...] | None = None,
    largest: Sequence[int] | None = None,
    slice_axis: int = 2,
) -> tuple[tuple[int, ...], int | None]:
    """Return the window an encoder sees of an image of that shape, and the axis along which it is one voxel thick.

    Args:
        encoder: its `fixed` says that it sees nothing but windows of one size.
        shape: of the image.
        window: voxels seen at once; unless given as few as hold the image, up to `largest`.
        largest: voxels along each axis of the encoder; 96 (3D) or 256 (2D) unless given.
        slice_axis: axis of a volume along which an encoder of 2D images sees slices.

    Raises:
        ValueError: an encoder of volumes and a 2D image.
    """
    n = 3 if encoder.kind == "volume" else 2
    flat = slice_axis if n == 2 and len(shape) == 3 else None
    if n == 3 and len(shape) == 2:
        raise ValueError("an encoder of volumes cannot see a 2D image")
    fixed: tuple[int, ...] | None = getattr(encoder, "fixed", None)
    if window is not None:
        size = list(window)
    elif fixed is not None:
        size = list(fixed)
    else:
        seen = [extent for axis, extent in enumerate(shape) if axis != flat]
        largest = largest or (LARGEST[n],) * n
        multiple = encoder.multiple
        size = [math.ceil(min(whole, most) / step) * step for whole, most, step in zip(seen, largest, multiple)]
        if all(edge == step for edge, step in zip(size, multiple)) and math.prod(multiple) > 1:
            size[0] *= 2  # one cell at the bottom cannot be normalized by its own spread
    if flat is not None:
        size.insert(flat, 1)
    return tuple(size), flat


def starts_along(shape: Sequence[int], window: Sequence[int]) -> list[list[int]]:
    """Return, for each axis, where windows begin that cover an image, a quarter overlapping where one is not enough."""
    axes: list[list[int]] = []
    for whole, size in zip(shape, window):
        if whole <= size:
            axes.append([0])
        else:
            n = math.ceil((whole - size) / max(1, math.ceil(0.75 * size))) + 1
            axes.append([round(i * (whole - size) / (n - 1)) for i in range(n)])
    return axes


def starts_of(shape: Sequence[int], window: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the first voxels of all windows."""
    return list(itertools.product(*starts_along(shape, window)))


def crop_of(picture: Picture, start: Sequence[int], window: tuple[int, ...], flat: int | None) -> Tensor:
    """Return one window, (C, *window) without its flat axis, padded by what lies around the image."""
    stop = [min(a + n, whole) for a, n, whole in zip(start, window, picture.shape)]
    crop = picture.image[(slice(None), *(slice(int(a), int(b)) for a, b in zip(start, stop)))]
    short = [n - (b - a) for a, b, n in zip(start, stop, window)]
    padding = [int(value) for n in reversed(short) for value in (0, n)]
    crop = functional.pad(crop, padding, value=picture.outside)
    return crop if flat is None else crop.squeeze(1 + flat)


def context_of(encoder: Encoder, picture: Picture, starts: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Return what the encoder takes beside the pixels of windows that begin there."""
    if "affine" not in encoder.needs:
        return {}
    return {"affine": torch.stack([moved(picture.affine, start) for start in starts])}


@contextmanager
def judged(encoder: Encoder) -> Iterator[None]:
    """Run an encoder in eval mode and without gradient, and leave it in the mode it was in."""
    training = encoder.training
    encoder.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        encoder.train(training)


def moved(affine: Tensor, start: Sequence[int]) -> Tensor:
    """Return the affine of a crop that begins at voxel `start`."""
    out = affine.clone()
    n = len(start)
    out[:3, 3] = affine[:3, :n] @ torch.tensor([float(a) for a in start]) + affine[:3, 3]
    return out
