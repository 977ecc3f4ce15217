"""Frozen networks, teachers that follow a student, and the one way to write into parameters.

EMA teacher: Tarvainen and Valpola 2017, arXiv:1703.01780.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Frozen(nn.Module):
    """Hold a network that takes no gradient and stays in eval, whatever `train()` is called around it.

    Calling it, or any of the network's own methods (`frozen.pooled(x)`, `frozen.tokens(x)`), runs without gradient.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Frozen:
        """Stay in eval: a teacher in train mode would drop units and move its batch statistics."""
        del mode
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network without gradient."""
        return self.module(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "_modules" not in self.__dict__ or "module" not in self._modules or name.startswith("__"):
                raise
        value = getattr(self.module, name)
        return _without_gradient(value) if callable(value) and not isinstance(value, nn.Module) else value


def _without_gradient(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return function(*args, **kwargs)

    return run


class Teacher(Frozen):
    """A frozen copy of the student that follows it: teacher = momentum x teacher + (1 - momentum) x student.

    Kept in float32: with a momentum of 0.999 a teacher in bfloat16 never moves.
    """

    def __init__(self, student: nn.Module) -> None:
        super().__init__(copy.deepcopy(student).float())

    @torch.no_grad()
    def update(self, student: nn.Module, momentum: float | Tensor) -> None:
        """Move towards the student; buffers are taken over as they are."""
        for own, new in zip(self.module.parameters(), student.parameters(), strict=True):
            weight = momentum.to(own) if isinstance(momentum, Tensor) else momentum
            own.lerp_(new.detach().to(own), 1 - weight)
        for state, value in zip(self.module.buffers(), student.buffers(), strict=True):
            state.copy_(value)


# Parameters written by assign_(forget=...) in this step: what their optimiser must forget, all of it or some rows.
_forgotten: list[tuple[Tensor, Tensor | None]] = []


@torch.no_grad()
def assign_(tensor: Tensor, value: Tensor, *, rows: Tensor | None = None, forget: bool = False) -> None:
    """Write values into a parameter or buffer, in place, as `after_step` must.

    Args:
        tensor: what is written.
        value: of the same shape, or (len(rows), ...).
        rows: (N,) int64 or bool: the rows to write; all unless given.
        forget: also drop the optimiser's moments of what was written, which would drag it back. The engine does
            that right after `after_step`, by `forget_moments`.
    """
    if rows is None:
        tensor.copy_(value)
    else:
        tensor[rows] = value.to(tensor)
    if forget:
        _forgotten.append((tensor, rows))


@torch.no_grad()
def forget_moments(optimizer: torch.optim.Optimizer) -> None:
    """Set to zero the optimiser's moments of all that `assign_(..., forget=True)` wrote since the last call."""
    for parameter, rows in _forgotten:
        for moment in optimizer.state.get(parameter, {}).values():
            if isinstance(moment, Tensor) and moment.shape == parameter.shape:
                if rows is None:
                    moment.zero_()
                else:
                    moment[rows] = 0
    _forgotten.clear()
