"""Every epoch holds each item once, and near neighbours are never the same item."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from medssl.loading.order import Numbers, Order


@given(items=st.integers(1, 40), seed=st.integers(0, 5), epoch=st.integers(0, 4))
def test_an_epoch_holds_each_item_once(items: int, seed: int, epoch: int) -> None:
    order = Order(items, seed, "main")
    assert sorted(order.item(epoch * items + place) for place in range(items)) == list(range(items))


@given(items=st.integers(3, 40), seed=st.integers(0, 20))
def test_a_third_of_the_items_in_a_row_are_different_items(items: int, seed: int) -> None:
    order = Order(items, seed, "main")
    drawn = [order.item(n) for n in range(4 * items)]
    window = items // 3
    for start in range(len(drawn) - window + 1):
        assert len(set(drawn[start : start + window])) == window


@given(n=st.integers(0, 10**12), items=st.integers(1, 40))
def test_an_item_does_not_depend_on_what_was_asked_before(n: int, items: int) -> None:
    order = Order(items, 3, "main")
    for other in (0, n + 1, n // 2):
        order.item(other)
    assert order.item(n) == Order(items, 3, "main").item(n)


def test_epochs_seeds_and_streams_differ_in_order() -> None:
    orders = {
        tuple(Order(30, seed, stream).item(n + 30 * epoch) for n in range(30))
        for seed in (0, 1)
        for stream in ("a", "b")
        for epoch in (0, 1)
    }
    assert len(orders) == 8


def test_numbers_are_the_same_on_every_machine() -> None:
    numbers = Numbers(-5)
    assert [numbers.below(1000) for _ in range(5)] == [876, 14, 866, 677, 964]
