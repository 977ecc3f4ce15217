"""Scans to vectors: one for an image, a slice or a region, in a Parquet file that names nobody.

Columns: `image_id` (the keyed hash that `medssl index` gives the same image at the same site), for slices `slice` and
`offset_mm`, for regions `region` and `voxels`, and `embedding`, float32. No path, name or date.

Shapes: C channels, * the image, F features.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from .errors import DataError, MedsslError, UsageError
from .files import write_bytes
from .index import Index
from .progress import Progress, silent
from .reading import ReadError
from .store import Store, StoreRow
from .version import __version__

if TYPE_CHECKING:
    from .nets.encoder import Encoder
    from .prepare import PrepareConfig
    from .probe.pooling import Pooler

logger = logging.getLogger(__name__)
Per = Literal["image", "slice", "region"]
Given = Path | str | os.PathLike[str] | Store | Index
Paths = Given | Sequence[Path | str]
_OF_SUBJECTS = ("subject-by-name", "subject-missing", "dicom-patient-unnamed", "dicom-series-unnamed")
"""Problems of an index that do not matter here: vectors have neither subjects nor splits."""
VERSION = "1"
"""Of the file's columns, kept in its metadata."""


@dataclass(frozen=True)
class EmbedResult:
    """What was embedded, in the order of the file's rows; can be given wherever its path is asked for."""

    out: Path | None
    """The file; None where none was asked for."""
    per: Per
    image_ids: tuple[str, ...]
    """The image of each row."""
    embeddings: NDArray[np.float32] = field(repr=False)
    """(rows, F)."""
    columns: dict[str, tuple[float, ...]] = field(repr=False)
    """What else a row tells, such as `slice` and `offset_mm`."""
    problems: dict[str, int]
    """What was left out, and what looks odd though it was embedded: how often, by code."""
    seconds: float

    @property
    def images(self) -> int:
        """How many images were embedded."""
        return len(set(self.image_ids))

    def __fspath__(self) -> str:
        if self.out is None:
            raise TypeError("these embeddings were not written")
        return os.fspath(self.out)

    def __str__(self) -> str:
        rows, features = self.embeddings.shape
        what = {"image": "one an image", "slice": "one a slice", "region": "one a region"}[self.per]
        lines = [f"{rows} vectors of {features} numbers, {what}, of {self.images} images in {self.seconds:.1f} s"]
        if self.out is not None:
            lines[0] += f": {self.out}"
        if self.problems:
            counts = ", ".join(f"{code} {count}" for code, count in sorted(self.problems.items()))
            lines.append(f"problems: {counts}; `medssl index` names the files")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the summary for scripts; the vectors are in the file."""
        return {
            "out": None if self.out is None else str(self.out),
            "per": self.per,
            "images": self.images,
            "rows": len(self.image_ids),
            "features": int(self.embeddings.shape[1]),
            "problems": self.problems,
            "seconds": self.seconds,
        }


def embed_images(
    encoder: Encoder | Path | str,
    paths: Paths,
    out: Path | str | None = None,
    *,
    per: Per = "image",
    labels: Path | str | Sequence[Path | str] | None = None,
    prepare: PrepareConfig | None = None,
    window: tuple[int, ...] | None = None,
    slice_axis: int = 2,
    progress: Progress = silent,
) -> EmbedResult:
    """Embed scans by a frozen encoder, each prepared as the encoder's own images were.

    An image larger than the crop the encoder was made for is seen through overlapping windows. A slice or region is the
    mean over its voxels, each counted once; a whole image the mean of its windows, each by the voxels it stands for.

    Args:
        encoder: an encoder, its folder, or the run that holds it; `medssl.probe.as_encoder` makes one of any network.
        paths: files and folders of NIfTI, DICOM and PNG in any mixture, or an index, or a store.
        out: the Parquet file, a new one; None writes none.
        per: `image`; `slice`, along `slice_axis` after preparation; or `region`, one for each value of a label map.
        labels: folders of label maps, each named as its image, for scans that are not in an index or store.
        prepare: what is done to scans that are not in a store; as the encoder's images unless given.
        window: voxels the encoder sees at once; the crop it was made for unless given.
        slice_axis: axis of slices, also those that an encoder of 2D images sees of a volume.
        progress: told of every image.

    Raises:
        DataError: no image could be embedded; an image of the store has no label map and regions were asked for.
        MedsslError: `out` is taken or cannot be written.
        UsageError: a path does not exist, or `labels` is given beside an index or a store.
    """
    from .nets.encoder import Encoder, load_encoder
    from .probe.pooling import Pooler

    began = time.perf_counter()
    if out is not None:
        _check_new(Path(out))
    if per not in ("image", "slice", "region"):
        raise ValueError(f"per must be image, slice or region, got {per!r}")
    encoder = encoder if isinstance(encoder, Encoder) else load_encoder(encoder)
    pooler = Pooler(encoder, window=window, slice_axis=slice_axis)
    problems: Counter[str] = Counter()
    rows: dict[str, list[_Row]] = {}
    for scan in _scans(encoder, paths, labels, prepare, per, problems, progress):
        if code := _unfit(encoder, scan, per):
            problems[code] += 1
            logger.warning("image %s was left out: %s", scan.row.image_id, code)
            continue
        rows[scan.row.image_id] = list(_vectors(pooler, scan, per, slice_axis))
    if not any(rows.values()):
        counts = ", ".join(f"{code} {count}" for code, count in sorted(problems.items())) or "nothing to embed"
        raise DataError(
            f"no image could be embedded ({counts})",
            where="the scans given",
            fix="run `medssl index` on them, and look at its problems.csv",
        )
    result = _result(rows, per, None if out is None else Path(out), problems, began)
    if result.out is not None:
        _write(result, encoder)
    return result


@dataclass(frozen=True)
class _Scan:
    """An image as prepared, (C, *), its label map (*), if it has one, and what is known of it."""

    row: StoreRow
    array: NDArray[Any]
    label: NDArray[Any] | None


@dataclass(frozen=True)
class _Row:
    vector: NDArray[np.float32]
    columns: dict[str, float]


def _scans(
    encoder: Encoder,
    paths: Paths,
    labels: Path | str | Sequence[Path | str] | None,
    prepare: PrepareConfig | None,
    per: Per,
    problems: Counter[str],
    progress: Progress,
) -> Iterator[_Scan]:
    """Yield every image, prepared, whatever it was given as."""
    given = [paths] if isinstance(paths, (str, os.PathLike, Store, Index)) else list(paths)
    stores = [_opened_store(entry) for entry in given if _is_a(entry, Store, "store.parquet")]
    indexes = [_opened_index(entry) for entry in given if _is_a(entry, Index, "index.parquet")]
    files = [Path(e) for e in given if not isinstance(e, (Store, Index)) and not _holds_prepared(e)]
    if labels is not None and not files:
        raise UsageError("label maps of an index or a store are in it already", where="labels", fix="leave them out")
    for store in stores:
        yield from _of_store(store, encoder, per, progress)
    if not indexes and not files:
        return
    config = prepare or _preparation_of(encoder)
    for index in indexes:
        yield from _of_index(index, config, per, problems, progress)
    if files:
        from .ingest import build_index

        with tempfile.TemporaryDirectory(prefix="medssl-") as folder:
            # Paths stand in this index for as long as the images are read, in a folder only its owner can enter.
            found = build_index(files, Path(folder) / "index", labels=labels, progress=progress)
            problems.update({code: n for code, n in found.problems.items() if code not in _OF_SUBJECTS})
            yield from _of_index(Index.open(found.folder), config, per, problems, progress)


def _is_a(given: Given, kind: type[Store] | type[Index], name: str) -> bool:
    return isinstance(given, kind) if isinstance(given, (Store, Index)) else (Path(given) / name).is_file()


def _opened_store(given: Given) -> Store:
    assert not isinstance(given, Index)
    return given if isinstance(given, Store) else Store.open(Path(given))


def _opened_index(given: Given) -> Index:
    assert not isinstance(given, Store)
    return given if isinstance(given, Index) else Index.open(given)


def _holds_prepared(folder: str | os.PathLike[str]) -> bool:
    return any((Path(folder) / name).is_file() for name in ("store.parquet", "index.parquet"))


def _preparation_of(encoder: Encoder) -> PrepareConfig:
    from .prepare import PrepareConfig, config_of

    if not encoder.preparation:
        logger.warning("the encoder does not say how its images were prepared; scans are turned to RAS and no more")
        return PrepareConfig()
    return config_of(encoder.preparation)


def _of_store(store: Store, encoder: Encoder, per: Per, progress: Progress) -> Iterator[_Scan]:
    if encoder.preparation and encoder.preparation.get("fingerprint") != store.preparation.get("fingerprint"):
        logger.warning("the store was prepared otherwise than the encoder's images")
    for done, row in enumerate(store.rows):
        progress("embed", done, len(store.rows))
        label = store.label(row.image_id)[0] if per == "region" and row.labelled else None
        yield _Scan(row, store.read(row.image_id), label)
    progress("embed", len(store.rows), len(store.rows))


def _of_index(
    index: Index, config: PrepareConfig, per: Per, problems: Counter[str], progress: Progress
) -> Iterator[_Scan]:
    from .prepare.voxels import ToPrepare, prepare_image

    if config.modalities and (unnamed := sum(not row.modality for row in index.rows)):
        logger.warning("%d scans do not state their modality; they are taken for %s", unnamed, _words(config))
    for done, row in enumerate(index.rows):
        progress("embed", done, len(index.rows))
        if config.modalities and row.modality and row.modality not in config.modalities:
            problems["modality"] += 1
            logger.warning("image %s was left out: %s, the encoder saw %s", row.image_id, row.modality, _words(config))
            continue
        item = ToPrepare(
            image_id=row.image_id,
            subject_id=row.subject_id,
            kind=row.kind,
            shape=row.shape,
            source=index.location(row.image_id),
            label_source=index.label_location(row.image_id) if per == "region" else None,
            modality=row.modality,
        )
        try:
            prepared = prepare_image(item, config)
        except ReadError as error:
            problems[error.code] += 1
            logger.warning("image %s was left out: %s (%s)", row.image_id, error.message, error.code)
            continue
        problems.update(code for code, _ in prepared.problems)
        yield _Scan(prepared.row, prepared.image, None if prepared.label is None else prepared.label[0])
    progress("embed", len(index.rows), len(index.rows))


def _words(config: PrepareConfig) -> str:
    return " or ".join(config.modalities)


def _unfit(encoder: Encoder, scan: _Scan, per: Per) -> str:
    """Return the code of why an image does not go with the encoder or the question; empty where it does."""
    wanted = int(encoder.spec["channels"])
    if encoder.kind == "volume" and len(scan.row.shape) == 2:
        return "encoder-of-volumes"
    repeated = bool(getattr(encoder, "channels", 0)) and scan.row.channels == 1
    if scan.row.channels != wanted and not repeated:
        return "encoder-channels"
    if per == "slice" and len(scan.row.shape) == 2:
        return "no-slices"
    return "no-label-map" if per == "region" and scan.label is None else ""


def _vectors(pooler: Pooler, scan: _Scan, per: Per, axis: int) -> Iterator[_Row]:
    from .probe.windows import picture_of

    picture = picture_of(scan.row, scan.array)
    if per == "image":
        yield _Row(pooler.whole(picture).astype(np.float32), {})
    elif per == "slice":
        for n, vector in enumerate(pooler.slices(picture, axis=axis)):
            yield _Row(vector.astype(np.float32), {"slice": n, "offset_mm": n * picture.spacing_mm[axis]})
    else:
        assert scan.label is not None
        for value, (voxels, vector) in pooler.regions(picture, scan.label).items():
            yield _Row(vector.astype(np.float32), {"region": value, "voxels": voxels})


def _result(
    rows: dict[str, list[_Row]], per: Per, out: Path | None, problems: Counter[str], began: float
) -> EmbedResult:
    flat = [(image_id, row) for image_id in sorted(rows) for row in rows[image_id]]
    names = flat[0][1].columns
    return EmbedResult(
        out=out,
        per=per,
        image_ids=tuple(image_id for image_id, _ in flat),
        embeddings=np.stack([row.vector for _, row in flat]),
        columns={name: tuple(row.columns[name] for _, row in flat) for name in names},
        problems=dict(sorted(problems.items())),
        seconds=round(time.perf_counter() - began, 3),
    )


def _write(result: EmbedResult, encoder: Encoder) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    assert result.out is not None
    width = result.embeddings.shape[1]
    flat = pa.array(np.ascontiguousarray(result.embeddings).ravel())
    types = {"offset_mm": pa.float64()}
    columns: dict[str, Any] = {"image_id": pa.array(result.image_ids, pa.string())}
    for name, values in result.columns.items():
        columns[name] = pa.array([v if name in types else int(v) for v in values], types.get(name, pa.int64()))
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, width)
    metadata = {
        "medssl_embeddings": VERSION,
        "medssl": __version__,
        "per": result.per,
        "encoder": weights_fingerprint(encoder),
        "spec": json.dumps(encoder.spec, sort_keys=True),
        "preparation": str(encoder.preparation.get("fingerprint", "")),
    }
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), buffer, compression="zstd")
    try:
        write_bytes(result.out, buffer.getvalue())
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise MedsslError(f"the output cannot be written: {reason}", where=str(result.out)) from error


def weights_fingerprint(encoder: Encoder) -> str:
    """Name an encoder by its weights: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.net.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().float().numpy().tobytes())
    return digest.hexdigest()[:16]


def _check_new(out: Path) -> None:
    """Raise MedsslError unless `out` can become a new file; creates its folder."""
    if out.exists():
        raise MedsslError("the output is already there", where=str(out), fix="name a new file, or remove this one")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".medssl-", dir=out.parent):
            pass
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise MedsslError(
            f"the output cannot be written: {reason}", where=str(out), fix="choose a folder you may write to"
        ) from error


__all__ = ["EmbedResult", "embed_images", "weights_fingerprint"]
