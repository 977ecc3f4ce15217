"""Batches in their order, on any number of threads: the same samples, whoever decodes them.

Threads serve as well as processes, for decoding runs outside the interpreter's lock, and they cut crops straight into
their places in the batch: nothing is copied between processes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..batch import Batch, Facts
from ..errors import MedsslError, RecipeError
from ..matches import Matches
from ..store import Store
from .config import LoaderConfig, StreamConfig
from .stream import Stream

Pieces = list[tuple[Stream, Any, range, int]]


class Loader:
    """Samples and batches of one or several stores.

    Step s holds samples s * B, ..., (s + 1) * B - 1 of each stream, B being that stream's samples a step. With one
    stream a batch is a dict of tensors, with several a dict of such dicts.

    Args:
        stores: the store, or one for each stream by name.
        config: the recipe's section `loader`.
        seed: the run's; with it sample n is fixed.
        labels: add `label`; only labelled images are taken.
        ids: take these images instead of `config.split`, for a single stream.
        matches: pairs of points, for streams with `pairs: matches`.
        points: (P, 1 + nd) whole numbers by image id, class and voxel, in the place of labelled voxels where
            `label_fraction` asks for crops centred on them; an image without points is cropped as `sampling` says.
            For a single stream; needs no label maps.
    """

    def __init__(
        self,
        stores: Store | Mapping[str, Store],
        config: LoaderConfig,
        seed: int,
        *,
        labels: bool = False,
        ids: Sequence[str] | None = None,
        matches: Matches | Mapping[str, Matches] | None = None,
        points: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        self.config, self.seed = config, seed
        configs = _stream_configs(config)
        if ids is not None and len(configs) > 1:
            raise ValueError("ids can be given for a single stream only")
        if points is not None and len(configs) > 1:
            raise ValueError("points can be given for a single stream only")
        named = _stores(stores, configs)
        sizes = config.stream_sizes()
        self.streams = {
            name: Stream(
                name,
                named[name],
                stream,
                seed,
                batch=sizes[name],
                labels=labels,
                ids=ids,
                matches=matches.get(name) if isinstance(matches, Mapping) else matches,
                points=points,
            )
            for name, stream in configs.items()
        }
        self._pool: ThreadPoolExecutor | None = None
        self._pin = torch.cuda.is_available()

    @property
    def items(self) -> int:
        """Number of different items, over all streams."""
        return sum(stream.items for stream in self.streams.values())

    def facts(self, steps: int) -> Facts:
        """Return what a method may know of the data before the first step of `steps`."""
        return Facts(steps, {name: stream.facts() for name, stream in self.streams.items()})

    def sample(self, n: int, stream: str | None = None) -> dict[str, Any]:
        """Return sample n of a stream (the first unless named) as numpy arrays without a batch axis."""
        chosen = self.streams[stream] if stream is not None else next(iter(self.streams.values()))
        slot: dict[str, Any] = dict(_names(chosen, 1))
        slot |= {key: np.empty((1, *shape), dtype) for key, (shape, dtype) in chosen.layout().items()}
        chosen.fill(slot, 0, n)
        return {key: value[0] for key, value in slot.items()}

    def batch(self, step: int, rows: range | None = None) -> Batch:
        """Return the batch of a step, or of it the samples at positions `rows` below `batch_size`.

        With several streams each gives its share of `rows`, which must come out whole.
        """
        batch, pieces = self._plan(step, range(self.config.batch_size) if rows is None else rows)
        for piece in pieces:
            _cut(piece)
        return batch

    def stream(self, start_step: int, steps: int, *, rank: int = 0, ranks: int = 1) -> Iterator[Batch]:
        """Yield this rank's share of the batches of steps start_step, ..., steps - 1, decoded ahead, in order.

        Raises:
            RecipeError: the batch does not divide by the number of ranks.
        """
        if self.config.batch_size % ranks:
            raise RecipeError(
                f"a batch of {self.config.batch_size} samples does not divide by {ranks} ranks",
                where="loader.batch_size",
                fix=f"use a multiple of {ranks}",
            )
        share = self.config.batch_size // ranks
        return self._stream(range(start_step, steps), range(rank * share, (rank + 1) * share))

    def _stream(self, steps: range, rows: range) -> Iterator[Batch]:
        if self.config.workers == 0:
            for step in steps:
                yield self.batch(step, rows)
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.config.workers, thread_name_prefix="medssl-loader")
        waiting: deque[tuple[Batch, list[Future[None]]]] = deque()
        coming = iter(steps)
        try:
            while True:
                for step in islice(coming, self.config.ahead + 1 - len(waiting)):
                    batch, pieces = self._plan(step, rows, parts=self.config.workers)
                    waiting.append((batch, [self._pool.submit(_cut, piece) for piece in pieces]))
                if not waiting:
                    return
                batch, futures = waiting.popleft()
                for future in futures:
                    future.result()
                yield batch
        finally:
            for _, futures in waiting:
                for future in futures:
                    future.cancel()

    def _plan(self, step: int, rows: range, parts: int = 1) -> tuple[Batch, Pieces]:
        """Lay out a batch's empty tensors, and say which samples belong in which of their places."""
        batches: dict[str, Batch] = {}
        pieces: Pieces = []
        for name, stream in self.streams.items():
            mine = self._share(rows, stream)
            batch: Batch = {
                key: torch.from_numpy(np.empty((len(mine), *shape), dtype))
                if not self._pin
                else torch.empty((len(mine), *shape), dtype=_torch_dtype(dtype), pin_memory=True)
                for key, (shape, dtype) in stream.layout().items()
            }
            batch |= _names(stream, len(mine))
            slot = {key: value.numpy() if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
            batches[name] = batch
            first, size = step * stream.batch + mine.start, -(-len(mine) // parts)
            for low in range(0, len(mine), size):
                pieces.append((stream, slot, range(low, min(low + size, len(mine))), first))
        return (batches if self.config.streams else batches["main"]), pieces

    def _share(self, rows: range, stream: Stream) -> range:
        whole = self.config.batch_size
        if rows.step != 1 or not 0 <= rows.start < rows.stop <= whole:
            raise ValueError(f"rows {rows} are no positions of a batch of {whole}")
        if rows.start * stream.batch % whole or rows.stop * stream.batch % whole:
            raise RecipeError(
                f"the {stream.batch} samples of stream {stream.name} do not divide as the {whole} of the batch do",
                where="loader.batch_size",
                fix="choose sizes that divide by ranks x microbatches",
            )
        return range(rows.start * stream.batch // whole, rows.stop * stream.batch // whole)

    def close(self) -> None:
        """Stop the threads; what was being decoded is dropped."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _cut(piece: tuple[Stream, Any, range, int]) -> None:
    stream, slot, places, first = piece
    for place in places:
        n = first + place
        try:
            stream.fill(slot, place, n)
        except MedsslError:
            raise
        except Exception as error:
            image_id = stream.ids[stream.order.item(n)]
            raise RuntimeError(f"sample {n} of stream {stream.name}, image {image_id}: {error}") from error


def _names(stream: Stream, n: int) -> dict[str, list[str]]:
    keys = ("image_id", "partner_id") if stream.config.pairs == "matches" else ("image_id",)
    return {key: [""] * n for key in keys}


def _torch_dtype(dtype: Any) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype


def _stream_configs(config: LoaderConfig) -> dict[str, StreamConfig]:
    return dict(config.streams) if config.streams else {"main": config}


def _stores(stores: Store | Mapping[str, Store], configs: Mapping[str, StreamConfig]) -> dict[str, Store]:
    """Return a store for every stream; one store alone serves all of them."""
    if not isinstance(stores, Mapping):
        return dict.fromkeys(configs, stores)
    if len(stores) == 1 and len(configs) == 1:
        return dict.fromkeys(configs, next(iter(stores.values())))
    if set(stores) != set(configs):
        raise RecipeError(
            f"the streams are {sorted(configs)}, the stores {sorted(stores)}",
            where="loader.streams",
            fix="give every stream its store as NAME=STORE",
        )
    return {name: stores[name] for name in configs}
