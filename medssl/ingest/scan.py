"""Find the files that hold images, by what is in them and never by their names."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError
from ..index import ProblemRow
from ..problems import PROBLEMS
from ..progress import Progress, silent
from ..reading import ReadError
from ..reading.source import guarded

_FIRST_BYTES = 1 << 12
_HEADER_BYTES = 544  # of NIfTI-2; more of a gzip need not be decompressed
_LEAST_BYTES = 352  # of NIfTI-1: a file that holds less cannot be told from one cut off

_IMAGE_SUFFIXES = (".nii", ".nii.gz", ".dcm", ".dicom", ".ima", ".png", ".jpg", ".jpeg")
# What is known to be no image, or to belong to one: skipped without a word.
# fmt: off
_OTHER_SUFFIXES = frozenset(
    {
        ".7z", ".bin", ".bval", ".bvec", ".bz2", ".ckpt", ".csv", ".db", ".doc", ".docx", ".exe", ".gz", ".h5",
        ".hdf5", ".html", ".ini", ".json", ".jsonl", ".log", ".mat", ".md", ".npy", ".npz", ".parquet", ".pdf",
        ".pickle", ".pkl", ".pptx", ".pt", ".pth", ".pyc", ".rar", ".safetensors", ".sqlite", ".tar", ".tgz", ".tsv",
        ".txt", ".xls", ".xlsx", ".xml", ".xz", ".yaml", ".yml", ".zip", ".zst"
    }
)
# fmt: on
_UNSUPPORTED = (
    (b"GIF8", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"BM", "BMP"),
    (b"NRRD000", "NRRD"),
    (b"ObjectType = Image", "MetaImage"),
    (b"NDims = ", "MetaImage"),
)


@dataclass(frozen=True)
class Found:
    """Image files in the order they were met, and what was odd about others.

    Attributes:
        files: one image each, with its format, `nifti`, `png` or `jpeg`.
        dicom: one slice each.
    """

    files: tuple[tuple[Path, str], ...]
    dicom: tuple[Path, ...]
    problems: tuple[ProblemRow, ...]


def problem(code: str, path: Path | str, message: str = "") -> ProblemRow:
    """Make a line of problems.csv; without a message the code's meaning stands there."""
    where = str(path).encode("utf-8", "backslashreplace").decode("utf-8")
    return ProblemRow(PROBLEMS[code].severity, code, where, message or PROBLEMS[code].meaning)


def find_images(paths: Sequence[Path | str], *, skip: Sequence[Path | str] = (), progress: Progress = silent) -> Found:
    """Look at every file under `paths`, following links, each file once.

    Args:
        skip: files and folders that are passed by, such as those of labels.

    Raises:
        UsageError: one of the paths does not exist.
    """
    for path in (*paths, *skip):
        if not Path(path).exists():
            raise UsageError("this path does not exist", where=str(path), fix="check its spelling")
    skipped = {Path(path).resolve() for path in skip}
    files: list[tuple[Path, str]] = []
    dicom: list[Path] = []
    problems: list[ProblemRow] = []
    for count, path in enumerate(_files(paths, skipped, problems)):
        if count % 100 == 0:
            progress("looking for images", count, 0)
        try:
            with guarded(str(path)):
                kind, code, message = _kind_of(path)
        except ReadError as error:
            kind, code, message = "", error.code, error.message
        if kind == "dicom":
            dicom.append(path)
        elif kind:
            files.append((path, kind))
        elif code:
            problems.append(problem(code, path, message))
    return Found(tuple(files), tuple(dicom), tuple(problems))


def case_name(path: Path | str) -> str:
    """Return a file's name without extension: `case_01.nii.gz` is `case_01`."""
    name = Path(path).name
    for suffix in (".gz", ".nii", ".png", ".jpg", ".jpeg", ".dcm"):
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
    return name


def _files(paths: Sequence[Path | str], skipped: set[Path], problems: list[ProblemRow]) -> Iterator[Path]:
    seen: set[Path] = set()
    waiting = [Path(path) for path in sorted({str(path) for path in paths}, reverse=True)]
    while waiting:
        path = waiting.pop()
        try:
            real = path.resolve(strict=True)
            if real in seen or real in skipped:
                continue
            seen.add(real)
            if real.is_dir():
                inside = sorted(path.iterdir(), reverse=True)
                waiting.extend(child for child in inside if not _is_hidden(child.name))
            elif real.is_file():
                str(path.absolute()).encode("utf-8")
                yield path.absolute()
        except UnicodeEncodeError:
            problems.append(problem("file-name-encoding", path))
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, in Python before 3.13
            reason = getattr(error, "strerror", None) or type(error).__name__
            problems.append(problem("file-unreadable", path, f"cannot be opened: {reason.lower()}"))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _kind_of(path: Path) -> tuple[str, str, str]:
    """Return (format, "", "") of an image, or ("", code, message) of a problem, or three empty words to skip."""
    with path.open("rb") as file:
        first = file.read(_FIRST_BYTES)
    named = path.name.lower().endswith(_IMAGE_SUFFIXES)
    if not first:
        return ("", "file-empty", "") if named else ("", "", "")
    if kind := _format_of(first):
        return kind, "", ""
    if first[:2] in (b"\x08\0", b"\x02\0") and first[3:4] == b"\0":
        return "", "dicom-no-preamble", ""
    for magic, name in _UNSUPPORTED:
        if first.startswith(magic):
            return "", "format-unsupported", f"the content is {name}"
    if named:
        return "", _flaw_of(first), ""
    if path.suffix.lower() in _OTHER_SUFFIXES or _is_text(first):
        return "", "", ""
    return "", "format-unknown", ""


def _format_of(first: bytes) -> str:
    from ..reading.nifti import is_nifti
    from ..reading.picture import JPEG_SIGNATURE, SIGNATURE

    if first[:8] == SIGNATURE:
        return "png"
    if first[:3] == JPEG_SIGNATURE:
        return "jpeg"
    if first[128:132] == b"DICM":
        return "dicom"
    return "nifti" if is_nifti(_inside(first)[0]) else ""


def _inside(first: bytes) -> tuple[bytes, bool]:
    """Return a file's first bytes, decompressed where they are gzip, and whether its content is seen to its end."""
    if first[:2] != b"\x1f\x8b":
        return first, False
    stream = zlib.decompressobj(wbits=31)
    try:
        return stream.decompress(first, _HEADER_BYTES), stream.eof
    except zlib.error:
        return b"", False


def _flaw_of(first: bytes) -> str:
    """Return the code of a file that is named as an image and is none: cut off, or something else altogether."""
    content, whole = _inside(first)
    if whole or len(content) >= _LEAST_BYTES or (content and _is_text(content)):
        return "file-not-as-named"
    return "file-truncated"


def _is_text(first: bytes) -> bool:
    if b"\0" in first:
        return False
    try:
        first.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start > len(first) - 4  # a letter cut in two at the end
    return True
