"""Subjects are keyed hashes; splits depend on seed and subject alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medssl.errors import DataError, MedsslError
from medssl.ingest.subjects import Fractions, Names, key_file, read_subjects, site_key, split_of

KEY = b"sixteen bytes or"


@given(st.text(min_size=1), st.text(min_size=1))
def test_ids_differ_for_different_patients_keys_and_kinds(one: str, two: str) -> None:
    names = Names(KEY)
    ids = {names.of("subject", one), names.of("study", one), Names(KEY + b"x").of("subject", one)}
    assert len(ids) == 3
    assert (names.of("subject", one) == names.of("subject", two)) == (one == two)
    assert all(len(name) == 16 and set(name) <= set("0123456789abcdef") for name in ids)


def test_splits_follow_the_fractions_and_change_with_the_seed() -> None:
    subjects = [f"{n:016x}" for n in range(4000)]
    first, second = ([split_of(s, seed=seed, fractions=Fractions()) for s in subjects] for seed in (0, 1))
    for split, share in (("train", 0.7), ("validation", 0.1), ("test", 0.2)):
        assert first.count(split) / 4000 == pytest.approx(share, abs=0.03)
    same = sum(a == b for a, b in zip(first, second)) / 4000
    assert same == pytest.approx(0.7**2 + 0.1**2 + 0.2**2, abs=0.03)


def test_fractions_that_do_not_sum_to_one_are_refused() -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        Fractions(0.5, 0.1, 0.1)


def test_the_sites_key_is_made_once_and_for_its_owner_alone() -> None:
    key = site_key()
    assert len(key) == 32
    assert site_key() == key
    assert os.name == "nt" or key_file().stat().st_mode & 0o777 == 0o600


def test_a_damaged_key_is_an_error_and_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site.key").write_bytes(b"short")
    monkeypatch.setenv("MEDSSL_KEY_FILE", str(tmp_path / "site.key"))
    with pytest.raises(MedsslError, match="5 bytes"):
        site_key()
    assert (tmp_path / "site.key").read_bytes() == b"short"


@pytest.mark.parametrize(
    "text", ["case\tpatient\na\tP1\nb\tP1\n", "case,patient\r\na,P1\r\nb,P1\r\n", "c;p\na;P1\nb;P1"]
)
def test_tables_are_read_whatever_their_separator(tmp_path: Path, text: str) -> None:
    (tmp_path / "table").write_text(text, encoding="utf-8-sig")
    assert read_subjects(tmp_path / "table") == {"a": "P1", "b": "P1"}


@pytest.mark.parametrize("text", ["", "case\tpatient\n", "case\tpatient\na\n", "c\tp\na\tP1\na\tP2\n", "c\tp\n\tP1\n"])
def test_a_table_that_leaves_doubt_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "table").write_text(text)
    with pytest.raises(DataError):
        read_subjects(tmp_path / "table")
