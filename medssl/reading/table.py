"""Tables of text: TSV and CSV with a head, as people and spreadsheets write them."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from ..errors import DataError

MOST_WORDS = 20
"""Different words a column of groups may hold: with more it could be an identifier."""


def read_lines(path: Path | str, what: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Read a TSV or CSV file: the fields of its head, and number and fields of each other line that is not empty.

    Raises:
        DataError: it cannot be read, or has no line but a head.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the table of {what} cannot be read", where=str(path), fix="save it as UTF-8 text") from error
    head = text.partition("\n")[0]
    separator = "\t" if "\t" in head else ";" if ";" in head and "," not in head else ","
    try:
        # strict: a quote that is not closed would make one field of all lines behind it
        reader, begin = csv.reader(io.StringIO(text), delimiter=separator, strict=True), 1
        lines = []
        for line in reader:
            lines.append((begin, [field.strip() for field in line]))
            begin = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"the table of {what} cannot be read", where=f"{path}, line {begin}", fix="save it as TSV or CSV"
        ) from error
    filled = [(number, line) for number, line in lines if any(line)]
    if len(filled) < 2 or filled[0][0] != 1:
        raise DataError(
            f"the table of {what} has no lines", where=str(path), fix="write a head and a line for each case"
        )
    return filled[0][1], filled[1:]
