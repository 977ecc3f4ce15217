"""Every kind of probe is shown with its numbers, whether it is given or lies in the run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medssl.cli import main
from medssl.errors import DataError
from medssl.nets.encoder import load_encoder
from medssl.probe import ImageProbeConfig, ProbeConfig, StabilityConfig, Target, probe_images, probe_stability
from medssl.report import write_report

from .conftest import Made
from .parsed import Parsed

CONFIG = ProbeConfig(
    image=ImageProbeConfig(neighbours=2, steps=5, tokens=8), stability=StabilityConfig(noise=(0.1,), gamma=(0.8,))
)


@pytest.fixture(scope="module")
def found(made: Made) -> dict[str, dict[str, Any]]:
    """What the three probes of one encoder found, as JSON keeps it."""
    encoder = load_encoder(made.run.run)
    values = {image_id: float(n % 2) for n, image_id in enumerate(made.store.ids)}
    target = Target("finding <b>", "classes", values, ("0", "1"))
    results = {
        "probe": made.probe,
        "probe-image": probe_images(encoder, made.store, target, CONFIG, seeds=2),
        "probe-stability": probe_stability(encoder, made.store, CONFIG, seeds=2),
    }
    return {name: json.loads(json.dumps(result.to_dict(), allow_nan=False)) for name, result in results.items()}


@pytest.fixture
def run(made: Made, tmp_path: Path) -> Path:
    """A copy of the run."""
    return Path(shutil.copytree(made.run.run, tmp_path / "run"))


def test_every_probe_that_lies_in_the_run_is_on_the_page(found: dict[str, Any], run: Path) -> None:
    for name, result in found.items():
        (run / f"{name}.json").write_text(json.dumps(result))
    result = write_report(run)
    page = Parsed.of(result.out.read_text("utf-8"))
    assert page.faults == []
    assert page.table("Dice of a linear layer")
    known = found["probe-image"]
    rows = page.table("Whole images: finding <b> told from")
    assert len(rows) == sum(len(arms) for arms in known["scores"].values())
    for row in rows:
        readout, measure = row["read by"].split(", ")
        assert measure == known["measures"][readout]
        assert row["value"] == f"{np.mean(known['scores'][readout][row['features']]):.3f}"
        if row["features"] != "encoder":
            gap = known["differences"][readout][row["features"]]
            assert row["encoder minus this"] == f"{gap['mean']:+.3f}"
            assert row["p"] == f"{gap['p_corrected']:.3f}"
            assert row["verdict"] == gap["verdict"]
    assert {row["features"]: row["rank"] for row in page.table("RankMe")} == {
        arm: f"{rank:.1f}" for arm, rank in known["rank"].items()
    }
    known = found["probe-stability"]
    rows = page.table("Stability of frozen features")
    assert [(row["change"], row["features"]) for row in rows] == [
        (change, arm) for change in known["scores"] for arm in ("encoder", "random weights")
    ]
    for row in rows:
        for measure, value in known["scores"][row["change"]][row["features"]].items():
            assert row[measure] == f"{value:.3f}"
        gap = known["differences"][row["change"]]
        assert row["verdict"] == ("–" if row["features"] == "encoder" else gap["verdict"])


def test_probes_are_given_one_or_several_in_any_order(found: dict[str, Any], made: Made, tmp_path: Path) -> None:
    pages = []
    for n, given in enumerate((list(found.values()), list(found.values())[::-1])):
        pages.append(write_report(made.run, probe=given, out=tmp_path / f"{n}.html").out.read_bytes())
    assert pages[0] == pages[1]
    page = Parsed.of(write_report(made.run, probe=found["probe-image"], out=tmp_path / "i.html").out.read_text("utf-8"))
    assert page.table("RankMe")
    assert "Dice of a linear layer" not in page.text


def test_the_command_takes_several_probes(found: dict[str, Any], run: Path, tmp_path: Path) -> None:
    paths = []
    for name, result in found.items():
        paths += ["--probe", str(tmp_path / f"{name}.json")]
        Path(paths[-1]).write_text(json.dumps(result))
    assert main(["report", str(run), *paths, "--out", str(tmp_path / "page.html")]) == 0
    page = Parsed.of((tmp_path / "page.html").read_text("utf-8"))
    assert page.table("Stability of frozen features")
    assert page.table("Whole images")


@pytest.mark.parametrize("verdict", ["better", "undecided"])
def test_the_verdict_says_by_which_readouts_a_target_is_told_better(
    found: dict[str, Any], made: Made, tmp_path: Path, verdict: str
) -> None:
    one = json.loads(json.dumps(found["probe-image"]))
    for arms in one["differences"].values():
        for gap in arms.values():
            gap["verdict"] = "undecided"
    for gap in one["differences"]["linear"].values():
        gap["verdict"] = verdict
    one["differences"]["kNN"]["random weights"]["verdict"] = "better"  # but not than no network
    said = write_report(made.run, probe=one, out=tmp_path / "page.html").verdict
    what = "ts frozen features tell finding <b> of whole images better than their controls"
    if verdict == "better":
        assert f"I{what} by linear; by kNN, attentive and retrieval that is not shown." in said
    else:
        assert f"That i{what} is shown by no readout (kNN, linear, attentive and retrieval)." in said


def test_two_dense_probes_are_not_mixed_up(found: dict[str, Any], made: Made, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 dense probes are given"):
        write_report(made.run, probe=[found["probe"], found["probe"]], out=tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_nobody_is_named_in_what_is_shown(found: dict[str, Any], made: Made, tmp_path: Path) -> None:
    html = write_report(made.run, probe=list(found.values()), out=tmp_path / "page.html").out.read_text("utf-8")
    assert [word for word in ("SUBJECT-", "Smith", *made.store.ids) if word in html] == []
