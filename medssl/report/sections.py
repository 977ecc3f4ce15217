"""Each section of the page from its source: tables, pictures, sentences. What is missing is one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np

from .data import DataSummary
from .overlays import Example, legend, panels
from .parts import Gap, Picture, Table, count, gap_head, number
from .plots import Series, curves, points_and_means
from .sources import RunFiles


@dataclass(frozen=True)
class Details:
    """A long text behind its title."""

    title: str
    text: str = ""
    table: Table | None = None


@dataclass(frozen=True)
class Group:
    """Pictures that belong together, under their own heading."""

    title: str
    note: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Part:
    """A section of the page."""

    id: str
    title: str
    sentences: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    plots: tuple[Picture, ...] = ()
    groups: tuple[Group, ...] = ()
    details: tuple[Details, ...] = ()
    missing: str = ""
    """Why there is nothing; then all else is empty."""


_PANELS = {
    "reconstruction": "Left: a slice as it is. Middle: as the encoder saw it, hidden places dark. Right: rebuilt where "
    "it was hidden; of a ViT's patches the pattern is rebuilt, their mean and spread are the true ones. Each row is "
    "one sample of the last step.",
    "correspondence": "Left: a point (cross) in view one. Middle: its true place in view two. Right: how alike each "
    "voxel of view two is to the point, bright is alike; a good encoder is bright at the cross and dark elsewhere. "
    "Each row is one sample of the last step.",
}


def data_part(data: DataSummary | None, run: RunFiles) -> Part:
    """Counts by split, shapes and spacings, and whether subjects are kept apart."""
    if data is None:
        return Part("data", "Data", missing="No store was given, so the data is not counted here.")
    sentences = [
        f"{'Stream ' + s.name + ': ' if s.name else ''}{count(s.images, 'image')} of {count(s.subjects, 'subject')}."
        for s in data.stores
    ]
    sentences.append(data.sentence)
    known, given = set(run.stores.values()), {s.fingerprint for s in data.stores}
    if known and known != given:
        sentences.append("This is not the store that the run was trained on: their fingerprints differ.")
    cards = tuple(Details(f"Data card{' of ' + s.name if s.name else ''}", s.card) for s in data.stores if s.card)
    return Part("data", "Data", tuple(sentences), tuple(t for s in data.stores for t in s.tables), details=cards)


def pretraining_part(run: RunFiles) -> Part:
    """Curves of the log, and the method's pictures."""
    plots = [plot for plot in (_losses(run), _probe_curve(run), _rank(run), _rate(run), _norm(run)) if plot is not None]
    groups = tuple(_panel(name, data) for name, data in run.panels.items())
    if not plots and not groups:
        return Part("pretraining", "Pretraining", missing="The run has no log yet, so there is no curve.")
    sentences = []
    if run.metrics and run.seconds > 0:
        sentences.append(
            f"{count(int(run.metrics[-1]['step']), 'step')} in {_duration(run.seconds)}, "
            f"{100 * run.data_wait:.0f}% of it waiting for data."
        )
    skipped = sum((line.get("health/skipped_steps") or 0) > 0 for line in run.metrics)
    if skipped:
        sentences.append(f"Around {count(skipped, 'line')} of the log, steps were skipped: a gradient was not finite.")
    if not groups:
        sentences.append("The run kept no pictures.")
    return Part("pretraining", "Pretraining", tuple(sentences), plots=tuple(plots), groups=groups)


def _losses(run: RunFiles) -> Picture | None:
    names = [name for name in run.names("loss/") if name != "loss/total"]
    if len(names) != 1 and "loss/total" in run.names("loss/"):
        names.append("loss/total")
    series = [Series(name.removeprefix("loss/"), *run.points(name)) for name in names[:6]]
    return curves(
        series,
        x="step",
        y="loss",
        title="Loss by step",
        caption="Loss of every term, averaged over the steps between two lines of the log.",
        log=True,
    )


def _probe_curve(run: RunFiles) -> Picture | None:
    pairs = (("encoder, frozen", "probe/dice"), ("no network", "probe/no_network"))
    return curves(
        [Series(name, *run.points(key)) for name, key in pairs if run.points(key)[0]],
        x="step",
        y="Dice on validation images",
        title="Frozen probe during pretraining",
        caption="A linear layer on frozen features, beside the same on position and blurred brightness alone. An "
        "encoder that stays below has learned nothing this task can use.",
    )


def _rank(run: RunFiles) -> Picture | None:
    return curves(
        [Series("effective rank", *run.points("health/effective_rank"))],
        x="step",
        y="effective rank",
        title="Effective rank of the features",
        caption="How many directions the features of a batch use. Near 1 they have collapsed; they cannot use more "
        "than there are samples in the batch.",
    )


def _rate(run: RunFiles) -> Picture | None:
    return curves(
        [Series("learning rate", *run.points("train/learning_rate"))],
        x="step",
        y="learning rate",
        title="Learning rate by step",
        caption="Learning rate.",
    )


def _norm(run: RunFiles) -> Picture | None:
    return curves(
        [Series("gradient norm", *run.points("train/gradient_norm"))],
        x="step",
        y="gradient norm",
        title="Norm of the gradient by step",
        caption="Norm of the whole gradient, before clipping.",
        log=True,
    )


def _panel(name: str, data: bytes) -> Group:
    from PIL import Image

    with Image.open(BytesIO(data)) as picture:
        width = picture.width * max(1, min(4, 600 // picture.width))
    known = name in _PANELS
    caption = _PANELS.get(name, "A picture the method made of the last step.")
    alt = f"{name}: {caption}" if known else f"Picture “{name}” of the method."
    return Group(name[:1].upper() + name[1:], "", (Picture(alt=alt, caption=caption, png=data, width=width),))


def finetuning_part(compare: Mapping[str, Any] | None, data: DataSummary | None, examples: Sequence[Example]) -> Part:
    """Arms and numbers of labels by Dice and distance, points by seed, and segmentations to look at."""
    groups = tuple(_example(e) for e in examples)
    if compare is None and not groups:
        return Part(
            "finetuning",
            "Fine-tuning",
            missing="No comparison with training from scratch was given; `medssl compare` makes one.",
        )
    if compare is None:
        return Part("finetuning", "Fine-tuning", (_OVERLAY,), groups=groups)
    sentences = [_setting(compare), *_apart(compare, data), *_how_decided(compare)]
    if groups:
        sentences.append(_OVERLAY)
    plot = points_and_means(
        {arm: {str(n): _by_seed(compare, arm, n) for n in compare["counts"]} for arm in compare["arms"]},
        x="labelled images",
        y=f"{compare['measure']} on {compare['split']} patients",
        title=f"{compare['measure']} by number of labelled images",
        caption="Small points: one seed each, the mean over patients. Large hollow points: the mean over seeds.",
    )
    cells = Details("Every training", table=_cells(compare))
    return Part("finetuning", "Fine-tuning", tuple(sentences), _compare_tables(compare), (plot,), groups, (cells,))


def _example(example: Example) -> Group:
    notes = [text for text in (example.note, legend(example)) if text]
    return Group(example.title, ". ".join(note[:1].upper() + note[1:] for note in notes), tuple(panels(example)))


_OVERLAY = (
    "In the pictures below the white line is the truth and hatched areas are what a network found. Dice is that of the "
    "whole image, not of the slice."
)


def _setting(compare: Mapping[str, Any]) -> str:
    searched = [f"{rate:g}" for rate in compare.get("learning_rates") or ()]
    rate = (
        f", each arm with the best of the learning rates {', '.join(searched)} on validation images" if searched else ""
    )
    longer = compare.get("control")
    but = f" {longer['arm']} is a control, trained for {longer['steps']} steps." if longer else ""
    return (
        f"The same network, labelled images, order of samples, augmentation and {compare['steps']} steps for every arm "
        f"of a seed{rate}; only the weights it begins with differ.{but}"
    )


def _how_decided(compare: Mapping[str, Any]) -> list[str]:
    """Tell what the columns of the tables mean, where the result has them."""
    pairs = compare.get("pairs") or ()
    if not pairs:
        return []
    n, counts = len(pairs), len(compare["counts"])
    family = (
        f"p is corrected by Holm's method: among the {count(n, 'difference')} over all numbers of labelled images, and "
        f"among the {n * counts} at each of them"
        if n * counts > 1
        else "p is that of a single comparison"
    )
    return [
        f"Intervals and p come from a bootstrap over seeds and patients; {family}. “Could see” is the smallest "
        "difference that such a test finds with chance .8, by the spread measured here. Undecided is what is smaller, "
        "what is not significant, and what has 0 inside its interval."
    ]


def _apart(compare: Mapping[str, Any], data: DataSummary | None) -> list[str]:
    """Check that the scored patients are those of a split of this store, and train on nothing."""
    if data is None:
        return []
    scored, split = set(compare["patients"]), str(compare["split"])
    if not scored <= data.subjects.get(split, frozenset()):
        return ["The patients scored here are not all in the store shown above."]
    trained = set().union(*(found for name, found in data.subjects.items() if name != split))
    if scored & trained:
        return [f"{count(len(scored & trained), 'patient')} of those scored stand in another split too."]
    return [f"None of the {count(len(scored), 'scored patient')} stands in another split."]


def _by_seed(compare: Mapping[str, Any], arm: str, n: int) -> list[float]:
    from ..metrics import mean_of

    return [float(v) for v in mean_of(np.array(compare["patient_values"][arm][str(n)], dtype=float), 1)]


_FURTHER = {"hausdorff95_mm": ("HD95 in mm", ".2f")}
"""How the numbers beside the measure are called, and written."""


def _compare_tables(compare: Mapping[str, Any]) -> tuple[Table, ...]:
    lines = []
    for n in compare["counts"]:
        for arm in compare["arms"]:
            value = compare["differences"].get(arm, {}).get(str(n))
            beside = [
                number(by[arm][str(n)], _FURTHER.get(name, (name, ".3f"))[1]) for name, by in compare["further"].items()
            ]
            tail = Gap.of(value).row if value else ("–",) * 5
            name = f"{n} (all)" if n == compare.get("all_images") else str(n)
            lines.append((name, arm, number(compare["values"][arm][str(n)]), *beside, *tail))
    gaps = [Gap.of(v) for by in compare["differences"].values() for v in by.values()]
    measure = compare["measure"]
    further = [_FURTHER.get(name, (name, ""))[0] for name in compare["further"]]
    head = ("labelled images", "arm", measure, *further, f"{measure} minus scratch", *gap_head(gaps))
    patients = count(len(compare["patients"]), f"{compare['split']} patient")
    caption = f"{measure} on {patients}, means over {count(int(compare['seeds']), 'seed')}"
    if "hausdorff95_mm" in compare["further"]:
        caption += (
            "; HD95, the 95% Hausdorff distance, over the structures that were found, in voxels where images have no "
            "spacing"
        )
    tables = [Table(caption, head, tuple(lines), names=2)]
    if compare["overall"]:
        tables.append(_overall_table(compare))
    others = _pairs_table(compare)
    savings = _savings_table(compare)
    return (*tables, *(table for table in (others, savings) if table is not None))


def _overall_table(compare: Mapping[str, Any]) -> Table:
    rows = []
    for arm, value in compare["overall"].items():
        ups = (str(value.get("cells_up", "–")), str(value.get("patients_up", "–")))
        rows.append((arm, *Gap.of(value).row, *ups))
    head = gap_head([Gap.of(v) for v in compare["overall"].values()])
    return Table(
        "All numbers of labelled images together",
        ("arm", f"{compare['measure']} minus scratch", *head, "cells above scratch", "patients above scratch"),
        tuple(rows),
    )


def _pairs_table(compare: Mapping[str, Any]) -> Table | None:
    """Differences over all counts that the table above does not have: encoders from each other, and the control."""
    pairs = [
        pair
        for pair in compare.get("pairs") or ()
        if pair["second"] != "scratch" or pair["first"] not in compare["overall"]
    ]
    if not pairs:
        return None
    gaps = [Gap.of(pair["overall"]) for pair in pairs]
    rows = tuple((pair["first"], pair["second"], *gap.row) for pair, gap in zip(pairs, gaps))
    return Table(
        "Arms against each other, over all numbers of labelled images",
        ("arm", "minus arm", compare["measure"], *gap_head(gaps)),
        rows,
        names=2,
    )


def _savings_table(compare: Mapping[str, Any]) -> Table | None:
    rows = []
    for arm, by in (compare.get("savings") or {}).items():
        for n, saving in by.items():
            factor = saving["factor"]
            words = "beyond the counts" if saving["beyond"] else "below the counts"
            rows.append((arm, str(n), str(saving["words"]), words if factor is None else f"{factor:.1f}"))
    if not rows:
        return None
    head = ("arm", "with labelled images", "comes as far as scratch with", "label-saving factor")
    return Table("Labels saved, with the interval in brackets", head, tuple(rows), names=2)


def _cells(compare: Mapping[str, Any]) -> Table:
    rates = compare.get("chosen_rates") or {}
    lines = []
    for n in compare["counts"]:
        for arm in compare["arms"]:
            rate = number(rates.get(arm, {}).get(str(n)), "g")
            for seed, value in enumerate(_by_seed(compare, arm, n)):
                lines.append((str(n), arm, str(seed), number(value), rate))
    head = ("labelled images", "arm", "seed", compare["measure"], "learning rate")
    return Table(f"Every training: {compare['measure']}, the mean over patients", head, tuple(lines), names=3)


def provenance_part(run: RunFiles, data: DataSummary | None, bundle: str) -> Part:
    """Where all of this comes from, without a path, a name or a host."""
    from .. import __version__

    facts = [("recipe", run.fingerprint or "not read by this version of medssl")]
    facts += [(f"store {name}".strip() + ", at training", value) for name, value in run.stores.items()]
    facts += [(f"store {s.name}".strip() + ", on this page", s.fingerprint) for s in (data.stores if data else ())]
    facts += [(f"weights of {name}, SHA-256", value) for name, value in run.encoders.items()]
    machine = tuple((key, str(value)) for key, value in run.environment.items())
    packages = tuple(run.packages.items())
    sentences = []
    if run.receipt:
        sentences.append("The encoder started from given weights; the receipt below says what found its place.")
    elif run.value("encoder.weights") is None:
        sentences.append("The encoder started from random weights.")
    else:
        sentences.append(f"The encoder started from weights given as {run.value('encoder.weights')}.")
    if not run.encoders:
        sentences.append("The run holds no encoder yet.")
    sentences.append(f"The exported bundle is the folder {bundle}." if bundle else "No exported bundle was given.")
    tables = [Table("Fingerprints", ("of", "fingerprint"), tuple(facts), text=True)]
    if machine:
        tables.append(Table("Machine the run was trained on", ("", ""), machine, text=True))
    if packages:
        tables.append(
            Table(
                "Versions at training",
                ("package", "version"),
                (*packages, ("medssl, of this page", __version__)),
                text=True,
            )
        )
    details = [Details("Recipe, with every value", run.recipe_text)]
    if run.receipt:
        details.append(Details("Receipt of the weights", run.receipt))
    return Part("provenance", "Provenance", tuple(sentences), tuple(tables), details=tuple(details))


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"
