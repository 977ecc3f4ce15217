"""Where features come from that are judged: an encoder, or no network at all.

Both give features at chosen voxels, to fit a readout on, and a label map of a whole image, to score it.

Shapes: C channels, * the image, N points, n spatial axes, F features, K classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ..views.spatial import sample_at
from .readout import Readout, Table
from .windows import Picture, check_needs, context_of, crop_of, judged, starts_of, window_on

if TYPE_CHECKING:
    from ..nets.encoder import Encoder

Voxels = NDArray[np.int64]
LabelMap = NDArray[np.int64]


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
        check_needs(encoder)

    def at(self, picture: Picture, voxels: Voxels) -> Table:
        """Return the features of voxels (N, n): (N, F), each from the window whose centre is nearest."""
        window, flat = self._window(picture)
        starts = np.array(starts_of(picture.shape, window))  # (W, n)
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
        for start in starts_of(picture.shape, window):
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
        return window_on(self.encoder, picture.shape, window=self.window, slice_axis=self.slice_axis)

    def _map(self, picture: Picture, start: Sequence[int], window: tuple[int, ...], flat: int | None) -> Tensor:
        """Return the finest feature map of one window: (1, F, *coarse)."""
        crop = crop_of(picture, start, window, flat)[None].to(self.device)
        context = {name: value.to(self.device) for name, value in context_of(self.encoder, picture, [start]).items()}
        with judged(self.encoder):
            features: Tensor = self.encoder(crop, **context)[0]
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
