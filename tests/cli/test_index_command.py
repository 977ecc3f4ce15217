"""`medssl index` says in one line what is wrong, with the right exit code, and prints JSON alone when asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medssl.cli import main
from medssl.demo_data import demo_folder

DATA = demo_folder() / "hippocampus"


def test_json_is_one_object_on_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(DATA / "images"), "--out", str(tmp_path / "index"), "--labels", str(DATA / "labels")]
    assert main(["index", *words, "--subjects", str(DATA / "patients.tsv"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["images"], result["subjects"], result["labelled"]) == (70, 46, 70)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        pytest.param(["EMPTY", "--out", "OUT"], 1, "no image was found", id="empty folder"),
        pytest.param(["NOWHERE", "--out", "OUT"], 2, "does not exist", id="misspelt path"),
        pytest.param(["DATA", "--out", "FULL"], 1, "already there", id="filled output"),
        pytest.param(["DATA", "--out", "OUT", "--subjects", "NOWHERE"], 1, "cannot be read", id="no table"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, says: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("kept")
    places = {
        "EMPTY": tmp_path / "empty",
        "NOWHERE": tmp_path / "nowhere",
        "DATA": DATA / "images",
        "OUT": tmp_path / "out",
        "FULL": tmp_path / "full",
    }
    assert main(["index", "--quiet", *[str(places.get(word, word)) for word in words]]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert says in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "full"}
