"""timm's 2D networks as encoders: ConvNeXt, ResNet, ViT and what else gives its maps by `forward_intermediates`.

Wightman 2019, PyTorch Image Models, https://github.com/huggingface/pytorch-image-models. Weights come from a local file
alone, named as timm names them; what was learned on colour pictures is fitted to grey ones.

Shapes: B batch, C channels, H W pixels, F features.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

from ..errors import RecipeError
from .config import TimmConfig
from .decoders import timm_levels, timm_maps, timm_network
from .encoder import Encoder


def check_timm_network(model: str, *, channels: int = 1, shape: tuple[int, ...] | None = None) -> None:
    """Check by name, and without values, that a timm network gives the maps it states.

    Raises:
        RecipeError: timm has none of this name, or not for pictures of this shape.
    """
    import timm

    if not timm.is_model(model):
        near = get_close_matches(model, timm.list_models(), 1)
        raise RecipeError(
            f"timm has no network {model!r}",
            where="encoder.model",
            fix=f"did you mean {near[0]}?" if near else "see timm.list_models()",
        )
    if shape is None:
        return
    with torch.device("meta"):
        net = timm_network(model, channels).eval()
        levels, x = timm_levels(net), torch.zeros(1, channels, *shape)
    if any(n % level.stride for n in shape for level in levels):
        return  # said of every encoder, with the multiple that would fit
    try:
        found = [tuple(level.shape[1:]) for level in timm_maps(net, x, levels)]
    except (AssertionError, RuntimeError, ValueError, TypeError) as error:
        raise RecipeError(
            f"timm's {model} does not take pictures of {shape}: {error}", where="loader.crop, encoder.model"
        ) from error
    if found != [(level.channels, *(n // level.stride for n in shape)) for level in levels]:
        raise RecipeError(f"timm's {model} gives other maps than it states", where="encoder.model")


def timm_multiple(model: str) -> int:
    """Return of how many pixels an image's axes must be a multiple."""
    check_timm_network(model)
    with torch.device("meta"):
        return max(level.stride for level in timm_levels(timm_network(model, 1)))


class TimmEncoder(Encoder):
    """Maps of a timm network: of every stage, finest first, or, where all have one stride, the deepest first."""

    def __init__(
        self, config: TimmConfig, *, channels: int, shape: tuple[int, ...], spacing_mm: tuple[float, ...] | None
    ) -> None:
        super().__init__(config, channels=channels, shape=shape, spacing_mm=spacing_mm)
        if len(shape) != 2:
            raise RecipeError(
                f"timm's networks see 2D images, not crops of {shape}", where="loader.crop", fix="give two numbers"
            )
        check_timm_network(config.model, channels=channels, shape=shape)
        self.net: Any = timm_network(config.model, channels)
        self.levels = timm_levels(self.net)
        self.tokens_alone = len({level.stride for level in self.levels}) == 1
        self.finest_trains_all = self.tokens_alone
        self.strides = tuple((level.stride,) * 2 for level in self.levels)
        self.out_channels = tuple(level.channels for level in self.levels)

    def forward(self, x: Tensor, **context: Any) -> list[Tensor]:
        """Return the maps, (B, F, ...) each."""
        self.check_shape(tuple(x.shape[2:]))
        return timm_maps(self.net, x, self.levels)

    def pooled(self, x: Tensor, **context: Any) -> Tensor:
        """Return the mean of the deepest map, (B, F)."""
        return self(x)[0 if self.tokens_alone else -1].flatten(2).mean(2)  # type: ignore[no-any-return]

    def adapted(self, weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """Fit weights of colour pictures, or of another picture size, to this network.

        The first convolution's channels are summed for grey images, as timm does it: a grey picture then gives what the
        same picture in three equal channels gave. A ViT's table of positions is interpolated.
        """
        from timm.layers import resample_abs_pos_embed
        from timm.models import adapt_input_conv

        out, own = dict(weights), self.net.state_dict()
        first = self.net.pretrained_cfg.get("first_conv") or ()
        for name in (first,) if isinstance(first, str) else tuple(first):
            key, given = f"{name}.weight", weights.get(f"{prefix}{name}.weight")
            if given is not None and given.ndim == 4 and key in own and given.shape[1] == 3 != own[key].shape[1]:
                out[prefix + key] = adapt_input_conv(own[key].shape[1], given)
        table = weights.get(f"{prefix}pos_embed")
        if table is not None and "pos_embed" in own and table.shape[-1] == own["pos_embed"].shape[-1]:
            grid = self.net.patch_embed.grid_size
            prefixes = 0 if getattr(self.net, "no_embed_class", False) else self.net.num_prefix_tokens
            if table.shape != own["pos_embed"].shape:
                out[f"{prefix}pos_embed"] = resample_abs_pos_embed(table, list(grid), num_prefix_tokens=prefixes)
        return out
