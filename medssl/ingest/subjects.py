"""Who an image is of, under a name that tells nothing, and which split that subject belongs to."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError, MedsslError, UsageError
from ..reading.table import read_lines

_KEY_BYTES = 32
_LEAST_KEY_BYTES = 16
_ENTITY = re.compile(r"(?:^|(?<=_))(sub-[A-Za-z0-9]+)(?=[_.]|$)")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fractions:
    """Shares of the subjects that go to each split; they sum to 1."""

    train: float = 0.7
    validation: float = 0.1
    test: float = 0.2

    def __post_init__(self) -> None:
        parts = (self.train, self.validation, self.test)
        if min(parts) < 0 or abs(sum(parts) - 1) > 1e-9:
            raise ValueError(f"fractions must be at least 0 and sum to 1, got {parts}")


def entity_of(path: Path | str) -> str:
    """Return BIDS' subject, such as `sub-01`, of the file's name, else of the nearest folder's; empty where none."""
    path = Path(path)
    if found := _ENTITY.search(path.name):
        return found.group(1)
    return next((part for part in reversed(path.parts[:-1]) if _ENTITY.fullmatch(part)), "")


class Names:
    """Turns identifiers into keyed hashes: without the key nobody can go back, or try names until one fits.

    Args:
        key: secret of the site, at least 16 bytes. The same key gives the same ids, today and next year.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) < _LEAST_KEY_BYTES:
            raise UsageError(f"the key has {len(key)} bytes, at least {_LEAST_KEY_BYTES} are needed")
        self._key = key

    def of(self, kind: str, identifier: str) -> str:
        """Return 16 hexadecimal digits for an identifier; `kind` keeps a patient's from colliding with a study's."""
        text = f"{kind}:{identifier}".encode("utf-8", "surrogatepass")
        return hmac.new(self._key, text, hashlib.sha256).hexdigest()[:16]

    @property
    def check(self) -> str:
        """16 hexadecimal digits that are equal for equal keys, and tell nothing else of the key."""
        return self.of("key", "check")


def split_of(subject_id: str, *, seed: int, fractions: Fractions) -> str:
    """Return `train`, `validation` or `test`: a function of seed and subject alone, so that new data moves nobody."""
    digest = hashlib.sha256(f"{seed}:{subject_id}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < fractions.test:
        return "test"
    return "validation" if place < fractions.test + fractions.validation else "train"


def key_file() -> Path:
    """Return where the site's key is kept: `MEDSSL_KEY_FILE`, else in the user's configuration folder."""
    if named := os.environ.get("MEDSSL_KEY_FILE"):
        return Path(named)
    if sys.platform == "win32":
        base = Path(os.environ.get("APPDATA") or Path.home() / "AppData" / "Roaming")
    else:
        base = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return base / "medssl" / "site.key"


def site_key() -> bytes:
    """Read the site's key, and create it, readable by its owner alone, where there is none; that is logged.

    Raises:
        MedsslError: the file cannot be read or created, or holds too little.
    """
    path = key_file()
    try:
        try:
            key = path.read_bytes()
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            if _create(path):
                logger.warning(
                    "a new site key was made: %s. Subjects get their ids, and so their splits, by it: keep a copy, and "
                    "let MEDSSL_KEY_FILE name it wherever scans of the same patients are indexed",
                    path,
                )
            key = path.read_bytes()
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise MedsslError(
            f"the site's key cannot be read or made: {reason}",
            where=str(path),
            fix="let MEDSSL_KEY_FILE name a file you may write",
        ) from error
    if len(key) < _LEAST_KEY_BYTES:
        raise MedsslError(
            f"the site's key has {len(key)} bytes, at least {_LEAST_KEY_BYTES} are needed",
            where=str(path),
            fix="restore it from your copy; a new key gives every subject a new id",
        )
    return key


def _create(path: Path) -> bool:
    """Write a new key, and say so, unless another process was faster; nobody sees half a key where links are known."""
    key = secrets.token_bytes(_KEY_BYTES)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # for its owner alone
    try:
        _write_key(handle, key)
        try:
            os.link(name, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links, such as FAT: here a reader might come too early
            _write_key(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), key)
    except FileExistsError:
        return False
    finally:
        Path(name).unlink(missing_ok=True)
    return True


def _write_key(handle: int, key: bytes) -> None:
    with os.fdopen(handle, "wb") as file:
        file.write(key)
        file.flush()
        os.fsync(file.fileno())


def read_subjects(path: Path | str) -> dict[str, str]:
    """Read a table (TSV or CSV, its first line a head) from case, or patient ID, to patient.

    Raises:
        DataError: the table cannot be read, a line has less than two fields, or a case stands there for two patients.
    """
    _, lines = read_lines(path, "subjects")
    table: dict[str, str] = {}
    for number, line in lines:
        if len(line) < 2 or not line[0] or not line[1]:
            raise DataError(
                "a line of the table of subjects names no case or no patient",
                where=f"{path}, line {number}",
                fix="write the case in the first column, the patient in the second",
            )
        case, patient = line[:2]
        if table.setdefault(case, patient) != patient:
            raise DataError(
                "the table of subjects gives one case to two patients", where=f"{path}, line {number}", fix="correct it"
            )
    return table
