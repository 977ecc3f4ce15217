"""Subjects are keyed hashes; splits depend on seed and subject alone."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medssl.errors import DataError, MedsslError
from medssl.ingest.subjects import Fractions, Names, _create, entity_of, key_file, read_subjects, site_key, split_of

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


def test_a_new_site_key_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    key_file().unlink(missing_ok=True)
    for _ in range(2):
        site_key()
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert str(key_file()) in record.getMessage()
    assert "MEDSSL_KEY_FILE" in record.getMessage()


def no_links(source: str, target: Path) -> None:
    """What os.link does on a FAT stick."""
    raise OSError(errno.EOPNOTSUPP, "Operation not supported")


@pytest.mark.parametrize("links", [True, False], ids=["with hard links", "without hard links"])
def test_a_key_is_made_whole_and_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setenv("MEDSSL_KEY_FILE", str(tmp_path / "new" / "site.key"))
    key = site_key()
    assert len(key) == 32
    assert not _create(key_file())
    assert site_key() == key
    assert os.name == "nt" or key_file().stat().st_mode & 0o777 == 0o600
    assert [path.name for path in key_file().parent.iterdir()] == ["site.key"]


def test_what_a_killed_process_left_beside_the_key_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDSSL_KEY_FILE", str(tmp_path / "site.key"))
    for name in (".site.key", f".site.key.{os.getpid()}", ".site.key.abc"):
        (tmp_path / name).write_bytes(b"half")
    assert len(site_key()) == 32


@pytest.mark.parametrize(
    ("path", "entity"),
    [
        ("/d/sub-01/anat/sub-01_ses-2_T1w.nii.gz", "sub-01"),
        ("/d/sub-A7/ses-1/T1w.nii.gz", "sub-A7"),
        ("/d/sub-1/sub-2_T1w.nii.gz", "sub-2"),
        ("/d/sub-1/sub-2/x.png", "sub-2"),
        ("/d/sub-03.nii.gz", "sub-03"),
        ("/d/sub01/T1w.nii.gz", ""),
        ("/d/cortex-sub-1.nii.gz", ""),
        ("/d/my-sub-1/x.nii.gz", ""),
        ("/d/sub-1_old/x.nii.gz", ""),
    ],
)
def test_bids_names_a_subject_in_the_file_or_in_a_folder(path: str, entity: str) -> None:
    assert entity_of(path) == entity


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
