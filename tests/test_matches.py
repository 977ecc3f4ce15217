"""Matches come back as they were written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medssl.errors import DataError
from medssl.matches import Matches


def test_matches_come_back_as_they_were_written(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0)
    written = Matches(
        image_id=("b", "a", "b"),
        point_mm=numbers.normal(size=(3, 3)),
        partner_id=("a", "b", "c"),
        partner_mm=numbers.normal(size=(3, 3)),
        score=numbers.random(3),
        cycle_mm=numbers.random(3),
        store="s",
        encoder="e",
    )
    written.write(tmp_path)
    read = Matches.open(tmp_path)
    for name in ("point_mm", "partner_mm", "score", "cycle_mm"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
    assert (read.image_id, read.partner_id, read.store, read.encoder) == (("b", "a", "b"), ("a", "b", "c"), "s", "e")
    assert read.images == ("a", "b")
    assert read.of("b").tolist() == [0, 2]
    assert len(read.of("c")) == 0


def test_columns_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="score"):
        Matches(("a",), np.zeros((1, 3)), ("b",), np.zeros((1, 3)), np.zeros(2), np.zeros(1))


def test_a_folder_without_matches_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no matches here"):
        Matches.open(tmp_path)
