"""Run the benchmarks of shipped data, one after the other, and render benchmarks/RESULTS.md from what they wrote.

python -m benchmarks            all of them
python -m benchmarks demo       these
python -m benchmarks --render   none, only the page
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from .render import render

HERE = Path(__file__).parent
SHIPPED: dict[str, tuple[str, ...]] = {
    "demo": ("demo",),
    "demo_choice": ("demo_choice",),
    "scratch_baseline": ("scratch_baseline", "--counts", "8", "--steps", "120"),
    "scratch_baseline_swin": (
        "scratch_baseline",
        "--network",
        "swinunetr",
        "--crop",
        "64,64",
        "--crops",
        "8",
        "--counts",
        "8",
        "--steps",
        "120",
    ),
    "intervals": ("intervals",),
}
"""Results on data that ship, and how they are made. The others are made by hand, by the command that each one states,
for they need data or programs that do not ship: acdc, classification, detection, nnunet."""


def main(words: list[str]) -> None:
    """Run the benchmarks that are named, all unless any is."""
    if words != ["--render"]:
        for name in words or SHIPPED:
            if name not in SHIPPED:
                sys.exit(f"no benchmark of shipped data is called {name}; there are {', '.join(SHIPPED)}")
            out = HERE / "results" / f"{name}.json"
            module, *more = SHIPPED[name]
            subprocess.run([sys.executable, "-m", f"benchmarks.{module}", *more, "--out", str(out)], check=True)
    (HERE / "RESULTS.md").write_text(render(HERE / "results"), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
