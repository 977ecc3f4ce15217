"""RetinaNet on a feature pyramid over any encoder's maps, and boxes of whole images from windows.

Lin et al. 2017, arXiv:1708.02002 and arXiv:1612.03144; heads, anchors, matching and suppression are MONAI's. This file
needs torch and MONAI alone, and timm for its networks: an exported bundle carries a copy of it, and of `decoders.py`.

A box is (2n,): its low corner, then its high one, in voxels, of which voxel i spans [i, i + 1).

Shapes: B batch, C channels, n axes, F features, L levels, A anchors of all levels, K classes, D boxes found.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise, product
from typing import Any, NamedTuple

import torch
from monai.apps.detection.networks.retinanet_network import RetinaNet
from monai.apps.detection.utils.anchor_utils import AnchorGenerator
from monai.apps.detection.utils.box_coder import BoxCoder
from monai.data.box_utils import batched_nms, box_iou, clip_boxes_to_image
from monai.networks.layers.factories import Conv
from monai.networks.nets import DynUNet, SegResNet, SwinUNETR, ViT
from monai.networks.nets.swin_unetr import SwinTransformer
from torch import Tensor, nn
from torch.nn import functional

from .decoders import timm_levels, timm_maps, timm_network

_GROUPS = 8
_WINDOWS_AT_ONCE = 4
_MARGIN = 0.125
"""Share of an overlap by which a window's own part reaches beyond its middle: no two see a centre at the same place."""
_MOST_FUSED = 2000
"""Surest boxes of a class that are looked at when boxes are averaged."""

Stride = tuple[int, ...]


def _dynunet_maps(net: Any, x: Tensor) -> list[Tensor]:
    downs = [net.input_block(x)]
    for block in (*net.downsamples, net.bottleneck):
        downs.append(block(downs[-1]))
    maps = [downs.pop()]
    for block in net.upsamples:
        maps.append(block(maps[-1], downs.pop()))
    maps[-1] = net.output_block(maps[-1])
    return maps[::-1]


def _segresnet_maps(net: Any, x: Tensor) -> list[Tensor]:
    deepest, skips = net.encode(x)
    maps = [deepest]
    for sample, block, skip in zip(net.up_samples, net.up_layers, reversed(skips[:-1])):
        maps.append(block(sample(maps[-1]) + skip))
    maps[-1] = net.conv_final(maps[-1])
    return maps[::-1]


def _vit_maps(net: Any, x: Tensor) -> list[Tensor]:
    tokens, hidden = net(x)
    patch = net.patch_embedding.patch_embeddings.stride
    grid, depth = [n // p for n, p in zip(x.shape[2:], patch)], len(hidden)
    taps = sorted({depth // 4, depth // 2, 3 * depth // 4}, reverse=True)
    return [t.transpose(1, 2).reshape(len(x), -1, *grid) for t in (tokens, *(hidden[tap] for tap in taps))]


def _swin_maps(net: Any, x: Tensor) -> list[Tensor]:
    return list(net(x))


def _swin_unetr_maps(net: Any, x: Tensor) -> list[Tensor]:
    *stages, deepest = net.swinViT(x, net.normalize)
    skips = [block(hidden) for block, hidden in zip((net.encoder2, net.encoder3, net.encoder4), stages)]
    maps = [net.encoder10(deepest)]
    ups = (net.decoder5, net.decoder4, net.decoder3, net.decoder2, net.decoder1)
    for up, skip in zip(ups, (stages[-1], *reversed(skips), net.encoder1(x))):
        maps.append(up(maps[-1], skip))
    maps[-1] = net.out(maps[-1])
    return maps[::-1]


def _timm_maps(net: Any, x: Tensor) -> list[Tensor]:
    return timm_maps(net, x, timm_levels(net))


def _fused_vit(**arguments: Any) -> nn.Module:
    net: nn.Module = ViT(**arguments)
    blocks: Any = net.blocks
    for block in blocks:
        block.attn.use_flash_attention = True  # the same weights through torch's fused attention
    return net


FAMILIES: dict[str, tuple[Callable[..., nn.Module], Callable[[Any, Tensor], list[Tensor]]]] = {
    "dynunet": (DynUNet, _dynunet_maps),
    "segresnet": (SegResNet, _segresnet_maps),
    "vit": (_fused_vit, _vit_maps),
    "swin": (SwinTransformer, _swin_maps),
    "swin_unetr": (SwinUNETR, _swin_unetr_maps),
    "timm": (timm_network, _timm_maps),
}
"""How an encoder's network is built, and how its maps are taken out of it, by family."""


def chain(strides: Sequence[Stride], finest: int, coarser: int) -> list[Stride]:
    """Return strides that each divide the next, finest first: an encoder's own, and what lies between and beyond.

    Args:
        strides: of an encoder's maps.
        finest: down to where finer strides are added: their largest axis is no less than this.
        coarser: how many coarser ones are added.
    """
    out = sorted({tuple(stride) for stride in strides}, key=lambda s: (math.prod(s), s))
    while max(out[0]) % 2 == 0 and max(out[0]) // 2 >= finest:
        # Where an axis has been finer than the others, it waits for them.
        longest = max(out[0])
        out.insert(0, tuple(n // 2 if n % 2 == 0 and n > longest // 2 else n for n in out[0]))
    for _ in range(coarser):
        out.append(tuple(2 * n for n in out[-1]))
    return out


class Pyramid(nn.Module):
    """Feature maps of any strides to maps of chosen ones, of one width.

    As in FPN a coarse map is enlarged and added to the finer one. Maps finer than the finest level are brought down to
    it by strided convolutions, so that all that was pretrained takes part and learns; levels that no map has are made
    from the nearest one, as in RetinaNet (coarser) and in ViTDet (finer, Li et al. 2022, arXiv:2203.16527).

    Args:
        channels: of each map.
        strides: of each map; the distinct ones must divide each other.
        levels: strides of the maps to give, finest first.
        width: features of each, a multiple of 8.
    """

    def __init__(
        self, channels: Sequence[int], strides: Sequence[Sequence[int]], levels: Sequence[Sequence[int]], width: int
    ) -> None:
        super().__init__()
        self.strides: list[Stride] = [tuple(stride) for stride in strides]
        self.levels: list[Stride] = [tuple(level) for level in levels]
        axes = len(self.levels[0])
        nodes = sorted({*self.strides, *self.levels}, key=math.prod)  # finest first
        if any(b % a for fine, coarse in pairwise(nodes) for a, b in zip(fine, coarse)):
            raise ValueError(f"strides {nodes} do not divide each other")
        inputs = {node: sum(c for c, s in zip(channels, self.strides) if s == node) for node in nodes}
        self.nodes, self.finest = nodes, self.levels[0]
        own = [node for node in nodes if inputs[node]]
        self.laterals = nn.ModuleDict({_key(node): _convolution(axes, inputs[node], width, 1) for node in own})
        self.between = nn.ModuleDict()
        for fine, coarse in pairwise(nodes):
            ratio = tuple(b // a for a, b in zip(fine, coarse))
            if math.prod(fine) < math.prod(self.finest):
                self.between[_key(coarse)] = Conv[Conv.CONV, axes](width, width, ratio, stride=ratio)
            elif math.prod(coarse) > math.prod(own[-1]):
                kernel, padding = [3 if r > 1 else 1 for r in ratio], [1 if r > 1 else 0 for r in ratio]
                self.between[_key(coarse)] = Conv[Conv.CONV, axes](width, width, kernel, stride=ratio, padding=padding)
            elif not inputs[fine]:
                self.between[_key(coarse)] = Conv[Conv.CONVTRANS, axes](width, width, ratio, stride=ratio)
        self.smooth = nn.ModuleList(_convolution(axes, width, width, 3) for _ in self.levels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return one (B, width, ...) a level.

        Args:
            maps: (B, F, ...) each, in the order of `channels` and `strides`.
        """
        laterals = {}
        for node in self.nodes:
            found = [m for m, s in zip(maps, self.strides) if s == node]
            if found:
                laterals[node] = self.laterals[_key(node)](torch.cat(found, 1))
        low = self.nodes.index(self.finest)
        fine: Tensor | None = None
        for node in self.nodes[: low + 1]:  # bring what is finer than the finest level down to it
            if fine is not None:
                fine = self.between[_key(node)](fine)
                laterals[node] = laterals[node] + fine if node in laterals else fine
            fine = laterals.get(node)
        out: dict[Stride, Tensor] = {}
        top = max(i for i, node in enumerate(self.nodes) if node in laterals)
        for i in range(top, low - 1, -1):
            node, above = self.nodes[i], self.nodes[i + 1] if i < top else None
            lateral = laterals.get(node)
            if above is None:
                assert lateral is not None
                out[node] = lateral
            elif _key(above) in self.between and math.prod(above) > math.prod(self.finest):
                up = self.between[_key(above)](out[above])
                out[node] = up if lateral is None else lateral + up
            else:
                assert lateral is not None
                out[node] = lateral + functional.interpolate(out[above], size=lateral.shape[2:])
        for fine_node, node in pairwise(self.nodes[top:]):
            out[node] = self.between[_key(node)](out[fine_node])
        return [smooth(out[level]) for smooth, level in zip(self.smooth, self.levels)]


def _key(stride: Stride) -> str:
    return "x".join(map(str, stride))


def _convolution(axes: int, inputs: int, width: int, kernel: int) -> nn.Module:
    return nn.Sequential(
        Conv[Conv.CONV, axes](inputs, width, kernel, padding=kernel // 2), nn.GroupNorm(_GROUPS, width)
    )


class Features(nn.Module):
    """An encoder's network under a pyramid: what MONAI's RetinaNet calls a feature extractor.

    Args:
        family: one of `FAMILIES`.
        body: arguments of the encoder's network.
        channels: of its maps.
        strides: of its maps.
        levels: strides of the pyramid's maps, finest first.
        width: features of each.
    """

    def __init__(
        self,
        family: str,
        body: dict[str, Any],
        channels: Sequence[int],
        strides: Sequence[Sequence[int]],
        levels: Sequence[Sequence[int]],
        width: int,
    ) -> None:
        super().__init__()
        build, self._maps = FAMILIES[family]
        self.body = build(**body)
        self.pyramid = Pyramid(channels, strides, levels, width)
        self.out_channels = width

    def maps(self, x: Tensor) -> list[Tensor]:
        """Return the encoder's maps, in the order of `channels` and `strides`."""
        return self._maps(self.body, x)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the pyramid's maps of an image (B, C, ...), finest first."""
        return self.pyramid(self.maps(x))  # type: ignore[no-any-return]


def retinanet(features: dict[str, Any], classes: int, anchors: int) -> RetinaNet:
    """Return MONAI's RetinaNet over an encoder; the convolutions before the heads' norms begin as He et al. 2015 draw.

    MONAI draws them with a deviation of 0.01, for SGD. Adam moves a weight by its rate, whatever its size: at 0.005 a
    step would change such a filter by half its length, and the norm behind it makes nothing smaller of that.

    Args:
        features: arguments of `Features`.
        classes: K.
        anchors: shapes at each place.
    """
    levels = features["levels"]
    net = RetinaNet(
        spatial_dims=len(levels[0]),
        num_classes=classes,
        num_anchors=anchors,
        feature_extractor=Features(**features),
        size_divisible=[max(axis) for axis in zip(*levels, *features["strides"])],
    )
    for part in (*net.classification_head.conv, *net.regression_head.conv):
        if isinstance(part, (nn.Conv2d, nn.Conv3d)):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
    return net


class LevelAnchors(AnchorGenerator):  # type: ignore[misc]
    """MONAI's anchors, with shapes of each level's own and to the voxel's fraction.

    MONAI rounds half the side of an anchor to whole voxels, which leaves nothing of one that is a voxel thick, and puts
    the centre of a stride's cell half a voxel too low where the stride is odd.

    Args:
        shapes: for each level the sides of its anchors along each axis, in voxels.
    """

    def __init__(self, shapes: Sequence[Sequence[Sequence[float]]]) -> None:
        nn.Module.__init__(self)
        self.spatial_dims, self.indexing = len(shapes[0][0]), "ij"
        halves = [torch.tensor(level, dtype=torch.float32) / 2 for level in shapes]
        self.cell_anchors = [torch.cat([-half, half], 1) for half in halves]

    def grid_anchors(self, grid_sizes: list[list[int]], strides: list[list[Tensor]]) -> list[Tensor]:
        """Return the anchors of each level, (A of the level, 2n), place by place."""
        found = super().grid_anchors(grid_sizes, strides)
        shifts = [
            torch.tensor([int(s) % 2 / 2 for s in stride] * 2, device=a.device) for a, stride in zip(found, strides)
        ]
        return [anchors + shift for anchors, shift in zip(found, shifts)]

    def of(self, shape: Sequence[int], levels: Sequence[Sequence[int]]) -> list[Tensor]:
        """Return each level's anchors in an image of that shape, (A of the level, 2n)."""
        grids = [[n // s for n, s in zip(shape, level)] for level in levels]
        return self.grid_anchors(grids, [[torch.tensor(s) for s in level] for level in levels])


def by_anchor(maps: Sequence[Tensor], anchors: int) -> Tensor:
    """Put a head's maps in the order of the anchors.

    Args:
        maps: (B, anchors x E, ...) a level.
        anchors: shapes at each place.

    Returns:
        (B, A, E).
    """
    parts = [m.unflatten(1, (anchors, -1)).movedim((1, 2), (-2, -1)).flatten(1, -2) for m in maps]
    return torch.cat(parts, 1)


class Detections(NamedTuple):
    """Boxes found in one image, the surest first."""

    boxes: Tensor
    """(D, 2n), voxels."""
    scores: Tensor
    """(D,), 0 to 1."""
    classes: Tensor
    """(D,) int64."""


class WindowDetector(nn.Module):
    """Boxes of whole images of any size from overlapping windows.

    A box counts where its centre lies nearer the middle of its window than of the next one, or hardly farther: cut
    objects at a window's edge are left to the window that sees them whole, and one that two windows see at slightly
    different places is lost to neither. What is left is put together over all windows.

    Args:
        network: of `retinanet`.
        levels: strides of its maps.
        anchors: shapes of each level's anchors, voxels.
        shape: of a window.
        overlap: share by which windows overlap.
        score: below which a box is none.
        candidates: surest boxes of a level and window that are looked at.
        fusion: `nms`: of boxes of a class that overlap more than `fusion_overlap` the surest stays; `weighted`: they
            become their mean weighted by score (Solovyev et al. 2019, arXiv:1910.13302), with the score of the surest,
            for it is not known how many of them there should be.
        fusion_overlap: of boxes of one object.
        most: boxes of an image.
    """

    def __init__(
        self,
        network: nn.Module,
        levels: Sequence[Sequence[int]],
        anchors: Sequence[Sequence[Sequence[float]]],
        shape: Sequence[int],
        *,
        overlap: float = 0.5,
        score: float = 0.02,
        candidates: int = 500,
        fusion: str = "nms",
        fusion_overlap: float = 0.3,
        most: int = 100,
    ) -> None:
        super().__init__()
        self.network, self.shape, self.overlap = network, tuple(shape), overlap
        self.score, self.candidates, self.fusion = score, candidates, fusion
        self.fusion_overlap, self.most = fusion_overlap, most
        self.anchors, self.shapes = LevelAnchors(anchors).of(shape, levels), len(anchors[0])
        self.coder = BoxCoder(weights=(1.0,) * 2 * len(self.shape))

    def forward(self, image: Tensor) -> Detections:
        """Return what is found in one image, (1, C, ...) or (C, ...), normalised."""
        n = len(self.shape)
        x = image.reshape(1, *image.shape[-n - 1 :]).float()
        size = tuple(x.shape[2:])
        missing = [max(0, w - s) for w, s in zip(self.shape, size)]
        # as in training: what is shorter than a window is filled up at its end, with the lowest value
        x = functional.pad(x, [v for m in reversed(missing) for v in (0, m)], value=float(x.min()))
        corners, zones = windows(tuple(x.shape[2:]), self.shape, self.overlap, margin=_MARGIN)
        parts: list[Detections] = []
        with torch.no_grad():
            for first in range(0, len(corners), _WINDOWS_AT_ONCE):
                some = slice(first, first + _WINDOWS_AT_ONCE)
                crops = [x[0][(slice(None), *(slice(a, a + w) for a, w in zip(c, self.shape)))] for c in corners[some]]
                out = self.network(torch.stack(crops))
                for b, (corner, zone) in enumerate(zip(corners[some], zones[some])):
                    parts.append(self._window(out, b, corner, zone, size))
        whole = Detections(*(torch.cat(part) for part in zip(*parts)))
        return self.fused(whole)

    def _window(
        self, out: dict[str, list[Tensor]], b: int, corner: Stride, zone: Sequence[tuple[float, float]], size: Stride
    ) -> Detections:
        """Return the boxes of window b that are its own, in voxels of the image."""
        boxes, scores, classes, n = [], [], [], len(size)
        for anchors, logits_map, code_map in zip(self.anchors, out["classification"], out["box_regression"]):
            share = by_anchor([logits_map[b : b + 1].float()], self.shapes)[0].sigmoid()  # (A, K)
            codes = by_anchor([code_map[b : b + 1].float()], self.shapes)[0]  # (A, 2n)
            best, at = share.flatten().topk(min(self.candidates, share.numel()))
            best, at = best[best > self.score], at[best > self.score]
            place = at // share.shape[1]
            found = self.coder.decode_single(codes[place], anchors.to(codes.device)[place])
            boxes.append(found + torch.tensor(corner * 2, device=found.device))
            scores.append(best)
            classes.append(at % share.shape[1])
        table, centres = torch.cat(boxes), torch.cat([(b[:, :n] + b[:, n:]) / 2 for b in boxes])
        limits = torch.tensor(zone, device=table.device)  # (n, 2)
        own = ((centres >= limits[:, 0]) & (centres < limits[:, 1])).all(1)
        table, inside = clip_boxes_to_image(table[own], size, remove_empty=True)
        return Detections(table, torch.cat(scores)[own][inside], torch.cat(classes)[own][inside])

    def fused(self, found: Detections) -> Detections:
        """Return one box an object, the surest first."""
        if not len(found.boxes):
            return found
        if self.fusion == "weighted":
            return weighted_boxes(found, self.fusion_overlap, self.most)
        kept = batched_nms(*found, self.fusion_overlap, max_proposals=self.most)
        return Detections(*(part[kept] for part in found))


def windows(
    size: Sequence[int], window: Sequence[int], overlap: float, *, margin: float = 0.0
) -> tuple[list[Stride], list[list[tuple[float, float]]]]:
    """Return the corners of windows that cover an image, and the part of the image that is each one's own.

    Along an axis the windows lie evenly. The parts meet in the middle of the overlaps and fill all space; with a margin
    they reach over it.

    Args:
        size: of the image, in voxels, no less than the window's.
        window: its size.
        overlap: least share by which neighbours overlap.
        margin: share of the overlap by which a part reaches beyond its middle.
    """
    starts, parts = [], []
    for whole, n in zip(size, window):
        count = 1 + math.ceil((whole - n) / max(1.0, n * (1 - overlap)))
        low = [round(i * (whole - n) / max(1, count - 1)) for i in range(count)]
        middles = [((a + b + n) / 2, margin * (a + n - b)) for a, b in pairwise(low)]
        begins = [-math.inf, *(middle - more for middle, more in middles)]
        ends = [*(middle + more for middle, more in middles), math.inf]
        starts.append(low)
        parts.append(list(zip(begins, ends)))
    return list(product(*starts)), [list(zone) for zone in product(*parts)]


def weighted_boxes(found: Detections, overlap: float, most: int) -> Detections:
    """Average boxes of a class that overlap; see `WindowDetector`."""
    boxes, scores, classes = [], [], []
    for k in found.classes.unique().tolist():
        own = found.classes == k
        order = found.scores[own].argsort(descending=True, stable=True)[:_MOST_FUSED]
        table, weight = found.boxes[own][order], found.scores[own][order]
        means = table.new_zeros((len(table), table.shape[1]))
        totals, best, count = weight.new_zeros(len(table)), weight.new_zeros(len(table)), 0
        for box, w in zip(table, weight):
            near = box_iou(box[None], means[:count])[0] if count else weight.new_zeros(0)
            at = int(near.argmax()) if count else 0
            if not count or near[at] <= overlap:
                at, count = count, count + 1
                best[at] = w
            means[at] = (means[at] * totals[at] + box * w) / (totals[at] + w)
            totals[at] += w
        boxes.append(means[:count])
        scores.append(best[:count])
        classes.append(torch.full((count,), k, device=table.device))
    score = torch.cat(scores)
    order = score.argsort(descending=True, stable=True)[:most]
    return Detections(torch.cat(boxes)[order], score[order], torch.cat(classes)[order])
