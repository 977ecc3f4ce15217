"""What an encoder brought stays or moves as the way to train says, in every family; and what a light decoder learns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from medssl.downstream.config import FinetuneConfig
from medssl.downstream.layers import add_low_rank, merge_low_rank, train_groups
from medssl.metrics import dice
from medssl.nets.config import DynUNetConfig, SegResNetConfig, SwinConfig, TimmConfig, ViTConfig
from medssl.nets.encoder import build_encoder
from medssl.nets.segmenter import Segmenter, load_encoder_into, segmenter_for

from ..labelled_store import ellipsoids

VIT = ViTConfig(patch=8, width=24, depth=3, heads=2, mlp=24)
SWIN = SwinConfig(width=12, depths=(1, 1, 1, 1), heads=(1, 2, 2, 2), window=2)
FAMILIES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "dynunet": (DynUNetConfig(channels=(8, 8, 8), features=4), (16, 16, 16)),
    "dynunet-full": (DynUNetConfig(channels=(8, 8, 8), strides=(1, 2, 2)), (16, 16)),
    "segresnet": (SegResNetConfig(channels=8, blocks_down=(1, 1), blocks_up=(1,)), (16, 16, 8)),
    "vit": (VIT, (16, 16, 16)),
    "vit-light": (VIT, (16, 16, 16)),
    "vit-light-2d": (VIT, (32, 16)),
    "swin": (SWIN, (64, 32)),
    "swin-light": (SWIN, (32, 32, 32)),
    "swin-whole": (SWIN.model_copy(update={"decoder": True, "features": 4}), (64, 32)),
    "timm-resnet": (TimmConfig(model="test_resnet"), (32, 32)),
    "timm-convnext": (TimmConfig(model="test_convnext"), (32, 32)),
    "timm-vit": (TimmConfig(model="test_vit"), (32, 32)),
}
WITH_ATTENTION = ("vit", "vit-light", "vit-light-2d", "swin", "swin-light", "swin-whole", "timm-vit")


def _made(family: str) -> tuple[Segmenter, dict[str, Tensor]]:
    """A segmenter with an encoder's weights, and these by their names in its body."""
    torch.manual_seed(0)
    config, shape = FAMILIES[family]
    encoder = build_encoder(config, channels=1, shape=shape)
    segmenter = segmenter_for(encoder, 3, decoder="light" if "light" in family else "unetr")
    load_encoder_into(segmenter, encoder)
    # A U-Net's output block is new; but at half resolution it makes the feature map that is enlarged, and is brought.
    new = encoder.head if family != "dynunet" else ()
    return segmenter, {n: p.detach().clone() for n, p in encoder.net.named_parameters() if not n.startswith(new)}


def _trained(segmenter: Segmenter, config: FinetuneConfig) -> set[str]:
    """Take three steps and return the names of what did not move."""
    before = {name: p.detach().clone() for name, p in segmenter.named_parameters()}
    groups = train_groups(segmenter, config)
    optimiser = torch.optim.AdamW([{"params": list(group.parameters)} for group in groups], lr=1e-2)
    image = torch.randn(2, 1, *segmenter.shape, generator=torch.Generator().manual_seed(1))
    label = (image[:, 0] > 0).long() + (image[:, 0] > 1).long()
    for _ in range(3):
        optimiser.zero_grad()
        functional.cross_entropy(segmenter.train()(image), label).backward()
        optimiser.step()
    return {name for name, p in segmenter.named_parameters() if torch.equal(p, before[name])}


@pytest.mark.parametrize("family", FAMILIES)
def test_linear_keeps_every_weight_the_encoder_brought_and_moves_every_other(family: str) -> None:
    segmenter, brought = _made(family)
    still = _trained(segmenter, FinetuneConfig(train="linear"))
    body = dict(segmenter.body().named_parameters())
    assert [name for name, value in brought.items() if not torch.equal(body[name], value)] == []
    kept = {id(body[name]) for name in brought}
    new = {name for name, p in segmenter.named_parameters() if id(p) not in kept and p.requires_grad}
    assert new
    assert new & still == set()


@pytest.mark.parametrize("family", FAMILIES)
def test_full_moves_every_weight_that_is_trained(family: str) -> None:
    segmenter, _ = _made(family)
    still = _trained(segmenter, FinetuneConfig(train="full"))
    assert {name for name, p in segmenter.named_parameters() if p.requires_grad} & still == set()


@pytest.mark.parametrize("family", WITH_ATTENTION)
def test_lora_changes_attentions_matrices_by_its_rank_and_nothing_else_the_encoder_brought(family: str) -> None:
    segmenter, brought = _made(family)
    config = FinetuneConfig(train="lora", lora_rank=2)
    add_low_rank(segmenter, config)
    _trained(segmenter, config)
    merge_low_rank(segmenter)
    body = dict(segmenter.body().named_parameters())
    changes = {name: body[name].detach() - value for name, value in brought.items()}
    changed = {name for name, change in changes.items() if change.abs().max() > 0}
    parts = ("attn.qkv.weight", "attn.proj.weight", "attn.out_proj.weight")
    assert changed == {name for name in brought if name.endswith(parts)}
    assert len(changed) >= 6
    for name in changed:
        values = torch.linalg.svdvals(changes[name])
        assert (values[1] > 1e-5 * values[0]).item(), name
        assert (values[2:] < 1e-4 * values[0]).all(), name


@pytest.mark.parametrize(
    ("config", "shape", "steps", "bound"),
    [
        (SWIN.model_copy(update={"window": 4}), (32, 32), 60, 0.9),
        (SWIN.model_copy(update={"window": 4}), (32, 32, 32), 12, 0.4),
        (ViTConfig(patch=4, width=48, depth=3, heads=2, mlp=48), (32, 32), 60, 0.9),
        (TimmConfig(model="test_convnext"), (32, 32), 60, 0.9),
    ],
    ids=["swin-2d", "swin-3d", "vit", "timm"],
)
def test_a_light_decoder_learns_an_image_that_fresh_weights_do_not_know(
    config: Any, shape: tuple[int, ...], steps: int, bound: float
) -> None:
    image, label = ellipsoids(shape, 4)
    x, y = torch.from_numpy(image)[None, None], torch.from_numpy(label.astype(np.int64))[None]
    torch.manual_seed(0)
    encoder = build_encoder(config, channels=1, shape=shape)
    segmenter = segmenter_for(encoder, 3, decoder="light")
    load_encoder_into(segmenter, encoder)

    def worst() -> float:
        """Return the lower Dice of the two ellipsoids."""
        with torch.no_grad():
            return float(dice(segmenter.eval()(x)[0].argmax(0).numpy(), label, 3).min())

    assert worst() < 0.2
    rare = 1 / torch.bincount(y.flatten()).float()
    optimiser = torch.optim.AdamW(segmenter.parameters(), lr=3e-3)
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = functional.cross_entropy(segmenter.train()(x), y, weight=rare)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert worst() > bound
