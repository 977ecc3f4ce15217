"""A classifier's bundle runs where medssl is not, and writes the answers medssl gives."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image

from medssl.demo_data import demo_folder
from medssl.errors import DataError, MedsslError
from medssl.export.classifier_bundle import write_classifier_bundle
from medssl.ingest import build_index
from medssl.nets.classifier import Classifier, classifier_for
from medssl.nets.encoder import (
    DynUNetConfig,
    SegResNetConfig,
    SwinConfig,
    TimmConfig,
    ViTConfig,
    build_encoder,
    save_network,
)
from medssl.nets.segmenter import segmenter_for
from medssl.prepare import PrepareConfig, build_store, preparation_of
from medssl.store import Store
from medssl.views.scaling import scaled

from .test_bundle import run_bundle

SWIN: dict[str, Any] = {"width": 12, "depths": (1, 1, 1, 1), "heads": (1, 2, 2, 2), "window": 4}
REGRESSION: dict[str, Any] = {
    "kind": "regression",
    "targets": ("ef", "mass"),
    "mean": (50.0, 90.0),
    "spread": (9.0, 20.0),
}
# The encoder, its crop, and what is told.
FAMILIES: dict[str, tuple[Any, tuple[int, ...], dict[str, Any]]] = {
    "dynunet": (DynUNetConfig(channels=(8, 8, 8), features=8), (16, 16, 16), REGRESSION),
    "segresnet": (
        SegResNetConfig(channels=8, blocks_down=(1, 1), blocks_up=(1,)),
        (16, 16, 16),
        {"kind": "binary", "targets": ("ill",), "weights": [[0.6, 3.0]], "windows": "features"},
    ),
    "vit": (
        ViTConfig(patch=8, width=24, depth=3, heads=2, mlp=24),
        (16, 16, 16),
        {"kind": "multiclass", "targets": ("group",), "classes": ("a", "b", "c"), "pooling": "attentive"},
    ),
    "swin": (SwinConfig(**SWIN), (32, 64, 32), {"kind": "multilabel", "targets": ("ill", "old")}),
    "swin with its decoder": (SwinConfig(**SWIN, decoder=True), (32, 64, 32), {"kind": "binary", "targets": ("ill",)}),
    "timm convnext, of slices": (
        TimmConfig(model="test_convnext"),
        (32, 32),
        {"kind": "ordinal", "targets": ("grade",), "classes": ("0", "1", "2"), "slice_axis": 2},
    ),
    "timm vit": (
        TimmConfig(model="test_vit"),
        (32, 32),
        {"kind": "ordinal", "targets": ("grade",), "classes": ("0", "1", "2"), "ordinal": "coral"},
    ),
}


def _classifier(config: Any, shape: tuple[int, ...], told: dict[str, Any]) -> Classifier:
    torch.manual_seed(3)
    encoder = build_encoder(config, channels=1, shape=shape, spacing_mm=(1.0, 1.5, 2.0)[: len(shape)])
    told = dict(told)
    return classifier_for(encoder, told.pop("kind"), told.pop("targets"), told.pop("classes", ()), **told).eval()


def _saved(classifier: Classifier, out: Path, preparation: Any = None) -> Path:
    known = preparation if preparation is not None else preparation_of(PrepareConfig(workers=0))
    return save_network(out / "run" / "classifier", classifier, preparation=known, card="# the run's own card")


def _bundle(folder: Path, out: Path) -> Path:
    out.mkdir()
    write_classifier_bundle(folder, out)  # which checks that its answers are the classifier's
    return out


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_family_leaves_as_a_bundle_whose_config_rebuilds_it(family: str, tmp_path: Path) -> None:
    classifier = _classifier(*FAMILIES[family])
    bundle = _bundle(_saved(classifier, tmp_path), tmp_path / "bundle")
    config = json.loads((bundle / "configs" / "inference.json").read_text())
    assert {"network_def", "inferer", "answer", "preprocessing", "evaluator"} <= set(config)
    assert "medssl." not in json.dumps(config)
    weights = torch.load(bundle / "models" / "model.pt", weights_only=True)
    assert set(weights) == set(classifier.net.state_dict())
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert ("timm" in metadata["required_packages_version"]) == family.startswith("timm")
    outputs = metadata["network_data_format"]["outputs"]["pred"]
    assert (
        outputs["num_channels"]
        == len(outputs["channel_def"])
        == classifier(torch.zeros(1, 1, *classifier.shape)).shape[1]
    )
    readme = (bundle / "docs" / "README.md").read_text()
    assert all(f"`{name}`" in readme for name in classifier.names)
    assert "# the run's own card" in readme


def _answers(classifier: Classifier, store: Store) -> list[list[float]]:
    """Medssl's own answers, sorted."""
    out = []
    for image_id in store.ids:
        intensity = torch.tensor([store.row(image_id).intensity])
        image = scaled(torch.from_numpy(store.read(image_id))[None], intensity)
        out.append(classifier.answer(classifier.predict(image))[0].tolist())
    return sorted(out)


def _run(images: Path, out: Path, config: Any, shape: tuple[int, ...], told: dict[str, Any]) -> list[dict[str, str]]:
    build_index([images], out / "index")
    prepare = PrepareConfig(workers=0)
    store = Store.open(build_store(out / "index", prepare, out / "store").store)
    classifier = _classifier(config, shape, told)
    folder = _saved(classifier, out, store.preparation)
    run_bundle(_bundle(folder, out / "bundle"), images, out)
    with (out / "eval" / "answers.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert sorted(line["image"] for line in lines) == sorted(path.name for path in images.iterdir())
    found = sorted([float(line[name]) for name in classifier.names] for line in lines)
    np.testing.assert_allclose(found, _answers(classifier, store), rtol=1e-3, atol=1e-5)
    told_json = json.loads((out / "eval" / "answers.json").read_text())
    assert told_json["kind"] == classifier.task_kind
    assert [answer["image"] for answer in told_json["answers"]] == [line["image"] for line in lines]
    return lines


@pytest.mark.slow
def test_a_bundle_without_medssl_tells_of_volumes_what_medssl_tells(tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    for path in sorted((demo_folder() / "hippocampus" / "images").glob("*.nii.gz"))[:2]:
        shutil.copy(path, scans)
    lines = _run(scans, tmp_path, DynUNetConfig(channels=(8, 8, 16)), (24, 40, 32), REGRESSION)
    assert list(lines[0]) == ["image", "ef", "mass"]


@pytest.mark.slow
def test_a_bundle_without_medssl_tells_of_pictures_what_medssl_tells(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    volume = np.asarray(next(iter(_volumes())))
    for n, ending in ((10, "png"), (15, "jpeg")):
        grey = (255 * (volume[:, :, n] / volume[:, :, n].max())).astype(np.uint8)
        Image.fromarray(grey).save(pictures / f"slice{n}.{ending}")
    told = {"kind": "ordinal", "targets": ("grade",), "classes": ("0", "1", "2"), "weights": [0.5, 1.0, 3.0]}
    lines = _run(pictures, tmp_path, TimmConfig(model="test_convnext"), (32, 32), told)
    assert float(lines[0]["0"]) + float(lines[0]["1"]) + float(lines[0]["2"]) == pytest.approx(1, abs=1e-4)


@pytest.mark.filterwarnings("ignore:NvImgCodec")  # MONAI tries a reader that needs a GPU, and says so
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_bundle_reads_the_pixels_of_a_jpeg_that_medssl_reads(mode: str, tmp_path: Path) -> None:
    from monai.transforms import Compose

    from medssl.prepare import monai_preprocessing
    from medssl.reading.picture import read_picture

    path = tmp_path / "one.jpg"
    grey = np.add.outer(np.arange(40), 3 * np.arange(52)).astype(np.uint8)
    Image.fromarray(grey if mode == "L" else np.stack([grey, grey // 2, 255 - grey], -1)).save(path, progressive=True)
    steps = monai_preprocessing(preparation_of(PrepareConfig(workers=0)), keys=["image"], kind="image2d")[:2]
    read: Any = Compose(ConfigParser({"read": steps}).get_parsed_content("read"))
    ours = read_picture(str(path)).array
    np.testing.assert_array_equal(
        np.asarray(read({"image": str(path)})["image"]), ours[None] if mode == "L" else np.moveaxis(ours, -1, 0)
    )


def _volumes() -> list[Any]:
    import nibabel as nib

    paths = sorted((demo_folder() / "hippocampus" / "images").glob("*.nii.gz"))
    return [np.asarray(nib.load(path).dataobj) for path in paths[:1]]


def test_two_exports_of_one_run_are_equal_byte_by_byte(tmp_path: Path) -> None:
    folder = _saved(_classifier(*FAMILIES["dynunet"]), tmp_path)
    one, two = _bundle(folder, tmp_path / "one"), _bundle(folder, tmp_path / "two")
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(two) for path in two.rglob("*") if path.is_file())
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in files)
    ConfigParser().read_config(str(one / "configs" / "inference.json"))


def test_another_network_or_an_unknown_preparation_becomes_no_bundle(tmp_path: Path) -> None:
    segmenter = segmenter_for(DynUNetConfig(channels=(8, 8, 8), features=8), 2, shape=(16, 16, 16), channels=1)
    folder = save_network(tmp_path / "segmenter", segmenter, preparation={}, card="")
    with pytest.raises(DataError, match="no classifier"):
        _bundle(folder, tmp_path / "one")
    bare = _saved(_classifier(*FAMILIES["dynunet"]), tmp_path, {})
    with pytest.raises(MedsslError, match=r"preparation\.json is empty"):
        _bundle(bare, tmp_path / "two")
