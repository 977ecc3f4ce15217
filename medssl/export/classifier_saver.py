"""What a classifier's bundle writes: one line an image, as CSV and as JSON. A bundle carries a copy of this file.

It needs torch and ignite alone.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch


class AnswerSaver:
    """An ignite handler that gathers answers and writes `answers.csv` and `answers.json` at the end.

    Args:
        output_dir: created; files of an earlier run are replaced.
        names: what each number of an answer stands for.
        about: what else `answers.json` tells of them: kind, targets, units.
    """

    def __init__(self, output_dir: str, names: Sequence[str], about: Mapping[str, Any]) -> None:
        self.folder, self.names, self.about = Path(output_dir), list(names), dict(about)
        self.rows: list[tuple[str, list[float]]] = []

    def attach(self, engine: Any) -> None:
        """Listen to an evaluator whose output holds an answer, (K,), under `pred`."""
        from ignite.engine import Events

        engine.add_event_handler(Events.STARTED, lambda _: self.rows.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.gather)
        engine.add_event_handler(Events.COMPLETED, lambda _: self.write())

    def gather(self, engine: Any) -> None:
        """Take the answers of one batch, under the name of each image's file."""
        for item in engine.state.output:
            name = Path(str(item["image"].meta["filename_or_obj"])).name
            self.rows.append((name, torch.as_tensor(item["pred"]).double().flatten().tolist()))

    def write(self) -> None:
        """Write what was gathered."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "answers.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["image", *self.names])
            writer.writerows([name, *(f"{value:.6g}" for value in values)] for name, values in self.rows)
        found = [{"image": name, **dict(zip(self.names, values))} for name, values in self.rows]
        text = json.dumps({**self.about, "answers": found}, indent=2, ensure_ascii=False)
        (self.folder / "answers.json").write_text(text + "\n", encoding="utf-8")
