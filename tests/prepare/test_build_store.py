"""A store holds what MONAI's own transforms make of the files, survives being killed, and names no one."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

import medssl
from medssl.demo_data import demo_folder
from medssl.errors import DataError, MedsslError, RecipeError
from medssl.index import Index, IndexRow, Location
from medssl.prepare import PrepareConfig, StoreResult, build_store, build_store_from_datalist, monai_preprocessing
from medssl.store import Store
from medssl.views.scaling import scale

pytestmark = pytest.mark.filterwarnings("ignore:NvImgCodec")  # MONAI tries a reader that needs a GPU, and says so

CROP = {"name": "monai.transforms.CropForeground", "margin": 2}
HIPPOCAMPUS = demo_folder() / "hippocampus"
NAMES = sorted(path.name for path in (HIPPOCAMPUS / "images").glob("*.nii.gz"))


def write_index(folder: Path, pairs: list[tuple[Path, Path | None]], split: str = "train") -> Index:
    """Write an index of NIfTI files without scanning: ids count up, subjects are the ids."""
    folder.mkdir(parents=True)
    rows, locations = [], {}
    for number, (image, label) in enumerate(pairs):
        name = f"{number:016x}"
        try:
            loaded: Any = nibabel.load(image)
            shape, affine = loaded.shape, tuple(tuple(float(v) for v in line) for line in loaded.affine)
        except nibabel.filebasedimages.ImageFileError:
            shape, affine = (4, 4, 4), None
        locations[name] = Location((str(image),), "nifti")
        if label is not None:
            locations[f"{name}-label"] = Location((str(label),), "nifti")
        rows.append(
            IndexRow(
                image_id=name,
                subject_id=name,
                modality="MR",
                kind="volume",
                format="nifti",
                shape=shape,
                spacing_mm=(1.0, 1.0, 1.0),
                affine=affine,
                orientation="RAS",
                channels=1,
                dtype="int16",
                content_hash=name,
                split=split,
                label_path=f"{name}-label" if label is not None else "",
            )
        )
    return Index.write(folder, rows, locations, card="# the card\n")


@pytest.fixture(scope="module")
def hippocampus(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """An index of six shipped volumes with labels; integer and floating-point files are among them."""
    pairs = [(HIPPOCAMPUS / "images" / name, HIPPOCAMPUS / "labels" / name) for name in NAMES[:6]]
    return write_index(tmp_path_factory.mktemp("index") / "index", pairs)


def by_monai(index: Index, image_id: str, store: Store) -> dict[str, Any]:
    """Run the bundle's preprocessing of a store on one image and its label."""
    from monai.bundle import ConfigParser
    from monai.transforms import Compose

    items = monai_preprocessing(store.preparation, keys=["image"], label_keys=["label"])
    parser = ConfigParser({"chain": {"_target_": "Compose", "transforms": items}})
    chain = parser.get_parsed_content("chain")
    assert isinstance(chain, Compose)
    label = index.label_location(image_id)
    assert label is not None
    out = chain({"image": index.location(image_id).paths[0], "label": label.paths[0]})
    assert isinstance(out, dict)
    return out


RECIPES: dict[str, dict[str, Any]] = {
    "turned, percentiles": {"orientation": "LPI"},
    "resampled, percentiles": {"spacing_mm": [1.5, 1.2, 0.9], "scaling": {"name": "percentiles", "to": [-1, 1]}},
    "resampled and cropped, z-score": {"spacing_mm": [2, 2, 2], "transforms": [CROP], "scaling": {"name": "zscore"}},
    "window": {"orientation": None, "scaling": {"name": "window", "low": 10, "high": 300, "to": [-1, 2]}},
    "resized": {"transforms": [{"name": "monai.transforms.Resized", "spatial_size": [24, 32, 20]}]},
}


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_store_and_scaling_equal_monais_own_chain(hippocampus: Index, tmp_path: Path, recipe: str) -> None:
    config = PrepareConfig.model_validate(RECIPES[recipe])
    store = Store.open(build_store(hippocampus, config, tmp_path / "store"))
    for image_id in store.ids:
        wanted, row = by_monai(hippocampus, image_id, store), store.row(image_id)
        found = scale(
            {"image": torch.from_numpy(store.read(image_id))[None], "intensity": torch.tensor([row.intensity])}
        )["image"][0]
        # Half a step of rounding where integers stay integers, else floating-point noise.
        rounding = 0.5 / row.intensity[3] if row.dtype != "float32" else 0.0
        assert (found - wanted["image"].as_tensor()).abs().max() <= rounding + 2e-4
        np.testing.assert_array_equal(store.label(image_id), wanted["label"].numpy())
        np.testing.assert_allclose(store.affine(image_id), wanted["image"].affine.numpy(), atol=1e-6)


def test_real_ct_in_odd_orientation_equals_monais_own_chain(shared: Path, tmp_path: Path) -> None:
    place = shared / "totalsegmentator"
    index = write_index(tmp_path / "index", [(place / "example_ct_sm.nii.gz", place / "example_seg.nii.gz")])
    window = {"name": "window", "low": -1000, "high": 1000}
    config = PrepareConfig.model_validate({"spacing_mm": [4, 4, 5], "scaling": window})
    store = Store.open(build_store(index, config, tmp_path / "store"))
    row = store.rows[0]
    assert row.dtype == "int16"
    wanted = by_monai(index, row.image_id, store)
    stored = torch.from_numpy(store.read(row.image_id))[None]
    found = scale({"image": stored, "intensity": torch.tensor([row.intensity])})["image"][0]
    assert (found - wanted["image"].as_tensor()).abs().max() <= 0.5 / 2000 + 1e-6
    np.testing.assert_array_equal(store.label(row.image_id), wanted["label"].numpy())


def test_integers_that_are_only_turned_stay_the_same_integers(hippocampus: Index, tmp_path: Path) -> None:
    store = Store.open(build_store(hippocampus, PrepareConfig(orientation="LPI"), tmp_path / "store"))
    kept = 0
    for image_id in store.ids:
        loaded: Any = nibabel.load(hippocampus.location(image_id).paths[0])
        if not np.issubdtype(loaded.get_data_dtype(), np.integer):
            continue
        kept += 1
        assert store.row(image_id).dtype in ("uint8", "int16")
        wanted = loaded.as_reoriented(
            nibabel.orientations.ornt_transform(
                nibabel.orientations.io_orientation(loaded.affine), nibabel.orientations.axcodes2ornt("LPI")
            )
        )
        np.testing.assert_array_equal(store.read(image_id)[0], np.asarray(wanted.dataobj))
        np.testing.assert_allclose(store.affine(image_id), wanted.affine)
    assert kept


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_finished_store_is_left_as_it_is(hippocampus: Index, tmp_path: Path) -> None:
    config = PrepareConfig()
    first = build_store(hippocampus, config, tmp_path / "store")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*")}
    again = build_store(hippocampus.folder, config.model_copy(update={"workers": 1}), tmp_path / "store")
    assert (again.images, again.labelled, again.finished_before) == (first.images, 6, True)
    assert str(again).startswith("already prepared")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*")} == times


def test_a_store_of_another_preparation_or_index_is_not_touched(hippocampus: Index, tmp_path: Path) -> None:
    build_store(hippocampus, PrepareConfig(), tmp_path / "store")
    before = contents(tmp_path / "store")
    with pytest.raises(MedsslError, match="another preparation"):
        build_store(hippocampus, PrepareConfig(orientation="LPS"), tmp_path / "store")
    other = write_index(tmp_path / "other", [(HIPPOCAMPUS / "images" / NAMES[0], None)])
    with pytest.raises(MedsslError, match="another index"):
        build_store(other, PrepareConfig(), tmp_path / "store")
    assert contents(tmp_path / "store") == before


def test_a_folder_that_holds_something_else_is_not_touched(hippocampus: Index, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(MedsslError, match="already there"):
        build_store(hippocampus, PrepareConfig(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


KILLED = """
import os, signal, sys
from medssl.prepare import PrepareConfig, build_store
def progress(phase, done, total):
    if done == {kill}:
        os.kill(os.getpid(), signal.SIGKILL)
if __name__ == "__main__":
    build_store(sys.argv[1], PrepareConfig(spacing_mm=(1.5, 1.5, 1.5)), sys.argv[2], progress=progress)
"""


def test_killed_and_run_again_a_store_is_the_same_byte_for_byte(hippocampus: Index, tmp_path: Path) -> None:
    config, out = PrepareConfig(spacing_mm=(1.5, 1.5, 1.5)), tmp_path / "killed"
    build_store(hippocampus, config, tmp_path / "whole")
    script = tmp_path / "killed.py"
    script.write_text(KILLED.format(kill=3))
    assert _run(script, hippocampus.folder, out) == -signal.SIGKILL
    with pytest.raises(DataError, match="not finished"):
        Store.open(out)
    # What a write cut short leaves behind: an array without its row, and temporary files.
    (out / "arrays" / ".0000.b2nd.77.b2nd").write_bytes(b"half")
    first = sorted((out / "journal").glob("*.parquet"))[0]
    first.unlink()
    result = build_store(hippocampus, config, out)
    assert result.resumed == 2
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.slow
def test_worker_processes_make_the_same_store_and_end_with_their_parent(
    hippocampus: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import medssl.prepare.build as build

    monkeypatch.setattr(build, "SMALL", 0)
    build_store(hippocampus, PrepareConfig(workers=2), tmp_path / "processes")
    build_store(hippocampus, PrepareConfig(workers=0), tmp_path / "here")
    assert contents(tmp_path / "processes") == contents(tmp_path / "here")
    script = tmp_path / "killed.py"
    text = KILLED.format(kill=1).replace("import os", "import medssl.prepare.build as build\nimport os")
    script.write_text(text.replace("build_store(sys", "build.SMALL = 0\n    build_store(sys"))
    assert _run(script, hippocampus.folder, tmp_path / "killed") == -signal.SIGKILL
    deadline = time.monotonic() + 20
    while _running(script) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _running(script)


UNGUARDED = """
import logging, sys
import medssl.prepare.build as build
build.SMALL = 0
build.build_store(sys.argv[1], build.PrepareConfig(workers=2), sys.argv[2])
"""


@pytest.mark.slow
def test_a_script_that_lacks_the_main_guard_is_warned_and_gets_its_store(hippocampus: Index, tmp_path: Path) -> None:
    script = tmp_path / "unguarded.py"
    script.write_text(UNGUARDED)
    environment = os.environ | {"PYTHONPATH": str(Path(medssl.__file__).parents[1])}
    command = [sys.executable, str(script), str(hippocampus.folder), str(tmp_path / "store")]
    out = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert 'lacks `if __name__ == "__main__":`' in out.stderr
    assert "memory" in out.stderr
    build_store(hippocampus, PrepareConfig(workers=0), tmp_path / "here")
    assert contents(tmp_path / "store") == contents(tmp_path / "here")


def _run(script: Path, *arguments: Path) -> int:
    """Run a script beside this checkout and return how it ended; its processes carry its name in MEDSSL_TEST."""
    environment = os.environ | {"PYTHONPATH": str(Path(medssl.__file__).parents[1]), "MEDSSL_TEST": str(script)}
    return subprocess.run([sys.executable, str(script), *map(str, arguments)], env=environment, check=False).returncode


def _running(script: Path) -> list[str]:
    """Return the processes that `_run` left behind, of which nothing but Linux tells."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if f"MEDSSL_TEST={script}" in environment:
            found.append(entry.name)
    return found


def test_an_image_that_cannot_be_read_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    secret = tmp_path / "DOE^JANE.nii.gz"
    secret.write_bytes((HIPPOCAMPUS / "images" / NAMES[0]).read_bytes()[:3000])
    label = tmp_path / "other-shape.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 3, 3), np.uint8), np.eye(4)), label)
    images = [HIPPOCAMPUS / "images" / name for name in NAMES[:2]]
    index = write_index(tmp_path / "index", [(images[0], None), (secret, None), (images[1], label)])
    result = build_store(index, PrepareConfig(), tmp_path / "store")
    assert (result.images, result.labelled) == (2, 0)
    with (tmp_path / "store" / "problems.csv").open(newline="") as file:
        problems = list(csv.DictReader(file))
    assert [(row["image_id"][-1], row["code"]) for row in problems] == [("1", "file-truncated"), ("2", "label-shape")]
    everything = b"".join(contents(tmp_path / "store").values())
    assert b"DOE" not in everything
    assert str(tmp_path).encode() not in everything
    assert b"hippocampus" not in everything
    assert "left out: file-truncated 1, label-shape 1" in str(result)
    assert json.dumps(result.to_dict())


@pytest.mark.parametrize("error", [ValueError, ZeroDivisionError, KeyError, TypeError])
def test_an_image_that_fails_as_nobody_foresaw_is_named_and_the_others_go_on(
    hippocampus: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """numpy's percentile, which is not ours, fails for the second image."""
    percentile, calls = np.percentile, []

    def failing(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise error("DOE^JANE")
        return percentile(*args, **kwargs)

    monkeypatch.setattr(np, "percentile", failing)
    result = build_store(hippocampus, PrepareConfig(), tmp_path / "store")
    assert (result.images, result.problems) == (5, {"preparation-failed": 1})
    text = (tmp_path / "store" / "problems.csv").read_text()
    assert error.__name__ in text
    assert "DOE" not in text


def test_a_header_that_no_reader_foresaw_leaves_the_other_images_prepared(tmp_path: Path) -> None:
    pairs = []
    for name, offset in (("good", 352.0), ("bad", float("nan"))):
        raw = bytearray(nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4)).to_bytes())
        raw[108:112] = struct.pack("<f", offset)
        (tmp_path / f"{name}.nii").write_bytes(raw)
        pairs.append((tmp_path / f"{name}.nii", None))
    index = write_index(tmp_path / "index", [pairs[0], pairs[0]])
    places = {row.image_id: Location((str(path),), "nifti") for row, (path, _) in zip(index.rows, pairs)}
    (tmp_path / "two").mkdir()
    result = build_store(Index.write(tmp_path / "two", index.rows, places), PrepareConfig(), tmp_path / "store")
    assert (result.images, result.problems) == (1, {"file-corrupt": 1})


@pytest.mark.parametrize(
    ("scale", "shift", "kept"),
    [
        pytest.param(1.0, 0.02, True, id="a fiftieth of a voxel"),
        pytest.param(1.0, 0.2, False, id="a fifth of a voxel"),
        pytest.param(0.01, 0.005, False, id="half a voxel of a microscope"),
        pytest.param(4.0, 0.1, True, id="a fortieth of a coarse voxel"),
    ],
)
def test_a_label_is_used_where_its_voxels_are_the_images(
    tmp_path: Path, scale: float, shift: float, kept: bool
) -> None:
    affine = np.diag([scale, scale, scale, 1.0])
    moved = affine.copy()
    moved[0, 3] += shift
    image, label = tmp_path / "image.nii", tmp_path / "label.nii"
    nibabel.save(nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), affine), image)
    nibabel.save(nibabel.Nifti1Image(np.ones((3, 4, 5), np.uint8), moved), label)
    result = build_store(write_index(tmp_path / "index", [(image, label)]), PrepareConfig(), tmp_path / "store")
    assert (result.labelled, result.problems) == ((1, {}) if kept else (0, {"label-affine": 1}))


def test_a_label_turned_by_little_is_left_out_where_that_adds_up_to_a_voxel(tmp_path: Path) -> None:
    """Cosines that differ by 0.009 move the far end of 200 voxels by almost two."""
    turned = np.eye(4)
    turned[:2, :2] = [[np.cos(0.009), -np.sin(0.009)], [np.sin(0.009), np.cos(0.009)]]
    image, label = tmp_path / "image.nii", tmp_path / "label.nii"
    nibabel.save(nibabel.Nifti1Image(np.arange(4000, dtype=np.int16).reshape(200, 4, 5), np.eye(4)), image)
    nibabel.save(nibabel.Nifti1Image(np.ones((200, 4, 5), np.uint8), turned), label)
    result = build_store(write_index(tmp_path / "index", [(image, label)]), PrepareConfig(), tmp_path / "store")
    assert (result.labelled, result.problems) == (0, {"label-affine": 1})


def test_nothing_readable_at_all_is_an_error(tmp_path: Path) -> None:
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes((HIPPOCAMPUS / "images" / NAMES[0]).read_bytes()[:3000])
    index = write_index(tmp_path / "index", [(broken, None)])
    with pytest.raises(DataError, match="none of 1 images could be prepared"):
        build_store(index, PrepareConfig(), tmp_path / "store")
    with pytest.raises(DataError, match="not finished"):
        Store.open(tmp_path / "store")


def test_a_wrong_transform_is_told_before_any_image_is_read(hippocampus: Index, tmp_path: Path) -> None:
    config = PrepareConfig.model_validate({"transforms": [{"name": "monai.transforms.Flip", "axis": 1}]})
    with pytest.raises(RecipeError, match="Flipd does not take these arguments"):
        build_store(hippocampus, config, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_an_output_that_cannot_be_written_is_one_clear_error(hippocampus: Index, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MedsslError, match=r"cannot be written: .*choose a folder you may write to"):
        build_store(hippocampus, PrepareConfig(), tmp_path / "file" / "store")


def datalist(tmp_path: Path, **sections: list[Any]) -> Path:
    for kind in ("images", "labels"):
        shutil.copytree(HIPPOCAMPUS / kind, tmp_path / kind, dirs_exist_ok=True)
    path = tmp_path / "datalist.json"
    path.write_text(json.dumps(sections))
    return path


def entry(number: int, **more: str) -> dict[str, str]:
    return {"image": f"images/{NAMES[number]}", "label": f"labels/{NAMES[number]}", **more}


def test_a_datalist_becomes_a_store_with_its_splits(tmp_path: Path) -> None:
    path = datalist(
        tmp_path,
        training=[entry(0, subject="patient-one"), entry(1, subject="patient-one"), f"images/{NAMES[2]}"],
        validation=[entry(3)],
        test=[entry(4)],
    )
    result: StoreResult = build_store_from_datalist(path, PrepareConfig(), tmp_path / "store")
    store = Store.open(result)
    assert [len(store.ids_of(split)) for split in ("train", "validation", "test")] == [3, 1, 1]
    assert result.labelled == 4
    assert len({row.subject_id for row in store.rows}) == 4
    everything = b"".join(contents(tmp_path / "store").values())
    assert all(word not in everything for word in (b"hippocampus", b"patient-one", str(tmp_path).encode()))
    assert build_store_from_datalist(path, PrepareConfig(), tmp_path / "store").finished_before


def test_an_image_of_a_datalist_that_cannot_be_read_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    path = datalist(tmp_path, training=[entry(0), entry(1)], test=[entry(2)])
    broken = tmp_path / "images" / NAMES[1]
    broken.write_bytes(broken.read_bytes()[:90])
    result = build_store_from_datalist(path, PrepareConfig(), tmp_path / "store")
    assert (result.images, result.problems) == (2, {"file-truncated": 1})


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"training": [entry(0, subject="a")], "test": [entry(1, subject="a")]}, "in more than one split"),
        ({"training": [entry(0)], "test": [entry(0)]}, "named twice"),
        ({"training": [{"image": "images/none.nii.gz"}]}, "cannot be read"),
        ({"training": [{"label": "x"}]}, "names no image"),
        ({"train": []}, "none of training, validation, test"),
    ],
    ids=["subject in two splits", "image twice", "image missing", "no image", "no section"],
)
def test_a_datalist_that_cannot_be_trusted_is_refused(tmp_path: Path, sections: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        build_store_from_datalist(datalist(tmp_path, **sections), PrepareConfig(), tmp_path / "store")
    assert not (tmp_path / "store").exists()
