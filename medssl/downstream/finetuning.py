"""Fine-tuning: an encoder, or nothing, and a few labels to a task network that is scored on other patients."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..config import Section, fingerprint
from ..errors import RunError
from ..files import check_new, without, write_json
from ..metrics import mean_of
from ..nets.config import DynUNetConfig
from ..nets.encoder import save_network
from ..nets.task_network import TaskNetwork
from ..nets.weights import Receipt
from ..prepare import PrepareConfig
from ..progress import Progress, silent
from ..store import Store
from ..train import TrainResult, train
from .config import FinetuneConfig
from .layers import merge_low_rank
from .start import Design, Start, as_encoder, check_apart, one_process, open_data, train_config
from .stopping import BestWeights
from .task import Task
from .tasks import task_named


@dataclass(frozen=True)
class FinetuneResult:
    """A fine-tuned task network and its scores."""

    out: Path
    task: str
    measure: str
    value: float
    """The measure on the scored images: for segmentation the mean Dice over patients."""
    network: Path
    """Network folder."""
    start: str
    """`encoder` or `scratch`."""
    scores: tuple[Any, ...]
    """One an image: for segmentation `ImageScore`."""
    summary: Mapping[str, Any]
    """All that is told of the scores together, as plain JSON types."""
    lines: tuple[str, ...]
    """The same for people."""
    split: str
    patients: int
    """Scored."""
    labelled: int
    """Images it was trained on."""
    training: TrainResult
    receipt: Receipt | None
    bundle: Path | None = None
    """The MONAI bundle, where one was asked for."""

    @property
    def best_step(self) -> int | None:
        """The step whose weights were kept, where validation images decided."""
        step = self.training.metrics.get("validation/best_step")
        return None if step is None else int(step)

    def __str__(self) -> str:
        first, *rest = self.lines
        lines = [
            f"{self.network.name} from {self.start}, {self.labelled} labelled images: {first} on "
            f"{self.patients} {self.split} patients",
            *(f"  {line}" for line in rest),
        ]
        if self.best_step is not None:
            lines.append(f"  weights of step {self.best_step}, the best on validation images")
            if self.split == "validation":
                lines.append("  these images chose the weights: on others expect less")
        lines.append(f"network: {self.network}")
        return "\n".join([*lines, *([f"bundle: {self.bundle}"] if self.bundle is not None else [])])

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "out": str(self.out),
            "task": self.task,
            "measure": self.measure,
            "value": self.value if math.isfinite(self.value) else None,
            "network": str(self.network),
            "start": self.start,
            "split": self.split,
            "labelled_images": self.labelled,
            **self.summary,
            "scores": [score.to_dict() for score in self.scores],
            "training": self.training.to_dict(),
            "best_step": self.best_step,
            "receipt": self.receipt.to_dict() if self.receipt is not None else None,
            "bundle": str(self.bundle) if self.bundle is not None else None,
        }


def finetune(
    encoder: Start,
    data: Store | Path | str,
    out: Path | str,
    config: FinetuneConfig | None = None,
    *,
    task: str = "segmentation",
    images: Sequence[str] | None = None,
    network: Section | None = None,
    prepare: PrepareConfig | None = None,
    allow_partial: bool = False,
    resume: bool = False,
    progress: Progress = silent,
) -> FinetuneResult:
    """Train a task network on labelled images and score it on patients it has not seen.

    Args:
        encoder: an encoder, its folder or run; None (or "none") trains from scratch.
        data: a store, an index, or a datalist (JSON); what is no store is prepared into `out/store` first.
        out: the run: `segmenter/` (or `detector/`, `classifier/`; the network folder), `scores.json`, `predictions/`,
            `metrics.jsonl`, `checkpoints/`.
        config: the recipe's section `finetune`.
        task: `segmentation`, `detection` or `classification`.
        images: ids of the labelled images to train on; all of the split `train` unless given.
        network: the section `encoder` to build from scratch; a small DynUNet unless given.
        prepare: how to prepare data that is no store, where there is no encoder that knows.
        allow_partial: accept an encoder folder that lacks weights.
        resume: go on from the newest checkpoint in `out`.
        progress: told of phases and steps.

    Raises:
        DataError: there are no labelled images to train on or to score, or patients of both.
        RunError: `out` holds another run.
        UsageError: an unknown task.
        WeightsError: the encoder's weights do not fill the network.
    """
    one_process("fine-tuning")
    doing, config, out = task_named(task), config or FinetuneConfig(), Path(out)
    loaded = as_encoder(encoder, allow_partial=allow_partial)
    design = Design(loaded, loaded if loaded is not None else network or DynUNetConfig())
    if not resume or not any((out / name).exists() for name in ("finetune.json", "store")):
        check_new(out)
    if loaded is None and not isinstance(data, Store):
        prepare = doing.preparation(data, config, prepare)
    store = open_data(
        data,
        out / "store",
        preparation=loaded.preparation if loaded is not None else None,
        prepare=prepare,
        progress=progress,
    )
    config = doing.settle(config, design, store)
    chosen = tuple(images) if images is not None else doing.images(store, "train", config)
    splits = {config.split, *(("validation",) if config.stop_after else ())}
    check_apart(store, chosen, {split: doing.images(store, split, config) for split in sorted(splits)})
    _claim(out, doing, design, store, config, chosen)
    trained, training = train_network(doing, design, store, config, chosen, out, resume=resume, progress=progress)
    return _finish(out, doing, design, store, config, chosen, trained, training, progress)


def _finish(
    out: Path,
    task: Task,
    design: Design,
    store: Store,
    config: FinetuneConfig,
    chosen: Sequence[str],
    network: TaskNetwork,
    training: TrainResult,
    progress: Progress,
) -> FinetuneResult:
    """Save a trained network, score it, and write its scores beside it."""
    scored = task.images(store, config.split, config)
    card = _card(task, design, store, config, chosen, network)
    saved = save_network(out / network.kind, network, preparation=store.preparation, card=card)
    keep = task.keeper(out / "predictions", store)
    scores = task.score(network, store, config, scored, progress=progress, keep=keep)
    summary = task.summary(scores, store, config)
    result = FinetuneResult(
        out=out,
        task=task.name,
        measure=task.measured(store, config),
        value=float(mean_of(task.table(scores, store, config))),
        network=saved,
        start="encoder" if design.encoder is not None else "scratch",
        scores=scores,
        summary=summary,
        lines=tuple(task.lines(summary)),
        split=config.split,
        patients=len({store.row(image_id).subject_id for image_id in scored}),
        labelled=len(chosen),
        training=training,
        receipt=network.receipt,
    )
    write_json(out / "scores.json", without(result.to_dict(), "out", "network", "bundle"))
    return result


def train_network(
    task: Task,
    design: Design,
    store: Store,
    config: FinetuneConfig,
    images: Sequence[str],
    out: Path,
    *,
    resume: bool = False,
    progress: Progress = silent,
) -> tuple[TaskNetwork, TrainResult]:
    """Build a task's network and train it on these images.

    Returns:
        The network in eval mode, on the device it was trained on, and what the training came to. With
        `config.stop_after` its weights are those of the best look at the validation images.
    """
    config = task.settle(config, design, store)
    network = task.build(design, store, config, images)
    best = None
    if config.stop_after:
        best = BestWeights(task, store, task.images(store, "validation", config), config)
    loader = task.loader(network, store, config, images)
    try:
        result = train(
            task.method(network, store, config, images, loader.facts(config.steps)),
            loader,
            train_config(config),
            out,
            observers=[best] if best is not None else [],
            resume=resume,
            progress=progress,
            name="fine-tune",
        )
    finally:
        loader.close()
    if best is not None:
        best.restore(network)
        known = {
            f"validation/best_{task.measured(store, config)}": best.best_value,
            "validation/best_step": float(best.best_step),
        }
        result = replace(result, metrics={**result.metrics, **known})
    merge_low_rank(network)
    return network.eval(), result


def _claim(out: Path, task: Task, design: Design, store: Store, config: FinetuneConfig, images: Sequence[str]) -> None:
    """Write what decides the run into its folder, or check that it is the same run that is there."""
    known = {
        "task": task.name,
        "start": design.fingerprint,
        "from_scratch": design.encoder is None,
        "store": store.fingerprint,
        "images": list(images),
        "finetune": task.decides(config),
    }
    path = out / "finetune.json"
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        if fingerprint(before) != fingerprint(known):
            changed = [key for key in known if before.get(key) != known[key]]
            raise RunError(
                f"the run was started otherwise: another {', '.join(changed)}",
                where=str(out),
                fix="resume with the same values, or name a new folder",
            )
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, known)


def _card(
    task: Task, design: Design, store: Store, config: FinetuneConfig, images: Sequence[str], network: TaskNetwork
) -> str:
    patients = len({store.row(image_id).subject_id for image_id in images})
    origin = "a pretrained encoder" if design.encoder is not None else "random weights"
    return f"""# {network.kind}

A {network.spec["encoder"]["name"]} for {task.name} of {sum(p.numel() for p in network.parameters()):,} parameters,
trained from {origin}.

{task.card(network, config)}
- Data: {len(images)} labelled images of {patients} patients, {config.steps} steps of {config.batch_size} crops of
  {" x ".join(str(n) for n in network.shape)} voxels.
- Preparation: `preparation.json`; images must go through it first.
- Scores: `scores.json` of its run, on the split `{config.split}`.

Not known: how it does on other scanners, sites or patients than those it saw. It is no medical device.
"""
