"""The exported bundle runs where medssl is not, and predicts what medssl predicts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow, verify_net_in_out
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import map_coordinates, maximum_filter, minimum_filter

from medssl.demo_data import demo_folder
from medssl.errors import DataError, MedsslError, UsageError
from medssl.export import export_run
from medssl.ingest import build_index
from medssl.nets.encoder import (
    DynUNetConfig,
    SwinConfig,
    TimmConfig,
    ViTConfig,
    build_encoder,
    load_encoder,
    save_network,
)
from medssl.nets.segmenter import Segmenter, segmenter_for
from medssl.prepare import PrepareConfig, build_store, preparation_of
from medssl.store import Store
from medssl.views.scaling import scaled

LABELS = ("background", "anterior", "posterior")


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two of the shipped hippocampus volumes, one of them turned and with voxels of three sizes."""
    folder = tmp_path_factory.mktemp("scans")
    one, two = sorted((demo_folder() / "hippocampus" / "images").glob("*.nii.gz"))[:2]
    shutil.copy(one, folder)
    image = nib.load(two)
    array = np.ascontiguousarray(np.asarray(image.dataobj).transpose(2, 0, 1)[:, ::-1])
    affine = np.array([[0, -1.25, 0, 40], [0, 0, 1, 3], [0.8, 0, 0, -7], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(array.astype(np.float32), affine), folder / "turned.nii.gz")
    return folder


@dataclass(frozen=True)
class Case:
    """A segmenter whose images were prepared in one way, its bundle's predictions, and medssl's own."""

    run: Path
    bundle: Path
    store: Store
    segmenter: Segmenter


def exported(scans: Path, out: Path, prepare: PrepareConfig, config: Any, shape: tuple[int, ...], **more: Any) -> Case:
    build_index([scans], out / "index")
    store = Store.open(build_store(out / "index", prepare, out / "store").store)
    torch.manual_seed(3)
    encoder = build_encoder(config, channels=1, shape=shape)
    segmenter = segmenter_for(encoder, 3, labels=LABELS, **more).eval()
    # A new network says one class nearly everywhere; centred logits make all three of them appear.
    image = scaled(torch.from_numpy(store.read(store.ids[0]))[None], torch.tensor([store.rows[0].intensity]))
    means = segmenter.predict(image).flatten(2).mean(2)[0]
    with torch.no_grad():
        bias = segmenter.head_parameters()[-1]  # (K x sub-voxels,)
        bias.sub_(means.repeat_interleave(len(bias) // 3))
    save_network(out / "run" / "segmenter", segmenter, preparation=store.preparation, card="# the run's own card")
    export_run(out / "run", "monai-bundle", out / "bundle")
    return Case(out / "run", out / "bundle", store, segmenter)


def without_medssl(words: list[str], folder: Path, out: Path) -> None:
    """Run Python in a process where importing medssl fails; the file `blocked` proves that it would."""
    block, threads = out / "block", torch.get_num_threads()
    block.mkdir(parents=True)
    (block / "sitecustomize.py").write_text(
        "import pathlib, sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'medssl':\n"
        "            raise ImportError('medssl is not installed here')\n"
        "sys.meta_path.insert(0, Block())\n"
        f"pathlib.Path({str(out / 'blocked')!r}).touch()\n"
    )
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        # as many threads as here: another number sums in another order, and what is compared is equal to the last bit
        env={**os.environ, "PYTHONPATH": str(block), "OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (out / "blocked").exists()


def run_bundle(bundle: Path, images: Path, out: Path) -> None:
    """Run MONAI's own command, as the bundle's README gives it."""
    words = ["-m", "monai.bundle", "run", "--config_file", "configs/inference.json", "--bundle_root", "."]
    without_medssl([*words, "--dataset_dir", str(images), "--output_dir", str(out / "eval")], bundle, out)


def medssl_prediction(case: Case, image_id: str) -> NDArray[np.int64]:
    """Class numbers on the store's grid, by medssl's own windows."""
    row = case.store.row(image_id)
    image = scaled(torch.from_numpy(case.store.read(image_id))[None], torch.tensor([row.intensity]))
    return np.asarray(case.segmenter.predict(image)[0].argmax(0).numpy())


def at_millimetres(label: nib.Nifti1Image, affine: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.int64]:
    """The nearest label of a map at the voxel centres of another grid."""
    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")).reshape(3, -1)
    world = affine[:3, :3] @ voxels + affine[:3, 3:]
    back = np.linalg.inv(label.affine)
    there = back[:3, :3] @ world + back[:3, 3:]
    return map_coordinates(np.asarray(label.dataobj), there, order=0, mode="nearest").reshape(shape).astype(np.int64)


def agreements(case: Case, scans: Path, predicted: Path, *, within: bool = False) -> list[float]:
    """Share of the store's voxels for which bundle and medssl say the same, one a scan.

    With `within`, of the voxels whose neighbours are all of one class: those that interpolation leaves alone.
    """
    shares, left = [], {image_id: medssl_prediction(case, image_id) for image_id in case.store.ids}
    for scan in sorted(scans.glob("*.nii.gz")):
        given, found = nib.load(scan), nib.load(predicted / scan.name.replace(".nii.gz", "_seg.nii.gz"))
        assert found.shape == given.shape
        np.testing.assert_allclose(found.affine, given.affine, atol=1e-5)
        best = {}
        for image_id, ours in left.items():
            affine = np.array(case.store.row(image_id).affine)
            same = at_millimetres(found, affine, ours.shape) == np.array(case.segmenter.values)[ours]
            inner = minimum_filter(ours, 3) == maximum_filter(ours, 3) if within else np.ones_like(same)
            best[image_id] = float(same[inner].mean())
            classes = np.bincount(ours[inner], minlength=3) / inner.size
            assert (classes > 0.001).all(), "a prediction of one class would agree with anything"
        image_id = max(best, key=best.__getitem__)
        left.pop(image_id)
        shares.append(best[image_id])
    return shares


@pytest.mark.slow
def test_a_bundle_without_medssl_predicts_every_voxel_as_medssl_does(scans: Path, tmp_path: Path) -> None:
    network, values = DynUNetConfig(channels=(8, 8, 16)), (0, 2, 5)  # the values of label maps, not class numbers
    case = exported(scans, tmp_path, PrepareConfig(workers=0), network, (24, 40, 32), values=values)
    run_bundle(case.bundle, scans, tmp_path)
    # Percentiles are computed on float32 voxels there and on the stored ones here: a tie may fall either way.
    assert min(agreements(case, scans, tmp_path / "eval")) > 0.9999


@pytest.mark.slow
def test_a_bundle_that_carries_its_network_predicts_every_voxel_as_medssl_does(scans: Path, tmp_path: Path) -> None:
    config = ViTConfig(patch=8, width=24, depth=3, heads=2, mlp=24)
    case = exported(scans, tmp_path, PrepareConfig(workers=0), config, (24, 40, 32))
    assert (case.bundle / "scripts" / "network.py").is_file()
    run_bundle(case.bundle, scans, tmp_path)
    assert min(agreements(case, scans, tmp_path / "eval")) > 0.9999


def test_every_network_that_bundles_carry_computes_the_same_where_medssl_is_not(tmp_path: Path) -> None:
    cases: dict[str, tuple[Any, tuple[int, ...], Any]] = {
        "any-patch": (ViTConfig(patch=(4, 8), width=24, depth=2, heads=2, mlp=24), (16, 24), "unetr"),
        "light-vit": (ViTConfig(patch=4, width=24, depth=3, heads=2, mlp=24), (8, 8, 12), "light"),
        "light-swin": (SwinConfig(width=12, depths=(1, 1, 1, 1), heads=(1, 2, 2, 2), window=4), (32, 64), "light"),
        "light-timm": (TimmConfig(model="test_convnext"), (32, 64), "unetr"),
    }
    for name, (config, shape, decoder) in cases.items():
        segmenter = segmenter_for(build_encoder(config, channels=1, shape=shape), 3, decoder=decoder).eval()
        preparation = preparation_of(PrepareConfig(workers=0))
        save_network(tmp_path / f"{name}-run" / "segmenter", segmenter, preparation=preparation, card="")
        export_run(tmp_path / f"{name}-run", "monai-bundle", tmp_path / name)
        x = torch.randn(2, 1, *shape)
        torch.save({"x": x, "y": segmenter(x)}, tmp_path / name / "pair.pt")
    code = (
        "import sys, torch\n"
        "from monai.bundle import ConfigParser\n"
        "for bundle in sys.argv[1:]:\n"
        "    parser = ConfigParser()\n"
        "    parser.read_config(bundle + '/configs/inference.json')\n"
        "    network = parser.get_parsed_content('network_def')\n"
        "    network.load_state_dict(torch.load(bundle + '/models/model.pt', weights_only=True))\n"
        "    pair = torch.load(bundle + '/pair.pt')\n"
        # another process may sum in another order: rounding of float32, and nothing more
        "    torch.testing.assert_close(network.eval()(pair['x']), pair['y'], rtol=1e-5, atol=1e-6)\n"
        "    assert type(network).__module__ == 'scripts.network', type(network)\n"
    )
    scripts = {(tmp_path / name / "scripts" / "network.py").read_bytes() for name in cases}
    assert len(scripts) == 1, "one process can only import one of them"
    without_medssl(["-c", code, *(str(tmp_path / name) for name in cases)], tmp_path / "any-patch", tmp_path / "out")
    assert "scripts" not in sys.modules
    wanted = {name: (tmp_path / name / "configs" / "metadata.json").read_text() for name in cases}
    assert [name for name, text in wanted.items() if "timm" in json.loads(text)["required_packages_version"]] == [
        "light-timm"
    ]
    assert "pytorch-ignite fire timm" in (tmp_path / "light-timm" / "docs" / "README.md").read_text()


def test_a_bundle_of_monais_own_classes_carries_no_code(case: Case) -> None:
    assert not (case.bundle / "scripts").exists()
    assert list(case.bundle.rglob("*.py")) == []


@pytest.mark.slow
def test_a_bundle_resamples_as_prepare_did_and_returns_to_the_scans_grid(scans: Path, tmp_path: Path) -> None:
    prepare = PrepareConfig.model_validate(
        {
            "workers": 0,
            "orientation": "LPS",
            "spacing_mm": [1.2, 1.2, 1.5],
            "transforms": [{"name": "monai.transforms.CropForeground", "margin": 2}],
            "scaling": {"name": "zscore"},
        }
    )
    case = exported(
        scans, tmp_path, prepare, DynUNetConfig(channels=(8, 8, 16), strides=(4, 2, 2), residual=False), (32, 32, 16)
    )
    run_bundle(case.bundle, scans, tmp_path)
    assert min(agreements(case, scans, tmp_path / "eval", within=True)) > 0.95


@pytest.mark.slow
def test_a_network_of_slices_runs_on_volumes(scans: Path, tmp_path: Path) -> None:
    config = DynUNetConfig(channels=(8, 8, 16))
    case = exported(scans, tmp_path, PrepareConfig(workers=0), config, (24, 40), slice_axis=2)
    run_bundle(case.bundle, scans, tmp_path)
    assert min(agreements(case, scans, tmp_path / "eval")) > 0.9999


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".png", ".JPG"])
def test_a_bundle_of_pictures_writes_pictures_that_are_not_turned(ending: str, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    volume = np.asarray(nib.load(next((demo_folder() / "hippocampus" / "images").glob("*.nii.gz"))).dataobj)
    grey = (255 * (volume[:, :, 15] / volume[:, :, 15].max())).astype(np.uint8)
    Image.fromarray(grey).save(pictures / f"slice{ending}")
    case = exported(
        pictures, tmp_path, PrepareConfig(workers=0), DynUNetConfig(channels=(8, 8, 16), strides=(1, 2, 2)), (32, 48)
    )
    run_bundle(case.bundle, pictures, tmp_path)
    found = np.asarray(Image.open(tmp_path / "eval" / "slice_seg.png"))
    ours = medssl_prediction(case, case.store.ids[0])
    assert found.shape == grey.shape == ours.shape
    assert (found == ours).mean() > 0.999


@pytest.fixture(scope="module")
def case(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A bundle of the recipe's usual preparation."""
    out = tmp_path_factory.mktemp("case")
    return exported(scans, out, PrepareConfig(workers=0), DynUNetConfig(channels=(8, 8, 16)), (24, 40, 32))


# MONAI warns of every configuration it reads that it may run code.
@pytest.mark.filterwarnings("ignore:parsing")
def test_monai_verifies_the_networks_input_and_output(case: Case) -> None:
    configs = case.bundle / "configs"
    verify_net_in_out("network_def", str(configs / "metadata.json"), str(configs / "inference.json"), device="cpu")


def test_the_metadata_has_every_key_the_specification_asks_for(case: Case) -> None:
    metadata = json.loads((case.bundle / "configs" / "metadata.json").read_text())
    wanted = "version monai_version pytorch_version numpy_version task description authors copyright"
    assert all(isinstance(metadata[key], str) and metadata[key] for key in wanted.split())
    data = metadata["network_data_format"]
    tensor = "type format modality num_channels spatial_shape dtype value_range is_patch_data channel_def"
    for given in (data["inputs"]["image"], data["outputs"]["pred"]):
        assert set(tensor.split()) == set(given)
    assert data["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "anterior", "2": "posterior"}


# MONAI warns of a reader of DICOM that is not installed.
@pytest.mark.filterwarnings("ignore:NvImgCodec")
def test_monai_finds_every_property_of_an_inference_workflow(case: Case) -> None:
    workflow = ConfigWorkflow(
        str(case.bundle / "configs" / "inference.json"),
        workflow_type="infer",
        logging_file=False,
        bundle_root=str(case.bundle),
    )
    workflow.initialize()
    assert workflow.check_properties() == []


def test_nothing_in_the_bundle_speaks_of_medssls_modules(case: Case) -> None:
    assert "medssl" not in (case.bundle / "configs" / "inference.json").read_text()
    assert all(
        key.split(".")[0].isdigit() for key in torch.load(case.bundle / "models" / "model.pt", weights_only=True)
    )


def test_two_exports_of_one_run_are_equal_byte_by_byte(case: Case, tmp_path: Path) -> None:
    export_run(case.run, "monai-bundle", tmp_path / "again")
    for path in (tmp_path / "again").rglob("*.*"):
        assert path.read_bytes() == (case.bundle / path.relative_to(tmp_path / "again")).read_bytes()


def test_the_bundle_carries_the_runs_card_and_how_to_run_it(case: Case) -> None:
    readme = (case.bundle / "docs" / "README.md").read_text()
    assert "the run's own card" in readme
    assert "python -m monai.bundle run --config_file configs/inference.json" in readme


def test_an_exported_encoder_is_the_runs_encoder_byte_by_byte(tmp_path: Path) -> None:
    encoder = build_encoder(DynUNetConfig(channels=(8, 8, 8)), channels=1, shape=(16, 16, 16))
    folder = save_network(tmp_path / "run" / "encoder", encoder, preparation={"a": 1}, card="# card")
    result = export_run(tmp_path / "run", "encoder", tmp_path / "out")
    for name in result.files:
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()
    assert load_encoder(tmp_path / "out").preparation == {"a": 1}
    assert "load_encoder" in str(result)
    assert result.to_dict()["to"] == "encoder"


def test_a_run_without_the_wanted_network_says_so_and_leaves_nothing(case: Case, tmp_path: Path) -> None:
    encoder = build_encoder(DynUNetConfig(channels=(8, 8, 8)), channels=1, shape=(16, 16, 16))
    save_network(tmp_path / "run" / "encoder", encoder, preparation={}, card="")
    for run, to in ((tmp_path / "run", "monai-bundle"), (case.run, "encoder"), (tmp_path / "absent", "encoder")):
        with pytest.raises(DataError):
            export_run(run, to, tmp_path / "out")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="kind segmenter cannot become encoder"):
        export_run(case.run / "segmenter", "encoder", tmp_path / "out")
    with pytest.raises(UsageError, match="not to 'onnx'"):
        export_run(case.run, "onnx", tmp_path / "out")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_there_already_is_left_alone(case: Case, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(MedsslError, match="already there"):
        export_run(case.run, "monai-bundle", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_preparation_that_needs_medssl_cannot_become_a_bundle(case: Case, tmp_path: Path) -> None:
    prepare = PrepareConfig.model_validate({"transforms": [{"name": "medssl.views.scaling.scale"}]})
    save_network(tmp_path / "segmenter", case.segmenter, preparation=preparation_of(prepare), card="")
    with pytest.raises(MedsslError):
        export_run(tmp_path, "monai-bundle", tmp_path / "out")
    save_network(tmp_path / "segmenter", case.segmenter, preparation={}, card="")
    with pytest.raises(MedsslError, match="empty"):
        export_run(tmp_path, "monai-bundle", tmp_path / "out")
    assert not (tmp_path / "out").exists()
