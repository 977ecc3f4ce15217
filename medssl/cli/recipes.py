"""medssl recipes, medssl methods: what there is."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from .terminal import JsonFlag


def recipes(
    name: Annotated[str | None, Argument(help="Print this recipe, by name or as a YAML file.")] = None,
    schema: Annotated[bool, Option("--schema", help="Print the JSON schema of a recipe.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """List the recipes that ship, print one, or print the schema of all."""
    from medssl.recipe import load_recipe, recipe_names, recipe_schema

    if schema:
        sys.stdout.write(json.dumps(recipe_schema(), indent=2) + "\n")
        return
    names = recipe_names()
    if name is not None:
        recipe = load_recipe(name)
        path = names.get(name, Path(name))
        text = path.read_text(encoding="utf-8")
        sys.stdout.write(json.dumps(recipe.model_dump(mode="json")) + "\n" if as_json else text)
        return
    heads = {key: path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ") for key, path in names.items()}
    lines = [f"{key:24} {head}" for key, head in heads.items()]
    sys.stdout.write((json.dumps(heads) if as_json else "\n".join(lines)) + "\n")


def methods(as_json: JsonFlag = False) -> None:
    """List the pretraining methods."""
    from medssl.methods.catalogue import METHODS

    said = {name: text for name, (_, _, text) in METHODS.items()}
    lines = [f"{name:12} {text}" for name, text in said.items()]
    sys.stdout.write((json.dumps(said) if as_json else "\n".join(lines)) + "\n")
