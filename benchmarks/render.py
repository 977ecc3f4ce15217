"""RESULTS.md from the benchmarks' JSON; nothing in it is written by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

_HEAD = """# Results

Rendered by `python -m benchmarks --render` from `benchmarks/results/*.json`. Every number was measured by the command
beside it. An interval that holds 0 decides nothing.
"""


def render(folder: Path) -> str:
    """Return the page for all results in a folder."""
    parts = [_HEAD]
    for name, section in _SECTIONS.items():
        path = folder / f"{name}.json"
        if path.is_file():
            parts.append(section(json.loads(path.read_text(encoding="utf-8"))))
    return "\n".join(parts)


def _interval(value: dict[str, Any]) -> str:
    verdict = value.get("verdict", "")
    return f"{value['mean']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]" + (f" {verdict}" if verdict else "")


def _machine(value: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in value["versions"].items())
    where = f"{value['cpus']} CPU cores, {value['threads']} threads, accelerator {value['accelerator']}"
    return f"{where}; commit {value['commit']}; {versions}."


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines) + "\n"


def _demo(result: dict[str, Any]) -> str:
    probe, compared = result["probe"], result["comparison"]
    arms = [
        [arm, f"{value:.3f}", _interval(probe["differences"][arm]) if arm in probe["differences"] else ""]
        for arm, value in probe["dice"].items()
    ]
    count = str(result["labelled_images"][0])
    tuned = [
        [
            arm,
            f"{values[count]:.3f}",
            f"{compared['hausdorff95_mm'][arm][count]:.2f}",
            _interval(compared["differences"][arm][count]) if arm in compared["differences"] else "",
        ]
        for arm, values in compared["dice"].items()
    ]
    phases = ", ".join(f"{phase} {seconds:.0f}" for phase, seconds in result["seconds_by_phase"].items())
    return f"""## The demo
`{result["command"]}`: {result["seconds"]:.0f} s in all ({phases}). {_machine(result["machine"])}

These test patients are not untouched. All of them had been scored by an earlier form of the recipe, whose weighting of
positives between images was changed after that; the change was chosen by the probe on another split of the same scans,
in which most of these patients were training images. Read the numbers as an illustration.

Frozen dense probe, Dice on {result["patients"]} {probe["split"]} patients, {probe["labelled_images"]} labelled images:

{_table(["features", "Dice", "encoder minus this"], arms)}
Fine-tuned on {count} labelled images, {compared["steps"]} steps, {compared["seeds"]} paired seeds:

{_table(["start", "Dice", "95% Hausdorff, mm", "minus scratch"], tuned)}"""


def _choice(result: dict[str, Any]) -> str:
    rows = [
        [
            name,
            str(value["steps"]),
            f"{value['seconds']:.0f}",
            *(f"{value['dice'][arm]:.3f}" for arm in ("encoder", "random weights", "no network")),
            _interval(value["differences"]["no network"]),
        ]
        for name, value in result["recipes"].items()
    ]
    head = ["recipe", "steps", "seconds", "encoder", "random weights", "no network", "encoder minus no network"]
    return f"""## Which recipe the demo runs
`{result["command"]}`: frozen dense probe on validation images; this command scores no test image. It
confirms a choice made before on other splits of the same scans.
{_machine(result["machine"])}

{_table(head, rows)}"""


def _scratch(result: dict[str, Any]) -> str:
    rows = [
        [
            str(row["labelled_images"]),
            "yes" if row["monai_augmented"] else "no",
            f"{row['medssl_dice']:.3f} (rate {row['medssl_rate']:g})",
            f"{row['monai_dice']:.3f} (rate {row['monai_rate']:g})",
            _interval(row["medssl_minus_monai"]),
        ]
        for row in result["rows"]
    ]
    head = ["labelled images", "MONAI augments", "medssl from scratch", "MONAI's U-Net and loop", "difference"]
    return f"""## Is our training from scratch a fair opponent?
`{result["command"]}`: Dice on {result["patients"]} test patients, {result["seeds"]} seeds, {result["steps"]} steps of
{result["crops_a_step"]} crops for both; each arm chooses its rate on validation images. Ours
is above in the mean; neither difference is decided, and the first interval does not exclude that ours is lower.
{_machine(result["machine"])}

{_table(head, rows)}"""


def _intervals(result: dict[str, Any]) -> str:
    def percent(share: float) -> str:
        return f"{100 * share:.1f}%"

    covered = []
    for r in result["coverage"]:
        setting = (str(r["seeds"]), str(r["patients"]), " / ".join(f"{v:g}" for v in r["spreads"]))
        covered.append([*setting, percent(r["interval"]), percent(r["percentiles"])])
    families = [
        [str(r["seeds"]), *(percent(r[k]) for k in ("uncorrected", "holm", "verdict"))] for r in result["families"]
    ]
    power = [[str(r["seeds"]), percent(r["test"]), percent(r["verdict"])] for r in result["power"]]
    saved = result["savings"]
    spreads = "spread of seeds / patients / rest"
    return f"""## Do the intervals hold what they say?
`{result["command"]}`: simulated tables, the truth known; {result["trials"]} for each row of the first table,
{result["trials"] // 2} of the next two, {result["trials"] // 5} for the labels saved. {_machine(result["machine"])}

How often a 95% interval holds the true difference:

{_table(["seeds", "patients", spreads, "our interval", "percentiles alone"], covered)}
How often a table of four arms that do not differ (six comparisons, 12 patients) claims anything, at level 5%:

{_table(["seeds", "uncorrected p", "Holm's p", "verdict"], families)}
How often a true difference of the size that tables on average say they could see is found (12 patients, equal spreads):

{_table(["seeds", "p below .05", "called better"], power)}
The 95% interval of the labels saved holds the true number in {percent(saved["interval"])} of tables with
{saved["seeds"]} seeds and {saved["patients"]} patients.
"""


_SECTIONS: dict[str, Callable[[dict[str, Any]], str]] = {
    "demo": _demo,
    "demo_choice": _choice,
    "scratch_baseline": _scratch,
    "intervals": _intervals,
}
