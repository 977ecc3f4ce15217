"""The section of RESULTS.md on classification and regression of whole images."""

from __future__ import annotations

from typing import Any

from .page import interval_words, machine_words, table

_CONFOUNDED = 0.7
"""AUROC from the size of the scan that is worth a warning."""


def _classification(result: dict[str, Any]) -> str:
    parts = [_part(name, found) for name, found in result["tasks"].items()]
    decided = [
        f"{name}, {gap['arm']} minus {gap['minus']}: {gap['verdict']}"
        for name, found in result["tasks"].items()
        for gap in found["differences"]
        if gap["verdict"] != "undecided"
    ]
    sentence = f"Decided: {'; '.join(decided)}. All else is undecided." if decided else "All of it is undecided."
    told = [
        f"{name} {found['arms']['size of the scan']['value']['mean']:.2f}"
        for name, found in result["tasks"].items()
        if found["measure"] == "AUROC" and found["arms"]["size of the scan"]["value"]["mean"] > _CONFOUNDED
    ]
    doubt = (
        f"\nThe size alone tells much ({', '.join(told)}): there a network may tell the set, not the heart."
        if told
        else ""
    )
    return f"""## Whole images: ejection fraction, disease group, heart failure
`{result["command"]}`: every patient scored once, in folds; {result["seeds"]} seeds, {result["steps"]} steps of
{result["slices_a_step"]} slices, {result["pretraining_steps"]} steps of pretraining without labels on each fold's
training patients. Steps and folds were set by the time at hand, not by a score; pilots of ten steps had scored these
patients before. Size of the scan and brightness need no network: they are the zero to beat.

{sentence}{doubt}

{result["core_seconds"]:.0f} s of one core; {machine_words(result["machine"])} ACDC is non-commercial and does not ship.

{chr(10).join(parts)}"""


def _part(name: str, found: dict[str, Any]) -> str:
    counted = ", ".join(f"{n} {word}" for word, n in found["classes"].items())
    about = f"{found['patients']} patients{f' ({counted})' if counted else ''}, {found['folds']} folds"
    measure = found["measure"]
    head = ["from", f"{measure} [interval]"]
    in_units = found["kind"] == "regression"
    rows = []
    for arm, reached in found["arms"].items():
        value = reached["value"]
        row = [arm, f"{value['mean']:.3f} [{value['low']:.3f}, {min(1.0, value['high']):.3f}]"]
        if in_units:
            row += [f"{reached[key]:.1f}" for key in ("mae", "rmse", "bias")]
            row += [f"{reached['low']:.1f} to {reached['high']:.1f}", f"{reached['r2']:.2f}"]
        rows.append(row)
    if in_units:
        head += ["MAE", "RMSE", "bias", "limits of agreement", "R2"]
    gaps = [[f"{gap['arm']} minus {gap['minus']}", interval_words(gap)] for gap in found["differences"]]
    said = " Skill is 1 - MAE / MAE of always telling the median; errors are in percent." if in_units else ""
    return f"""{name}: {about}.{said}

{table(head, rows)}
{table(["", measure], gaps)}"""
