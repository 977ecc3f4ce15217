"""Section: the base of every part of a recipe."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A frozen part of a recipe. Unknown keys are refused; a field's docstring is its help and its schema."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)


def no_result(default: Any, **constraints: Any) -> Any:
    """Declare a field that changes how fast a result comes, but not the result (number of workers, say).

    Such fields stay out of fingerprints, so that a run may be resumed with other values of them.
    """
    return Field(default, json_schema_extra={"changes_result": False}, **constraints)


def result_fields(section: BaseModel) -> dict[str, Any]:
    """Return the values of a section that decide its result, as plain JSON types."""
    out: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("changes_result") is False:
            continue
        out[name] = _plain(getattr(section, name))
    return out


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return result_fields(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def fingerprint(value: Any) -> str:
    """Name a value by its content: 16 hexadecimal digits, equal on every machine for equal values."""
    text = json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
