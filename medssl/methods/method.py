"""The contract of a pretraining method, or of a downstream task: what the engine asks of it, and nothing more.

A method knows no files, devices, ranks, microbatches or loggers. Four rules make one process, several ranks,
microbatches and cached gradients take the same step:

1. A loss term is a mean over samples of each sample's own value, or is computed whole from `joined(z)`.
2. State lives in buffers and changes in `after_step` only; parameters change there by `assign_`.
3. What takes no gradient is `Frozen` or a `Teacher`.
4. Every parameter in `groups()` gets a gradient in every step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from ..batch import Batch, Facts
from ..config import Section
from ..errors import RunError

Views = dict[str, Any]
"""What `forward` sees: tensors by name, made by `views` from a batch without gradient."""


class MethodConfig(Section):
    """Base of a method's knobs; `name` says which method a recipe means."""

    name: str = ""


@dataclass(frozen=True)
class Losses:
    """The result of a forward pass: named terms, their weighted total, and what `after_step` and the alarms may see.

    `terms` are 0-dim and detached nowhere (the engine does that); `seen` holds tensors with samples along their first
    axis, which the engine joins over microbatches and ranks in the order of the samples.
    """

    total: Tensor
    terms: Mapping[str, Tensor]
    seen: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls, *, weights: Mapping[str, float] | None = None, seen: Mapping[str, Tensor] | None = None, **terms: Tensor
    ) -> Losses:
        """Sum the terms, each times its weight (1 unless given), and keep them by name."""
        if not terms:
            raise ValueError("a loss needs at least one term")
        weights = weights or {}
        if unknown := set(weights) - set(terms):
            raise ValueError(f"weights for terms that are not there: {sorted(unknown)}")
        total = sum(
            (weights.get(name, 1.0) * term for name, term in terms.items()), start=next(iter(terms.values())) * 0
        )
        return cls(total, dict(terms), dict(seen or {}))


@dataclass(frozen=True)
class Group:
    """Parameters that share a learning-rate factor, weight decay, and a number of steps they wait before moving."""

    parameters: tuple[nn.Parameter, ...]
    rate: float = 1.0
    decay: bool = True
    frozen_steps: int = 0


def decay_groups(
    module: nn.Module, *, rate: float = 1.0, frozen_steps: int = 0, skip: Iterable[nn.Parameter] = ()
) -> list[Group]:
    """Split a module's parameters so that vectors (norms, biases, tokens) are not decayed, as is the custom.

    Parameters that need no gradient, and those in `skip`, are left out.
    """
    skipped = {id(parameter) for parameter in skip}
    moving = [p for p in module.parameters() if p.requires_grad and id(p) not in skipped]
    matrices = tuple(p for p in moving if p.ndim > 1 and p.shape.numel() != max(p.shape))
    vectors = tuple(p for p in moving if not (p.ndim > 1 and p.shape.numel() != max(p.shape)))
    both = (Group(matrices, rate, True, frozen_steps), Group(vectors, rate, False, frozen_steps))
    return [group for group in both if group.parameters]


def check_trains_all(encoder: Any, where: str) -> None:
    """Raise RunError where the finest feature map leaves parts of the encoder without a gradient.

    A method that learns from that map alone would train little but the first layers, without a word.
    """
    if not getattr(encoder, "finest_trains_all", True):
        raise RunError(
            f"the finest map of {type(encoder).__name__} trains only a part of it",
            where=where,
            fix="choose a U-Net, a ViT, or swin with encoder.decoder=true",
        )


class Method(nn.Module):
    """Base of every method; only `Config`, `views` and `forward` must be written."""

    class Config(MethodConfig):
        """Every knob, typed, with its paper default and unit."""

    needs: ClassVar[tuple[str, ...]] = ("image",)
    """Keys of the batch, or of each stream, checked before the first step."""
    several_streams: ClassVar[bool] = False
    """True where batches may hold several streams by name."""
    joins: ClassVar[bool] = False
    """True where `forward` calls `joined()`; then gradients are cached over microbatches."""

    def __init__(self, config: Any, encoder: nn.Module, facts: Facts) -> None:
        super().__init__()
        self.config, self.facts = config, facts
        self.encoder: Any = encoder

    def views(self, batch: Batch, step: int) -> Views:
        """Make what the networks see: on the device, without gradient, drawing from `Draw(batch["key"])` only."""
        raise NotImplementedError(f"{type(self).__name__} must write views()")

    def forward(self, views: Views) -> Losses:
        """Return the losses of these views."""
        raise NotImplementedError(f"{type(self).__name__} must write forward()")

    def after_step(self, step: int, seen: Mapping[str, Tensor]) -> None:
        """Change state (moving averages, queues, memories); `seen` is the whole step's, equal on every rank."""

    def groups(self) -> list[Group]:
        """Return the parameters that are trained, with their rates and decay."""
        return decay_groups(self)

    def encoders(self) -> dict[str, nn.Module]:
        """Return what leaves: by default the one encoder."""
        return {"encoder": self.encoder}

    def panels(self, views: Views) -> dict[str, Tensor]:
        """Return pictures for the log by name: (3 or 1, H, W), values in [0, 1]."""
        return {}
