"""AdamW over a method's groups, and the learning rate of a step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from ..errors import RunError
from ..methods.method import Group
from .config import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """Return the rate of a step: linear warm-up, then half a cosine down to `final_rate` times the peak.

    Loshchilov and Hutter 2017, arXiv:1608.03983, equation 5, without restarts.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / (config.warmup_steps + 1)
    rest = max(1, config.steps - config.warmup_steps)
    part = min(1.0, (step - config.warmup_steps) / rest)
    share = config.final_rate + (1 - config.final_rate) * 0.5 * (1 + math.cos(math.pi * part))
    return config.learning_rate * share


def check_groups(method: nn.Module, groups: Sequence[Group]) -> None:
    """Raise RunError when a parameter stands in two groups; freeze those that stand in none.

    Freezing has to happen before the method is wrapped for several ranks: switched later, gradients are no longer
    reduced, without a word.
    """
    names = {id(parameter): name for name, parameter in method.named_parameters()}
    seen: set[int] = set()
    for group in groups:
        for parameter in group.parameters:
            if id(parameter) in seen:
                raise RunError("a parameter stands in two groups", where=names.get(id(parameter), "not of this method"))
            seen.add(id(parameter))
    if not seen:
        raise RunError("the method trains no parameter", fix="look at its groups()")
    for parameter in method.parameters():
        if id(parameter) not in seen:
            parameter.requires_grad_(False)


class Optimiser:
    """AdamW whose groups follow the schedule, each times its own factor, and wait for `frozen_steps`."""

    def __init__(self, groups: Sequence[Group], config: TrainConfig) -> None:
        self.groups, self.config = tuple(groups), config
        self.adamw = torch.optim.AdamW(
            [
                {"params": list(group.parameters), "weight_decay": config.weight_decay if group.decay else 0.0}
                for group in groups
            ],
            lr=config.learning_rate,
            betas=config.betas,
        )
        self.parameters = [parameter for group in groups for parameter in group.parameters]

    def step(self, step: int) -> tuple[float, torch.Tensor, bool]:
        """Clip and apply the gradients; skip the step where they are not finite.

        Returns:
            The learning rate, the norm of the gradient before clipping, and whether the step was taken.
        """
        rate = learning_rate(step, self.config)
        for group, part in zip(self.groups, self.adamw.param_groups):
            part["lr"] = rate * group.rate
            if step < group.frozen_steps:
                for parameter in group.parameters:
                    parameter.grad = None  # AdamW moves a parameter with a zero gradient, not one without
        limit = self.config.clip if self.config.clip > 0 else math.inf
        norm = nn.utils.clip_grad_norm_(self.parameters, limit)
        # The one read of the device in a step: a step that is skipped must not reach after_step either.
        finite = bool(torch.isfinite(norm))
        if finite:
            self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        return rate, norm.detach(), finite
