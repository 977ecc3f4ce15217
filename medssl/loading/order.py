"""Which item is sample n, and the random numbers of a sample: pure functions of seed, stream and n."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..batch import hash64

_MASK = (1 << 64) - 1


class Numbers:
    """Random numbers for places in an image, from PCG64's raw words, which numpy keeps the same across versions."""

    def __init__(self, key: int) -> None:
        self._words = np.random.PCG64(key & _MASK)

    def below(self, n: int) -> int:
        """Return an integer of 0, ..., n - 1."""
        return int(self._words.random_raw()) % n

    def between(self, low: int, high: int) -> int:
        """Return an integer of low, ..., high, both included."""
        return low + self.below(high - low + 1)

    def unit(self) -> float:
        """Return a number in [0, 1)."""
        return (int(self._words.random_raw()) >> 11) * 2.0**-53


class Order:
    """The order in which the items come: each once an epoch, every epoch another order.

    Any `items // 3` samples in a row hold no item twice, also where two epochs meet: a batch that held one twice
    would give a contrastive loss a false negative, and a memory two writes to one place.

    Args:
        items: number of items.
        seed: the run's.
        stream: name of the stream.
    """

    def __init__(self, items: int, seed: int, stream: str) -> None:
        self.items, self.seed, self.stream = items, seed, stream
        self.epoch = lru_cache(maxsize=4)(self._epoch)

    def item(self, n: int) -> int:
        """Return the item of sample n."""
        return int(self.epoch(n // self.items)[n % self.items])

    def _epoch(self, epoch: int) -> NDArray[Any]:
        order = self._shuffled(epoch)
        third = self.items // 3
        if epoch == 0 or third == 0:
            return order
        # Items of the last third of the epoch before leave the first third of this one for its middle third, which
        # always has room; the last third stays as drawn, so that no epoch depends on more than the one before.
        recent = np.zeros(self.items, dtype=bool)
        recent[self._shuffled(epoch - 1)[-third:]] = True
        head = np.flatnonzero(recent[order[:third]])
        middle = third + np.flatnonzero(~recent[order[third : self.items - third]])[: len(head)]
        order[head], order[middle] = order[middle], order[head].copy()
        return order

    def _shuffled(self, epoch: int) -> NDArray[Any]:
        words = np.random.PCG64(hash64(self.seed, self.stream, epoch) & _MASK).random_raw(self.items)
        return np.argsort(words, kind="stable")
