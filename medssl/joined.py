"""joined(z): the rows of the whole optimiser step, over microbatches and ranks, with their gradient.

A loss that compares samples needs all rows of a step, wherever they were computed. Forward gathers them. Backward, the
own rows get the gradient times (ranks x microbatches): every rank and microbatch computes the same whole loss, and the
engine averages over them, so the factor restores the gradient of that one loss, without communication in backward.

With microbatches the engine runs the step twice ("cached gradients", Gao et al. 2021, arXiv:2101.06983): a pass without
gradient records each microbatch's rows, a second one replays each microbatch among the recorded rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass
class _Step:
    mode: str  # "direct" | "record" | "replay"
    micros: int
    micro: int = 0
    calls: int = 0
    # rows[call][micro]: the gathered rows of one call of joined() in one microbatch, rank after rank
    rows: list[list[tuple[Tensor, ...]]] = field(default_factory=list)


_current: _Step | None = None


class _Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, z: Tensor, factor: float) -> Tensor:
        ctx.factor = factor  # type: ignore[attr-defined]
        return z.view_as(z)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None  # type: ignore[attr-defined]


def _ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_rows(z: Tensor) -> tuple[Tensor, ...]:
    """Return every rank's `z` in the order of the ranks, without gradient; ranks may hold different numbers of rows."""
    if _ranks() == 1:
        return (z.detach(),)
    z = z.detach().contiguous()
    length = torch.tensor([len(z)], device=z.device)
    lengths = [torch.empty_like(length) for _ in range(_ranks())]
    dist.all_gather(lengths, length)
    longest = int(max(int(n) for n in lengths))
    padded = z.new_zeros(longest, *z.shape[1:])
    padded[: len(z)] = z
    out = [torch.empty_like(padded) for _ in range(_ranks())]
    dist.all_gather(out, padded)
    return tuple(rows[: int(n)] for rows, n in zip(out, lengths))


def joined(z: Tensor) -> Tensor:
    """Return the rows of the whole step in the order of its samples; the own rows keep their gradient.

    Args:
        z: (B, ...), the rows of this microbatch on this rank.

    Returns:
        (B x microbatches x ranks, ...). While rows are being recorded the values are not meant (the shape is).

    Raises:
        RuntimeError: a row differs between the recording and the replaying pass: it depends on other samples, or on
            random numbers that are not drawn from the sample's key.
    """
    step = _current
    ranks, rank = _ranks(), (dist.get_rank() if _ranks() > 1 else 0)
    if step is None or step.mode == "direct":
        if ranks == 1:
            return z
        parts = list(gather_rows(z))
        parts[rank] = _Scale.apply(z, float(ranks))
        return torch.cat(parts)
    call, step.calls = step.calls, step.calls + 1
    if step.mode == "record":
        if call == len(step.rows):
            step.rows.append([])
        step.rows[call].append(gather_rows(z))
        return torch.cat([z.detach()] * (ranks * step.micros))
    table = step.rows[call]
    recorded = table[step.micro][rank]
    if recorded.shape != z.shape or not torch.allclose(recorded, z.detach(), rtol=1e-3, atol=1e-4):
        raise RuntimeError(
            f"joined() call {call}: rows of microbatch {step.micro} changed between the two passes; a joined value may "
            "depend on its own sample only, and draw random numbers only from the sample's key"
        )
    # A rank holds consecutive samples, cut into its microbatches: sample order is rank first, then microbatch.
    parts = [table[micro][r] for r in range(ranks) for micro in range(step.micros)]
    parts[rank * step.micros + step.micro] = _Scale.apply(z, float(ranks * step.micros))
    return torch.cat(parts)


@contextmanager
def joining(micros: int) -> Iterator[JoinedStep]:
    """Open one optimiser step of `micros` microbatches; the engine calls this, methods do not."""
    global _current
    if _current is not None:
        raise RuntimeError("an optimiser step is already open")
    step = _Step("direct", micros)
    _current = step
    try:
        yield JoinedStep(step)
    finally:
        _current = None


class JoinedStep:
    """The engine's handle on an open step: says which microbatch runs, and in which pass."""

    def __init__(self, step: _Step) -> None:
        self._step = step

    def record(self, micro: int) -> None:
        """The next forward is microbatch `micro` of the recording pass."""
        self._step.mode, self._step.micro, self._step.calls = "record", micro, 0

    def replay(self, micro: int) -> None:
        """The next forward is microbatch `micro` of the replaying pass."""
        self._step.mode, self._step.micro, self._step.calls = "replay", micro, 0
