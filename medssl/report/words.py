"""The verdict in plain words: what was trained on what, and what it was worth, with intervals.

Where 0 lies inside an interval it says undecided, and where there is no gain it says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..methods.catalogue import METHODS
from .data import DataSummary
from .parts import Gap, chance, count, listed, number
from .sources import RunFiles


def verdict(
    run: RunFiles,
    data: DataSummary | None,
    probe: Mapping[str, Any] | None,
    compare: Mapping[str, Any] | None,
    *,
    images: Sequence[Mapping[str, Any]] = (),
    illustration: bool,
) -> tuple[str, ...]:
    """Return the sentences of the verdict, in order; `probe` is the dense one, `images` those of whole images."""
    sentences = [_trained(run, data)]
    sentences += _probed(probe) if probe is not None else []
    targets = [one for one in images if one["target"]]
    sentences += [_told(one) for one in targets]
    sentences += _compared(compare) if compare is not None else []
    if probe is None and compare is None and not targets:
        sentences.append("Whether it helps a task was not measured: nothing on this page says that it does.")
    if illustration:
        sentences.append(
            "This is an illustration: a short run on the few small scans that ship with medssl. It shows the way from "
            "scans to a measured result, not what the method is worth on other data."
        )
    return tuple(sentences)


def headline(probe: Mapping[str, Any] | None, compare: Mapping[str, Any] | None) -> str:
    """Return the outcome in a few words; fine-tuning decides where it was measured."""
    if compare is not None and compare["overall"]:
        found = {Gap.of(value).verdict for value in compare["overall"].values()}
        if len(found) > 1:
            return "Fine-tuned, the encoders differ: see below."
        return {
            "better": "Fine-tuned, it is better than training from scratch.",
            "worse": "Fine-tuned, it is worse than training from scratch: no gain.",
            "undecided": "Fine-tuned, a gain over training from scratch is undecided.",
        }[found.pop()]
    if probe is not None and probe["differences"]:
        found = {Gap.of(value).verdict for value in probe["differences"].values()}
        if found == {"better"}:
            return "Frozen, it is better than its controls; fine-tuning was not compared."
        return "Frozen, it is not shown to be better than all its controls; fine-tuning was not compared."
    return "A gain was not measured."


def _trained(run: RunFiles, data: DataSummary | None) -> str:
    method, encoder = str(run.value("method.name", "unknown")), str(run.value("encoder.name", "unknown"))
    what = METHODS[method][2] if method in METHODS else ""
    on = ""
    streams = run.value("loader.streams") or {}
    split = str(run.value("loader.split", "train"))
    if data is not None and not streams:
        images, subjects = data.splits.get(split, (0, 0))
        if split == "all":
            images, subjects = sum(s.images for s in data.stores), sum(s.subjects for s in data.stores)
        on = f" on {count(images, 'image')} of {count(subjects, 'subject')} (split {split})"
    steps = run.metrics[-1]["step"] if run.metrics else None
    planned = run.value("train.steps")
    length = f" for {count(int(steps), 'step')}" if steps is not None else ""
    if steps is not None and isinstance(planned, int) and steps < planned:
        length += f" of the planned {planned}; the run is not finished"
    kind = f" ({what})" if what else ""
    return f"A {encoder} encoder was pretrained without labels by {method}{kind}{on}{length}."


def _probed(probe: Mapping[str, Any]) -> list[str]:
    patients, labelled = len(set(probe["patients"])), int(probe["labelled_images"])
    gaps = {arm: Gap.of(value) for arm, value in probe["differences"].items()}
    seeds = len(next(iter(probe["scores"].values())))
    start = (
        f"Frozen, with one linear layer fitted on {count(labelled, 'labelled image')}, its features reach Dice "
        f"{number(probe['dice'].get('encoder'))} on {count(patients, str(probe['split']) + ' patient')} "
        f"({count(seeds, 'seed')})"
    )
    parts = [_against(gap, arm) for arm, gap in gaps.items()]
    out = [f"{start}: {'; '.join(parts)}." if parts else f"{start}."]
    level = [arm for arm, gap in gaps.items() if gap.verdict != "better"]
    if level:
        controls = "control" if len(level) == 1 else "controls"
        out.append(f"So the probe does not show its features to be worth more than the {controls} {listed(level)}.")
    return out


def _told(probe: Mapping[str, Any]) -> str:
    """Say by which readouts the encoder's features tell a target of whole images better than every control does."""
    better = [
        readout
        for readout, arms in probe["differences"].items()
        if arms and all(Gap.of(value).verdict == "better" for value in arms.values())
    ]
    others = [readout for readout in probe["scores"] if readout not in better]
    what = f"its frozen features tell {probe['target']} of whole images better than their controls"
    if not better:
        return f"That {what} is shown by no readout ({listed(others)})."
    rest = f"; by {listed(others)} that is not shown" if others else ""
    return f"I{what[1:]} by {listed(better)}{rest}."


def _against(gap: Gap, arm: str) -> str:
    if gap.verdict == "undecided":
        return f"against {arm} it is undecided ({gap.mean:+.3f}, {gap.interval}; {gap.doubt})"
    return f"{gap.verdict} than {arm} by {abs(gap.mean):.3f} ({gap.interval})"


def _compared(compare: Mapping[str, Any]) -> list[str]:
    counts = [int(n) for n in compare["counts"]]
    setting = (
        f"fine-tuned with {listed([str(n) for n in counts])} labelled images, {_paired(compare)}, "
        f"scored on {count(len(compare['patients']), str(compare['split']) + ' patient')}"
    )
    if not compare["overall"]:
        return [f"{setting[0].upper()}{setting[1:]}; there is no arm to compare with, so no gain is measured."]
    out = []
    for arm, value in compare["overall"].items():
        overall = Gap.of(value)
        numbers = f"{overall.mean:+.3f} {compare['measure']} over all counts, {overall.interval}{_sure(overall)}"
        name = "the encoder" if arm == "encoder" else f"the encoder “{arm}”"
        if overall.verdict == "undecided":
            out.append(
                f"{setting[0].upper()}{setting[1:]}, {name} against training from scratch is undecided "
                f"({overall.doubt}): {numbers}."
            )
        else:
            out.append(f"{setting[0].upper()}{setting[1:]}, {name} is {overall.verdict} than scratch: {numbers}.")
        out += _saved(compare, arm)
        out.append(_by_count({n: Gap.of(compare["differences"][arm][str(n)]) for n in counts}))
        if overall.verdict != "better":
            out.append("No gain over training from scratch is shown.")
    if int(compare["seeds"]) < 5:
        out.append(f"With {_seeds(compare)} only large differences can be seen; more seeds see smaller ones.")
    return out


def _sure(gap: Gap) -> str:
    """Tell p and the smallest difference that could be seen, where they are known."""
    if gap.p is None or gap.smallest is None:
        return ""
    p = chance(gap.p)
    return (
        f", p {p if p.startswith('below') else 'of ' + p}; the smallest difference it could see is {gap.smallest:.3f}"
    )


def _saved(compare: Mapping[str, Any], arm: str) -> list[str]:
    """Tell the labels that are saved where they are fewest, and a sign is decided or not: the interval says it."""
    savings = (compare.get("savings") or {}).get(arm) or {}
    if not savings:
        return []
    saving = savings[min(savings, key=int)]
    if saving["factor"] is not None:
        factor = f"a label-saving factor of {saving['factor']:.1f}"
    else:
        factor = "beyond the counts" if saving["beyond"] else "below the counts"
    images = count(int(saving["count"]), "labelled image")
    return [f"With {images} it comes as far as scratch with {saving['words']}: {factor}."]


def _by_count(gaps: Mapping[int, Gap]) -> str:
    words: Sequence[str] = [f"{n}: {gap.verdict} ({gap})" for n, gap in gaps.items()]
    return f"By number of labelled images, {'; '.join(words)}."


def _paired(compare: Mapping[str, Any]) -> str:
    return f"{count(int(compare['seeds']), 'paired seed')}"


def _seeds(compare: Mapping[str, Any]) -> str:
    n = int(compare["seeds"])
    return "one seed" if n == 1 else f"only {n} seeds"
