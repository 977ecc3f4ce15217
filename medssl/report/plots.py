"""Line and point plots as SVG that takes its colours from the page, so that one picture serves light and dark.

Colours are Okabe and Ito's, https://jfly.uni-koeln.de/color/; every series also has its own line and marker.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from .parts import Picture, number

# Colours of no meaning, one a role, which the finished SVG trades for the page's variables.
_INK, _GRID = "#010101", "#010102"
_SERIES = tuple(f"#0102{k:02d}" for k in range(1, 7))
_VARIABLES = {_INK: "var(--ink)", _GRID: "var(--grid)"} | {c: f"var(--series-{k + 1})" for k, c in enumerate(_SERIES)}

_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 2)))
_MARKERS = ("o", "s", "^", "D", "v", "P")

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "medssl",
    "text.parse_math": False,
    "font.size": 9.0,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.linewidth": 0.6,
    "grid.color": _GRID,
    "legend.frameon": False,
    "legend.handlelength": 2.8,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.formatter.useoffset": False,
}


@dataclass(frozen=True)
class Series:
    """One line of a plot: its name, x, y (nan where nothing was measured)."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def curves(series: Sequence[Series], *, x: str, y: str, title: str, caption: str, log: bool = False) -> Picture | None:
    """Draw lines over a common axis; None where there is nothing to draw.

    Args:
        series: lines, at most six.
        x: name of the horizontal axis.
        y: name of the vertical axis, with its unit.
        title: begins the text for those who do not see the picture; last values follow.
        caption: stands below.
        log: use a logarithmic vertical axis where all values are positive and differ by a factor of 20.
    """
    series = [one for one in series if np.isfinite(one.y).any()]
    if not series:
        return None

    def draw(axes: Any) -> None:
        for k, one in enumerate(series):
            marker = _MARKERS[k % 6] if len(one.x) <= 40 else None
            every = max(1, len(one.x) // 12)
            style = {"color": _SERIES[k % 6], "linestyle": _LINES[k % 6], "marker": marker, "markevery": every}
            axes.plot(one.x, one.y, label=one.name, linewidth=1.6, markersize=4, **style)
        values = np.concatenate([np.asarray(one.y, dtype=float) for one in series])
        wide = log and np.nanmin(values) > 0 and np.nanmax(values) > 20 * np.nanmin(values)
        if wide:
            _log_axis(axes)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        axes.set_xlabel(x)
        axes.set_ylabel(f"{y} (log scale)" if wide else y)
        if len(series) > 1:
            _legend(axes, len(series))

    last = "; ".join(f"{one.name}: {number(one.y[0], '.4g')} to {number(one.y[-1], '.4g')}" for one in series)
    return Picture(alt=f"{title}. First to last value: {last}.", caption=caption, svg=_svg(draw))


def points_and_means(
    values: Mapping[str, Mapping[str, Sequence[float]]], *, x: str, y: str, title: str, caption: str
) -> Picture:
    """Draw one point a seed and the mean, for each arm (outer key) at each position (inner key)."""
    groups = list(next(iter(values.values())))
    width = 0.5 / max(1, len(values))

    def draw(axes: Any) -> None:
        for k, (arm, by) in enumerate(values.items()):
            at = np.arange(len(groups)) + (k - (len(values) - 1) / 2) * width
            colour, marker = _SERIES[k % 6], _MARKERS[k % 6]
            for place, group in zip(at, groups):
                y_seeds = np.asarray(by[group], dtype=float)
                spread = np.linspace(-0.06, 0.06, len(y_seeds)) if len(y_seeds) > 1 else np.zeros(1)
                axes.plot(place + spread, y_seeds, marker, color=colour, markersize=3.5, alpha=0.65, markeredgewidth=0)
            means = [float(np.mean(by[group])) for group in groups]
            axes.plot(at, means, color=colour, linestyle=_LINES[k % 6], linewidth=1.2, alpha=0.8)
            face = {"markerfacecolor": "none", "markeredgewidth": 1.6}
            axes.plot(at, means, marker, color=colour, markersize=9, label=arm, **face)
        axes.set_xticks(range(len(groups)), groups)
        axes.set_xlim(-0.5, len(groups) - 0.5)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        _legend(axes, len(values))

    means = "; ".join(
        f"{arm}: " + ", ".join(f"{number(np.mean(by[g]))} at {g}" for g in groups) for arm, by in values.items()
    )
    return Picture(alt=f"{title}. Means: {means}.", caption=caption, svg=_svg(draw))


def _log_axis(axes: Any) -> None:
    # matplotlib writes powers of ten as mathtext, which is switched off because names on a page are not ours.
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _legend(axes: Any, n: int) -> None:
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=min(n, 3), fontsize=8.5)


def _svg(draw: Any) -> str:
    with rc_context(_STYLE):
        figure = Figure(figsize=(4.4, 2.9), layout="constrained", facecolor="none")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        axes.set_facecolor("none")
        draw(axes)
        data = io.StringIO()
        bare = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(data, format="svg", facecolor="none", metadata=bare)
    return _for_page(data.getvalue())


def _for_page(svg: str) -> str:
    """Make a file into a part of a page: no declaration, no namespaces, no size, no ids, colours of the page."""
    svg = svg[svg.index("<svg") :]
    # One document holds several pictures: an id of one must not be found by another's references.
    digest = f"{abs(_crc(svg)):08x}"

    def tag(match: re.Match[str]) -> str:
        text = match[0]
        text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
        text = re.sub(r'\bid="([^"]*)"', rf'id="p{digest}-\1"', text)
        text = re.sub(r'\bhref="#', f'href="#p{digest}-', text)
        text = re.sub(r"url\(#", f"url(#p{digest}-", text)
        for colour, variable in _VARIABLES.items():
            text = text.replace(colour, variable)
        if text.startswith("<svg"):
            text = re.sub(r'\s(width|height)="[^"]*"', "", text)
            text = text.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1)
        return text

    return re.sub(r"<[^>]+>", tag, svg).strip()


def _crc(text: str) -> int:
    import zlib

    return zlib.crc32(text.encode("utf-8"))
