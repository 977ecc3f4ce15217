"""Any network as an encoder: one of timm or MONAI, or your own, judged and used as ours are.

    encoder = as_encoder(timm.create_model("convnext_tiny"), shape=(224, 224))
    encoder = as_encoder(monai.networks.nets.ViT(1, (96, 96, 96), (16, 16, 16)), shape=(96, 96, 96))
    encoder = as_encoder(network, shape=(64, 64, 64), maps=lambda net, x: net.trunk(x))

Shapes: B batch, C channels, N tokens, F features, * the image or a map.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..batch import hash64
from ..nets.encoder import Encoder, encoder_from_spec

if TYPE_CHECKING:
    Maps = Callable[[nn.Module, Tensor], Any]


class OutsideEncoder(Encoder):
    """A network given from outside as `net`; made by `as_encoder`."""

    mean: Tensor
    deviation: Tensor
    fixed: tuple[int, ...] | None
    """The only size of window the network is shown; None where it takes any multiple of `multiple`."""

    def __init__(
        self,
        module: nn.Module,
        *,
        channels: int,
        shape: tuple[int, ...],
        maps: Maps | None,
        pooled: Maps | None,
        multiple: tuple[int, ...] | None,
        normalize: tuple[Sequence[float], Sequence[float]],
        rebuild: Callable[[], nn.Module] | None,
    ) -> None:
        nn.Module.__init__(self)
        self.net = module
        self.kind = "volume" if len(shape) == 3 else "image2d"
        self.channels, self.shape, self._multiple = channels, shape, multiple
        self.fixed = shape if multiple is None else None
        self._maps, self._pooled, self._rebuild = maps, pooled, rebuild
        name = type(module).__name__
        self.spec = {"name": f"outside:{name}", "config": {}, "channels": channels, "shape": list(shape)}
        self.preparation, self.receipt = {}, None
        wide = (1, -1, *(1,) * len(shape))
        mean, deviation = (torch.tensor(values, dtype=torch.float32).reshape(wide) for values in normalize)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("deviation", deviation, persistent=False)
        self._measure()

    @property
    def multiple(self) -> tuple[int, ...]:
        """Each axis of a window must be a multiple of this many voxels."""
        return self._multiple or self.shape

    def forward(self, x: Tensor, **context: Any) -> list[Tensor]:
        """Return the network's feature maps, finest first; of several of one size, the last."""
        grid = tuple(x.shape[2:])
        found = _listed((self._maps or _maps_of)(self.net, self._seen(x)))
        by_size = {tuple(m.shape[2:]): m for m in (_as_map(part, grid) for part in found)}
        return sorted(by_size.values(), key=lambda m: -m[0, 0].numel())

    def pooled(self, x: Tensor, **context: Any) -> Tensor:
        """Return one vector an image, (B, F): by the function given, timm's own pooling, or the coarsest map's mean."""
        if self._pooled is not None:
            own: Tensor = self._pooled(self.net, self._seen(x))
            return own
        net: Any = self.net
        if self._maps is None and hasattr(net, "forward_features") and hasattr(net, "forward_head"):
            vector: Tensor = net.forward_head(net.forward_features(self._seen(x)), pre_logits=True)
            return torch.flatten(vector, 1)
        coarsest: Tensor = self(x)[-1]
        return coarsest.flatten(2).mean(2)

    def with_random_weights(self) -> OutsideEncoder:
        """Return the same network with fresh weights, from torch's random state."""
        out = copy.copy(self)
        out._modules = dict(self._modules)
        device = next(self.parameters()).device
        if self._rebuild is not None:
            out.net = self._rebuild().to(device)
        else:
            out.net = copy.deepcopy(self.net)
            _reset(out.net)
        return out.train(self.training)

    def _seen(self, x: Tensor) -> Tensor:
        """Return what the network takes of normalised pixels: grey repeated in its channels, shifted and scaled."""
        if x.shape[1] == 1 and self.channels > 1:
            x = x.expand(-1, self.channels, *x.shape[2:])
        return (x - self.mean) / self.deviation

    def _measure(self) -> None:
        """Learn channels and strides from an image of zeros."""
        training = self.training
        self.eval()
        device = next(self.parameters(), torch.zeros(())).device
        zeros = torch.zeros(2, self.channels, *self.shape, device=device)
        try:
            with torch.no_grad():
                levels = self(zeros)
        finally:
            self.train(training)
        self.out_channels = tuple(level.shape[1] for level in levels)
        self.strides = tuple(
            tuple(max(1, round(n / cells)) for n, cells in zip(self.shape, level.shape[2:])) for level in levels
        )


def as_encoder(
    module: nn.Module,
    *,
    shape: Sequence[int],
    channels: int | None = None,
    maps: Maps | None = None,
    pooled: Maps | None = None,
    multiple: Sequence[int] | None = None,
    normalize: tuple[Sequence[float], Sequence[float]] = ((0.0,), (1.0,)),
    rebuild: Callable[[], nn.Module] | None = None,
) -> OutsideEncoder:
    """Make an encoder of any network, to probe it or embed with it.

    Without `maps` the network is run as it runs itself: timm's by `forward_intermediates`, others by their `forward`,
    whose maps (B, F, *), tokens (B, N, F; one for the class is left out) or vector (B, F; one cell) are taken.

    Args:
        module: the network, with its weights; not copied.
        shape: voxels or pixels it sees at once, (D, H, W) or (H, W). Larger images are seen through windows.
        channels: of its input; those of its first convolution unless given. Grey images are repeated in them.
        maps: from network and input (B, C, *) to its feature maps.
        pooled: from network and input to one vector an image, (B, F); timm's pooling, or the mean of the coarsest map.
        multiple: what each axis of a window must be a multiple of; small images are padded to that. Unless given they
            are padded to `shape`, for a network does not tell what else it takes.
        normalize: mean and deviation of each channel, taken off normalised images, such as ImageNet's.
        rebuild: makes the network anew, for the control with random weights; else every layer that can is reset, and
            other parameters are drawn from a narrow normal distribution.

    Raises:
        ValueError: `shape` has no 2 or 3 axes, or the network gives no features.
    """
    shape = tuple(int(n) for n in shape)
    if len(shape) not in (2, 3):
        raise ValueError(f"an encoder sees 2 or 3 axes, not {len(shape)}")
    return OutsideEncoder(
        module,
        channels=channels or _channels_of(module),
        shape=shape,
        maps=maps,
        pooled=pooled,
        multiple=None if multiple is None else tuple(int(n) for n in multiple),
        normalize=normalize,
        rebuild=rebuild,
    )


def with_random_weights(encoder: Encoder, seed: int) -> Encoder:
    """Return an encoder of the same architecture with weights drawn anew; torch's random state stays as it is."""
    device = next(encoder.parameters()).device
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(hash64(seed, "probe random weights") & ((1 << 63) - 1))
        if isinstance(encoder, OutsideEncoder):
            return encoder.with_random_weights()
        return encoder_from_spec(encoder.spec).to(device)


def _channels_of(module: nn.Module) -> int:
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.Conv3d)):
            return part.in_channels
    raise ValueError("the network has no convolution that tells its channels; give `channels`")


def _maps_of(net: Any, x: Tensor) -> Any:
    if hasattr(net, "forward_intermediates"):
        return net.forward_intermediates(x, norm=True, intermediates_only=True)
    return net(x)


def _listed(found: Any) -> list[Tensor]:
    """Return the features among the tensors a network gave: maps if there are any, else tokens, else vectors."""
    flat = list(_flat(found))
    for axes in (5, 4):
        if maps := [tensor for tensor in flat if tensor.ndim == axes]:
            return maps
    tokens = [tensor for tensor in flat if tensor.ndim == 3]
    if tokens:
        # MONAI's ViT gives the tokens after its last norm and then every block's, or class scores and every block's.
        return tokens[:1] if flat[0].ndim == 3 else tokens[-1:]
    if flat:
        return flat[:1]
    raise ValueError("the network gives no features; give `maps`")


def _flat(found: Any) -> Iterator[Tensor]:
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, Mapping):
        yield from _flat(list(found.values()))
    elif isinstance(found, (list, tuple)):
        for part in found:
            yield from _flat(part)


def _as_map(found: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Return (B, F, *) from a map, tokens (B, N, F), or a vector (B, F)."""
    axes = len(grid)
    if found.ndim == 2 + axes:
        return found
    if found.ndim == 2:
        return found.reshape(*found.shape, *(1,) * axes)
    if found.ndim == 3:
        for without in (0, 1):
            count = found.shape[1] - without
            for patch in range(1, max(grid) + 1):
                cells = [n // patch for n in grid]
                if all(n % patch == 0 for n in grid) and torch.Size(cells).numel() == count:
                    return found[:, without:].transpose(1, 2).reshape(len(found), -1, *cells)
    raise ValueError(f"features {tuple(found.shape)} are no map of an image of {grid}; give `maps`")


def _reset(net: nn.Module) -> None:
    """Draw every parameter anew: by its layer where that knows how, else from a narrow normal distribution."""
    known: set[int] = set()
    for module in net.modules():
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()
            known |= {id(parameter) for parameter in module.parameters(recurse=False)}
    with torch.no_grad():
        for parameter in net.parameters():
            if id(parameter) not in known and parameter.requires_grad:
                parameter.normal_(0, 0.02)
