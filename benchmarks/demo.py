"""The demo from beginning to end: how long each part takes, and what it finds.

python -m benchmarks.demo --out result.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from medssl.demo import run_demo

from .machine import command, machine


def main() -> None:
    """Run the demo in an empty folder and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out: Path = parser.parse_args().out
    seconds: dict[str, float] = {}
    last = [time.perf_counter()]

    def clock(phase: str, done: int, total: int) -> None:
        now = time.perf_counter()
        seconds[phase] = seconds.get(phase, 0.0) + now - last[0]
        last[0] = now

    with tempfile.TemporaryDirectory() as folder:
        result = run_demo(Path(folder) / "demo", progress=clock)
        probe, comparison = result.probe.to_dict(), result.comparison.to_dict()
    found = {
        "command": command(),
        "machine": machine(),
        "seconds": round(result.seconds, 1),
        "seconds_by_phase": {phase: round(value, 1) for phase, value in seconds.items()},
        "patients": len(comparison["patients"]),
        "labelled_images": comparison["counts"],
        "probe": {key: probe[key] for key in ("split", "labelled_images", "dice", "differences")},
        "comparison": {
            **{key: comparison[key] for key in ("seeds", "steps", "differences")},
            "dice": comparison["values"],
            "hausdorff95_mm": comparison["further"]["hausdorff95_mm"],
        },
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
