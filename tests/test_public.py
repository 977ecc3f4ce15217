"""Laws of the public names."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import medssl


@pytest.mark.parametrize("name", medssl.__all__)
def test_every_public_name_is_there_and_explained(name: str) -> None:
    assert getattr(medssl, name).__doc__


def test_no_public_name_is_that_of_a_module() -> None:
    """Importing the module would put it in the name's place. `finetune` lies in a package of another name."""
    assert not {module.name for module in pkgutil.iter_modules(medssl.__path__)} & set(medssl.__all__)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'pretrain_decoder'"):
        importlib.import_module("medssl").pretrain_decoder  # noqa: B018
