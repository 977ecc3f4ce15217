"""From a recipe and a store to a run: composes encoder, method, engine and probe."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from .batch import Facts, hash64
from .config import result_fields
from .errors import RecipeError, RunError, UsageError
from .files import check_new, new_folder, write_json, write_text
from .loading import Loader
from .methods.catalogue import METHODS, method_class
from .methods.method import Method
from .nets.encoder import Encoder, build_encoder, network_folder, save_network
from .prepare import build_store
from .probe import DenseProbe
from .progress import Progress, silent
from .recipe import Recipe, parse_recipe, recipe_yaml
from .store import Store
from .train import TrainResult, train
from .train.checkpoint import newest_checkpoint
from .train.distributed import process_group

Data = Store | os.PathLike[str] | str | Mapping[str, Store | os.PathLike[str] | str]
"""One store (or index) for the recipe's one stream, or several by the streams' names."""


@dataclass(frozen=True)
class RunResult:
    """A pretraining run.

    `encoder` is the folder of its (first) encoder; `encoders` are all of them by name.
    """

    run: Path
    encoder: Path
    encoders: Mapping[str, Path]
    training: TrainResult
    receipt: str = ""
    warnings: tuple[str, ...] = field(default_factory=tuple)

    def __str__(self) -> str:
        lines = [f"pretrained: {self.training}", f"encoder: {self.encoder}"]
        if self.receipt:
            lines.append(f"it started from weights: {self.receipt}")
        return "\n".join([*lines, *(f"note: {text}" for text in self.warnings)])

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "run": str(self.run),
            "encoder": str(self.encoder),
            "encoders": {name: str(path) for name, path in self.encoders.items()},
            "training": self.training.to_dict(),
            "receipt": self.receipt,
            "warnings": list(self.warnings),
        }


def named_data(words: Sequence[str]) -> Data:
    """Read `[NAME=]STORE` as the command line has it."""
    if len(words) == 1 and ("=" not in words[0] or Path(words[0]).exists()):
        return Path(words[0])
    pairs = [word.partition("=") for word in words]
    if any(not equals for _, equals, _ in pairs):
        raise UsageError(
            "several stores need names", where=" ".join(words), fix="as in --data ct=STORE --data mr=STORE"
        )
    if len({name for name, _, _ in pairs}) < len(pairs):
        raise UsageError("two stores have one name", where=" ".join(words), fix="give each stream one store")
    return {name: Path(path) for name, _, path in pairs}


def pretrain_encoder(
    recipe: Recipe, data: Data, out: Path | str, *, resume: bool = False, progress: Progress = silent
) -> RunResult:
    """Train an encoder as a recipe says, into a run folder.

    Args:
        recipe: see `load_recipe`.
        data: store of each stream, or index, which is first prepared into a store beside the run, `OUT.store`.
        out: the run: `recipe.yaml`, `environment.json`, `metrics.jsonl`, `checkpoints/`, `encoder/`.
        resume: go on from the newest checkpoint of the same run; without one it starts anew and says so.
        progress: told of phases and steps.

    Raises:
        RunError: `out` holds another run, or training cannot go on.
        WeightsError: the recipe's weights do not fill the encoder.
    """
    out = Path(out)
    with process_group() as (rank, ranks):
        new = not (out / "recipe.yaml").exists()
        if rank == 0 and (new or not resume):
            check_new(out)
        if rank == 0:
            stores = _open_stores(recipe, data, out, progress)
        if ranks > 1:
            torch.distributed.barrier()  # an index is prepared by one rank
        if rank > 0:
            stores = _open_stores(recipe, data, out, progress)
        if not new:
            _check_same(recipe, stores, out)
        single = next(iter(stores.values())) if len(stores) == 1 else None
        loader = Loader(single if single is not None else stores, recipe.loader, recipe.train.seed)
        begun = resume and newest_checkpoint(out / "checkpoints") is not None
        notes: tuple[str, ...] = ()
        if resume and not begun:
            notes = ("there was no checkpoint to resume from: the run started anew",)
        # A checkpoint holds what the first weights became: a run goes on where they are no longer to be found.
        method, encoder = build_method(_without_weights(recipe) if begun else recipe, loader.facts(recipe.train.steps))
        if new and rank == 0:
            _begin(out, recipe, stores, encoder)
        observers = []
        if single is not None and recipe.probe.every and DenseProbe.possible(single, recipe.probe):
            observers.append(DenseProbe(single, recipe.probe, name=next(iter(method.encoders()))))
        try:
            result = train(
                method,
                loader,
                recipe.train,
                out,
                observers=observers,
                resume=resume,
                progress=progress,
                name="pretrain",
            )
        finally:
            loader.close()
        folders = {}
        for name, leaving in method.encoders().items():
            folders[name] = out / name
            if rank == 0:
                card = model_card(name, leaving, recipe, stores, result)
                preparation = next(iter(stores.values())).preparation
                save_network(out / name, leaving.cpu(), preparation=preparation, card=card)
        if ranks > 1:
            torch.distributed.barrier()
    receipt = (out / "receipt.txt").read_text(encoding="utf-8").rstrip() if (out / "receipt.txt").is_file() else ""
    return RunResult(out, next(iter(folders.values())), folders, result, receipt, notes)


def _begin(out: Path, recipe: Recipe, stores: Mapping[str, Store], encoder: Encoder) -> None:
    """Make the run's folder, with all that says what run it is, once nothing can go wrong before the first step."""
    with new_folder(out) as folder:
        write_json(folder / "environment.json", environment(stores) | {"weights": _weights_hash(recipe)})
        write_text(folder / "recipe.yaml", recipe_yaml(_shareable(recipe)))
        if encoder.receipt is not None:
            write_text(folder / "receipt.txt", f"{encoder.receipt}\n")


def _shareable(recipe: Recipe) -> Recipe:
    """Return the recipe without the folders in which its first weights lie: a run may be handed on, paths may not."""
    weights = recipe.encoder.weights
    return recipe if weights is None else _with_weights(recipe, Path(weights.name))


def _without_weights(recipe: Recipe) -> Recipe:
    return _with_weights(recipe, None)


def _with_weights(recipe: Recipe, weights: Path | None) -> Recipe:
    return recipe.model_copy(update={"encoder": recipe.encoder.model_copy(update={"weights": weights})})


def _weights_hash(recipe: Recipe) -> str:
    """Name the content of the first weights; empty where there are none, or they are gone."""
    weights = recipe.encoder.weights
    if weights is None or not weights.exists():
        return ""
    file = network_folder(weights, ("encoder",)) / "model.safetensors" if weights.is_dir() else weights
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def build_method(recipe: Recipe, facts: Facts) -> tuple[Method, Encoder]:
    """Build the recipe's encoder and the method around it, with weights drawn from the recipe's seed."""
    cls = method_class(recipe.method.name)
    if recipe.loader.streams and not cls.several_streams:
        raise RecipeError(
            f"the method {recipe.method.name} takes one stream, the recipe names {', '.join(recipe.loader.streams)}",
            where="recipe key loader.streams",
            fix="leave streams out",
        )
    stream = next(iter(facts.streams.values()))
    with torch.random.fork_rng(devices=[]):  # weights are drawn on the CPU
        torch.default_generator.manual_seed(hash64(recipe.train.seed, "weights") & ((1 << 63) - 1))
        encoder = build_encoder(
            recipe.encoder, channels=stream.channels, shape=stream.shape, spacing_mm=stream.spacing_mm
        )
        method = cls(recipe.method, encoder, facts)
    return method, encoder


def _open_stores(recipe: Recipe, data: Data, out: Path, progress: Progress) -> dict[str, Store]:
    named: Mapping[str, Any] = data if isinstance(data, Mapping) else {"": data}
    streams = set(recipe.loader.streams)
    if streams and set(named) != streams:
        raise UsageError(
            f"the recipe has the streams {', '.join(sorted(streams))}, and data is named {', '.join(map(repr, named))}",
            fix="give one [NAME=]STORE a stream",
        )
    if not streams and len(named) > 1:
        raise UsageError(
            f"the recipe has no streams, and {len(named)} stores are given",
            fix="give one store, or name loader.streams",
        )
    stores = {}
    for name, value in named.items():
        if isinstance(value, (str, os.PathLike)):
            path = Path(value)
            if (path / "index.parquet").is_file():
                target = out.parent / f"{out.name}.store{'-' + name if name else ''}"
                path = build_store(path, recipe.prepare, target, progress=progress).store
            value = Store.open(path)
        stores[name] = value
    return stores


def _check_same(recipe: Recipe, stores: Mapping[str, Store], out: Path) -> None:
    try:
        before = parse_recipe(yaml.safe_load((out / "recipe.yaml").read_text(encoding="utf-8")), name="recipe.yaml")
        began = json.loads((out / "environment.json").read_text(encoding="utf-8"))
        known, weights = began["stores"], began.get("weights", "")
    except (OSError, ValueError, KeyError) as error:
        raise RunError("the run's own recipe cannot be read", where=str(out), fix="start a new run") from error
    shared = _shareable(recipe)
    if before.fingerprint != shared.fingerprint:
        changed = _differences(result_fields(before), result_fields(shared))
        raise RunError(
            f"the run was started with another recipe: {'; '.join(changed[:3])}",
            where=str(out),
            fix="resume with the same values, or start a new run",
        )
    if weights and (now := _weights_hash(recipe)) and now != weights:
        raise RunError(
            "the run was started from other weights", where="recipe key encoder.weights", fix="name the same weights"
        )
    if known != {name: store.fingerprint for name, store in stores.items()}:
        raise RunError("the run was started on other data", where=str(out), fix="resume with the same store")


def _differences(one: Any, two: Any, key: str = "") -> list[str]:
    if isinstance(one, dict) and isinstance(two, dict):
        names = sorted({*one, *two})
        return [text for n in names for text in _differences(one.get(n), two.get(n), f"{key}.{n}".lstrip("."))]
    return [] if one == two else [f"{key} was {one!r}, is {two!r}"]


def environment(stores: Mapping[str, Store]) -> dict[str, Any]:
    """Return what a run ran on: versions and devices, and the fingerprints of its data. No names, no paths."""
    packages = ("medssl", "torch", "monai", "numpy", "blosc2", "nibabel", "pydicom", "timm")
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": accelerator.type if accelerator else "none",
        "packages": {name: _version(name) for name in packages},
        "stores": {name: store.fingerprint for name, store in stores.items()},
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def model_card(name: str, encoder: Any, recipe: Recipe, stores: Mapping[str, Store], result: TrainResult) -> str:
    """Write an encoder's model card: what it is, what it saw, how to load it, what is not known of it."""
    images = sum(len(store.ids) for store in stores.values())
    subjects = len({row.subject_id for store in stores.values() for row in store.rows})
    loss = result.metrics.get("loss/total")
    parameters = sum(p.numel() for p in encoder.parameters())
    last = f", last loss {loss:.4g}" if loss is not None else ""
    return f"""# {name}

A {recipe.encoder.name} of {parameters:,} parameters, pretrained without labels by `{recipe.method.name}`
({METHODS.get(recipe.method.name, ("", "", ""))[2]}).

- Data: {images} images of {subjects} subjects; the recipe read the split `{recipe.loader.split}`.
- Preparation: `preparation.json`; images must go through it first.
- Training: {result.steps} steps of {recipe.loader.batch_size} samples{last}; `config.json` and the run's `recipe.yaml`
  hold every value.
- Load: `medssl.load_encoder(folder)`; or `model.safetensors` strictly into the network's own class.

Not known: how it does on other scanners, sites, anatomies or patients than those it saw. It is no medical device.
"""
