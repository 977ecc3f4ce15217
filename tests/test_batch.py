"""Laws of keys and draws."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medssl.batch import Draw, Facts, StreamFacts, hash64

KEYS = torch.tensor([hash64(0, n) for n in range(4000)])


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5), st.text("abc", max_size=5))
def test_a_sample_draws_the_same_alone_and_in_any_batch(keys: list[int], name: str) -> None:
    batch = Draw(torch.tensor(keys)).of(name)
    for i, key in enumerate(keys):
        alone = Draw(torch.tensor([key])).of(name)
        for draw in ("uniform", "normal", "noise", "bits"):
            assert torch.equal(getattr(batch, draw)(3)[i], getattr(alone, draw)(3)[0])
        assert torch.equal(batch.permutation(7)[i], alone.permutation(7)[0])


def test_splitmix64_is_that_of_its_authors() -> None:
    """The first outputs for seed 1234567, as published with the generator by Vigna."""
    wanted = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    state, out = 1234567, []
    golden = 0x9E3779B97F4A7C15
    for _ in range(3):
        from medssl.batch import _splitmix

        out.append(_splitmix(state))
        state = (state + golden) & (2**64 - 1)
    assert out == wanted


def test_tensor_and_integer_mixing_agree() -> None:
    from medssl.batch import _mix, _signed, _splitmix

    for value in (0, 1, 2**63, 2**64 - 1, 0x9E3779B97F4A7C15):
        assert int(_mix(torch.tensor([_signed(value)]))) == _signed(_splitmix(value))


def test_uniform_draws_are_uniform_and_names_are_independent() -> None:
    one, two = Draw(KEYS).of("one").uniform(8), Draw(KEYS).of("two").uniform(8)
    assert one.min() >= 0
    assert one.max() < 1
    counts = torch.histc(one, 16, 0, 1)
    expected = one.numel() / 16
    assert ((counts - expected) ** 2 / expected).sum() < 45  # chi square, 15 degrees of freedom: p about 1e-4
    correlation = torch.corrcoef(torch.stack([one.flatten(), two.flatten()]))[0, 1]
    assert correlation.abs() < 0.02
    neighbours = torch.corrcoef(one.T) - torch.eye(8)
    assert neighbours.abs().max() < 0.08


def test_normal_draws_are_normal() -> None:
    values = Draw(KEYS).normal(16).flatten()
    assert values.mean().abs() < 0.02
    assert values.std() == pytest.approx(1, abs=0.02)
    assert (values.abs() < 1.96).float().mean() == pytest.approx(0.95, abs=0.005)


def test_integers_and_permutations_cover_their_range_evenly() -> None:
    counts = torch.bincount(Draw(KEYS).integers(low=3, high=8), minlength=8)
    assert (counts[:3] == 0).all()
    assert (counts[3:] - 800).abs().max() < 120
    orders = Draw(KEYS).permutation(5)
    assert torch.equal(orders.sort(1).values, torch.arange(5).expand(4000, 5))
    assert (torch.bincount(orders[:, 0], minlength=5) - 800).abs().max() < 120


def test_facts_of_one_stream_are_at_hand_and_of_two_are_not() -> None:
    stream = StreamFacts("volume", (4, 4, 4), 1, 3, 2)
    assert Facts(5, {"main": stream}).items == 3
    with pytest.raises(AttributeError, match="2 streams"):
        _ = Facts(5, {"a": stream, "b": stream}).items
