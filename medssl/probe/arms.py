"""Where features come from that are judged: an encoder, or no network at all.

Both give features at chosen voxels, to fit a readout on, and a label map of a whole image, to score it.

Shapes: C channels, * the image, N points, n spatial axes, F features, K classes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ..store import Store
from ..views.scaling import scale
from ..views.spatial import sample_at
from .readout import Readout, Table

if TYPE_CHECKING:
    from ..nets.encoder import Encoder

Voxels = NDArray[np.int64]
LabelMap = NDArray[np.int64]
_LARGEST = {2: 256, 3: 96}
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


def read_picture(store: Store, image_id: str) -> Picture:
    """Read and normalise a whole image; spacing counts as 1 mm where the store knows none."""
    row = store.row(image_id)
    low, _, shift, width = row.intensity
    intensity = torch.tensor([row.intensity], dtype=torch.float32)
    image = scale({"image": torch.from_numpy(store.read(image_id))[None], "intensity": intensity})["image"][0]
    return Picture(
        image=image,
        outside=(low - shift) / width,
        affine=torch.as_tensor(store.affine(image_id), dtype=torch.float32),
        spacing_mm=row.spacing_mm or (1.0,) * len(row.shape),
        box=row.foreground_box,
    )


class Arm(Protocol):
    """A source of features."""

    def at(self, picture: Picture, voxels: Voxels) -> Table:
        """Return the features of voxels (N, n): (N, F)."""

    def predict(self, picture: Picture, readout: Readout) -> LabelMap:
        """Return the class of every voxel: (*)."""


class EncoderArm:
    """The finest feature map of a frozen encoder, read linearly between its cells.

    Args:
        encoder: left in the mode it was in.
        window: voxels seen at once; None takes the whole image up to 96 (3D) or 256 (2D) voxels along an axis.
        slice_axis: axis of a volume along which a 2D encoder sees slices.
    """

    def __init__(self, encoder: Encoder, *, window: tuple[int, ...] | None = None, slice_axis: int = 2) -> None:
        self.encoder, self.window, self.slice_axis = encoder, window, slice_axis
        self.device = next(encoder.parameters()).device
        if unknown := set(encoder.needs) - {"affine"}:
            raise ValueError(f"the dense probe cannot give an encoder {sorted(unknown)}")

    def at(self, picture: Picture, voxels: Voxels) -> Table:
        """Return the features of voxels (N, n): (N, F), each from the window whose centre is nearest."""
        window, flat = self._window(picture)
        starts = np.array(_starts(picture.shape, window))  # (W, n)
        centres = starts + (np.array(window) - 1) / 2
        nearest = ((voxels[:, None] - centres[None]) ** 2).sum(-1).argmin(1)  # (N,)
        axes = [axis for axis in range(len(window)) if axis != flat]
        out: list[tuple[NDArray[np.int64], NDArray[np.float32]]] = []
        for w in np.unique(nearest):
            mine = np.flatnonzero(nearest == w)
            maps = self._map(picture, tuple(starts[w]), window, flat)
            inside = torch.as_tensor(voxels[mine] - starts[w])[None][..., axes].float().to(self.device)
            found = sample_at(maps, inside, tuple(window[axis] for axis in axes))[0]  # (N of this window, F)
            out.append((mine, found.float().cpu().numpy()))
        table = np.empty((len(voxels), out[0][1].shape[1]))
        for mine, rows in out:
            table[mine] = rows
        return table

    def predict(self, picture: Picture, readout: Readout) -> LabelMap:
        """Return the class of every voxel; scores are averaged where windows overlap.

        The readout is affine, so it is applied to the coarse map and its scores are interpolated, not the features.
        """
        window, flat = self._window(picture)
        weight = torch.as_tensor(readout.weight, dtype=torch.float32, device=self.device)
        bias = torch.as_tensor(readout.bias, dtype=torch.float32, device=self.device)
        size = tuple(n for axis, n in enumerate(window) if axis != flat)
        total = torch.zeros(len(bias), *picture.shape, device=self.device)
        count = torch.zeros(picture.shape, device=self.device)
        for start in _starts(picture.shape, window):
            maps = self._map(picture, start, window, flat).float()
            scores = torch.einsum("kf,bf...->bk...", weight, maps) + bias.reshape(1, -1, *(1,) * len(size))
            scores = functional.interpolate(
                scores, size, mode="trilinear" if len(size) == 3 else "bilinear", align_corners=False
            )[0]
            scores = scores if flat is None else scores.unsqueeze(1 + flat)
            stop = tuple(min(a + n, whole) for a, n, whole in zip(start, window, picture.shape))
            here = tuple(slice(a, b) for a, b in zip(start, stop))
            total[(slice(None), *here)] += scores[(slice(None), *(slice(0, b - a) for a, b in zip(start, stop)))]
            count[here] += 1
        return (total / count).argmax(0).cpu().numpy()

    def _window(self, picture: Picture) -> tuple[tuple[int, ...], int | None]:
        """Return the window on this image, and the axis it is one voxel thick along, if the encoder sees slices."""
        n = 3 if self.encoder.kind == "volume" else 2
        flat = self.slice_axis if n == 2 and len(picture.shape) == 3 else None
        if n == 3 and len(picture.shape) == 2:
            raise ValueError("an encoder of volumes cannot see a 2D image")
        multiple = self.encoder.multiple
        shape = [size for axis, size in enumerate(picture.shape) if axis != flat]
        if self.window is None:
            window = [math.ceil(min(size, _LARGEST[n]) / step) * step for size, step in zip(shape, multiple)]
        else:
            window = list(self.window)
        if flat is not None:
            window.insert(flat, 1)
        return tuple(window), flat

    def _map(self, picture: Picture, start: Sequence[int], window: tuple[int, ...], flat: int | None) -> Tensor:
        """Return the finest feature map of one window: (1, F, *coarse)."""
        stop = [min(a + n, whole) for a, n, whole in zip(start, window, picture.shape)]
        crop = picture.image[(slice(None), *(slice(int(a), int(b)) for a, b in zip(start, stop)))]
        short = [n - (b - a) for a, b, n in zip(start, stop, window)]
        padding = [int(value) for n in reversed(short) for value in (0, n)]
        crop = functional.pad(crop, padding, value=picture.outside)
        crop = (crop if flat is None else crop.squeeze(1 + flat))[None].to(self.device)
        context: dict[str, Any] = {}
        if "affine" in self.encoder.needs:
            context["affine"] = _moved(picture.affine, start)[None].to(self.device)
        training = self.encoder.training
        self.encoder.eval()
        try:
            with torch.no_grad():
                features: Tensor = self.encoder(crop, **context)[0]
        finally:
            self.encoder.train(training)
        return features


class NoNetworkArm:
    """The control without a network: where a voxel is, and how bright it and its surroundings are.

    Position is the offset in mm from the centre of the image's foreground box, with its squares and products;
    brightness is the image itself and blurred by a few widths.

    Args:
        sigmas_mm: standard deviations of the blurs.
    """

    def __init__(self, sigmas_mm: Sequence[float] = (1.0, 2.0, 4.0)) -> None:
        self.sigmas_mm = tuple(sigmas_mm)

    def at(self, picture: Picture, voxels: Voxels) -> Table:
        """Return the features of voxels (N, n): (N, F)."""
        return self._features(picture, self._blurred(picture), voxels)

    def predict(self, picture: Picture, readout: Readout) -> LabelMap:
        """Return the class of every voxel, computed plane by plane to keep memory small."""
        blurred = self._blurred(picture)
        out = np.empty(picture.shape, dtype=np.int64)
        rest = np.indices(picture.shape[1:]).reshape(len(picture.shape) - 1, -1).T  # (M, n - 1)
        for first in range(picture.shape[0]):
            voxels = np.concatenate([np.full((len(rest), 1), first), rest], 1)
            scores = readout.scores(self._features(picture, blurred, voxels))
            out[first] = scores.argmax(1).reshape(picture.shape[1:])
        return out

    def _blurred(self, picture: Picture) -> NDArray[np.float32]:
        """Return (C (1 + sigmas), *)."""
        from scipy.ndimage import gaussian_filter

        image = picture.image.numpy()
        layers = [image]
        for sigma in self.sigmas_mm:
            widths = [sigma / step for step in picture.spacing_mm]
            layers.append(np.stack([gaussian_filter(channel, widths, mode="nearest") for channel in image]))
        return np.concatenate(layers)

    def _features(self, picture: Picture, blurred: NDArray[np.float32], voxels: Voxels) -> Table:
        low, high = (np.array(corner, dtype=np.float64) for corner in picture.box)
        offset = (voxels - (low + high - 1) / 2) * np.array(picture.spacing_mm)  # (N, n) mm
        pairs = itertools.combinations_with_replacement(range(offset.shape[1]), 2)
        products = np.stack([offset[:, a] * offset[:, b] for a, b in pairs], 1)
        bright = blurred[(slice(None), *voxels.T)].T  # (N, C (1 + sigmas))
        return np.concatenate([offset, products, bright], 1).astype(np.float64)


def _starts(shape: Sequence[int], window: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the first voxels of windows that cover an image, a quarter overlapping where one is not enough."""
    axes: list[list[int]] = []
    for whole, size in zip(shape, window):
        if whole <= size:
            axes.append([0])
        else:
            n = math.ceil((whole - size) / max(1, math.ceil(0.75 * size))) + 1
            axes.append([round(i * (whole - size) / (n - 1)) for i in range(n)])
    return list(itertools.product(*axes))


def _moved(affine: Tensor, start: Sequence[int]) -> Tensor:
    """Return the affine of a crop that begins at voxel `start`."""
    out = affine.clone()
    n = len(start)
    out[:3, 3] = affine[:3, :n] @ torch.tensor([float(a) for a in start]) + affine[:3, 3]
    return out
