"""A detector as a MONAI bundle: it writes the boxes of every image, with class and score, on the image's own grid.

After the MONAI Bundle Specification, https://docs.monai.io/en/stable/mb_specification.html. The pipeline is the one of
training: the store's preparation in MONAI's own transforms, windows and fusion as in `Detector.predict`. The bundle
carries the network's source.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ..errors import DataError, MedsslError
from ..nets.detector import Detector
from ..nets.encoder import load_network
from . import detector_saver
from .bundle import _PACKAGES, SCHEMA, _importing_from, _version, write_files


def write_detector_bundle(folder: Path, out: Path) -> None:
    """Write a network folder's detector as a bundle, and check that the bundle finds what the detector finds.

    Args:
        folder: network folder of a detector.
        out: an existing, empty folder.

    Raises:
        DataError: the folder holds another network.
        MedsslError: the preparation needs medssl, so the bundle could not run without it.
    """
    detector = load_network(folder)
    if not isinstance(detector, Detector):
        raise DataError("this is no detector", where=str(folder), fix="name a run fine-tuned for detection")
    saver = Path(detector_saver.__file__)
    scripts = {**detector.scripts, saver.name: saver.read_text("utf-8")}
    config, about = inference_config(detector), metadata(detector)
    write_files(out, detector, folder, config=config, about=about, readme=readme, scripts=scripts)
    _check(detector, out)


def inference_config(detector: Detector) -> dict[str, Any]:
    """Return the bundle's `inference.json`.

    Raises:
        MedsslError: a transform of the preparation is medssl's own, or nothing is known of the preparation.
    """
    return {
        "imports": ["$import glob", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/data'",
        "output_dir": "$@bundle_root + '/eval'",
        "ckpt_path": "$@bundle_root + '/models/model.pt'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "datalist": "$[path for path in sorted(glob.glob(glob.escape(@dataset_dir) + '/*')) "
        f"if path.lower().endswith({_endings(detector)!r})]",
        **detector.definition(),
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": preprocessing(detector)},
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': path} for path in @datalist]",
            "transform": "@preprocessing",
        },
        "saver": {
            "_target_": "scripts.detector_saver.BoxSaver",
            "detector": "@detector",
            "output_dir": "@output_dir",
            "classes": list(detector.classes),
            "device": "@device",
        },
        "initialize": [
            "$@network.load_state_dict(torch.load(@ckpt_path, map_location=@device, weights_only=True))",
            "$@network.eval()",
        ],
        "run": ["$@saver(@dataset)"],
    }


def preprocessing(detector: Detector) -> list[dict[str, Any]]:
    """Return the store's preparation as MONAI transforms for the key `image`, as float32 at the end."""
    from ..prepare import monai_preprocessing

    if not detector.preparation:
        raise MedsslError(
            "the network's preparation.json is empty, so a bundle would not know what images must go through",
            fix="export a run of `medssl finetune`",
        )
    kind = "volume" if len(detector.shape) == 3 else "image2d" if detector.channels == 1 else "rgb2d"
    steps = monai_preprocessing(detector.preparation, keys=["image"], kind=kind)
    return [*steps, {"_target_": "EnsureTyped", "keys": ["image"], "dtype": "$torch.float32"}]


def _endings(detector: Detector) -> tuple[str, ...]:
    return (".png", ".jpg", ".jpeg") if len(detector.shape) == 2 else (".nii", ".nii.gz")


def _packages(detector: Detector) -> tuple[str, ...]:
    pictures = ("pillow",) if len(detector.shape) == 2 else ()
    return (*_PACKAGES, *detector.packages, *pictures)


def metadata(detector: Detector) -> dict[str, Any]:
    """Return the bundle's `metadata.json`."""
    tensor = {"modality": "n/a", "dtype": "float32", "value_range": []}
    image = {
        **tensor,
        "type": "image",
        "format": "magnitude",
        "num_channels": detector.channels,
        "spatial_shape": list(detector.shape),
        "is_patch_data": True,
        "channel_def": {str(c): "image" for c in range(detector.channels)},
    }
    boxes = {
        **tensor,
        "type": "object",
        "format": "logits and box codes of anchors, level by level",
        "num_channels": len(detector.classes),
        "spatial_shape": [],
        "is_patch_data": False,
        "channel_def": {str(k): name for k, name in enumerate(detector.classes)},
    }
    return {
        "schema": SCHEMA,
        "version": "0.1.0",
        "changelog": {"0.1.0": "exported by medssl"},
        "monai_version": _version("monai"),
        "pytorch_version": _version("torch"),
        "numpy_version": _version("numpy"),
        "required_packages_version": {name: _version(name) for name in _packages(detector)},
        "name": "medssl detector",
        "task": f"Detection of {', '.join(detector.classes)}",
        "description": f"RetinaNet over {detector.spec['encoder']['name']}, pretrained without labels or from scratch, "
        "fine-tuned by medssl. It finds boxes of the classes in channel_def.",
        "authors": "the exporter; written by medssl",
        "copyright": "see LICENSE",
        "intended_use": "Research. This is no medical device.",
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": boxes}},
    }


def readme(detector: Detector, card: str) -> str:
    """Return the bundle's README: how to run it, what comes out, and the network's own model card."""
    names = "\n".join(f"- `{name}`" for name in detector.classes)
    packages = " ".join(_packages(detector))
    return f"""# Detection bundle

It needs MONAI and a few small packages, and nothing of medssl:

    pip install "monai>={_version("monai")}" torch {packages}

Run it in the bundle's folder; IMAGES holds {" or ".join(_endings(detector))} files:

    python -m monai.bundle run --config_file configs/inference.json --bundle_root . --dataset_dir IMAGES

Then `eval/` (or `--output_dir`) has `boxes.json` and `boxes.csv`: of every image the boxes found, the surest first,
with class, score, and low and high corner in voxels of the file (voxel i spans i to i + 1){_mm(detector)}.
Classes:

{names}

What an image goes through before the network is in `configs/inference.json` under `preprocessing`, and as medssl wrote
it in `docs/preparation.json`. The network sees windows of {" x ".join(map(str, detector.shape))} voxels; `detector`
puts their boxes together.

A score is no probability: choose where to cut by how many false boxes an image you can bear, on images of your own
scanners and patients. This is no medical device.

{card}"""


def _mm(detector: Detector) -> str:
    return ", and in RAS+ mm" if len(detector.shape) == 3 else ""


def _check(detector: Detector, out: Path) -> None:
    """Build the network as MONAI will, load the bundle's weights strictly, and compare what both find in an image."""
    from monai.bundle import ConfigParser

    parser = ConfigParser(json.loads((out / "configs" / "inference.json").read_text("utf-8")))
    parser["device"] = "$torch.device('cpu')"
    with _importing_from(out):
        finder = parser.get_parsed_content("detector")
    finder.network.load_state_dict(torch.load(out / "models" / "model.pt", weights_only=True))
    finder.eval()
    size = [n + 3 for n in detector.shape]
    x = torch.linspace(-1, 1, detector.channels * torch.Size(size).numel()).reshape(1, detector.channels, *size)
    crop = x[(slice(None), slice(None), *(slice(n) for n in detector.shape))]
    with torch.no_grad():
        ours, theirs = detector.net(crop), finder.network(crop)
    heads = [torch.equal(a, b) for key, maps in ours.items() for a, b in zip(maps, theirs[key], strict=True)]
    if not all(heads) or not all(map(torch.equal, finder(x), detector.predict(x))):
        raise MedsslError("the bundle's boxes are not the detector's", where=str(out), fix="report this")
