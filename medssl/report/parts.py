"""What a page is made of: pictures and tables, and how numbers are written in them."""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Picture:
    """A picture with its text; either `svg`, made by `plots` alone, or `png`."""

    alt: str
    """What it shows, for those who do not see it."""
    caption: str
    svg: str = ""
    png: bytes = b""
    width: int = 0
    """Pixels of a PNG on the page."""

    @property
    def source(self) -> str:
        """The PNG as a data URI."""
        return f"data:image/png;base64,{b64encode(self.png).decode('ascii')}"


@dataclass(frozen=True)
class Table:
    """A table."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    names: int = 1
    """How many first cells of a row say what it is about."""
    text: bool = False
    """Whether the other cells hold words rather than numbers."""


@dataclass(frozen=True)
class Gap:
    """A difference between two arms, with its interval."""

    mean: float
    low: float
    high: float
    confidence: float
    verdict: str
    """`better`, `worse` or `undecided`, as the measurement says."""
    doubt: str
    """Why it is undecided."""
    p: float | None = None
    """Corrected for the comparisons of its table; None where results of an older version have none."""
    smallest: float | None = None
    """The smallest difference it could have seen."""

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Gap:
        """Read what `Interval.to_dict` wrote."""
        mean, low, high, confidence = (float(value[key]) for key in ("mean", "low", "high", "confidence"))
        p, smallest = value.get("p_corrected"), value.get("smallest")
        return cls(mean, low, high, confidence, str(value["verdict"]), str(value["doubt"]), p, smallest)

    @property
    def row(self) -> tuple[str, ...]:
        """Cells of a table: difference, interval, p, smallest difference, verdict."""
        interval = f"{self.low:+.3f} to {self.high:+.3f}"
        return (f"{self.mean:+.3f}", interval, chance(self.p), number(self.smallest), self.verdict)

    @property
    def interval(self) -> str:
        """The interval alone."""
        return f"{self.confidence * 100:g}% interval {self.low:+.3f} to {self.high:+.3f}"

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def gap_head(gaps: Iterable[Gap]) -> tuple[str, ...]:
    """Return the heads of the columns of `Gap.row` that follow the difference."""
    sure = sorted({gap.confidence for gap in gaps})
    return (f"{sure[0] * 100:g}% interval" if len(sure) == 1 else "interval", "p", "could see", "verdict")


def number(value: Any, form: str = ".3f") -> str:
    """Write a number, or a dash where there is none."""
    return "–" if value is None or not math.isfinite(float(value)) else format(float(value), form)


def chance(p: Any) -> str:
    """Write a p-value."""
    return "below 0.001" if p is not None and float(p) < 0.001 else number(p)


def count(n: int, noun: str) -> str:
    """Write a number of things: `1 image`, `2 images`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def listed(words: Sequence[str]) -> str:
    """Join words as prose does: `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""
