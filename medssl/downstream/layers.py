"""Which weights of a task network move, and how fast: whole, in layers, the head first, or low-rank corrections alone.

LoRA: Hu et al. 2021, arXiv:2106.09685. Layer-wise decay: BEiT, Bao et al. 2021, arXiv:2106.08254, appendix.
"""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..batch import hash64
from ..errors import RecipeError
from ..methods.method import Group, decay_groups
from ..nets.task_network import TaskNetwork
from .config import FinetuneConfig

_LAYER = re.compile(r"[^.\d]+\d*(\.\d+)?")
_STEM = re.compile(r"stem\.|(conv1|bn1|norm1)\.|cls_token|reg_token|pos_embed|patch_embed")
"""What stands before the first block, in MONAI's and timm's names: one layer."""
_ATTENTION = ("qkv", "to_q", "to_k", "to_v", "out_proj", "proj")
"""Names of attention's matrices in MONAI's and timm's networks; `proj` only where it stands in an `attn`."""


def train_groups(network: TaskNetwork, config: FinetuneConfig) -> list[Group]:
    """Return what moves by `config.train`, at which share of `config.learning_rate`."""
    head = network.head_parameters()
    taken = {id(p) for p in head}
    body = [p for p in network.parameters() if id(p) not in taken]
    groups = decay_groups(network, rate=config.head_learning_rate / config.learning_rate, skip=body)
    if config.train == "linear":
        return groups
    if config.train == "lora":
        small = {id(p) for module in _corrections(network) for p in module.parameters()}
        rest = [p for p in network.parameters() if id(p) not in small]
        return [*decay_groups(network, skip=rest), *groups]
    wait = config.head_steps if config.train == "head_first" else 0
    parts = layers(network)
    if config.layer_decay == 1:
        return [*decay_groups(network, skip=head, frozen_steps=wait), *groups]
    for depth, layer in enumerate(parts):
        own = {id(p) for p in layer}
        others = [p for p in network.parameters() if id(p) not in own]
        rate = config.layer_decay ** (len(parts) - depth)
        groups += decay_groups(network, rate=rate, skip=others, frozen_steps=wait)
    return groups


def hold_still(network: TaskNetwork, config: FinetuneConfig, step: int) -> None:
    """Put a body that does not move in this step in eval: its dropout and batch statistics wait as well."""
    if config.train == "linear" or (config.train == "head_first" and step < config.head_steps):
        for module in network.body().modules():
            if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)):
                module.eval()


def layers(network: TaskNetwork) -> list[list[nn.Parameter]]:
    """Return the parameters an encoder brings, layer by layer from the image on; each stands in one layer.

    A layer is a block of a ViT, a level of a U-Net on the way down or up, or what stands before, between and after.
    """
    head, parts = {id(p) for p in network.head_parameters()}, dict[str, list[nn.Parameter]]()
    for name, parameter in network.body().named_parameters():
        if id(parameter) not in head:
            found = _LAYER.match(name)
            key = "stem" if _STEM.match(name) else found.group() if found else name
            parts.setdefault(key.replace("up_samples", "up_layers"), []).append(parameter)  # of SegResNet: one level
    return list(parts.values())


class LowRank(nn.Module):
    """Adds to a matrix the product of two thin ones, which is 0 at first.

    Args:
        weight: (out, in), the matrix; it is not kept.
        rank: columns of the one, rows of the other.
        scale: what their product is multiplied by.
        generator: draws the first of them.
    """

    def __init__(self, weight: Tensor, rank: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        out, columns = weight.shape
        self.scale = scale
        limit = math.sqrt(1 / columns)  # kaiming_uniform_ with a = sqrt(5), as in the authors' code
        a = (2 * torch.rand(rank, columns, generator=generator) - 1) * limit
        self.a, self.b = nn.Parameter(a.to(weight)), nn.Parameter(weight.new_zeros(out, rank))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the corrected matrix, (out, in)."""
        return weight + self.scale * (self.b @ self.a)


def add_low_rank(network: TaskNetwork, config: FinetuneConfig) -> None:
    """Give every attention matrix of the body a correction, and keep the matrix itself as it is.

    Raises:
        RecipeError: the network has no attention.
    """
    generator = torch.Generator().manual_seed(hash64(config.seed, "low rank") & ((1 << 63) - 1))
    targets = [module for name, module in network.body().named_modules() if _is_attention(name, module)]
    if not targets:
        raise RecipeError(
            f"{network.spec['encoder']['name']} has no attention to correct",
            where="finetune.train",
            fix="use full, head_first or linear",
        )
    for module in targets:
        rank = min(config.lora_rank, *module.weight.shape)
        part = LowRank(module.weight.detach(), rank, config.lora_scale, generator)
        parametrize.register_parametrization(module, "weight", part)


def merge_low_rank(network: TaskNetwork) -> None:
    """Add the corrections to the weights: the network is again the class it was, with the names it had."""
    for module in network.modules():
        if isinstance(module, nn.Linear) and parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)


def _corrections(network: TaskNetwork) -> list[LowRank]:
    return [module for module in network.modules() if isinstance(module, LowRank)]


def _is_attention(name: str, module: nn.Module) -> bool:
    parent, _, last = name.rpartition(".")
    known = last in _ATTENTION and (last != "proj" or parent.rpartition(".")[2] == "attn")
    return isinstance(module, nn.Linear) and known
