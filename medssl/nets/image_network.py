"""Networks that tell something of a whole image: an encoder's way down, pooling, one linear layer.

This file and `decoders.py` need torch and MONAI alone, and timm for its networks: an exported bundle carries a copy of
both. `WindowMean` looks at images larger than the crop, `Answer` turns logits into probabilities or values in units.

Shapes: B batch, C channels, D H W voxels, F features, N cells of a map, Q queries, K outputs or classes, W windows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from monai.inferers import Inferer
from monai.networks.nets import DynUNet, SegResNet, SwinUNETR
from monai.networks.nets.swin_unetr import SwinTransformer
from monai.networks.nets.vit import ViT
from torch import Tensor, nn
from torch.nn import functional

from .decoders import Level, timm_levels, timm_maps, timm_network


class DynUNetDown(nn.Module):
    """MONAI's DynUNet without its decoder; the names are DynUNet's."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        whole: Any = DynUNet(**arguments)
        self.input_block, self.downsamples, self.bottleneck = whole.input_block, whole.downsamples, whole.bottleneck
        self.width = int(arguments["filters"][-1])

    def forward(self, x: Tensor) -> Tensor:
        """Return the bottleneck, (B, F, ...)."""
        x = self.input_block(x)
        for block in self.downsamples:
            x = block(x)
        return self.bottleneck(x)  # type: ignore[no-any-return]


class SegResNetDown(nn.Module):
    """MONAI's SegResNet without its decoder; the names are SegResNet's."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        whole: Any = SegResNet(**arguments)
        self.convInit, self.down_layers = whole.convInit, whole.down_layers
        self.width = int(arguments["init_filters"]) * 2 ** (len(arguments["blocks_down"]) - 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the bottom map, (B, F, ...)."""
        x = self.convInit(x)
        for block in self.down_layers:
            x = block(x)
        return x


class SwinDown(nn.Module):
    """The transformer of MONAI's SwinUNETR and the block at its bottom; the names are SwinUNETR's."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        whole: Any = SwinUNETR(**arguments)
        self.swinViT, self.encoder10, self.normalize = whole.swinViT, whole.encoder10, bool(whole.normalize)
        self.width = 16 * int(arguments["feature_size"])

    def forward(self, x: Tensor) -> Tensor:
        """Return the bottom map, (B, F, ...)."""
        return self.encoder10(self.swinViT(x, self.normalize)[-1])  # type: ignore[no-any-return]


class SwinAlone(SwinTransformer):  # type: ignore[misc]
    """MONAI's Swin transformer, giving its last map alone."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.width = int(arguments["embed_dim"]) * 2 ** len(arguments["depths"])

    def forward(self, x: Tensor) -> Tensor:
        """Return the last stage's map, normalised over its channels, (B, F, ...)."""
        return super().forward(x)[-1]  # type: ignore[no-any-return]


class ViTTokens(ViT):  # type: ignore[misc]
    """MONAI's ViT, giving its tokens after the last norm."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.width = int(arguments["hidden_size"])

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens, (B, F, N)."""
        return super().forward(x)[0].transpose(1, 2)  # type: ignore[no-any-return]


_BODIES: dict[str, Callable[..., Any]] = {
    "dynunet": DynUNetDown,
    "segresnet": SegResNetDown,
    "swin": SwinAlone,
    "swin_unetr": SwinDown,
    "vit": ViTTokens,
    "timm": timm_network,
}


class AttentivePooling(nn.Module):
    """Means of a map's cells, weighted by how well each fits a learned query; it begins as the mean.

    Args:
        width: F.
        queries: Q.

    Source: the attentive probe of Bardes et al. 2024, V-JEPA, arXiv:2404.08471, appendix, with one query a head and
        no projections, because labelled images are few.
    """

    def __init__(self, width: int, queries: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(queries, width) * 0.02)

    def forward(self, cells: Tensor) -> Tensor:
        """Pool (B, F, N) to (B, Q x F)."""
        keys = functional.layer_norm(cells.transpose(1, 2), cells.shape[1:2])  # (B, N, F)
        share = (keys @ self.query.T / keys.shape[2] ** 0.5).softmax(1)  # (B, N, Q)
        return torch.einsum("bnq,bfn->bqf", share, cells).flatten(1)


class AveragePooling(nn.Module):
    """The mean over a map's cells."""

    def forward(self, cells: Tensor) -> Tensor:
        """Pool (B, F, N) to (B, F)."""
        return cells.mean(2)


class CoralHead(nn.Module):
    """One weight vector for all steps of a scale, and a bias each: arXiv:1901.07884, section 3.3.

    Args:
        width: F.
        steps: K - 1.
    """

    def __init__(self, width: int, steps: int) -> None:
        super().__init__()
        self.weight = nn.Linear(width, 1, bias=False)
        # Falling, as the shares of images beyond each step do.
        self.bias = nn.Parameter(torch.linspace(1.0, -1.0, steps) if steps > 1 else torch.zeros(steps))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, K - 1) logits of being beyond each step."""
        return self.weight(x) + self.bias  # type: ignore[no-any-return]


class ImageNetwork(nn.Module):
    """What is told of an image, as logits: the coarsest map, pooled, normalised, through one linear layer.

    Args:
        family: which encoder's: a key of `_BODIES`.
        arguments: of the MONAI class, or of `timm_network`.
        outputs: K; of grades one less than their number.
        pooling: `average` or `attentive`.
        queries: of attentive pooling.
        dropout: share of the pooled features left out in training.
        coral: grades share one weight vector.
    """

    def __init__(
        self,
        family: str,
        arguments: dict[str, Any],
        outputs: int,
        pooling: str = "average",
        queries: int = 4,
        dropout: float = 0.0,
        coral: bool = False,
    ) -> None:
        super().__init__()
        self.body: Any = _BODIES[family](**arguments)
        self.deepest = _deepest(self.body) if family == "timm" else None
        cell = int(self.body.width) if self.deepest is None else self.deepest.channels
        attentive = pooling == "attentive"
        width = cell * queries if attentive else cell
        self.pool = AttentivePooling(cell, queries) if attentive else AveragePooling()
        self.norm = nn.LayerNorm(width)  # features of families differ a hundredfold in size
        self.dropout = nn.Dropout(dropout)
        self.head = CoralHead(width, outputs) if coral else nn.Linear(width, outputs)

    def features(self, x: Tensor) -> Tensor:
        """Return pooled features (B, F) of images (B, C, ...) of the crop's size."""
        coarsest = self.body(x) if self.deepest is None else timm_maps(self.body, x, [self.deepest])[0]
        return self.pool(coarsest.flatten(2))  # type: ignore[no-any-return]

    def logits(self, features: Tensor) -> Tensor:
        """Return (B, K) of pooled features (B, F)."""
        return self.head(self.dropout(self.norm(features)))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K) of images (B, C, ...) of the crop's size."""
        return self.logits(self.features(x))


def _deepest(net: nn.Module) -> Level:
    """Return a timm network's deepest map; where all have one stride, as a ViT's, it comes first."""
    levels = timm_levels(net)
    return levels[0] if len({level.stride for level in levels}) == 1 else levels[-1]


class WindowMean(Inferer):  # type: ignore[misc]
    """What a network tells of windows that cover an image, averaged: logits (B, K).

    An image smaller than a window is filled up by its own lowest value, as training crops are. Windows lie evenly and
    count alike.

    Args:
        roi_size: voxels of a window, as many axes as the network sees.
        overlap: least share of a window that its neighbour sees too.
        slice_axis: axis of volumes along which a network of 2D images sees every slice; None otherwise.
        mean_of: `logits`, or `features`, which the head then sees once.
        sw_batch_size: windows at once; does not change the result.
    """

    def __init__(
        self,
        roi_size: Sequence[int],
        overlap: float = 0.5,
        slice_axis: int | None = None,
        mean_of: str = "logits",
        sw_batch_size: int = 8,
    ) -> None:
        super().__init__()
        if mean_of not in ("logits", "features"):
            raise ValueError(f"mean_of must be logits or features, got {mean_of!r}")
        self.size, self.overlap, self.axis = [int(n) for n in roi_size], float(overlap), slice_axis
        self.mean_of, self.together = mean_of, int(sw_batch_size)
        if slice_axis is not None:
            self.size.insert(slice_axis, 1)

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Return (B, K) of images (B, C, ...) of any size."""
        tell = network.features if self.mean_of == "features" else network
        means = []
        for image in inputs:
            # Plain tensors: windows stand for no image file of their own.
            plain = image.as_tensor() if hasattr(image, "as_tensor") else image
            total, count = None, 0
            for windows in self._windows(plain):
                part = tell(windows).double().sum(0)
                total, count = part if total is None else total + part, count + len(windows)
            assert total is not None
            means.append((total / count).to(plain.dtype))
        mean = torch.stack(means)
        return network.logits(mean) if self.mean_of == "features" else mean

    def _windows(self, image: Tensor) -> Iterator[Tensor]:
        """Yield the windows of an image (C, ...), (W, C, ...) each."""
        image = self._filled(image)
        axes = [_starts(whole, size, self.overlap) for whole, size in zip(image.shape[1:], self.size)]
        starts = list(itertools.product(*axes))
        for first in range(0, len(starts), self.together):
            crops = [
                image[(slice(None), *(slice(a, a + n) for a, n in zip(start, self.size)))]
                for start in starts[first : first + self.together]
            ]
            windows = torch.stack(crops)
            yield windows if self.axis is None else windows.squeeze(2 + self.axis)

    def _filled(self, image: Tensor) -> Tensor:
        short = [max(0, size - whole) for whole, size in zip(image.shape[1:], self.size)]
        if not any(short):
            return image
        padding = [n for extra in reversed(short) for n in (0, extra)]
        return torch.stack([functional.pad(channel, padding, value=float(channel.min())) for channel in image])


def _starts(whole: int, size: int, overlap: float) -> list[int]:
    """Return where windows begin that cover an axis evenly."""
    if whole <= size:
        return [0]
    n = math.ceil((whole - size) / max(1, math.floor((1 - overlap) * size))) + 1
    return [round(i * (whole - size) / (n - 1)) for i in range(n)]


class Answer:
    """Turns logits into what is told: probabilities, or values in the targets' own units.

    Args:
        kind: `binary`, `multilabel` (each of K findings by itself), `multiclass`, `ordinal` or `regression`.
        ordinal: `corn` (each step given the one before) or `coral` (each step by itself).
        weights: what each class weighed in training, which is taken off again: (K,) for classes and grades, (K, 2)
            without and with each finding. None: all alike.
        mean: (K,) that was taken off measures in training, in their units.
        spread: (K,) they were divided by.
    """

    def __init__(
        self,
        kind: str,
        ordinal: str = "corn",
        weights: Sequence[Any] | None = None,
        mean: Sequence[float] = (),
        spread: Sequence[float] = (),
    ) -> None:
        self.kind, self.ordinal = kind, ordinal
        self.weights = None if weights is None else torch.tensor(weights, dtype=torch.float64)
        self.mean, self.spread = (torch.tensor(list(x), dtype=torch.float64) for x in (mean, spread))

    def __call__(self, logits: Tensor) -> Tensor:
        """Return (B, K) float64 of logits (B, K), of grades (B, K - 1)."""
        x = logits.detach().cpu().double()
        if self.kind == "regression":
            return x * self.spread + self.mean
        if self.kind in ("binary", "multilabel"):
            # Weighted, a classifier tells the odds times the ratio of the weights (Elkan 2001).
            return (x if self.weights is None else x - (self.weights[:, 1] / self.weights[:, 0]).log()).sigmoid()
        found = grade_probabilities(x, self.ordinal) if self.kind == "ordinal" else x.softmax(1)
        if self.weights is not None:
            found = found / self.weights
        return found / found.sum(1, keepdim=True)


def grade_probabilities(logits: Tensor, ordinal: str) -> Tensor:
    """Return (B, K) probabilities of grades from (B, K - 1) logits of the steps between them.

    Source: CORN, arXiv:2111.08851, equation 5: the chance to be beyond a step is the product of the steps' chances
        so far. CORAL, arXiv:1901.07884: each step's own, which may not rise.
    """
    beyond = logits.sigmoid().cumprod(1) if ordinal == "corn" else logits.sigmoid().cummin(1).values
    ones, zeros = torch.ones_like(beyond[:, :1]), torch.zeros_like(beyond[:, :1])
    return torch.cat([ones, beyond], 1) - torch.cat([beyond, zeros], 1)
