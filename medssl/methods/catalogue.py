"""Which methods there are, and where; imports none of them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from ..errors import RecipeError

if TYPE_CHECKING:
    from .method import Method

METHODS: dict[str, tuple[str, str, str]] = {
    "mae": ("medssl.methods.mae", "MAE", "masked autoencoding, of a ViT's tokens or of a U-Net's voxels"),
    "anatomy": ("medssl.methods.anatomy", "Anatomy", "dense contrast at corresponding points of two views"),
}
"""Name in a recipe: module, class, and what it does in one line."""


def method_class(name: str) -> type[Method]:
    """Import the class of a method by the name a recipe has for it.

    Raises:
        RecipeError: there is no such method.
    """
    if name not in METHODS:
        from difflib import get_close_matches

        near = get_close_matches(name, METHODS, 1)
        raise RecipeError(
            f"method {name!r} is unknown",
            where="recipe key method.name",
            fix=f"did you mean {near[0]}?" if near else f"choose one of {', '.join(METHODS)}",
        )
    module, cls, _ = METHODS[name]
    found: type[Method] = getattr(importlib.import_module(module), cls)
    return found
