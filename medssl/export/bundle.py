"""A segmenter as a MONAI bundle: configs, weights and documentation that need nothing of medssl.

Where the network is no single class of MONAI's, the bundle carries its source as `scripts/network.py`.

After the MONAI Bundle Specification, https://docs.monai.io/en/stable/mb_specification.html. The pipeline is the one of
training: the store's preparation in MONAI's own transforms, windows as in `Segmenter.predict`, and the way back to the
grid of the input file.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..errors import DataError, MedsslError
from ..files import write_bytes, write_json, write_text
from ..nets.encoder import load_network
from ..nets.segmenter import Segmenter

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"

_PACKAGES = {"nibabel": "5.3.0", "pytorch-ignite": "0.5.2", "fire": "0.7.0"}

LICENCE = """\
The configuration files of this bundle were written by medssl and may be used under the Apache License, Version 2.0,
http://www.apache.org/licenses/LICENSE-2.0.

The weights in models/ were trained by whoever exported this bundle. Their licence, and what the licence of the training
data asks of those who use them, is for the exporter to state here.
"""


def write_bundle(folder: Path, out: Path) -> None:
    """Write a network folder's segmenter as a bundle, and check that the bundle's network is the segmenter's.

    Args:
        folder: network folder of a segmenter.
        out: an existing, empty folder.

    Raises:
        MedsslError: the preparation needs medssl, so the bundle could not run without it.
    """
    segmenter = load_network(folder)
    if not isinstance(segmenter, Segmenter):
        raise DataError("this is no segmenter", where=str(folder), fix="name a fine-tuned run")
    scripts = {} if segmenter.script is None else {"network.py": segmenter.script}
    config, about = inference_config(segmenter), metadata(segmenter)
    write_files(out, segmenter, folder, config=config, about=about, readme=readme, scripts=scripts)
    _check(segmenter, out)


def write_files(
    out: Path,
    network: Any,
    folder: Path,
    *,
    config: dict[str, Any],
    about: dict[str, Any],
    readme: Callable[[Any, str], str],
    scripts: Mapping[str, str],
) -> None:
    """Write the files of a bundle, of any task.

    Args:
        out: an existing, empty folder.
        network: a task network.
        folder: its network folder, for its model card.
        config: of `inference.json`.
        about: of `metadata.json`.
        readme: makes the bundle's README from the network and its model card.
        scripts: sources to carry, by file name.
    """
    for name in ("configs", "models", "docs"):
        (out / name).mkdir()
    if scripts:
        (out / "scripts").mkdir()
        for name, text in {"__init__.py": "", **scripts}.items():
            write_text(out / "scripts" / name, text)
    write_json(out / "configs" / "inference.json", config)
    write_json(out / "configs" / "metadata.json", about)
    write_text(out / "configs" / "logging.conf", LOGGING)
    buffer = io.BytesIO()
    torch.save({name: tensor.cpu() for name, tensor in network.net.state_dict().items()}, buffer)
    write_bytes(out / "models" / "model.pt", buffer.getvalue())
    card = folder / "README.md"
    write_text(out / "docs" / "README.md", readme(network, card.read_text("utf-8") if card.is_file() else ""))
    write_json(out / "docs" / "preparation.json", network.preparation)
    write_text(out / "docs" / "license.txt", LICENCE)
    write_text(out / "LICENSE", LICENCE)


def inference_config(segmenter: Segmenter) -> dict[str, Any]:
    """Return the bundle's `inference.json`.

    Raises:
        MedsslError: a transform of the preparation is medssl's own.
    """
    return {
        "imports": ["$import glob", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/data'",
        "output_dir": "$@bundle_root + '/eval'",
        "ckpt_path": "$@bundle_root + '/models/model.pt'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "datalist": "$[path for path in sorted(glob.glob(glob.escape(@dataset_dir) + '/*')) "
        f"if path.lower().endswith({_endings(segmenter)!r})]",
        **segmenter.definition(),
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": preprocessing(segmenter)},
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': path} for path in @datalist]",
            "transform": "@preprocessing",
        },
        "dataloader": {
            "_target_": "DataLoader",
            "dataset": "@dataset",
            "batch_size": 1,
            "shuffle": False,
            "num_workers": 0,
        },
        "inferer": segmenter.inferer_definition(),
        "postprocessing": {"_target_": "Compose", "transforms": _postprocessing(segmenter)},
        "handlers": [
            {
                "_target_": "CheckpointLoader",
                "load_path": "@ckpt_path",
                "load_dict": {"model": "@network"},
                "map_location": "@device",
            }
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
        },
        "initialize": ["$torch.manual_seed(0)"],
        "run": ["$@evaluator.run()"],
    }


def preprocessing(segmenter: Segmenter) -> list[dict[str, Any]]:
    """Return the store's preparation as MONAI transforms for the key `image`, as float32 at the end."""
    from ..prepare import monai_preprocessing

    if not segmenter.preparation:
        raise MedsslError(
            "the network's preparation.json is empty, so a bundle would not know what images must go through",
            fix="export a run of `medssl finetune`",
        )
    kind = "image2d" if _sees_pictures(segmenter) else "volume"
    steps = monai_preprocessing(segmenter.preparation, keys=["image"], kind=kind)
    return [*steps, {"_target_": "EnsureTyped", "keys": ["image"], "dtype": "$torch.float32"}]


def _postprocessing(segmenter: Segmenter) -> list[dict[str, Any]]:
    """Logits go back to the grid of the input before the classes are chosen: interpolated labels would be none."""
    pictures = _sees_pictures(segmenter)
    return [
        {
            "_target_": "Invertd",
            "keys": "pred",
            "transform": "@preprocessing",
            "orig_keys": "image",
            "nearest_interp": False,
            "to_tensor": True,
        },
        {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
        *_own_values(segmenter),
        # Pictures are read as (row, column); MONAI's writer of pictures takes (column, row).
        *([{"_target_": "Transposed", "keys": "pred", "indices": [0, 2, 1]}] if pictures else []),
        {
            "_target_": "SaveImaged",
            "keys": "pred",
            "output_dir": "@output_dir",
            "output_postfix": "seg",
            "output_ext": ".png" if pictures else ".nii.gz",
            "output_dtype": "uint8" if max(segmenter.values) < 256 else "int16",
            "resample": False,
            "separate_folder": False,
            "print_log": False,
        },
    ]


def _own_values(segmenter: Segmenter) -> list[dict[str, Any]]:
    """Return how class numbers become the values of the label maps the network learned from."""
    numbers, values = list(range(segmenter.classes)), list(segmenter.values)
    if values == numbers:
        return []
    return [{"_target_": "MapLabelValued", "keys": "pred", "orig_labels": numbers, "target_labels": values}]


def _packages(segmenter: Segmenter) -> tuple[str, ...]:
    pictures = ("pillow",) if _sees_pictures(segmenter) else ()
    return (*_PACKAGES, *segmenter.packages, *pictures)


def _sees_pictures(segmenter: Segmenter) -> bool:
    return len(segmenter.shape) == 2 and segmenter.spec["slice_axis"] is None


def _endings(segmenter: Segmenter) -> tuple[str, ...]:
    return (".png", ".jpg", ".jpeg") if _sees_pictures(segmenter) else (".nii", ".nii.gz")


def metadata(segmenter: Segmenter) -> dict[str, Any]:
    """Return the bundle's `metadata.json`."""
    names = dict(zip(segmenter.values, segmenter.labels))
    tensor = {
        "type": "image",
        "modality": "n/a",
        "spatial_shape": list(segmenter.shape),
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": True,
    }
    organs = ", ".join(segmenter.labels[1:])
    return {
        "schema": SCHEMA,
        "version": "0.1.0",
        "changelog": {"0.1.0": "exported by medssl"},
        "monai_version": _version("monai"),
        "pytorch_version": _version("torch"),
        "numpy_version": _version("numpy"),
        "required_packages_version": {name: _version(name) for name in _packages(segmenter)},
        "name": "medssl segmenter",
        "task": f"Segmentation of {organs}",
        "description": f"{segmenter.spec['encoder']['name']}, pretrained without labels or from scratch, fine-tuned by "
        "medssl. It gives every voxel one of the classes in channel_def.",
        "authors": "the exporter; written by medssl",
        "copyright": "see LICENSE",
        "intended_use": "Research. This is no medical device.",
        "network_data_format": {
            "inputs": {
                "image": {
                    **tensor,
                    "format": "magnitude",
                    "num_channels": segmenter.channels,
                    "channel_def": {str(c): "image" for c in range(segmenter.channels)},
                }
            },
            "outputs": {
                "pred": {
                    **tensor,
                    "format": "labels",
                    "num_channels": segmenter.classes,
                    "channel_def": {str(k): name for k, name in names.items()},
                }
            },
        },
    }


def _version(package: str) -> str:
    """Return the installed version, or the oldest the bundle is known to run with."""
    try:
        return importlib.metadata.version(package).split("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return _PACKAGES[package]


def readme(segmenter: Segmenter, card: str) -> str:
    """Return the bundle's README: how to run it, what comes out, and the network's own model card."""
    classes = "\n".join(f"- {value}: {name}" for value, name in zip(segmenter.values, segmenter.labels))
    ending = ".png" if _sees_pictures(segmenter) else ".nii.gz"
    packages = " ".join(_packages(segmenter))
    return f"""# Segmentation bundle

It needs MONAI and a few small packages, and nothing of medssl:

    pip install "monai>={_version("monai")}" torch {packages}

Run it in the bundle's folder; IMAGES holds {" or ".join(_endings(segmenter))} files:

    python -m monai.bundle run --config_file configs/inference.json --bundle_root . --dataset_dir IMAGES

For every image, `eval/` (or `--output_dir`) then has `<name>_seg{ending}`, a label map on the image's own grid:

{classes}

What an image goes through before the network is in `configs/inference.json` under `preprocessing`, and as medssl wrote
it in `docs/preparation.json`. The network sees windows of {" x ".join(map(str, segmenter.shape))} voxels.

This is no medical device. Check it on images of your own scanners and patients before you rely on it.

{card}"""


LOGGING = """\
[loggers]
keys=root

[handlers]
keys=console

[formatters]
keys=plain

[logger_root]
level=INFO
handlers=console

[handler_console]
class=StreamHandler
level=INFO
formatter=plain
args=(sys.stdout,)

[formatter_plain]
format=%(asctime)s - %(levelname)s - %(message)s
"""


def _check(segmenter: Segmenter, out: Path) -> None:
    """Build the network as MONAI will, load the bundle's weights strictly, and compare it with the segmenter."""
    from monai.bundle import ConfigParser

    parser = ConfigParser(json.loads((out / "configs" / "inference.json").read_text("utf-8")))
    with _importing_from(out):
        network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(out / "models" / "model.pt", weights_only=True))
    x = torch.linspace(-1, 1, segmenter.channels * torch.Size(segmenter.shape).numel())
    x = x.reshape(1, segmenter.channels, *segmenter.shape)
    with torch.no_grad():
        same = torch.equal(network.eval()(x), segmenter(x))
    if not same:
        raise MedsslError("the bundle's network is not the segmenter's", where=str(out), fix="report this")


@contextmanager
def _importing_from(bundle: Path) -> Iterator[None]:
    """Let the bundle's `scripts` be imported as MONAI does it, and forget them afterwards."""
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "scripts"}
    sys.path.insert(0, str(bundle))
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # nothing but what was exported lies in the bundle
    try:
        yield
    finally:
        sys.dont_write_bytecode = writes
        sys.path.remove(str(bundle))
        for name in [name for name in sys.modules if name.split(".")[0] == "scripts"]:
            del sys.modules[name]
        sys.modules.update(before)
