"""The demo, with fewer steps than it has when a person runs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from medssl.demo import run_demo
from medssl.errors import MedsslError

FEW = ("train.steps=4", "train.checkpoint_steps=2", "probe.every=4", "probe.points=200", "finetune.steps=3")


@pytest.mark.slow
def test_the_demo_goes_the_whole_way_and_rerun_it_has_nothing_left_to_do(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    first = run_demo(out, overrides=FEW, seeds=1)
    for made in (first.report, first.encoder / "model.safetensors", first.bundle / "models" / "model.pt"):
        assert made.is_file()
    assert first.comparison.computed == 2
    text = str(first)
    assert "An illustration" in text
    assert "undecided" in text or "better" in text or "worse" in text
    weights = (first.encoder / "model.safetensors").read_bytes()
    again = run_demo(out, overrides=FEW, seeds=1)
    assert again.comparison.computed == 0
    assert (again.encoder / "model.safetensors").read_bytes() == weights
    assert again.probe.to_dict() == first.probe.to_dict()
    with pytest.raises(MedsslError, match="another demo was begun here"):
        run_demo(out, overrides=(*FEW, "train.seed=1"), seeds=1)


def test_the_demo_leaves_a_filled_folder_alone(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(MedsslError, match="already there"):
        run_demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]
