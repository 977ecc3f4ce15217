"""Laws of the page: whole, closed to the network, escaped, true to the numbers, silent about people and places."""

from __future__ import annotations

import json
import re
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import yaml

from medssl.errors import DataError, MedsslError
from medssl.report import Example, ReportResult, read_examples, write_report
from medssl.report.sources import without_paths

from .conftest import Made
from .parsed import Parsed

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def whole(made: Made) -> ReportResult:
    """A page with every part."""
    return write_report(
        made.run,
        probe=made.probe,
        compare=made.compare,
        bundle=made.run.run / "bundle",
        store=made.store,
        examples=read_examples(made.store, made.runs),
        illustration=True,
    )


@pytest.fixture(scope="module")
def page(whole: ReportResult) -> Parsed:
    return Parsed.of(whole.out.read_text("utf-8"))


@pytest.fixture
def copied(made: Made, tmp_path: Path) -> Path:
    """A run that a test may spoil."""
    return Path(shutil.copytree(made.run.run, tmp_path / "run"))


def test_the_page_lies_in_the_run_and_its_tags_balance(made: Made, whole: ReportResult, page: Parsed) -> None:
    assert whole.out == made.run.run / "report.html"
    assert page.faults == []
    assert not [name for name in whole.out.parent.iterdir() if name.name.startswith(".report")]


def test_the_parts_stand_in_their_order_under_headings(page: Parsed) -> None:
    second = [heading[3:] for heading in page.headings if heading.startswith("h2")]
    assert second == ["Data", "Pretraining", "Frozen probe", "Fine-tuning", "Provenance"]
    assert [heading for heading in page.headings if heading.startswith("h1")] == ["h1 mae on dynunet"]


def test_the_page_asks_for_nothing_and_runs_nothing(page: Parsed, whole: ReportResult) -> None:
    html = whole.out.read_text("utf-8")
    assert not {"script", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    links = [value for _, name, value in page.attributes if name in ("src", "href", "srcset", "action", "data")]
    assert all(link.startswith(("data:", "#")) for link in links)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert not re.search(r"https?:|@import|url\((?!#)", html)


def test_every_picture_has_words_and_every_table_a_caption(page: Parsed) -> None:
    assert page.tags.count("table") == len(page.tables)
    alts = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
    assert len(alts) == page.tags.count("img") == 1 + 3 * 3  # the method's picture, three patients three times
    roles = [value for tag, name, value in page.attributes if (tag, name) == ("div", "role") and value == "img"]
    assert len(roles) == page.tags.count("svg") == 6
    assert all(len(alt) > 20 for alt in alts)


def test_no_id_stands_twice_and_every_reference_finds_its_own(page: Parsed, whole: ReportResult) -> None:
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    html = whole.out.read_text("utf-8")
    wanted = set(re.findall(r'href="#([^"]+)"', html)) | set(re.findall(r"url\(#([^)]+)\)", html))
    assert wanted <= set(ids)


def test_the_probe_table_has_the_numbers_of_the_result(page: Parsed, made: Made) -> None:
    known = made.probe.to_dict()
    rows = page.table("Dice of a linear layer")
    assert [row["features"] for row in rows] == list(known["dice"])
    for row in rows:
        assert row["Dice"] == f"{known['dice'][row['features']]:.3f}"
        by_class = [float(row["label 1"]), float(row["label 2"])]
        assert np.mean(by_class) == pytest.approx(float(row["Dice"]), abs=2e-3)
        if row["features"] in known["differences"]:
            gap = known["differences"][row["features"]]
            assert row["encoder minus this"] == f"{gap['mean']:+.3f}"
            assert row["95% interval"] == f"{gap['low']:+.3f} to {gap['high']:+.3f}"
            assert row["verdict"] == gap["verdict"]


def test_the_fine_tuning_table_has_the_numbers_on_disk(page: Parsed, made: Made) -> None:
    known = json.loads((made.compare.out / "compare.json").read_text())
    rows = page.table("Dice on ")
    assert [(row["labelled images"], row["arm"]) for row in rows] == [
        (n, arm) for n in ("1", "2") for arm in ("encoder", "scratch")
    ]
    for row in rows:
        arm, n = row["arm"], row["labelled images"]
        distance = known["further"]["hausdorff95_mm"][arm][n]
        assert row["Dice"] == f"{known['values'][arm][n]:.3f}"
        assert row["HD95 in mm"] == ("–" if distance is None else f"{distance:.2f}")
        if arm == "encoder":
            gap = known["differences"][arm][n]
            assert row["Dice minus scratch"] == f"{gap['mean']:+.3f}"
            assert row["p"] == f"{gap['p_corrected']:.3f}"
            assert row["could see"] == f"{gap['smallest']:.3f}"
            assert row["verdict"] == gap["verdict"]
    for row in page.table("Labels saved"):
        saving = known["savings"][row["arm"]][row["with labelled images"]]
        assert row["comes as far as scratch with"] == saving["words"]
    cells = page.table("Every training")
    for row in cells:
        table = known["patient_values"][row["arm"]][row["labelled images"]]
        assert row["Dice"] == f"{np.mean(table[int(row['seed'])]):.3f}"
    assert len(cells) == 8


def test_encoders_against_each_other_and_the_control_have_a_table(made: Made, tmp_path: Path) -> None:
    known = made.compare.to_dict()
    gap = known["overall"]["encoder"]
    pairs = [
        {"first": a, "second": b, "by_count": {}, "overall": gap} for a, b in (("encoder", "two"), ("x2", "scratch"))
    ]
    more = {"pairs": [*known["pairs"], *pairs], "control": {"arm": "x2", "steps": 4}, "all_images": 2}
    text = write_report(made.run, compare=known | more, out=tmp_path / "page.html").out.read_text()
    page = Parsed.of(text)
    rows = page.table("Arms against each other")
    assert [(row["arm"], row["minus arm"]) for row in rows] == [("encoder", "two"), ("x2", "scratch")]
    assert "x2 is a control, trained for 4 steps." in page.text
    assert "2 (all)" in {row["labelled images"] for row in page.table("Dice on ")}


def test_a_comparison_of_an_older_version_is_still_shown(made: Made, tmp_path: Path) -> None:
    known = {k: v for k, v in made.compare.to_dict().items() if k not in ("pairs", "savings", "control", "all_images")}
    for value in (known["overall"]["encoder"], *known["differences"]["encoder"].values()):
        for key in ("p", "p_corrected", "smallest", "error", "freedom", "comparisons"):
            del value[key]
    page = Parsed.of(write_report(made.run, compare=known, out=tmp_path / "page.html").out.read_text())
    assert {row["p"] for row in page.table("Dice on ")} == {"–"}
    assert page.faults == []


def test_the_split_table_counts_the_rows_of_the_store(page: Parsed, made: Made) -> None:
    rows = {row["split"]: (row["subjects"], row["images"], row["with label map"]) for row in page.table("Subjects and")}
    assert rows == {"train": ("4",) * 3, "validation": ("2",) * 3, "test": ("4",) * 3, "all": ("10",) * 3}
    assert "No subject stands in two splits: all 10 were compared" in page.text
    sizes = page.table("Shape and spacing")
    assert [row["axis"] for row in sizes] == ["volume, i", "volume, j", "volume, k"]
    assert made.store.fingerprint in page.text


def test_a_subject_in_two_splits_is_told(made: Made, tmp_path: Path) -> None:
    from ..labelled_store import ellipsoids, write_labelled_store

    images, labels = zip(*(ellipsoids((8, 8, 8), seed) for seed in range(3)))
    store = write_labelled_store(
        tmp_path / "store", images, labels, splits=("train", "test", "test"), subjects=("a", "a", "b")
    )
    text = Parsed.of(write_report(made.run, store=store, out=tmp_path / "r.html").out.read_text()).text
    assert "1 subject of 2 stand in more than one split" in text
    assert "No subject stands in two splits" not in text
    assert "not the store that the run was trained on" in text


def test_no_path_patient_or_host_is_on_the_page(made: Made, whole: ReportResult) -> None:
    html = whole.out.read_text("utf-8")
    secrets = [str(made.run.run), str(made.run.run.parent), "Smith-John", "SUBJECT-", *made.store.ids, str(Path.home())]
    assert [secret for secret in secrets if secret in html and secret not in ("/", "/root")] == []
    text = Parsed.of(html).text
    assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", text)
    assert "The exported bundle is the folder bundle." in text


def test_of_the_environment_only_known_entries_are_shown(copied: Path) -> None:
    known = json.loads((copied / "environment.json").read_text())
    (copied / "environment.json").write_text(json.dumps(known | {"hostname": "radiology-pc7", "user": "jane"}))
    html = write_report(copied).out.read_text()
    assert known["packages"]["torch"] in html
    assert "radiology-pc7" not in html
    assert "jane" not in html


def test_a_path_in_a_recipe_is_only_its_last_name(copied: Path) -> None:
    text = (copied / "recipe.yaml").read_text()
    values = yaml.safe_load(text)
    values["encoder"]["weights"] = "/data/Jane Doe/model.safetensors"
    values["loader"]["split"] = "/home/jane/all"
    (copied / "recipe.yaml").write_text(yaml.safe_dump(values))
    html = write_report(copied).out.read_text()
    assert "…/model.safetensors" in html
    assert "jane" not in html.lower()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("/home/bob/x y/run", "…/run"),
        ("C:\\Users\\bob\\run", "…/run"),
        ("\\\\server\\share\\run", "…/run"),
        ("~/scans/run", "…/run"),
        ("../bob/run", "…/run"),
        ("file:///home/bob/run", "…/run"),
        ("weights from /home/bob/run.pt matched", "weights from …/run.pt matched"),
        ("mm/s", "mm/s"),
        ("monai.transforms.Flip", "monai.transforms.Flip"),
        (HOSTILE, HOSTILE),
    ],
)
def test_of_a_path_the_last_name_is_left_and_other_words_stay(text: str, wanted: str) -> None:
    assert without_paths({"key": [text]}) == {"key": [wanted]}


def test_hostile_words_come_out_as_words(copied: Path, made: Made) -> None:
    values = yaml.safe_load((copied / "recipe.yaml").read_text())
    values["method"]["name"] = values["loader"]["split"] = HOSTILE
    (copied / "recipe.yaml").write_text(yaml.safe_dump(values))
    lines = [json.loads(line) for line in (copied / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line[f"loss/{HOSTILE}$x$&"] = 1.5 + line["step"]
    (copied / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    compare = json.loads(json.dumps(made.compare.to_dict()).replace('"encoder"', '"<img src=x onerror=alert(1)>$a"'))
    html = write_report(copied, compare=compare, bundle=HOSTILE.replace("/", "")).out.read_text()
    page = Parsed.of(html)
    assert "script" not in page.tags
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert page.faults == []
    assert page.text.count(HOSTILE) >= 3


def test_equal_inputs_give_equal_bytes(made: Made, whole: ReportResult, tmp_path: Path) -> None:
    kept = {"probe": made.probe, "compare": made.compare.out, "bundle": "bundle", "store": made.store.folder}
    again = write_report(
        made.run.run,
        **kept,
        examples=read_examples(made.store, made.runs),
        illustration=True,
        out=tmp_path / "two.html",
    )
    assert again.out.read_bytes() == whole.out.read_bytes()
    assert again.verdict == whole.verdict


def test_results_are_taken_as_objects_dicts_and_files_alike(made: Made, tmp_path: Path) -> None:
    (tmp_path / "probe.json").write_text(json.dumps(made.probe.to_dict()))
    pages = [
        write_report(made.run, probe=probe, compare=compare, out=tmp_path / "page.html").out.read_bytes()
        for probe, compare in (
            (made.probe, made.compare),
            (made.probe.to_dict(), made.compare.to_dict()),
            (tmp_path / "probe.json", made.compare.out / "compare.json"),
            (tmp_path, made.compare.out),
        )
    ]
    assert len(set(pages)) == 1


def test_what_is_missing_is_one_sentence_each(made: Made, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(made.run.run / "recipe.yaml", bare)
    result = write_report(bare)
    page = Parsed.of(result.out.read_text())
    assert len(result.missing) == 4
    assert all(sentence.replace("`", "") in page.text for sentence in result.missing)
    assert result.verdict.startswith("A gain was not measured.")
    assert page.faults == []


def test_a_log_cut_short_by_a_crash_is_read_up_to_there(copied: Path) -> None:
    with (copied / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "loss/to')
    (copied / "panels" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    text = Parsed.of(write_report(copied).out.read_text()).text
    assert "6 steps in" in text


def test_skipped_steps_are_told_where_there_were_any(copied: Path) -> None:
    assert "steps were skipped" not in Parsed.of(write_report(copied).out.read_text()).text
    lines = [json.loads(line) for line in (copied / "metrics.jsonl").read_text().splitlines()]
    lines[1]["health/skipped_steps"] = 0.5
    (copied / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "Around 1 line of the log, steps were skipped" in Parsed.of(write_report(copied).out.read_text()).text


def test_an_unfinished_run_is_called_so(copied: Path) -> None:
    lines = (copied / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copied / "metrics.jsonl").write_text("".join(lines[:3]))
    assert "for 3 steps of the planned 6; the run is not finished" in write_report(copied).verdict


@pytest.mark.parametrize("there", [True, False], ids=["an empty folder", "no folder"])
def test_what_is_no_run_is_refused_in_three_parts(tmp_path: Path, there: bool) -> None:
    folder = tmp_path / "x"
    if there:
        folder.mkdir()
    with pytest.raises(DataError) as caught:
        write_report(folder)
    assert caught.value.where == str(folder)
    assert caught.value.what
    assert "medssl pretrain" in caught.value.fix


def test_what_is_no_result_is_refused_by_its_missing_keys(made: Made, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no result of `medssl probe`: it lacks split"):
        write_report(made.run, probe={"dice": {}})
    with pytest.raises(DataError, match="no result of `medssl compare` here"):
        write_report(made.run, compare=tmp_path)


def test_a_page_that_cannot_be_written_is_told_and_leaves_nothing(made: Made, tmp_path: Path) -> None:
    with pytest.raises(MedsslError, match="the report cannot be written"):
        write_report(made.run, out=tmp_path / "no" / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_examples_are_the_best_the_median_and_the_worst_of_the_first_arm(made: Made) -> None:
    examples = read_examples(made.store, made.runs)
    dice = [example.dice["encoder"] for example in examples]
    assert [example.title.split()[0] for example in examples] == ["Best", "Median", "Worst"]
    scores = json.loads((made.runs["encoder"] / "scores.json").read_text())["scores"]
    known = sorted((float(np.mean([d or 0.0 for d in score["dice"]])) for score in scores), reverse=True)
    assert dice == pytest.approx([known[0], known[2], known[3]])


def test_an_area_equal_to_the_truth_lies_within_its_outline() -> None:
    from io import BytesIO

    from PIL import Image

    from medssl.report.overlays import panels

    truth = np.zeros((20, 30), np.uint8)
    truth[3:8, 20:28] = 1  # off centre both ways, so that a flip would show
    example = Example(np.zeros((20, 30)), truth, {"same": truth}, {"same": 1.0}, "t")
    with Image.open(BytesIO(panels(example)[1].png)) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    coloured = np.argwhere(np.ptp(pixels, axis=2) > 40)
    height, width = pixels.shape[:2]
    rows, columns = coloured[:, 0] * 20 / height, coloured[:, 1] * 30 / width
    assert len(coloured) > 100
    assert (rows.min(), rows.max()) == pytest.approx((3, 8), abs=0.6)
    assert (columns.min(), columns.max()) == pytest.approx((20, 28), abs=0.6)
