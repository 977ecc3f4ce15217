"""A run's numbers: `metrics.jsonl` (equal for equal runs), `times.jsonl` (not equal), and TensorBoard events."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..files import write_text
from .distributed import rank_and_ranks


class Log:
    """Collects scalars without waiting for the device, and writes them when asked.

    Numbers of the steps between two lines are averaged. A value that is not finite is written as null, for JSON has no
    NaN.
    """

    def __init__(self, folder: Path, *, active: bool = True) -> None:
        self.folder, self.active = folder, active
        self._sums: dict[str, Tensor | float] = {}
        self._counts: dict[str, int] = {}
        self._once: dict[str, float] = {}
        self.last: dict[str, float] = {}
        self._events: Any = None

    def cut(self, start: int) -> None:
        """Keep the lines up to step `start`; those after the checkpoint a run resumes from are written again."""
        if self.active:
            for name in ("metrics.jsonl", "times.jsonl"):
                _cut(self.folder / name, start)

    def state_dict(self) -> dict[str, Any]:
        """Return the means begun since the last line, so that a resumed run writes the same next line."""
        sums = {name: torch.as_tensor(total).cpu() for name, total in self._sums.items()}
        return {"sums": sums, "counts": dict(self._counts), "once": dict(self._once), "last": dict(self.last)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._sums, self._counts, self._once = dict(state["sums"]), dict(state["counts"]), dict(state["once"])
        self.last = dict(state.get("last", {}))

    def add(self, name: str, value: Tensor | float) -> None:
        """Add one step's value to the mean of the next line."""
        value = value.detach() if isinstance(value, Tensor) else float(value)
        self._sums[name] = _add(self._sums[name], value) if name in self._sums else value
        self._counts[name] = self._counts.get(name, 0) + 1

    def put(self, name: str, value: Tensor | float) -> None:
        """Set a value that the next line holds as it is."""
        self._once[name] = float(value)

    def flush(self, step: int, **times: float) -> None:
        """Write the line of `step` (the number of steps done)."""
        values = self._means() | self._once
        self._sums, self._counts, self._once = {}, {}, {}
        self.last |= values
        if not self.active or not values:
            return
        line = {"step": step} | {k: (v if math.isfinite(v) else None) for k, v in sorted(values.items())}
        _append(self.folder / "metrics.jsonl", line)
        _append(self.folder / "times.jsonl", {"step": step} | {k: round(v, 6) for k, v in times.items()})
        if self._events is None:
            self._events = _Events(self.folder / "events", step)
        self._events.write(step, values | {f"time/{k}": v for k, v in times.items()})

    def _means(self) -> dict[str, float]:
        names = sorted(self._sums)
        if not names:
            return {}
        sums = torch.stack([torch.as_tensor(self._sums[name]).cpu().double() for name in names])
        means = sums / torch.tensor([self._counts[name] for name in names]).double()
        _, ranks = rank_and_ranks()
        if ranks > 1:
            device = torch.accelerator.current_accelerator() if dist.get_backend() != "gloo" else None
            shared = means.float().to(device) if device else means
            dist.all_reduce(shared)
            means = shared.double().cpu() / ranks
        return dict(zip(names, means.tolist()))

    def close(self) -> None:
        """Finish the event file."""
        if self._events is not None:
            self._events.close()


class _Events:
    """TensorBoard's event file; its own writer puts the host's name into the file's, which a run must not tell."""

    def __init__(self, folder: Path, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(exist_ok=True)
        now = time.time()
        self._event = Event
        self._file = (folder / f"events.out.tfevents.{int(now):010d}.{step}").open("wb")
        self._records = RecordWriter(self._file)
        self._put(Event(wall_time=now, file_version="brain.Event:2"))
        # what an earlier, killed run wrote from here on is not shown
        self._put(Event(wall_time=now, step=step, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, values: dict[str, float]) -> None:
        from torch.utils.tensorboard.summary import scalar

        for name, value in values.items():
            self._put(self._event(wall_time=time.time(), step=step, summary=scalar(name, value)))
        self._file.flush()

    def _put(self, event: Any) -> None:
        self._records.write(event.SerializeToString())

    def close(self) -> None:
        self._file.close()


def _append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps(line, allow_nan=False) + "\n")


def _add(one: Tensor | float, two: Tensor | float) -> Tensor | float:
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        return one.to(two.device) + two
    return one + two


def _cut(path: Path, step: int) -> None:
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            if json.loads(line)["step"] <= step:
                lines.append(line + "\n")
        except (ValueError, KeyError):
            break  # a line cut short by a crash
    write_text(path, "".join(lines))


def read_metrics(folder: Path | str) -> list[dict[str, Any]]:
    """Return the lines of a run's `metrics.jsonl`."""
    path = Path(folder) / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
