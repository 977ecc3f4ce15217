"""medssl compare, as it is typed: counts, the control, and the files it leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medssl.cli import main

from ..labelled_store import ellipsoids, write_labelled_store


def test_compare_takes_all_counts_and_a_longer_scratch_and_leaves_table_and_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels = zip(*(ellipsoids((16, 16, 16), seed) for seed in range(4)))
    splits = ("train", "train", "test", "test")
    store = write_labelled_store(tmp_path / "store", images, labels, splits=splits, spacing_mm=(1, 1, 1))
    out = tmp_path / "out"
    words = ["compare", "--encoder", "none", "--data", str(store.folder), "--out", str(out), "--counts", "1,all"]
    words += ["--seeds", "2", "--scratch-longer", "2", "--no-predictions", "--quiet", "--recipe", "anatomy-hippocampus"]
    for key in ("finetune.steps=1", "finetune.batch_size=1", "finetune.crop=[16, 16, 16]"):
        words += ["--set", key]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["counts"], found["all_images"]) == ([1, 2], 2)
    assert (found["arms"], found["control"]) == (["scratch", "scratch x2"], {"arm": "scratch x2", "steps": 2})
    assert sorted(path.name for path in out.iterdir()) == ["cells", "compare.json", "compare.md", "compare.svg"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "scratch x2 minus scratch" in said
    assert "2 (all)" in said
