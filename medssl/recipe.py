"""A recipe: what to prepare, load, build and train, as YAML that mirrors the sections of the packages that own them."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, Field, SerializeAsAny, ValidationError, field_validator

from .config import Section, fingerprint
from .downstream import FinetuneConfig
from .errors import RecipeError
from .loading import LoaderConfig
from .methods.catalogue import METHODS, method_class
from .methods.method import MethodConfig
from .nets.encoder import EncoderConfig
from .prepare import PrepareConfig
from .probe import ProbeConfig
from .train import TrainConfig


class Recipe(Section):
    """Everything a pretraining run is decided by."""

    prepare: PrepareConfig
    """How images become voxels of a store."""
    loader: LoaderConfig
    """What one sample and one batch are."""
    encoder: EncoderConfig
    """The network that leaves."""
    method: SerializeAsAny[MethodConfig]
    """What it learns from."""
    train: TrainConfig = TrainConfig()
    """How long, how fast."""
    probe: ProbeConfig = ProbeConfig()
    """How its frozen features are judged."""
    finetune: FinetuneConfig = Field(default_factory=FinetuneConfig)
    """How it is fine-tuned."""

    @field_validator("method", mode="before")
    @classmethod
    def _named_method(cls, value: Any) -> Any:
        if isinstance(value, MethodConfig):
            return value
        if not isinstance(value, dict) or "name" not in value:
            raise ValueError(f"needs a name, one of {', '.join(METHODS)}")
        return method_class(str(value["name"])).Config.model_validate(value)

    @property
    def fingerprint(self) -> str:
        """Name this recipe by what decides its result."""
        return fingerprint(self)


def recipe_folders() -> list[Path]:
    """Return where named recipes lie: inside the installed package, or beside it in a checkout."""
    here = Path(__file__).parent
    return [folder for folder in (here / "recipes", here.parent / "recipes") if folder.is_dir()]


def recipe_names() -> dict[str, Path]:
    """Return the shipped recipes by name."""
    return {path.stem: path for folder in recipe_folders() for path in sorted(folder.glob("*.yaml"))}


def load_recipe(source: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe, by its name or from a file.

    Args:
        source: a name such as `anatomy-hippocampus`, or the path of a YAML file.
        overrides: `section.key=value`, the value read as YAML.

    Raises:
        RecipeError: every key that is unknown or wrong, each with its line and the nearest valid key.
    """
    path = _find(str(source))
    try:
        text = path.read_text(encoding="utf-8")
        values = yaml.load(text, Loader=_Loader)
    except UnicodeDecodeError as error:
        raise RecipeError("the recipe is not UTF-8 text", where=str(path), fix="save it as UTF-8") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise RecipeError(
            f"the recipe is not YAML: {getattr(error, 'problem', error)}", where=where, fix="mend that line"
        ) from error
    if not isinstance(values, dict):
        raise RecipeError("the recipe holds no sections", where=str(path), fix="see `medssl recipes --schema`")
    lines = _lines(text)
    for override in overrides:
        _override(values, override)
    return parse_recipe(values, name=str(path), lines=lines)


def parse_recipe(values: dict[str, Any], *, name: str = "recipe", lines: dict[str, int] | None = None) -> Recipe:
    """Check plain values against the recipe's sections; see `load_recipe`."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        messages = [_message(problem, name, lines or {}) for problem in error.errors(include_url=False)]
        raise RecipeError("\n".join(dict.fromkeys(messages))) from error


def recipe_yaml(recipe: Recipe) -> str:
    """Write a recipe with every value spelled out; reading it gives an equal recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


def recipe_schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe, with every method's knobs."""
    schema = Recipe.model_json_schema()
    methods = [method_class(name).Config.model_json_schema(ref_template="#/$defs/{model}") for name in METHODS]
    definitions = schema.setdefault("$defs", {})
    for name, method in zip(METHODS, methods):
        definitions |= method.pop("$defs", {})
        definitions[f"method.{name}"] = method
    schema["properties"]["method"] = {"oneOf": [{"$ref": f"#/$defs/method.{name}"} for name in METHODS]}
    return schema


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, as people mean it, and a key may stand only once."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    out: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node)
        if key in out:
            raise yaml.MarkedYAMLError(problem=f"key {key!r} stands twice", problem_mark=key_node.start_mark)
        out[key] = loader.construct_object(value_node, deep=True)
    return out


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def _find(source: str) -> Path:
    path = Path(source)
    if path.suffix in {".yaml", ".yml"} or path.is_file():
        if path.is_file():
            return path
        raise RecipeError("there is no such recipe file", where=source, fix="check the path")
    names = recipe_names()
    if source in names:
        return names[source]
    near = get_close_matches(source, names, 1)
    hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(names)}, or name a .yaml file"
    raise RecipeError(f"no recipe is called {source!r}", fix=hint)


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise RecipeError(f"--set {override!r} is not of the form section.key=value", fix="as in --set train.steps=200")
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"the value of --set {override!r} is not YAML", fix="quote it") from error
    at = values
    for part in parts[:-1]:
        at = at.setdefault(part, {})
        if not isinstance(at, dict):
            raise RecipeError(
                f"--set {override!r}: {part} holds a value, not keys", fix="see `medssl recipes --schema`"
            )
    at[parts[-1]] = value


def _lines(text: str) -> dict[str, int]:
    """Return the line of every dotted key."""
    out: dict[str, int] = {}

    def walk(node: Any, prefix: str) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                name = f"{prefix}{key.value}"
                out[name] = key.start_mark.line + 1
                walk(value, f"{name}.")
        elif isinstance(node, yaml.SequenceNode):
            for i, value in enumerate(node.value):
                out[f"{prefix}{i}"] = value.start_mark.line + 1
                walk(value, f"{prefix}{i}.")

    walk(yaml.compose(text, Loader=yaml.SafeLoader), "")
    return out


def _message(problem: Any, name: str, lines: dict[str, int]) -> str:
    steps = [str(step) for step in problem["loc"]]
    steps = [s for i, s in enumerate(steps) if not (i and steps[i - 1] == "encoder" and s in _encoder_names())]
    key = ".".join(steps)
    line = lines.get(key)
    where = f"{name}, line {line}" if line else name
    if problem["type"] == "extra_forbidden":
        near = get_close_matches(steps[-1], _siblings(steps), 1)
        fix = f"did you mean {'.'.join([*steps[:-1], near[0]])}?" if near else "see `medssl recipes --schema`"
        return str(RecipeError(f"recipe key {key} is unknown", where=where, fix=fix))
    if problem["type"] == "missing":
        return str(RecipeError(f"recipe key {key} is missing", where=where, fix="add it"))
    found = problem.get("input")
    shown = f", found {found!r}" if isinstance(found, (str, int, float, bool, list)) else ""
    what = problem["msg"].removeprefix("Value error, ")
    return str(RecipeError(f"recipe key {key}: {what[:1].lower()}{what[1:]}{shown}", where=where))


@functools.cache
def _encoder_names() -> frozenset[str]:
    union = get_args(EncoderConfig)[0]
    return frozenset(str(cls.model_fields["name"].default) for cls in get_args(union))


def _siblings(steps: list[str]) -> list[str]:
    """Return the keys that are valid where a wrong one stands."""
    candidates: list[type[BaseModel]] = [Recipe]
    for step in steps[:-1]:
        found: list[type[BaseModel]] = []
        for model in candidates:
            field = model.model_fields.get(step)
            if field is not None:
                found += _models(field.annotation)
        if step == "method":
            found = [method_class(name).Config for name in METHODS]
        candidates = found or candidates
    return sorted({key for model in candidates for key in model.model_fields})


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]
