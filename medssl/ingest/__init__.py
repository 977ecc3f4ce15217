"""Folders of scans to an index: find images by content, judge them, name every problem, split by subject."""

from __future__ import annotations

from .build import IndexResult, build_index
from .subjects import Fractions

__all__ = ["Fractions", "IndexResult", "build_index"]
