"""A detector's bundle runs where medssl is not, and finds the boxes medssl finds, on the grid of the file."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from medssl.demo_data import demo_folder
from medssl.downstream.detection import world_box
from medssl.errors import DataError, MedsslError
from medssl.export.detector_bundle import write_detector_bundle
from medssl.ingest import build_index
from medssl.nets.detector import Detector, detector_for
from medssl.nets.encoder import DynUNetConfig, SegResNetConfig, SwinConfig, TimmConfig, ViTConfig, save_network
from medssl.nets.segmenter import segmenter_for
from medssl.prepare import PrepareConfig, build_store, preparation_of
from medssl.store import Store
from medssl.views.scaling import scaled

from .test_bundle import run_bundle

SMALL_SWIN: dict[str, Any] = {"width": 12, "depths": (1, 1, 1, 1), "heads": (1, 1, 1, 1), "window": 2}
FAMILIES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "dynunet": (DynUNetConfig(channels=(8, 8, 8), features=8, strides=(1, 2, 2)), (16, 16)),
    "segresnet": (SegResNetConfig(channels=8, blocks_down=(1, 1), blocks_up=(1,), features=8), (16, 16)),
    "vit": (ViTConfig(patch=4, width=24, depth=2, heads=2, mlp=32), (16, 16)),
    "swin": (SwinConfig(**SMALL_SWIN), (64, 32)),
    "swin with decoder": (SwinConfig(**SMALL_SWIN, decoder=True, features=8), (64, 32)),
    "timm": (TimmConfig(model="resnet10t"), (64, 64)),
}
PICTURES = PrepareConfig(orientation=None, spacing_mm=None)


def sure(config: Any, shape: tuple[int, ...], channels: int = 1) -> Detector:
    """A detector of random weights that is sure of many boxes."""
    torch.manual_seed(7)
    levels = [(4,) * len(shape), (8,) * len(shape)]
    anchors = [[[1.5 * s for s in level], [2.5 * s for s in level]] for level in levels]
    detector = detector_for(
        config, ["nodule", "mass"], levels=levels, anchors=anchors, width=8, shape=shape, channels=channels
    )
    with torch.no_grad():
        detector.net.classification_head.cls_logits.weight.normal_(0, 0.2)
        detector.net.classification_head.cls_logits.bias.zero_()
        detector.net.regression_head.bbox_reg.weight.normal_(0, 0.05)
    return detector.eval()


def found_by(detector: Detector, store: Store, image_id: str) -> Any:
    intensity = torch.tensor([store.row(image_id).intensity], dtype=torch.float32)
    return detector.predict(scaled(torch.from_numpy(store.read(image_id))[None], intensity))


@pytest.mark.parametrize(("config", "shape"), FAMILIES.values(), ids=list(FAMILIES))
def test_a_detector_of_every_family_becomes_a_bundle(config: Any, shape: tuple[int, ...], tmp_path: Path) -> None:
    save_network(tmp_path / "detector", sure(config, shape), preparation=preparation_of(PICTURES), card="# card")
    (tmp_path / "bundle").mkdir()
    write_detector_bundle(tmp_path / "detector", tmp_path / "bundle")  # builds, loads strictly, and compares
    written = {str(path.relative_to(tmp_path / "bundle")) for path in (tmp_path / "bundle").rglob("*.*")}
    assert {"scripts/retinanet.py", "scripts/decoders.py", "scripts/detector_saver.py"} <= written
    assert not any(
        "import medssl" in (tmp_path / "bundle" / name).read_text() for name in written if name.endswith("py")
    )


def test_a_bundle_finds_what_medssl_finds_in_a_turned_volume(tmp_path: Path) -> None:
    scan = min((demo_folder() / "hippocampus" / "images").glob("*.nii.gz"))
    array = np.ascontiguousarray(np.asarray(nib.load(scan).dataobj).transpose(2, 0, 1)[:, ::-1])
    affine = np.array([[0, -1.25, 0, 40], [0, 0, 1, 3], [0.8, 0, 0, -7], [0, 0, 0, 1]])
    (tmp_path / "scans").mkdir()
    nib.save(nib.Nifti1Image(array.astype(np.float32), affine), tmp_path / "scans" / "turned.nii.gz")
    build_index([tmp_path / "scans"], tmp_path / "index")
    store = Store.open(build_store(tmp_path / "index", PrepareConfig(spacing_mm=(1.5, 1.5, 1.5)), tmp_path / "s").store)
    detector = sure(DynUNetConfig(channels=(8, 8, 8), features=8, strides=(2, 2, 2)), (16, 16, 16))
    save_network(tmp_path / "detector", detector, preparation=store.preparation, card="# card")
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    write_detector_bundle(tmp_path / "detector", bundle)
    run_bundle(bundle, tmp_path / "scans", tmp_path / "out")
    (image,) = json.loads((tmp_path / "out" / "eval" / "boxes.json").read_text())["images"]
    wanted = found_by(detector, store, store.ids[0])
    assert image["image"] == "turned.nii.gz"
    assert len(image["boxes"]) == len(wanted.boxes) > 5
    for line, box, score, k in zip(image["boxes"], *wanted):
        mm = world_box(box.double().numpy(), store.affine(store.ids[0]))
        np.testing.assert_allclose(line["box_mm"], mm, atol=0.05)
        assert line["score"] == pytest.approx(float(score), abs=1e-3)
        assert line["class"] == detector.classes[int(k)]
        np.testing.assert_allclose(world_box(np.array(line["box"]), affine), mm, atol=0.05)
    with (tmp_path / "out" / "eval" / "boxes.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(wanted.boxes)


def test_a_bundle_of_pictures_finds_boxes_by_row_and_column(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    Image.fromarray(random.integers(0, 255, (40, 52), dtype=np.uint8)).save(tmp_path / "pictures" / "one.png")
    build_index([tmp_path / "pictures"], tmp_path / "index")
    store = Store.open(build_store(tmp_path / "index", PICTURES, tmp_path / "s").store)
    detector = sure(*FAMILIES["dynunet"])
    save_network(tmp_path / "detector", detector, preparation=store.preparation, card="# card")
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    write_detector_bundle(tmp_path / "detector", bundle)
    run_bundle(bundle, tmp_path / "pictures", tmp_path / "out")
    (image,) = json.loads((tmp_path / "out" / "eval" / "boxes.json").read_text())["images"]
    wanted = found_by(detector, store, store.ids[0])
    np.testing.assert_allclose([line["box"] for line in image["boxes"]], wanted.boxes.numpy(), atol=1e-3)
    assert max(line["box"][3] for line in image["boxes"]) > 41  # columns go beyond the rows


def test_what_is_no_detector_or_was_not_prepared_is_refused(tmp_path: Path) -> None:
    segmenter = segmenter_for(FAMILIES["dynunet"][0], 2, shape=(16, 16), channels=1)
    save_network(tmp_path / "segmenter", segmenter, preparation={}, card="")
    (tmp_path / "bundle").mkdir()
    with pytest.raises(DataError, match="no detector"):
        write_detector_bundle(tmp_path / "segmenter", tmp_path / "bundle")
    save_network(tmp_path / "detector", sure(*FAMILIES["dynunet"]), preparation={}, card="")
    with pytest.raises(MedsslError, match=r"preparation\.json is empty"):
        write_detector_bundle(tmp_path / "detector", tmp_path / "bundle")
    shutil.rmtree(tmp_path / "bundle")
