"""Laws of joined(), beside those the toys show through the engine."""

from __future__ import annotations

import pytest
import torch

from medssl.joined import joined, joining


def test_outside_a_step_rows_are_themselves() -> None:
    z = torch.randn(3, 2, requires_grad=True)
    assert joined(z) is z


def cached_gradient(parts: list[torch.Tensor], weight: torch.Tensor, loss: object) -> torch.Tensor:
    """Two passes over microbatches, as the engine makes them; the engine averages over microbatches."""
    with joining(len(parts)) as step:
        for micro, part in enumerate(parts):
            step.record(micro)
            with torch.no_grad():
                joined(part @ weight)
        for micro, part in enumerate(parts):
            step.replay(micro)
            (loss(joined(part @ weight)) / len(parts)).backward()  # type: ignore[operator]
    assert weight.grad is not None
    return weight.grad


@pytest.mark.parametrize("micros", [1, 2, 4])
def test_cached_gradients_equal_those_of_the_big_batch(micros: int) -> None:
    x = torch.randn(8, 3, dtype=torch.float64)
    start = torch.randn(3, 2, dtype=torch.float64)

    def loss(z: torch.Tensor) -> torch.Tensor:
        return (z @ z.mT).logsumexp(1).mean() - z.square().sum() / 8

    whole = start.clone().requires_grad_()
    loss(x @ whole).backward()
    assert whole.grad is not None
    parts = cached_gradient(list(x.chunk(micros)), start.clone().requires_grad_(), loss)
    torch.testing.assert_close(parts, whole.grad, rtol=1e-12, atol=1e-12)


def test_a_row_that_changes_between_the_passes_is_refused() -> None:
    with joining(2) as step:
        for micro in range(2):
            step.record(micro)
            joined(torch.zeros(2, 2))
        step.replay(0)
        with pytest.raises(RuntimeError, match="changed between the two passes"):
            joined(torch.ones(2, 2))


def test_two_steps_are_never_open_at_once() -> None:
    with joining(1), pytest.raises(RuntimeError, match="already open"), joining(1):
        pass
    with joining(1):
        pass
