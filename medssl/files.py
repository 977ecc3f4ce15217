"""Writing that is whole or not there: a file or a folder appears under its name only when it is complete."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import MedsslError

_UMASK = os.umask(0o077)  # it can only be read by setting it: once, before there are threads
os.umask(_UMASK)


@contextmanager
def new_folder(path: Path | str) -> Iterator[Path]:
    """Yield a temporary folder beside `path` and rename it to `path` when the block ends well.

    Raises:
        MedsslError: `path` exists and is not an empty folder, or its parent cannot be written.
    """
    path = Path(path)
    check_new(path)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        _chmod_as_usual(temporary, 0o777)
        yield temporary
        if path.exists():
            path.rmdir()  # only an empty folder got past check_new
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _chmod_as_usual(path: Path, mode: int) -> None:
    """Give what `tempfile` made for its owner alone the mode it would have had otherwise; a group's folder stays it."""
    path.chmod((path.stat().st_mode & 0o7000) | (mode & ~_UMASK))


def check_new(path: Path | str) -> None:
    """Raise MedsslError unless `path` can become a new folder; creates its parent."""
    path = Path(path)
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise MedsslError("the output is already there", where=str(path), fix="name a new folder, or remove this one")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".medssl-", dir=path.parent):
            pass
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise MedsslError(
            f"the output cannot be written: {reason.lower()}",
            where=str(path),
            fix="choose a folder you may write to",
        ) from error


def write_bytes(path: Path | str, data: bytes) -> None:
    """Write a file in one step: after a crash it holds the old content or the new, never a part."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        _chmod_as_usual(Path(temporary), 0o666)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_text(path: Path | str, text: str) -> None:
    """Write text as UTF-8 in one step, with `\\n` line ends on every system."""
    write_bytes(path, text.encode("utf-8"))


def without(value: Any, *keys: str) -> Any:
    """Return plain JSON types without these keys, at any depth: what is written beside a result names no folder."""
    if isinstance(value, dict):
        return {name: without(item, *keys) for name, item in value.items() if name not in keys}
    return [without(item, *keys) for item in value] if isinstance(value, list) else value


def write_json(path: Path | str, value: Any) -> None:
    """Write indented JSON in one step; NaN and infinity are refused, for JSON has neither."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")
