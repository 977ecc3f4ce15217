"""A page as a browser's parser sees it: tags in balance, links, and tables as text."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

_VOID = {"meta", "link", "img", "br", "hr", "input", "col"}


@dataclass
class Parsed(HTMLParser):
    """Feed it a page; it raises nothing and keeps what it saw."""

    tags: list[str] = field(default_factory=list)
    attributes: list[tuple[str, str, str]] = field(default_factory=list)
    """Tag, name, value."""
    faults: list[str] = field(default_factory=list)
    headings: list[str] = field(default_factory=list)
    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    """Caption to rows, the head first."""
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._open: list[str] = []
        self._rows: list[list[str]] = []
        self._words: list[str] = []

    @classmethod
    def of(cls, page: str) -> Parsed:
        """Parse a whole page."""
        found = cls()
        found.feed(page)
        found.close()
        found.faults += [f"<{tag}> is not closed" for tag in found._open]
        return found

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in _VOID:
            self._open.append(tag)
        if tag == "table":
            self._rows = []
        elif tag == "tr":
            self._rows.append([])
        if tag in ("caption", "th", "td", "h1", "h2", "h3"):
            self._words = []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open[-1] != tag:
            self.faults.append(f"</{tag}> closes {self._open[-1:] or 'nothing'}")
        else:
            self._open.pop()
        words = "".join(self._words).strip()
        if tag in ("th", "td"):
            self._rows[-1].append(words)
        elif tag == "caption":
            self._caption = words
        elif tag == "table":
            self.tables[self._caption] = [row for row in self._rows if row]
        elif tag in ("h1", "h2", "h3"):
            self.headings.append(f"{tag} {words}")

    def handle_data(self, data: str) -> None:
        self._words.append(data)
        if "style" not in self._open[-1:]:
            self.text += data

    def table(self, start: str) -> list[dict[str, Any]]:
        """Return the rows of the table whose caption starts so, by the names of the head."""
        (rows,) = (rows for caption, rows in self.tables.items() if caption.startswith(start))
        return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
