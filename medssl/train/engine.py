"""The engine: trains any Method on any loader, so that a killed run ends as if nothing had happened."""

from __future__ import annotations

import io
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..batch import Batch, Facts, hash64, is_streams, rows, to_device
from ..errors import RunError
from ..files import write_bytes
from ..joined import gather_rows, joining
from ..methods.method import Losses, Method, Views
from ..metrics import effective_rank
from ..nets.frozen import forget_moments
from ..progress import Progress, silent
from ..views.scaling import scale
from .checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from .config import TrainConfig
from .distributed import pick_device, process_group
from .log import Log
from .optimiser import Optimiser, check_groups

logger = logging.getLogger(__name__)


class Batches(Protocol):
    """What the engine asks of a loader."""

    def facts(self, steps: int) -> Facts:
        """Return what is known of the data."""

    def stream(self, start_step: int, steps: int, *, rank: int = 0, ranks: int = 1) -> Iterator[Batch]:
        """Yield this rank's share of steps start_step, ..., steps - 1, in order."""


class Observer(Protocol):
    """Looks at a method every few steps, with whole weights, in eval mode, without gradient, on every rank.

    An observer that has an attribute `stop` ends the run, after the step at which it became True; it keeps it in its
    `state_dict`, so that a resumed run takes no step more.
    """

    every: int

    def observe(self, step: int, method: Method, log: Any) -> None:
        """Look; `log(name, value)` records a scalar."""

    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers, lists and tensors only: checkpoints are read without unpickling objects."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""


@dataclass(frozen=True)
class TrainResult:
    """What a training run came to."""

    out: Path
    steps: int
    resumed_from: int
    seconds: float
    metrics: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        loss = self.metrics.get("loss/total")
        return f"{self.steps} steps in {self.seconds:.0f} s" + (f", loss {loss:.4g}" if loss is not None else "")

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "out": str(self.out),
            "steps": self.steps,
            "resumed_from": self.resumed_from,
            "seconds": self.seconds,
            "metrics": {name: value if math.isfinite(value) else None for name, value in self.metrics.items()},
        }


def train(
    method: Method,
    loader: Batches,
    config: TrainConfig,
    out: Path | str,
    *,
    observers: Sequence[Observer] = (),
    resume: bool = False,
    progress: Progress = silent,
    name: str = "train",
) -> TrainResult:
    """Train `method` in place for `config.steps` optimiser steps.

    Args:
        method: the method or downstream task.
        loader: gives step s the samples s B, ..., (s + 1) B - 1, whatever the number of ranks and workers.
        config: steps, rates, precision, checkpoints.
        out: folder for `checkpoints/`, `metrics.jsonl`, `times.jsonl`, TensorBoard events and `panels/`.
        observers: looked through every few steps, and after the last.
        resume: go on from the newest whole checkpoint in `out`; without one, start anew and say so.
        progress: called as progress(name, step, steps).
        name: the phase told to `progress`.

    Raises:
        RunError: a batch lacks what the method needs, does not divide into ranks and microbatches, or the gradient was
            not finite `config.patience` times in a row.
    """
    with process_group() as (rank, ranks):
        out = Path(out)
        out.mkdir(parents=True, exist_ok=True)
        return _Run(method, loader, config, out, tuple(observers), rank, ranks).run(resume, progress, name)


class _Run:
    def __init__(
        self,
        method: Method,
        loader: Batches,
        config: TrainConfig,
        out: Path,
        observers: tuple[Observer, ...],
        rank: int,
        ranks: int,
    ) -> None:
        self.config, self.out, self.observers, self.rank, self.ranks = config, out, observers, rank, ranks
        self.loader, self.device = loader, pick_device(config.device)
        self.method = method.to(self.device)
        if config.precision == "bf16" and self.device.type == "cpu":
            # torch 2.14 with AVX512-BF16: the weight gradient of a 3 x 3 x 3 convolution on 2 x 2 x 2 voxels is wrong
            logger.warning("bf16 on a CPU may give wrong gradients of convolutions on very small maps; fp32 is safe")
        _check_shares(loader.facts(config.steps), ranks, config.microbatches)
        groups = method.groups()
        check_groups(method, groups)
        _check_batch_norm(method, ranks, config.microbatches)
        self.wrapped: nn.Module = method
        if ranks > 1:
            # Buffers are equal on every rank by rule 2 of the contract; sending them would cost 51 MB a step (Alice).
            self.wrapped = nn.parallel.DistributedDataParallel(method, broadcast_buffers=False)
        self.optimiser = Optimiser(groups, config)

    def run(self, resume: bool, progress: Progress, name: str) -> TrainResult:
        began, config = time.perf_counter(), self.config
        log = Log(self.out, active=self.rank == 0)
        start = self._resume(log) if resume else 0
        log.cut(start)
        stream = self.loader.stream(start, config.steps, rank=self.rank, ranks=self.ranks)
        bad, views, waited, saved = 0, None, 0.0, time.perf_counter()
        since, done = time.perf_counter(), start
        if self.rank > 0:
            progress = silent
        progress(name, start, config.steps)
        try:
            while done < config.steps and not self._asked_to_stop():
                step = done
                before = time.perf_counter()
                batch = next(stream)
                waited += time.perf_counter() - before
                if step == start:
                    _check_needs(self.method, batch)
                views, taken = self._step(step, batch, log)
                bad = 0 if taken else bad + 1
                if bad >= config.patience:
                    raise RunError(
                        f"the gradient was not finite in {bad} steps in a row",
                        where=f"step {step}",
                        fix="lower train.learning_rate, or look at the data with `medssl index --check`",
                    )
                done = step + 1
                self._observe(done, log)
                last = done == config.steps or self._asked_to_stop()
                keep = done % config.checkpoint_steps == 0 or last or self._due(saved, done)
                if done % config.log_steps == 0 or last:
                    passed = time.perf_counter() - since
                    log.flush(done, seconds=passed, data_wait=waited)
                    waited, since = 0.0, time.perf_counter()
                if keep:
                    self._save(done, log)
                    saved = time.perf_counter()
                progress(name, done, config.steps)
            if self.rank == 0:
                self._panels(views, done)
        finally:
            log.close()
            close = getattr(stream, "close", None)
            if close:
                close()
        return TrainResult(self.out, done, start, time.perf_counter() - began, dict(log.last))

    def _due(self, saved: float, done: int) -> bool:
        """Say whether the time between two checkpoints is over; ranks ask the first one, now and then."""
        due = time.perf_counter() - saved > 60 * self.config.checkpoint_minutes
        if self.ranks == 1:
            return due
        if done % self.config.log_steps:
            return False
        flag = torch.tensor(float(due), device=self.device)
        torch.distributed.broadcast(flag, 0)
        return bool(flag)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.config.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def _seed(self, *parts: int) -> None:
        """Seed dropout and drop path by (seed, step, first sample), so that no random state has to be saved."""
        seed = hash64(self.config.seed, *parts) & ((1 << 63) - 1)
        torch.default_generator.manual_seed(seed)
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(seed)

    def _views(self, batch: Batch, step: int) -> Views:
        with torch.no_grad():
            return self.method.views(scale(batch), step)

    def _step(self, step: int, batch: Batch, log: Log) -> tuple[Views, bool]:
        method, micros = self.method, self.config.microbatches
        method.train()
        parts = _split(batch, micros)
        firsts = [_first_sample(part) for part in parts]  # before the copy: reading them must not wait for the device
        parts = [to_device(part, self.device) for part in parts]
        seen: list[Mapping[str, Tensor]] = []
        with joining(micros) as pass_:
            if method.joins and micros > 1:
                for micro, part in enumerate(parts):
                    pass_.record(micro)
                    views = self._views(part, step)  # outside autocast, as in the pass that replays
                    self._seed(step, firsts[micro])
                    with torch.no_grad(), self._autocast():
                        method(views)
            for micro, part in enumerate(parts):
                if method.joins and micros > 1:
                    pass_.replay(micro)
                views = self._views(part, step)
                last = micro == micros - 1
                sync = nullcontext() if last or self.ranks == 1 else self.wrapped.no_sync()  # type: ignore[operator]
                with sync:
                    self._seed(step, firsts[micro])
                    with self._autocast():
                        losses: Losses = self.wrapped(views)
                    (losses.total / micros).backward()
                seen.append({key: value.detach() for key, value in losses.seen.items()})
                for key, term in (*losses.terms.items(), ("total", losses.total)):
                    log.add(f"loss/{key}", term)
        rate, norm, taken = self.optimiser.step(step)
        log.put("train/learning_rate", rate)
        log.add("train/gradient_norm", norm)
        log.add("health/skipped_steps", 0.0 if taken else 1.0)  # the share of steps
        if taken:
            whole = _whole_step(seen)
            self._seed(step)
            with torch.no_grad():
                method.after_step(step, whole)
            forget_moments(self.optimiser.adamw)
            if "features" in whole and (step + 1) % self.config.log_steps == 0:
                log.put("health/effective_rank", effective_rank(whole["features"]))
        return views, taken

    def _observe(self, done: int, log: Log) -> None:
        due = [o for o in self.observers if done % o.every == 0 or done == self.config.steps]
        if not due:
            return
        self.method.eval()
        with torch.no_grad():
            for observer in due:
                observer.observe(done, self.method, log.put)
        self.method.train()
        if self.ranks > 1:
            self._agree()

    def _agree(self) -> None:
        """Let every rank stop where one does: they see the same, but perhaps not to the last bit."""
        for observer in self.observers:
            if hasattr(observer, "stop"):
                stop = torch.tensor(float(observer.stop), device=self.device)
                torch.distributed.all_reduce(stop, torch.distributed.ReduceOp.MAX)
                observer.stop = bool(stop)

    def _asked_to_stop(self) -> bool:
        return any(getattr(observer, "stop", False) for observer in self.observers)

    def _save(self, done: int, log: Log) -> None:
        if self.rank == 0:
            states = {f"{i}-{type(o).__name__}": o.state_dict() for i, o in enumerate(self.observers)}
            states["log"] = log.state_dict()
            save_checkpoint(
                self.out / "checkpoints",
                step=done,
                method=self.method,
                optimiser=self.optimiser,
                observers=states,
                keep=self.config.keep_checkpoints,
            )
        if self.ranks > 1:
            torch.distributed.barrier()

    def _resume(self, log: Log) -> int:
        path = newest_checkpoint(self.out / "checkpoints")
        if path is None:
            logger.warning("no checkpoint to resume from: the run starts anew")
            return 0
        step, states = load_checkpoint(path, method=self.method, optimiser=self.optimiser)
        log.load_state_dict(states["log"])
        for i, observer in enumerate(self.observers):
            if (state := states.get(f"{i}-{type(observer).__name__}")) is not None:
                observer.load_state_dict(state)
        return min(step, self.config.steps)

    def _panels(self, views: Views | None, done: int) -> None:
        if views is None:
            if done == 0 or (self.out / "panels").exists():
                return
            # Killed between the last checkpoint and the pictures: the last step's views are made again.
            with torch.random.fork_rng(devices=[]):
                batch = next(iter(self.loader.stream(done - 1, done, rank=self.rank, ranks=self.ranks)))
            part = to_device(_split(batch, self.config.microbatches)[-1], self.device)
            views = self._views(part, done - 1)
        self.method.eval()
        with torch.no_grad():
            panels = self.method.panels(views)
        self.method.train()
        for key, panel in panels.items():
            (self.out / "panels").mkdir(exist_ok=True)
            write_bytes(self.out / "panels" / f"{key}.png", png(panel))


def png(picture: Tensor) -> bytes:
    """Encode a picture, (1 or 3, H, W) with values in [0, 1], as PNG."""
    from PIL import Image

    values = (picture.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().movedim(0, -1).numpy()
    file = io.BytesIO()
    Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values).save(file, "PNG")
    return file.getvalue()


def _streams_of(batch: Batch) -> dict[str, Batch]:
    return batch if is_streams(batch) else {"": batch}


def _split(batch: Batch, micros: int) -> list[Batch]:
    if micros == 1:
        return [batch]
    streams = _streams_of(batch)
    parts: list[Batch] = []
    for micro in range(micros):
        part = {}
        for name, stream in streams.items():
            share = len(stream["index"]) // micros
            part[name] = rows(stream, micro * share, (micro + 1) * share)
        parts.append(part if is_streams(batch) else part[""])
    return parts


def _first_sample(batch: Batch) -> int:
    return int(next(iter(_streams_of(batch).values()))["key"][0])


def _whole_step(seen: list[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Join what the microbatches and ranks have seen, in the order of the samples."""
    return {key: torch.cat(gather_rows(torch.cat([part[key] for part in seen]))) for key in (seen[0] if seen else {})}


def _check_needs(method: Method, batch: Batch) -> None:
    for name, stream in _streams_of(batch).items():
        missing = [key for key in method.needs if key not in stream]
        if missing:
            raise RunError(
                f"{type(method).__name__} needs {', '.join(missing)}; its batches hold {', '.join(sorted(stream))}",
                where=f"loader{'.streams.' + name if name else ''}",
                fix="choose the loader's options that this method's recipe has",
            )


def _check_batch_norm(method: nn.Module, ranks: int, micros: int) -> None:
    norms = [name for name, module in method.named_modules() if isinstance(module, _BatchNorm)]
    if norms and ranks * micros > 1:
        raise RunError(
            f"batch norm makes a step depend on how it is cut into {ranks} ranks x {micros} microbatches",
            where=norms[0],
            fix="choose instance or group norm (encoder.norm), or one rank and one microbatch",
        )


def _check_shares(facts: Facts, ranks: int, micros: int) -> None:
    for name, stream in facts.streams.items():
        if stream.batch % (ranks * micros):
            raise RunError(
                f"{stream.batch} samples a step do not divide into {ranks} ranks x {micros} microbatches",
                where=f"loader.batch_size{f' of stream {name}' if len(facts.streams) > 1 else ''}",
                fix="choose a multiple",
            )
