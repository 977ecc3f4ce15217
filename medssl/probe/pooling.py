"""One vector for an image, a slice or a region, from windows of it.

An image larger than the encoder's crop is seen through overlapping windows. A window's voxels share their weight with
the windows that see them too, and padding has none: so the weights of all windows sum to the image's voxels. In slices
and regions, which are means over cells, every voxel counts once and padding never. A whole image is the mean of its
windows' pooled vectors by those sums: within a window all counts alike, so what several windows see counts more than
what one does, and what pads a window is pooled with it.

Shapes: C channels, * the image, n spatial axes, F features, N cells of feature maps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .windows import Picture, check_needs, context_of, crop_of, judged, starts_along, starts_of, window_on

if TYPE_CHECKING:
    from ..nets.encoder import Encoder

Table = NDArray[np.float64]
Level = Literal["finest", "coarsest"]
_TOGETHER = {2: 16, 3: 2}
"""Windows that go through the network at once, by its number of spatial axes."""


@dataclass(frozen=True)
class _Window:
    """A window's feature maps (F, *coarse), its pooled vector (F,), and the weight of each voxel along each axis."""

    start: tuple[int, ...]
    finest: Tensor
    coarsest: Tensor
    pooled: Table
    weights: tuple[Table, ...]

    @property
    def weight(self) -> float:
        """The voxels this window stands for."""
        return float(np.prod([along.sum() for along in self.weights]))

    def at(self, level: Level) -> Table:
        """Return a map as (F, *coarse)."""
        found = self.finest if level == "finest" else self.coarsest
        return found.double().numpy()


class Pooler:
    """Vectors of whole images, slices and regions from a frozen encoder.

    Args:
        encoder: left in the mode it was in.
        window: voxels seen at once; unless given as few as hold the image, up to the crop the encoder was made for.
        slice_axis: axis of a volume along which a 2D encoder sees slices.

    Raises:
        ValueError: the encoder needs more than pixels and their affine.
    """

    def __init__(self, encoder: Encoder, *, window: tuple[int, ...] | None = None, slice_axis: int = 2) -> None:
        check_needs(encoder)
        self.encoder, self.window, self.slice_axis = encoder, window, slice_axis
        self.device = next(encoder.parameters()).device

    def whole(self, picture: Picture) -> Table:
        """Return one vector of a whole image, (F,): the mean of its windows by the voxels they stand for."""
        return _mean([(window.weight, window.pooled) for window in self._windows(picture, maps=False)])

    def slices(self, picture: Picture, *, axis: int = 2, level: Level = "coarsest") -> Table:
        """Return one vector for each slice of a volume along `axis`: (slices, F).

        A 2D encoder that sees those very slices gives its `pooled`; else a slice is the mean over the layer of cells
        it lies in.
        """
        own = level == "coarsest" and window_on(self.encoder, picture.shape, slice_axis=self.slice_axis)[1] == axis
        total: Table | None = None
        weight = np.zeros(picture.shape[axis])
        for window in self._windows(picture, maps=not own, pooled=own):
            found = window.at(level) if not own else window.pooled.reshape(-1, *(1,) * len(window.start))
            cells = [_to_cells(along[None], n, 1)[0] for along, n in zip(window.weights, found.shape[1:])]
            layers = np.moveaxis(found, 1 + axis, -1)
            across = 1.0
            for a in (a for a in range(len(cells)) if a != axis):
                layers = np.tensordot(cells[a], layers, axes=(0, 1))  # (F, ..., layers)
                across *= cells[a].sum()
            if total is None:
                total = np.zeros((picture.shape[axis], len(found)))
            along = window.weights[axis]
            voxels = np.flatnonzero(along)
            layer = voxels * found.shape[1 + axis] // len(along)
            at = window.start[axis] + voxels
            total[at] += layers[:, layer].T * along[voxels, None]
            weight[at] += across * along[voxels]
        assert total is not None
        return total / weight[:, None]

    def regions(
        self, picture: Picture, label: NDArray[np.integer], *, level: Level = "finest"
    ) -> dict[int, tuple[int, Table]]:
        """Return each region's number of voxels and vector (F,), by its value in a label map (*); 0 is no region.

        A region is the mean over its voxels, each of which has the features of the cell it lies in.
        """
        if tuple(label.shape) != picture.shape:
            raise ValueError(f"label map {tuple(label.shape)}, image {picture.shape}")
        values, counts = np.unique(label[label != 0], return_counts=True)
        total: dict[int, Table] = {}
        for window in self._windows(picture, pooled=False):
            inside = tuple(slice(a, a + n.size) for a, n in zip(window.start, window.weights))
            part = label[inside]
            for value in np.unique(part[part != 0]).tolist():
                mass = (part == value).astype(np.float64)
                for axis, along in enumerate(window.weights):
                    mass *= along[: mass.shape[axis]].reshape(-1, *(1,) * (mass.ndim - 1 - axis))
                found = window.at(level)
                for axis, along in enumerate(window.weights):
                    mass = _to_cells(mass, found.shape[1 + axis], axis, size=along.size)
                vector = np.tensordot(found, mass, axes=mass.ndim)  # (F,)
                total[value] = total.get(value, 0.0) + vector
        return {int(v): (int(n), total[int(v)] / n) for v, n in zip(values, counts)}

    def described(self, picture: Picture, most: int) -> tuple[Table, Table]:
        """Return `whole` (F,) and cells of the coarsest map, evenly taken from those that hold the image.

        Args:
            picture: the image.
            most: number of cells, at most.

        Returns:
            (F,), and (N, F') with N at most `most`; F' are the coarsest map's channels.
        """
        rows, wholes = [], []
        for window in self._windows(picture):
            found = window.at("coarsest")
            held = np.ones(found.shape[1:], bool)
            for axis, along in enumerate(window.weights):
                cells = _to_cells(along[None], found.shape[1 + axis], 1)[0] > 0
                held &= cells.reshape(-1, *(1,) * (held.ndim - 1 - axis))
            rows.append(found[:, held].T)
            wholes.append((window.weight, window.pooled))
        table = np.concatenate(rows)
        chosen = np.linspace(0, len(table) - 1, min(most, len(table))).round().astype(np.int64)
        return _mean(wholes), table[chosen]

    def _windows(self, picture: Picture, *, maps: bool = True, pooled: bool = True) -> Iterator[_Window]:
        largest = getattr(self.encoder, "spec", {}).get("shape")
        window, flat = window_on(
            self.encoder, picture.shape, window=self.window, largest=largest, slice_axis=self.slice_axis
        )
        starts = starts_of(picture.shape, window)
        share = [
            _shares(whole, size, at)
            for whole, size, at in zip(picture.shape, window, starts_along(picture.shape, window))
        ]
        together = _TOGETHER[3 if self.encoder.kind == "volume" else 2]
        for first in range(0, len(starts), together):
            some = starts[first : first + together]
            crops = torch.stack([crop_of(picture, start, window, flat) for start in some]).to(self.device)
            context = {name: value.to(self.device) for name, value in context_of(self.encoder, picture, some).items()}
            with judged(self.encoder):
                vectors = self.encoder.pooled(crops, **context) if pooled else torch.zeros(len(some), 1)
                levels = self.encoder(crops, **context) if maps else [torch.zeros(len(some), 1)]
            vectors = vectors.double().cpu()
            # Where all maps have one size, as a ViT's, the deepest is the first.
            last = levels[0] if levels[0].shape[2:] == levels[-1].shape[2:] else levels[-1]
            fine, coarse = (m if flat is None or not maps else m.unsqueeze(2 + flat) for m in (levels[0], last))
            fine, coarse = fine.float().cpu(), coarse.float().cpu()
            for i, start in enumerate(some):
                weights = tuple(share[axis][begin] for axis, begin in enumerate(start))
                yield _Window(start, fine[i], coarse[i], vectors[i].numpy(), weights)


def _mean(found: Sequence[tuple[float, Table]]) -> Table:
    """Return the weighted mean of vectors."""
    weight = np.array([one for one, _ in found])
    return np.asarray(weight @ np.stack([vector for _, vector in found]) / weight.sum(), dtype=np.float64)


def _shares(whole: int, size: int, starts: Sequence[int]) -> dict[int, Table]:
    """Return, for each start, what a voxel of the window counts: shared where windows overlap, 0 outside the image."""
    seen = np.zeros(whole)
    for start in starts:
        seen[start : start + size] += 1
    out = {}
    for start in starts:
        out[start] = np.zeros(size)
        inside = 1 / seen[start : start + size]
        out[start][: len(inside)] = inside
    return out


def _to_cells(mass: Table, cells: int, axis: int, *, size: int | None = None) -> Table:
    """Sum what voxels weigh into the cells they lie in, along one axis; `size` is what the cells span in voxels."""
    size = mass.shape[axis] if size is None else size
    out = np.zeros((*mass.shape[:axis], cells, *mass.shape[axis + 1 :]))
    cell = np.arange(mass.shape[axis]) * cells // size
    np.add.at(np.moveaxis(out, axis, 0), cell, np.moveaxis(mass, axis, 0))
    return out
