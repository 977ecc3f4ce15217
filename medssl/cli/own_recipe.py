"""Which recipe a command follows that is not told one: that of the run its encoder came from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..recipe import Recipe


def find_recipe(recipe: str | None, encoders: Sequence[str | Path], overrides: Sequence[str]) -> Recipe | None:
    """Return the named recipe, else that of the first encoder's run; None where there is neither.

    Args:
        recipe: a name or a file, if one was given.
        encoders: runs, folders of encoders, or `none`.
        overrides: `section.key=value`.

    Raises:
        UsageError: there are overrides and nothing to override.
    """
    from ..errors import UsageError
    from ..recipe import load_recipe

    if recipe is not None:
        return load_recipe(recipe, overrides)
    for encoder in encoders:
        folder = Path(encoder)
        for place in (folder / "recipe.yaml", folder.parent / "recipe.yaml"):
            if str(encoder) != "none" and place.is_file():
                return load_recipe(place, overrides)
    if overrides:
        raise UsageError("--set has no recipe to change", where=" ".join(overrides), fix="give --recipe")
    return None
