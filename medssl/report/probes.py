"""The frozen probes on the page: of voxels, of whole images, and of stability."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from .parts import Gap, Table, count, gap_head, number
from .sections import Part
from .sources import check_keys, read_result

Result = Mapping[str, Any]
_KEYS = {
    "dense": ("split", "labelled_images", "classes", "dice", "differences", "patients", "scores"),
    "image": (
        "target measures scores differences rank largest_rank split labelled_images images patients".split()  # noqa: SIM905
    ),
    "stability": ("scores", "differences", "images", "patients", "split"),
}
"""Kinds of probes, and what the result of each has."""


@dataclass(frozen=True)
class Probes:
    """What the probes of a run found, by kind."""

    dense: Result | None = None
    images: tuple[Result, ...] = ()
    stability: tuple[Result, ...] = ()


def read_probes(given: Any, run: Path) -> Probes:
    """Take results of `medssl probe` of any kind.

    Args:
        given: one result or several, each an object with `to_dict`, a dict, a JSON file, or the folder that holds a
            `probe.json`. None takes every `probe*.json` of the run.
        run: the run's folder.

    Raises:
        DataError: there is no such file, it is no such result, or two are dense probes.
    """
    if given is None:
        given = sorted(run.glob("probe*.json"))
    found: dict[str, list[Result]] = {kind: [] for kind in _KEYS}
    for one in given if isinstance(given, (list, tuple)) else [given]:
        value = read_result(one, needs=(), file="probe.json", command="medssl probe") or {}
        kind = _kind_of(value)
        where = str(one) if isinstance(one, (str, Path)) else "the given result"
        check_keys(value, needs=_KEYS[kind], command="medssl probe", where=where)
        found[kind].append(value)
    if len(found["dense"]) > 1:
        raise DataError(
            f"{len(found['dense'])} dense probes are given, the page shows one",
            where="the given results, or probe*.json in the run",
            fix="name the one of this encoder and task (--probe)",
        )
    return Probes(next(iter(found["dense"]), None), tuple(found["image"]), tuple(found["stability"]))


def _kind_of(value: Result) -> str:
    if "rank" in value:
        return "image"
    return "stability" if "scores" in value and "dice" not in value and "classes" not in value else "dense"


def probe_part(probes: Probes) -> Part:
    """Each arm's number beside the encoder's difference from it, for every kind of probe there is."""
    if probes == Probes():
        return Part("probe", "Frozen probe", missing="No frozen probe was given; `medssl probe` makes one.")
    sentences, tables = [], []
    if probes.dense is not None:
        sentences.append(
            "Every row sees the same labelled images and voxels. Random weights are the same network untrained; no "
            "network is position and blurred brightness alone."
        )
        tables.append(_dense(probes.dense))
    for one in probes.images:
        tables += _of_images(one)
    if any(one["target"] for one in probes.images):
        sentences.append(
            "A target of whole images is read from one vector an image, by nearest neighbours, one linear layer and "
            "retrieval, and by attentive pooling of its tokens; no network is brightness and size alone."
        )
    for one in probes.stability:
        tables.append(_stability(one))
    if probes.stability:
        sentences.append(
            "Stability is how little features move under what another scan of the patient would change: the cosine of "
            "changed and unchanged features, their intraclass correlation, and how often the nearest image is the own."
        )
    sentences.append(
        "p is corrected by Holm's method for the comparisons of a probe. Undecided is what has 0 inside its interval, "
        "what is not significant, and what is smaller than a comparison “could see”."
    )
    return Part("probe", "Frozen probe", tuple(sentences), tuple(tables))


def _tail(gap: Gap | None) -> tuple[str, ...]:
    return gap.row if gap else ("–",) * 5


def _dense(probe: Result) -> Table:
    gaps = {arm: Gap.of(value) for arm, value in probe["differences"].items()}
    classes = tuple(f"label {value}" for value in probe["classes"])
    head = ("features", "Dice", *(classes if len(classes) > 1 else ()))
    lines = []
    for arm, dice in probe["dice"].items():
        by_class = _class_means(probe, arm) if len(classes) > 1 else ()
        lines.append((arm, number(dice), *by_class, *_tail(gaps.get(arm))))
    patients, seeds = len(set(probe["patients"])), len(next(iter(probe["scores"].values())))
    return Table(
        f"Dice of a linear layer on frozen features: {count(patients, str(probe['split']) + ' patient')}, fitted on "
        f"{count(int(probe['labelled_images']), 'labelled image')}, {count(seeds, 'seed')}",
        (*head, "encoder minus this", *gap_head(gaps.values())),
        tuple(lines),
    )


def _class_means(probe: Result, arm: str) -> tuple[str, ...]:
    from ..metrics import mean_of, per_patient

    table = np.array(probe["scores"][arm], dtype=float)  # (S, I, K - 1); None becomes nan
    return tuple(number(mean_of(per_patient(table[..., k], probe["patients"]))) for k in range(table.shape[2]))


def _of_images(probe: Result) -> list[Table]:
    """Return a table of the readouts, where there is a target, and one of the rank."""
    tables = []
    if probe["target"]:
        gaps = {(r, arm): Gap.of(value) for r, arms in probe["differences"].items() for arm, value in arms.items()}
        lines = [
            (f"{readout}, {probe['measures'][readout]}", arm, number(np.mean(values)), *_tail(gaps.get((readout, arm))))
            for readout, arms in probe["scores"].items()
            for arm, values in arms.items()
        ]
        seeds = len(next(iter(next(iter(probe["scores"].values())).values())))
        tables.append(
            Table(
                f"Whole images: {probe['target']} told from frozen features of "
                f"{count(int(probe['images']), str(probe['split']) + ' image')} of "
                f"{count(int(probe['patients']), 'patient')}, fitted on "
                f"{count(int(probe['labelled_images']), 'labelled image')}, {count(seeds, 'seed')}",
                ("read by", "features", "value", "encoder minus this", *gap_head(gaps.values())),
                tuple(lines),
                names=2,
            )
        )
    caption = f"RankMe: how many directions the features of all images use, at most {probe['largest_rank']}"
    tables.append(Table(caption, ("features", "rank"), tuple((a, number(v, ".1f")) for a, v in probe["rank"].items())))
    return tables


def _stability(probe: Result) -> Table:
    gaps = {change: Gap.of(value) for change, value in probe["differences"].items()}
    lines = []
    for change, arms in probe["scores"].items():
        for arm, found in arms.items():
            gap = None if arm == "encoder" else gaps.get(change)
            lines.append((change, arm, *(number(value) for value in found.values()), *_tail(gap)))
    measures = tuple(next(iter(next(iter(probe["scores"].values())).values())))
    return Table(
        f"Stability of frozen features: {count(int(probe['images']), str(probe['split']) + ' image')} of "
        f"{count(int(probe['patients']), 'patient')}",
        ("change", "features", *measures, "encoder's agreement minus this", *gap_head(gaps.values())),
        tuple(lines),
        names=2,
    )
