"""How long work tells how far it is: a callable, so that the library never prints."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called as `progress(phase, done, total)`; a total of 0 means it is not known yet."""


def silent(phase: str, done: int, total: int) -> None:
    """Say nothing."""
