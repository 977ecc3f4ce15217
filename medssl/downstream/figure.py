"""The plot of a comparison: the measure by number of labels, and each encoder's difference from scratch."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from ..files import write_bytes
from ..metrics import mean_of
from .compared import SCRATCH, CompareResult, Difference

# Okabe and Ito's colours, https://jfly.uni-koeln.de/color/; each arm also has its own line and marker.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 2)))
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "medssl",
    "text.parse_math": False,
    "font.size": 9.0,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def draw_comparison(result: CompareResult, path: Path) -> Path:
    """Draw a comparison as SVG; equal results give equal bytes.

    Left: the measure of each arm, a small point for each seed and a line through the means. Right: every
    difference from scratch (of the first arm, where scratch is none) with its interval.

    Args:
        result: of `compare_encoders`.
        path: the file.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    place = {arm: k for k, arm in enumerate(result.arms)}
    versus = SCRATCH if SCRATCH in result.arms else result.arms[-1]
    pairs = [pair for pair in result.pairs if pair.second == versus]
    with rc_context(_STYLE):
        figure = Figure(figsize=(8.2 if pairs else 4.4, 3.4), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots(1, 2 if pairs else 1, squeeze=False)[0]
        for arm, k in place.items():
            _arm(axes[0], result, arm, k)
        axes[0].set_ylabel(f"{result.measure} on {len(result.patients)} {result.split} patients")
        if pairs:
            for k, pair in enumerate(pairs):
                _difference(axes[1], result, pair, place[pair.first], (k - (len(pairs) - 1) / 2) * 0.09)
            axes[1].axhline(0, color="black", linewidth=0.8)
            sure = pairs[0].overall.confidence
            axes[1].set_ylabel(f"{result.measure} minus {versus}, {100 * sure:g}% interval")
        for one in axes:
            one.set_xticks(range(len(result.counts)), [_name(result, n) for n in result.counts])
            one.set_xlim(-0.5, len(result.counts) - 0.5)
            one.set_xlabel("labelled images")
            one.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=8)
        data = io.BytesIO()
        figure.savefig(data, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    write_bytes(path, data.getvalue())
    return path


def _name(result: CompareResult, count: int) -> str:
    return f"{count} (all)" if count == result.all_images else str(count)


def _arm(axes: Any, result: CompareResult, arm: str, k: int) -> None:
    colour, marker = _COLOURS[k % 6], _MARKERS[k % 6]
    at = np.arange(len(result.counts)) + (k - (len(result.arms) - 1) / 2) * 0.07
    for place, count in zip(at, result.counts):
        seeds = mean_of(result.values[arm][count], 1)
        axes.plot(np.full(len(seeds), place), seeds, marker, color=colour, markersize=3, alpha=0.5, markeredgewidth=0)
    means = [float(mean_of(result.values[arm][count])) for count in result.counts]
    axes.plot(at, means, color=colour, marker=marker, linestyle=_LINES[k % 6], linewidth=1.4, markersize=6, label=arm)


def _difference(axes: Any, result: CompareResult, pair: Difference, k: int, shift: float) -> None:
    found = [pair.by_count[count] for count in result.counts]
    means = np.array([interval.mean for interval in found])
    reach = np.array([[interval.mean - interval.low, interval.high - interval.mean] for interval in found]).T
    at = np.arange(len(found)) + shift
    axes.errorbar(
        at, means, np.clip(reach, 0, None), color=_COLOURS[k % 6], marker=_MARKERS[k % 6], linestyle="none",
        capsize=3, markersize=6, label=pair.first,
    )  # fmt: skip
