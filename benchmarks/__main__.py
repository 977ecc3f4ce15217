"""Run every benchmark, one after the other, and render benchmarks/RESULTS.md from what they wrote.

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
NAMES = ("demo", "demo_choice", "scratch_baseline", "intervals")


def main(words: list[str]) -> None:
    """Run the benchmarks that are named, all unless any is."""
    if words != ["--render"]:
        for name in words or NAMES:
            if name not in NAMES:
                sys.exit(f"no benchmark is called {name}; there are {', '.join(NAMES)}")
            out = HERE / "results" / f"{name}.json"
            subprocess.run([sys.executable, "-m", f"benchmarks.{name}", "--out", str(out)], check=True)
    (HERE / "RESULTS.md").write_text(render(HERE / "results"), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
