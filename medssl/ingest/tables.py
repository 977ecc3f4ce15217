"""Tables of what is known of whole images: targets (numbers) and groups (words), by case."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from ..errors import DataError
from ..index import ProblemRow
from ..reading.table import MOST_WORDS, read_lines
from .images import Image
from .scan import problem

Value = TypeVar("Value")

_MANY_CASES = 5
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_MISSING = ("", "n/a")  # as in BIDS, "Tabular files"


@dataclass(frozen=True)
class Table(Generic[Value]):
    """What a table says of cases.

    Attributes:
        rows: by case, and there by column; a field that is missing is not there.
        lines: number of the line a case stands in.
    """

    path: Path
    rows: dict[str, dict[str, Value]]
    lines: dict[str, int]


def read_targets(path: Path | str) -> Table[float]:
    """Read findings and measures of whole images: case in the first column, a number in each of the others.

    An empty field, or `n/a`, is a missing number.

    Raises:
        DataError: the table cannot be read, a field is no finite number, or a case has two values.
    """

    def number(field: str, where: str) -> float:
        if not _NUMBER.fullmatch(field) or not math.isfinite(float(field)):
            raise DataError(
                "a field of the table of targets is no number", where=where, fix="write a number, or leave it empty"
            )
        return float(field)

    return _table(path, "targets", number)


def read_groups(path: Path | str) -> Table[str]:
    """Read what images belong to (site, scanner, sex, ...): case in the first column, a word in each of the others.

    Raises:
        DataError: the table cannot be read, a case has two words in a column, or a column has more than `MOST_WORDS`
            different words, for then it could be an identifier.
    """
    table = _table(path, "groups", lambda field, where: field)
    for name, words in _columns(table).items():
        if len(set(words)) > MOST_WORDS:
            raise DataError(
                f"column {name} of the table of groups has {len(set(words))} different words, at most {MOST_WORDS} "
                "are taken: it could be an identifier",
                where=str(table.path),
                fix="leave the column out, or give broader groups",
            )
    return table


def match_targets(images: Sequence[Image], path: Path | str, problems: list[ProblemRow]) -> dict[str, dict[str, float]]:
    """Return the targets of each image, by `Image.digest`; lines that match no image, or two, become problems."""
    return _matched(images, read_targets(path), problems)


def match_groups(images: Sequence[Image], path: Path | str, problems: list[ProblemRow]) -> dict[str, dict[str, str]]:
    """Return the groups of each image, as `match_targets`; a column of words that are all different is a warning."""
    table = read_groups(path)
    for name, words in _columns(table).items():
        if len(words) >= _MANY_CASES and len(set(words)) == len(words):
            message = f"column {name} has {len(words)} words, all different"
            problems.append(problem("group-all-different", table.path, message))
    return _matched(images, table, problems)


def _table(path: Path | str, what: str, value_of: Callable[[str, str], Value]) -> Table[Value]:
    head, lines = read_lines(path, what)
    columns = head[1:]
    if not columns or not all(columns) or len(set(columns)) < len(columns):
        raise DataError(
            f"the table of {what} has no column behind the case, or one without a name or with another's",
            where=f"{path}, line 1",
            fix="write a head: case, then a name for each column",
        )
    rows: dict[str, dict[str, Value]] = {}
    numbers: dict[str, int] = {}
    for number, line in lines:
        where = f"{path}, line {number}"
        if not line[0] or len(line) > len(head):
            flaw = "has more fields than the head" if line[0] else "names no case"
            raise DataError(f"a line of the table of {what} {flaw}", where=where, fix="correct the line")
        found = rows.setdefault(line[0], {})
        numbers.setdefault(line[0], number)
        for name, field in zip(columns, line[1:]):
            if field.lower() in _MISSING:
                continue
            value = value_of(field, f"{where}, column {name}")
            if found.setdefault(name, value) != value:
                raise DataError(
                    f"the table of {what} gives one case two values in column {name}", where=where, fix="correct it"
                )
    return Table(Path(path), rows, numbers)


def _columns(table: Table[Value]) -> dict[str, list[Value]]:
    columns: dict[str, list[Value]] = defaultdict(list)
    for row in table.rows.values():
        for name, value in row.items():
            columns[name].append(value)
    return columns


def _matched(images: Sequence[Image], table: Table[Value], problems: list[ProblemRow]) -> dict[str, dict[str, Value]]:
    """Return each image's row: what is said of its DICOM patient, and over that what is said of its case.

    A patient may have many images, which share what is said of the patient; a case is one image.
    """
    patients = {image.patient for image in images if image.patient}
    named = Counter(image.case for image in images if image.patient != image.case)
    for name, number in table.lines.items():
        where = f"{table.path}, line {number}"
        if named[name] > 1:
            problems.append(problem("table-ambiguous", where, f"{named[name]} images bear this name"))
        elif not named[name] and name not in patients:
            problems.append(problem("table-without-image", where))
    return {
        image.digest: (table.rows.get(image.patient, {}) if image.patient else {})
        | (table.rows.get(image.case, {}) if named[image.case] == 1 else {})
        for image in images
    }
