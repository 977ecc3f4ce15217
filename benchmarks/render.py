"""RESULTS.md from the benchmarks' JSON; nothing in it is written by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .acdc_page import _acdc
from .classification_page import _classification
from .detection_page import _detection
from .page import interval_words, machine_words, table

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


def _demo(result: dict[str, Any]) -> str:
    probe, compared = result["probe"], result["comparison"]
    arms = [
        [arm, f"{value:.3f}", interval_words(probe["differences"][arm]) if arm in probe["differences"] else ""]
        for arm, value in probe["dice"].items()
    ]
    count = str(result["labelled_images"][0])
    tuned = [
        [
            arm,
            f"{values[count]:.3f}",
            f"{compared['hausdorff95_mm'][arm][count]:.2f}",
            interval_words(compared["differences"][arm][count]) if arm in compared["differences"] else "",
        ]
        for arm, values in compared["dice"].items()
    ]
    phases = ", ".join(f"{phase} {seconds:.0f}" for phase, seconds in result["seconds_by_phase"].items())
    return f"""## The demo
`{result["command"]}`: {result["seconds"]:.0f} s in all ({phases}). {machine_words(result["machine"])}

These test patients are not untouched. All of them had been scored by an earlier form of the recipe, whose weighting of
positives between images was changed after that; the change was chosen by the probe on another split of the same scans,
in which most of these patients were training images. Read the numbers as an illustration.

Frozen dense probe, Dice on {result["patients"]} {probe["split"]} patients, {probe["labelled_images"]} labelled images:

{table(["features", "Dice", "encoder minus this"], arms)}
Fine-tuned on {count} labelled images, {compared["steps"]} steps, {compared["seeds"]} paired seeds:

{table(["start", "Dice", "95% Hausdorff, mm", "minus scratch"], tuned)}"""


def _choice(result: dict[str, Any]) -> str:
    rows = [
        [
            name,
            str(value["steps"]),
            f"{value['seconds']:.0f}",
            *(f"{value['dice'][arm]:.3f}" for arm in ("encoder", "random weights", "no network")),
            interval_words(value["differences"]["no network"]),
        ]
        for name, value in result["recipes"].items()
    ]
    head = ["recipe", "steps", "seconds", "encoder", "random weights", "no network", "encoder minus no network"]
    return f"""## Which recipe the demo runs
`{result["command"]}`: frozen dense probe on validation images; this command scores no test image. It
confirms a choice made before on other splits of the same scans.
{machine_words(result["machine"])}

{table(head, rows)}"""


def _scratch(result: dict[str, Any]) -> str:
    rows = [
        [
            str(row["labelled_images"]),
            "yes" if row["monai_augmented"] else "no",
            f"{row['medssl_dice']:.3f} (rate {row['medssl_rate']:g})",
            f"{row['monai_dice']:.3f} (rate {row['monai_rate']:g})",
            interval_words(row["medssl_minus_monai"]),
        ]
        for row in result["rows"]
    ]
    name = {"unet": "U-Net", "swinunetr": "SwinUNETR"}[result.get("network", "unet")]
    gaps = [row["medssl_minus_monai"] for row in result["rows"]]
    above = all(gap["mean"] > 0 for gap in gaps)
    lower = any(gap["low"] < 0 for gap in gaps)
    kind = "crops of slices" if len(result.get("crop", "xyz")) == 2 else "crops"
    sentence = f"In the mean ours is {'above' if above else 'not always above'}; that it is lower is "
    sentence += "not excluded by every interval." if lower else "excluded by every interval."
    verdicts = ", ".join(gap["verdict"] for gap in gaps)
    head = ["labelled images", "MONAI augments", "medssl from scratch", f"MONAI's {name} and loop", "difference"]
    return f"""## Is our training from scratch a fair opponent? Beside MONAI's {name}
`{result["command"]}`: Dice on {result["patients"]} test patients, {result["seeds"]} seeds, {result["steps"]} steps of
{result["crops_a_step"]} {kind} for both; each arm chooses its rate on validation images. {sentence}
By our own rule: {verdicts}. {machine_words(result["machine"])}

{table(head, rows)}"""


def _nnunet(result: dict[str, Any]) -> str:
    def row(name: str, arm: dict[str, Any], step: str) -> list[str]:
        sizes = " x ".join(str(n) for n in arm["patch"])
        width = "-".join(str(n) for n in arm["channels"])
        return [
            name,
            f"{arm['dice']:.3f}",
            str(arm["batch"]),
            sizes,
            width,
            step,
            f"{arm['train_seconds'] / 60:.0f} min",
        ]

    images = result["images"]
    rows = [row("nnU-Net v2, 10 epochs", result["nnunet"], "none"), row("medssl from scratch", result["medssl"], "2")]
    head = [
        "",
        "Dice",
        "crops a step",
        "crop",
        "channels",
        "step of the stem",
        "training, with what else ran beside it",
    ]
    return f"""## All labels: beside nnU-Net
`{result["command"]}`: {images["train"]} training images of the hippocampus set, {result["steps"]} steps
for both, Dice on {images["test"]} images of {result["patients"]} test patients. nnU-Net planned for
{result["nnunet"]["memory_gb"]:g} GB, for at its usual 8 a step of its 5 crops took more than 4 s on two cores. nnU-Net
mirrors, in training and at inference, ours does not: first scored with mirroring, which its training never saw, it
had a Dice of .065. medssl minus nnU-Net:
{interval_words(result["medssl_minus_nnunet"])}. {machine_words(result["machine"])}

{table(head, rows)}"""


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
{result["trials"] // 2} of the next two, {result["trials"] // 5} for the labels saved.
{machine_words(result["machine"])}

How often a 95% interval holds the true difference:

{table(["seeds", "patients", spreads, "our interval", "percentiles alone"], covered)}
How often a table of four arms that do not differ (six comparisons, 12 patients) claims anything, at level 5%:

{table(["seeds", "uncorrected p", "Holm's p", "verdict"], families)}
How often a true difference of the size that tables on average say they could see is found (12 patients, equal spreads):

{table(["seeds", "p below .05", "called better"], power)}
The 95% interval of the labels saved holds the true number in {percent(saved["interval"])} of tables with
{saved["seeds"]} seeds and {saved["patients"]} patients.
"""


_SECTIONS: dict[str, Callable[[dict[str, Any]], str]] = {
    "demo": _demo,
    "demo_choice": _choice,
    "scratch_baseline": _scratch,
    "scratch_baseline_swin": _scratch,
    "nnunet": _nnunet,
    "acdc": _acdc,
    "detection": _detection,
    "classification": _classification,
    "intervals": _intervals,
}
