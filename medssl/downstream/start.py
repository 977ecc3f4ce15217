"""What a downstream run starts from: data, opened or prepared, and an architecture, with or without weights."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..config import Section, fingerprint
from ..errors import DataError, UsageError
from ..nets.encoder import Encoder, load_encoder
from ..prepare import PrepareConfig, build_store, build_store_from_datalist, config_of
from ..progress import Progress, silent
from ..store import Store
from ..train import TrainConfig
from .config import FinetuneConfig

logger = logging.getLogger(__name__)

Start = Encoder | Path | str | None
"""An encoder, its folder, the run that holds it; or None: from scratch."""


@dataclass(frozen=True)
class Design:
    """An architecture, and the weights it begins with: an encoder's, or none."""

    encoder: Encoder | None
    network: Encoder | Section
    """What the task network is built for: the encoder, another arm's encoder, or a recipe's section `encoder`."""

    @property
    def fingerprint(self) -> str:
        """Name of architecture and weights by their content."""
        shape = self.network.spec if isinstance(self.network, Encoder) else self.network
        return fingerprint([shape, weights_fingerprint(self.encoder) if self.encoder is not None else None])


def settled(config: FinetuneConfig, design: Design) -> FinetuneConfig:
    """Return the section as it holds for a start: from scratch there is nothing to keep, and everything is trained.

    A frozen network of random weights, or one whose lower layers learn slowly, would be a baseline made to lose.
    """
    if design.encoder is not None:
        return config
    return config.model_copy(update={"train": "full", "layer_decay": 1.0})


def weights_fingerprint(encoder: Encoder) -> str:
    """Return 16 hexadecimal digits that name an encoder's weights by their values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.net.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def as_encoder(start: Start, *, allow_partial: bool = False) -> Encoder | None:
    """Load an encoder unless it is one already; the word `none` means none."""
    if start is None or isinstance(start, Encoder):
        return start
    return None if str(start) == "none" else load_encoder(start, allow_partial=allow_partial)


def open_data(
    data: Store | Path | str,
    out: Path,
    *,
    preparation: Mapping[str, Any] | None = None,
    prepare: PrepareConfig | None = None,
    progress: Progress = silent,
) -> Store:
    """Open labelled images; an index or a datalist is prepared into `out` first.

    Args:
        data: a store, its folder, the folder of an index, or a datalist as MONAI and the Decathlon write it (JSON).
        out: folder of a store to be made, where one has to be.
        preparation: an encoder's, which its images must go through too.
        prepare: a recipe's, used where there is no encoder.
        progress: told of the preparation.

    Raises:
        DataError: there is no such data.
        UsageError: images must be prepared, and nothing says how.
    """
    if isinstance(data, Store):
        warn_of_other_preparation(data, preparation)
        return data
    path = Path(data)
    if path.is_file() or (path / "index.parquet").is_file():
        config = config_of(preparation) if preparation else prepare
        if config is None:
            raise UsageError("nothing says how to prepare these images", where=str(path), fix="give --recipe")
        build = build_store_from_datalist if path.is_file() else build_store
        path = build(path, config, out, progress=progress).folder
    store = Store.open(path)
    warn_of_other_preparation(store, preparation)
    return store


def warn_of_other_preparation(store: Store, preparation: Mapping[str, Any] | None) -> None:
    """Warn where an encoder saw images that were prepared otherwise than these."""
    if preparation and preparation.get("fingerprint") != store.preparation.get("fingerprint"):
        logger.warning("the store was prepared otherwise than the encoder's images; its features may not fit")


def one_process(what: str) -> None:
    """Raise UsageError under torchrun: every process would write the same files."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(f"{what} runs in one process", fix="start it without torchrun")


def labelled(store: Store, split: str) -> tuple[str, ...]:
    """Return the images of a split that have label maps.

    Raises:
        DataError: there are none.
    """
    if not store.classes:
        where = str(store.folder)
        raise DataError("no image of the store has a label map", where=where, fix="give labels to `medssl index`")
    found = tuple(image_id for image_id in store.ids_of(split) if store.row(image_id).labelled)
    if not found:
        raise DataError(
            f"no labelled images in split {split!r}",
            where=str(store.folder),
            fix="give labels to `medssl index`, or score another split (finetune.split)",
        )
    return found


def check_apart(store: Store, trained: Sequence[str], judged: Mapping[str, Sequence[str]]) -> None:
    """Raise DataError where a patient whose images are trained on is scored, or chooses weights or a learning rate.

    Args:
        store: knows the patients.
        trained: images.
        judged: split to images.
    """
    known = set(store.ids)
    if unknown := [image_id for image_id in trained if image_id not in known]:
        raise DataError(
            f"{len(unknown)} of the images to train on are not in the store, such as {unknown[0]!r}",
            where=str(store.folder),
            fix="name images by the ids of this store",
        )
    for split, images in judged.items():
        subjects = {store.row(image_id).subject_id for image_id in images}
        if both := [image_id for image_id in trained if store.row(image_id).subject_id in subjects]:
            what = "validation looks at" if split == "validation" else "are scored"
            raise DataError(
                f"{len(both)} of the images to train on are of patients that {what}",
                where=f"image {both[0]}",
                fix=f"leave the patients of the split {split} out of them",
            )


def train_config(config: FinetuneConfig) -> TrainConfig:
    """Return what the engine needs to know of a section `finetune`."""
    return TrainConfig(
        steps=config.steps,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        betas=(0.9, 0.999),
        warmup_steps=min(config.warmup_steps, max(0, config.steps // 2)),
        clip=config.clip,
        precision=config.precision,
        microbatches=config.microbatches,
        seed=config.seed,
        checkpoint_steps=config.checkpoint_steps,
        device=config.device,
        keep_checkpoints=1,
    )
