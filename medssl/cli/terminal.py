"""What commands share: flags, progress on standard error, results on standard output."""

from __future__ import annotations

import json
import os
import sys
import time
from types import TracebackType
from typing import Annotated, Any, Protocol

from typer import Option

JsonFlag = Annotated[bool, Option("--json", help="Print the result as one JSON object, and nothing else there.")]
QuietFlag = Annotated[bool, Option("--quiet", "-q", help="Show no progress.")]
SetOption = Annotated[
    list[str] | None, Option("--set", metavar="KEY=VALUE", help="Override a recipe key, as in train.steps=200.")
]


class Result(Protocol):
    """What every public function returns."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""


def show(result: Result, *, as_json: bool = False) -> None:
    """Print a result: its sentence, or with `--json` one JSON object."""
    if os.environ.get("RANK", "0") != "0":
        return  # of several ranks the first speaks
    text = json.dumps(result.to_dict(), ensure_ascii=False, allow_nan=False) if as_json else str(result)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


class Bar:
    """Progress on standard error: one bar a phase on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self._live: Any = None
        self._tasks: dict[str, Any] = {}
        self._spoke = time.monotonic()

    def __call__(self, phase: str, done: int, total: int) -> None:
        if self.quiet:
            return
        if sys.stderr.isatty():
            self._draw(phase, done, total)
        elif time.monotonic() - self._spoke > 10 or (total and done >= total and phase not in self._tasks):
            self._spoke = time.monotonic()
            if total and done >= total:
                self._tasks[phase] = True
            sys.stderr.write(f"{phase}: {done}{f' of {total}' if total else ''}\n")
            sys.stderr.flush()

    def _draw(self, phase: str, done: int, total: int) -> None:
        if self._live is None:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._live = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._live.start()
        if phase not in self._tasks:
            self._tasks[phase] = self._live.add_task(phase, total=total or None)
        self._live.update(self._tasks[phase], completed=done, total=total or None)

    def close(self) -> None:
        """Take the bars off the screen's bottom."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_open: list[Bar] = []


def bar(quiet: bool = False) -> Bar:
    """Return a progress to hand to a function; it is taken down when the command ends."""
    _open.append(Bar(quiet))
    return _open[-1]


def close_bars() -> None:
    """Take down every bar that is still on the screen."""
    while _open:
        _open.pop().close()
