"""Index to store, in worker processes; killed and run again it goes on where it was.

An image is done when its arrays and, after them, its row in `journal/` stand under their names. `store.parquet` is
written last: a store without it is unfinished.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import multiprocessing
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..config import fingerprint
from ..errors import DataError, MedsslError
from ..files import check_new, write_json, write_text
from ..index import Index, IndexRow
from ..progress import Progress, silent
from ..reading import ReadError
from ..store import StoreRow, array_path, read_table, table_source, write_array, write_table
from .config import PrepareConfig
from .preprocessing import instance, preparation_of, spatial_items
from .voxels import ToPrepare, prepare_image

logger = logging.getLogger(__name__)

SMALL = 200_000_000
"""Voxels below which starting processes costs more than they save."""

Problems = tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class StoreResult:
    """What a preparation came to; can be given wherever a store's path is asked for."""

    folder: Path
    images: int
    labelled: int
    problems: dict[str, int]
    """Images, labels or boxes left out or cut, by code."""
    bytes: int
    seconds: float
    resumed: int = 0
    """Images that an earlier, interrupted preparation had done."""
    finished_before: bool = False

    @property
    def store(self) -> Path:
        """The store's folder."""
        return self.folder

    def __fspath__(self) -> str:
        return os.fspath(self.folder)

    def __str__(self) -> str:
        what = f"{self.images} images, {self.labelled} with label maps, {self.bytes / 1e6:.1f} MB, in {self.folder}"
        if self.finished_before:
            return f"already prepared: {what}"
        lines = [f"prepared {what} in {self.seconds:.1f} s"]
        if self.resumed:
            lines.append(f"{self.resumed} of them were done before this run")
        if self.problems:
            counts = ", ".join(f"{code} {count}" for code, count in sorted(self.problems.items()))
            what = "left out or cut" if "box-cut" in self.problems else "left out"
            lines.append(f"{what}: {counts}; see {self.folder / 'problems.csv'}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the summary for scripts."""
        return {**asdict(self), "folder": str(self.folder)}


def build_store(
    index: Index | Path | str | os.PathLike[str], config: PrepareConfig, out: Path | str, *, progress: Progress = silent
) -> StoreResult:
    """Prepare every image of an index into a store.

    Interrupted and called again it goes on; finished with the same index and preparation it does nothing. An image
    that cannot be prepared is named in the store's `problems.csv` and the others go on.

    Raises:
        DataError: no image could be prepared.
        MedsslError: `out` holds something else, or the store of another index or preparation.
    """
    index = index if isinstance(index, Index) else Index.open(index)
    items = [
        ToPrepare(
            image_id=row.image_id,
            subject_id=row.subject_id,
            kind=row.kind,
            shape=row.shape,
            source=index.location(row.image_id),
            label_source=index.label_location(row.image_id),
            split=row.split,
            view=row.view,
            modality=row.modality,
            labels=dict(row.labels),
            groups=dict(row.groups),
            boxes=row.boxes,
            text=row.text,
        )
        for row in _wanted(index, config)
    ]
    card = index.folder / "card.md"
    text = card.read_text("utf-8") if card.is_file() else ""
    return fill_store(items, config, Path(out), source=index.fingerprint, card=text, progress=progress)


def _wanted(index: Index, config: PrepareConfig) -> Sequence[IndexRow]:
    rows = [row for row in index.rows if not config.modalities or row.modality in config.modalities]
    if index.rows and not rows:
        found = ", ".join(f"{n} {name or 'not stated'}" for name, n in Counter(r.modality for r in index.rows).items())
        raise DataError(
            f"no image is of modality {' or '.join(config.modalities)}; the index has {found}",
            where="recipe key prepare.modalities",
            fix="index NIfTI files and pictures with --modality, or change the recipe",
        )
    return rows


def fill_store(
    items: Sequence[ToPrepare],
    config: PrepareConfig,
    out: Path,
    *,
    source: str,
    card: str = "",
    progress: Progress = silent,
) -> StoreResult:
    """Prepare `items` into the store `out`; see `build_store`.

    Args:
        source: fingerprint of where the items come from; another one is another store.
    """
    began = time.perf_counter()
    if not items:
        raise DataError("there are no images to prepare", where=str(out), fix="look at the index's problems.csv")
    for item in spatial_items(config, ["image"], ["label"]):
        instance(item)  # a wrong argument is found before the first image is read
    if _finished(out, config, source):
        rows, _ = read_table(out / "store.parquet")
        return _result(out, rows, _read_problems(out), began, finished_before=True)
    _begin(out, config, source)
    done = {item.image_id for item in items if _journal(out, item.image_id).is_file()}
    waiting = [item for item in items if item.image_id not in done]
    problems: list[tuple[str, str, str]] = []
    for journal in (_journal(out, image_id).with_suffix(".csv") for image_id in done):
        problems += _parse_problems(journal)
    progress("prepare", len(done), len(items))
    for count, found in enumerate(_prepared(waiting, config, out), start=len(done) + 1):
        problems += found
        progress("prepare", count, len(items))
    return _finish(out, items, source, card, sorted(problems), began, resumed=len(done))


def _finished(out: Path, config: PrepareConfig, source: str) -> bool:
    """Say whether `out` is this store, whole; raises where it is another one."""
    try:
        held = json.loads((out / "preparation.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    whole = (out / "store.parquet").is_file()
    marker = out / "journal" / "source"
    from_source = (
        table_source(out / "store.parquet") if whole else marker.read_text("utf-8") if marker.is_file() else ""
    )
    differs = "preparation" if held.get("fingerprint") != fingerprint(config) else ""
    if not differs and from_source and from_source != source:
        differs = "index"
    if differs:
        state = "a store" if whole else "an unfinished store"
        raise MedsslError(
            f"the output holds {state} of another {differs}",
            where=str(out),
            fix="name a new folder, or remove this one",
        )
    return whole


def _begin(out: Path, config: PrepareConfig, source: str) -> None:
    """Make the folders of a new store, or sweep what a killed run left half-written."""
    try:
        if not (out / "preparation.json").is_file():
            check_new(out)
            out.mkdir(exist_ok=True)
            write_json(out / "preparation.json", preparation_of(config))
        for name in ("arrays", "journal"):
            (out / name).mkdir(exist_ok=True)
        write_text(out / "journal" / "source", source)
    except OSError as error:
        raise _unwritable(out, error) from error
    for leftover in [*out.glob(".*"), *out.glob("arrays/.*"), *out.glob("journal/.*")]:
        leftover.unlink(missing_ok=True)


def _prepared(items: Sequence[ToPrepare], config: PrepareConfig, out: Path) -> Iterator[Problems]:
    """Prepare the images, in any order, and yield each one's problems."""
    small = sum(math.prod(item.shape) for item in items) < SMALL
    try:
        if small or config.workers == 0 or len(items) < 2:
            for item in items:
                yield _prepare_one(item, config, out)
            return
        pool = ProcessPoolExecutor(
            min(config.workers, len(items)), multiprocessing.get_context("spawn"), initializer=_begin_worker
        )
        waiting = {item.image_id: item for item in items}
        try:
            futures = {pool.submit(_prepare_one, item, config, out): item.image_id for item in items}
            for future in as_completed(futures):
                found = future.result()
                del waiting[futures[future]]
                yield found
        except BrokenProcessPool:
            logger.warning(
                "a process that prepares images ended early: for want of memory, or because the script that called "
                'lacks `if __name__ == "__main__":`; the other %d images are prepared one by one',
                len(waiting),
            )
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        for item in waiting.values():
            yield _prepare_one(item, config, out)
    except OSError as error:
        raise _unwritable(out, error) from error


def _begin_worker() -> None:
    """Keep a worker to one thread, and end it when the process that started it is killed."""
    import torch

    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _prepare_one(item: ToPrepare, config: PrepareConfig, out: Path) -> Problems:
    """Prepare and write one image; what cannot be prepared is returned as a problem: id, code, message."""
    try:
        prepared = prepare_image(item, config)
    except ReadError as error:
        return ((item.image_id, error.code, error.message),)
    except DataError as error:
        return ((item.image_id, "preparation-failed", error.what),)
    except (ValueError, ArithmeticError, KeyError, TypeError) as error:
        logger.debug("image %s cannot be prepared", item.image_id, exc_info=True)
        return ((item.image_id, "preparation-failed", f"preparing raised {type(error).__name__}"),)
    write_array(array_path(out, item.image_id), prepared.image, codec=config.codec)
    if prepared.label is not None:
        write_array(array_path(out, item.image_id, label=True), prepared.label, codec=config.codec)
    problems = tuple((item.image_id, code, message) for code, message in prepared.problems)
    journal = _journal(out, item.image_id)
    if problems:
        write_text(journal.with_suffix(".csv"), _csv(problems))
    write_table(journal, [prepared.row], {item.image_id: prepared.points})
    return problems


def _finish(
    out: Path,
    items: Sequence[ToPrepare],
    source: str,
    card: str,
    problems: Sequence[tuple[str, str, str]],
    began: float,
    *,
    resumed: int,
) -> StoreResult:
    rows: list[StoreRow] = []
    points: dict[str, Any] = {}
    for item in items:
        if _journal(out, item.image_id).is_file():
            found, where = read_table(_journal(out, item.image_id))
            rows += found
            points |= where
    if not rows:
        first = problems[0]
        raise DataError(
            f"none of {len(items)} images could be prepared; the first: {first[2]} ({first[1]})",
            where=f"image {first[0]}",
            fix="run `medssl index --check` on the scans",
        )
    write_text(out / "card.md", card)
    write_text(out / "problems.csv", _csv(problems))
    write_table(out / "store.parquet", rows, points, source=source)
    shutil.rmtree(out / "journal", ignore_errors=True)
    return _result(out, rows, problems, began, resumed=resumed)


def _result(
    out: Path, rows: Sequence[StoreRow], problems: Sequence[Sequence[str]], began: float, **more: Any
) -> StoreResult:
    counts: dict[str, int] = {}
    for _, code, _ in problems:
        counts[code] = counts.get(code, 0) + 1
    size = sum(path.stat().st_size for path in (out / "arrays").iterdir())
    labelled = sum(row.labelled for row in rows)
    return StoreResult(out, len(rows), labelled, counts, size, round(time.perf_counter() - began, 3), **more)


def _journal(out: Path, image_id: str) -> Path:
    return out / "journal" / f"{image_id}.parquet"


def _csv(problems: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image_id", "code", "message"])
    writer.writerows(problems)
    return text.getvalue()


def _parse_problems(path: Path) -> list[tuple[str, str, str]]:
    if not path.is_file():
        return []
    lines = list(csv.reader(io.StringIO(path.read_text("utf-8"))))[1:]
    return [(line[0], line[1], line[2]) for line in lines]


def _read_problems(out: Path) -> list[tuple[str, str, str]]:
    return _parse_problems(out / "problems.csv")


def _unwritable(out: Path, error: OSError) -> MedsslError:
    reason = (error.strerror or type(error).__name__).lower()
    return MedsslError(
        f"the store cannot be written: {reason}", where=str(out), fix="make room, or choose another folder"
    )
