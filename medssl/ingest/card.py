"""The data card: what is in an index, in numbers alone, so that it may be handed on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from ..index import IndexRow, ProblemRow
from ..problems import PROBLEMS

SPLITS = ("train", "validation", "test")


def card_of(rows: Sequence[IndexRow], problems: Sequence[ProblemRow], *, seed: int) -> str:
    """Write the card in Markdown; it holds no name, path, date or UID."""
    subjects = {row.subject_id for row in rows}
    lines = [
        "# Data card",
        "",
        f"{len(rows)} images of {len(subjects)} subjects, {sum(row.labelled for row in rows)} with a label map.",
        "",
        "| kind | modality | format | images |",
        "|---|---|---|---|",
    ]
    kinds = Counter((row.kind, row.modality or "not stated", row.format) for row in rows)
    lines += [f"| {' | '.join(kind)} | {count} |" for kind, count in sorted(kinds.items())]
    lines += ["", "## Size and spacing", "", *_sizes(rows)]
    lines += [
        "",
        "## Splits",
        "",
        f"By subject, from seed {seed}: a subject's split stays when data is added.",
        "",
        "| split | subjects | images | with label |",
        "|---|---|---|---|",
    ]
    for split in SPLITS:
        inside = [row for row in rows if row.split == split]
        count = len({row.subject_id for row in inside})
        lines.append(f"| {split} | {count} | {len(inside)} | {sum(row.labelled for row in inside)} |")
    lines += [*_groups(rows), *_targets(rows), *_boxes(rows)]
    lines += ["", "## Problems", ""]
    counts = Counter(problem.code for problem in problems)
    if not counts:
        return "\n".join([*lines, "None.", ""])
    lines += ["| code | severity | count | meaning | what to do |", "|---|---|---|---|---|"]
    for code, count in sorted(counts.items()):
        known = PROBLEMS[code]
        lines.append(f"| {code} | {known.severity} | {count} | {known.meaning} | {known.remedy} |")
    return "\n".join([*lines, ""])


def _sizes(rows: Sequence[IndexRow]) -> list[str]:
    """Tell least, median and greatest of shape and spacing, for each kind of image."""
    lines = ["| kind | axis | voxels (least, median, greatest) | spacing in mm |", "|---|---|---|---|"]
    for kind in sorted({row.kind for row in rows}):
        inside = [row for row in rows if row.kind == kind]
        names = "ijk" if len(inside[0].shape) == 3 else ("row", "column")
        for axis, name in enumerate(names):
            voxels = _range((float(row.shape[axis]) for row in inside), lambda value: f"{value:.0f}")
            spacings = [row.spacing_mm[axis] for row in inside if row.spacing_mm is not None]
            lines.append(f"| {kind} | {name} | {voxels} | {_range(spacings, lambda value: f'{value:.4g}')} |")
    orientations = Counter(row.orientation for row in rows if row.orientation)
    if orientations:
        named = ", ".join(f"{name} {count}" for name, count in sorted(orientations.items()))
        lines += ["", f"Orientations: {named}."]
    return lines


def _range(values: Iterable[float], text: Callable[[float], str]) -> str:
    ordered = sorted(values)
    if not ordered:
        return "not stated"
    return ", ".join(text(value) for value in (ordered[0], ordered[len(ordered) // 2], ordered[-1]))


def _groups(rows: Sequence[IndexRow]) -> list[str]:
    """Count images by what headers tell of sex, age and maker, and by declared groups; scanners are not named."""
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        for name, value in row.groups.items():
            counts.setdefault(name, Counter())[value] += 1
    if not counts:
        return []
    lines = ["", "## Groups", ""]
    for name, counter in sorted(counts.items()):
        if name == "scanner":
            lines.append(f"- scanners: {len(counter)}")
        else:
            lines.append(f"- {name}: " + ", ".join(f"{value} {count}" for value, count in sorted(counter.items())))
    return lines


def _targets(rows: Sequence[IndexRow]) -> list[str]:
    """Tell least, median and greatest of each finding or measure."""
    names = sorted({name for row in rows for name in row.labels})
    if not names:
        return []
    lines = ["", "## Targets", "", "| target | images | least, median, greatest |", "|---|---|---|"]
    for name in names:
        values = [row.labels[name] for row in rows if name in row.labels]
        lines.append(f"| {name} | {len(values)} | {_range(values, lambda value: f'{value:.4g}')} |")
    return lines


def _boxes(rows: Sequence[IndexRow]) -> list[str]:
    """Count boxes, and images that have one, by class."""
    looked = [row.boxes for row in rows if row.boxes is not None]
    if not looked:
        return []
    lines = [
        "",
        "## Boxes",
        "",
        f"{len(looked)} images were looked at, {sum(not boxes for boxes in looked)} have none.",
    ]
    lines += ["", "| class | boxes | images |", "|---|---|---|"]
    boxes = Counter(name for found in looked for name, _ in found)
    images = Counter(name for found in looked for name in {name for name, _ in found})
    return lines + [f"| {name} | {count} | {images[name]} |" for name, count in sorted(boxes.items())]
