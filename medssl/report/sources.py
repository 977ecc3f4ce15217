"""What a page is written from: the files of a run, and results given as objects, dicts or JSON files.

Paths are taken out here, so that no later step can print one.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..errors import DataError, RecipeError
from ..recipe import parse_recipe

_ENVIRONMENT = ("python", "system", "machine", "cpus", "threads", "accelerator")
"""What is shown of `environment.json`, beside packages and stores; an entry that is not named here stays out."""

_PATH = re.compile(
    r"""(?:(?<=[\s'"=(,])|^)(?:file:/+|~\w*/|[A-Za-z]:[\\/]|\\\\|/)(?:[^\s'"<>,;()]*[\\/])?(?=[^\s\\/])"""
)
_WHOLE_PATH = re.compile(r"^(?:file:/+|~\w*/|[A-Za-z]:[\\/]|\\\\|/|\.{1,2}[\\/])")
_PATH_KEYS = ("weights",)

_LARGEST_PANEL = 4096


@dataclass(frozen=True)
class RunFiles:
    """A pretraining run as its folder tells it."""

    recipe: Mapping[str, Any]
    recipe_text: str
    fingerprint: str
    """Of the recipe; empty where this version does not read it."""
    environment: Mapping[str, Any]
    packages: Mapping[str, str]
    stores: Mapping[str, str]
    """Stream to the fingerprint of its store."""
    metrics: tuple[Mapping[str, Any], ...]
    seconds: float
    """Time of the steps that are in the log."""
    data_wait: float
    """Share of it spent waiting for data."""
    panels: Mapping[str, bytes]
    encoders: Mapping[str, str]
    """Encoder to the SHA-256 of its weights."""
    receipt: str

    def value(self, key: str, default: Any = None) -> Any:
        """Return a recipe's value by its dotted key."""
        at: Any = self.recipe
        for part in key.split("."):
            at = at.get(part) if isinstance(at, Mapping) else None
        return default if at is None else at

    def points(self, name: str) -> tuple[list[int], list[float]]:
        """Return steps and values of a scalar; nan where it was not finite."""
        lines = [line for line in self.metrics if name in line]
        return [line["step"] for line in lines], [float("nan") if line[name] is None else line[name] for line in lines]

    def names(self, start: str) -> list[str]:
        """Return the scalars whose names start so, in the order of the alphabet."""
        return sorted({name for line in self.metrics for name in line if name.startswith(start)})


def read_run(run: Any) -> RunFiles:
    """Read the folder of a run, or of a `RunResult`.

    Raises:
        DataError: it is no pretraining run, or its recipe cannot be read.
    """
    folder = Path(getattr(run, "run", run))
    if not (folder / "recipe.yaml").is_file():
        what = "this folder does not exist" if not folder.exists() else "this is no pretraining run: no recipe.yaml"
        raise DataError(what, where=str(folder), fix="name a folder that `medssl pretrain` wrote")
    try:
        recipe = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise _unreadable("recipe.yaml", folder, error) from error
    if not isinstance(recipe, dict):
        raise DataError("recipe.yaml holds no sections", where=str(folder), fix="restore the file, or train again")
    environment = _json_object(folder / "environment.json") if (folder / "environment.json").is_file() else {}
    shown = without_paths(recipe)
    times = _lines(folder / "times.jsonl")
    seconds = sum(float(line.get("seconds") or 0) for line in times)
    waited = sum(float(line.get("data_wait") or 0) for line in times)
    return RunFiles(
        recipe=shown,
        recipe_text=yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, width=100, default_flow_style=None),
        fingerprint=_fingerprint(recipe),
        environment={key: without_paths(environment[key]) for key in _ENVIRONMENT if key in environment},
        packages=_words(environment.get("packages")),
        stores=_words(environment.get("stores")),
        metrics=tuple(line for line in _lines(folder / "metrics.jsonl") if isinstance(line.get("step"), int)),
        seconds=seconds,
        data_wait=waited / seconds if seconds else 0.0,
        panels=_panels(folder / "panels"),
        encoders=_encoders(folder),
        receipt=str(without_paths(_receipt(run, folder))),
    )


def _receipt(run: Any, folder: Path) -> str:
    """Return how the first weights were loaded: as the result says, else as the run wrote it down."""
    path = folder / "receipt.txt"
    said = str(getattr(run, "receipt", ""))
    return said or (path.read_text(encoding="utf-8").rstrip() if path.is_file() else "")


def read_result(value: Any, *, needs: Sequence[str], file: str, command: str) -> dict[str, Any] | None:
    """Take a result as an object with `to_dict`, as a dict, as a JSON file, or as the folder that holds it.

    Args:
        value: the result; None stays None.
        needs: keys that it must have.
        file: its name in a folder.
        command: what makes one, for messages.

    Raises:
        DataError: there is no such file, or it is no such result.
    """
    if value is None:
        return None
    where = "the given result"
    if isinstance(value, (str, Path)):
        path = Path(value)
        path = path / file if path.is_dir() else path
        if not path.is_file():
            raise DataError(f"there is no result of `{command}` here", where=str(path), fix=f"make one by `{command}`")
        value, where = _json_object(path), str(path)
    found: dict[str, Any] = dict(value) if isinstance(value, Mapping) else value.to_dict()
    check_keys(found, needs=needs, command=command, where=where)
    return found


def check_keys(found: Mapping[str, Any], *, needs: Sequence[str], command: str, where: str) -> None:
    """Raise DataError unless a result has what it must have."""
    if missing := [key for key in needs if key not in found]:
        raise DataError(
            f"this is no result of `{command}`: it lacks {', '.join(missing)}",
            where=where,
            fix=f"run `{command}` again",
        )


def without_paths(value: Any, key: str = "") -> Any:
    """Return plain values in which a path is only its last name."""
    if isinstance(value, Mapping):
        return {str(name): without_paths(item, str(name)) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_paths(item, key) for item in value]
    if not isinstance(value, str):
        return value
    if key in _PATH_KEYS or (_WHOLE_PATH.match(value) and "\n" not in value):
        last = re.split(r"[\\/]+", value.rstrip("\\/"))[-1]
        return last if last == value else f"…/{last}"
    return _PATH.sub("…/", value)


def _fingerprint(recipe: dict[str, Any]) -> str:
    try:
        return parse_recipe(recipe).fingerprint
    except RecipeError:
        return ""  # written by another version; the page says so


def _json_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unreadable(path.name, path.parent, error) from error
    if not isinstance(value, dict):
        raise DataError(f"{path.name} holds no JSON object", where=str(path.parent), fix="write it again")
    return value


def _unreadable(name: str, folder: Path, error: Exception) -> DataError:
    return DataError(
        f"{name} cannot be read: {type(error).__name__}", where=str(folder), fix="restore the file, or write it again"
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines up to the first that is damaged: a killed run may have cut its last one short."""
    out: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            value = json.loads(line)
        except ValueError:
            break
        if isinstance(value, dict):
            out.append(value)
    return out


def _words(value: Any) -> dict[str, str]:
    return {str(k): str(without_paths(str(v))) for k, v in value.items()} if isinstance(value, Mapping) else {}


def _panels(folder: Path) -> dict[str, bytes]:
    """Decode the pictures and encode them again: what a PNG may carry beside its pixels stays behind."""
    from PIL import Image

    out = {}
    for path in sorted(folder.glob("*.png")):
        try:
            with Image.open(path) as picture:
                if max(picture.size) > _LARGEST_PANEL:
                    continue
                pixels = Image.fromarray(_array(picture))
        except (OSError, ValueError, SyntaxError):
            continue
        data = io.BytesIO()
        pixels.save(data, "PNG", optimize=True)
        out[path.stem] = data.getvalue()
    return out


def _array(picture: Any) -> Any:
    import numpy as np

    return np.asarray(picture.convert("RGB"))


def _encoders(folder: Path) -> dict[str, str]:
    out = {}
    for path in sorted(folder.glob("*/model.safetensors")):
        with path.open("rb") as file:
            out[path.parent.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return out
