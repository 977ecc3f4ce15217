"""What ships is whole, small, licensed, and grouped by patient."""

from __future__ import annotations

from pathlib import Path

from medssl.demo_data import damaged_files, demo_folder

CARDS = Path(__file__).parents[2] / "data_cards"


def files() -> list[Path]:
    return [path for path in demo_folder().rglob("*") if path.is_file() and "__pycache__" not in path.parts]


def test_every_file_is_as_it_was_published() -> None:
    assert damaged_files() == ()
    listed = {line.split("  ", 1)[1] for line in (demo_folder() / "SHA256SUMS").read_text().splitlines()}
    there = {path.relative_to(demo_folder()).as_posix() for path in files()}
    assert there - listed == {"SHA256SUMS", "__init__.py"}


def test_all_of_it_is_below_ten_megabytes() -> None:
    assert sum(path.stat().st_size for path in files()) < 10_000_000


def test_each_image_has_a_label_and_a_patient() -> None:
    folder = demo_folder() / "hippocampus"
    images, labels = ({path.name for path in (folder / name).iterdir()} for name in ("images", "labels"))
    lines = (folder / "patients.tsv").read_text().splitlines()[1:]
    assert images == labels == {f"{line.split(chr(9))[0]}.nii.gz" for line in lines}


def test_both_sides_of_a_patient_are_neighbours_in_number() -> None:
    lines = (demo_folder() / "hippocampus" / "patients.tsv").read_text().splitlines()[1:]
    for case, patient in (line.split("\t") for line in lines):
        assert (int(case[-3:]) + 1) // 2 == int(patient[1:])


def test_each_set_has_a_licence_and_a_card_with_source_and_citation() -> None:
    for folder, card in (("hippocampus", "msd-hippocampus.md"), ("ct", "totalsegmentator-ct.md")):
        assert (demo_folder() / folder / "LICENSE").stat().st_size > 5000
        text = (CARDS / card).read_text()
        assert all(word in text for word in ("| Source |", "| Licence |", "## Cite", "## Known to be wrong"))
