"""A classifier as a MONAI bundle: it writes a table of probabilities, or of values in units, one line an image.

After the MONAI Bundle Specification, https://docs.monai.io/en/stable/mb_specification.html. The pipeline is the one of
training: the store's preparation in MONAI's own transforms, windows as in `Classifier.predict`, class weights taken off
and measures put back into their units as in `Classifier.answer`. The bundle carries the network's source.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ..errors import DataError, MedsslError
from ..nets.classifier import Classifier
from ..nets.encoder import load_network
from . import classifier_saver
from .bundle import _PACKAGES, SCHEMA, _importing_from, _version, write_files

_KINDS = {
    "binary": "probability of the finding",
    "multilabel": "probability of each finding",
    "multiclass": "probability of each class",
    "ordinal": "probability of each grade",
    "regression": "value in the unit of the training data",
}


def write_classifier_bundle(folder: Path, out: Path) -> None:
    """Write a network folder's classifier as a bundle, and check that the bundle's answers are the classifier's.

    Args:
        folder: network folder of a classifier.
        out: an existing, empty folder.

    Raises:
        DataError: the folder holds another network.
        MedsslError: the preparation needs medssl, so the bundle could not run without it.
    """
    classifier = load_network(folder)
    if not isinstance(classifier, Classifier):
        raise DataError("this is no classifier", where=str(folder), fix="name a run fine-tuned for classification")
    saver = Path(classifier_saver.__file__)
    scripts = {**classifier.scripts, saver.name: saver.read_text("utf-8")}
    config, about = inference_config(classifier), metadata(classifier)
    write_files(out, classifier, folder, config=config, about=about, readme=readme, scripts=scripts)
    _check(classifier, out)


def inference_config(classifier: Classifier) -> dict[str, Any]:
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
        f"if path.lower().endswith({_endings(classifier)!r})]",
        "network_def": {"_target_": "scripts.image_network.ImageNetwork", **classifier.network_arguments()},
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": preprocessing(classifier)},
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
        "inferer": {"_target_": "scripts.image_network.WindowMean", **classifier.inferer_arguments()},
        "answer": {"_target_": "scripts.image_network.Answer", **classifier.answer_arguments()},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [{"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: @answer(x[None])[0]"}],
        },
        "handlers": _handlers(classifier),
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


def _handlers(classifier: Classifier) -> list[dict[str, Any]]:
    about = {"kind": classifier.task_kind, "targets": list(classifier.targets), "told": _KINDS[classifier.task_kind]}
    return [
        {
            "_target_": "CheckpointLoader",
            "load_path": "@ckpt_path",
            "load_dict": {"model": "@network"},
            "map_location": "@device",
        },
        {
            "_target_": "scripts.classifier_saver.AnswerSaver",
            "output_dir": "@output_dir",
            "names": list(classifier.names),
            "about": about,
        },
    ]


def preprocessing(classifier: Classifier) -> list[dict[str, Any]]:
    """Return the store's preparation as MONAI transforms for the key `image`, as float32 at the end."""
    from ..prepare import monai_preprocessing

    if not classifier.preparation:
        raise MedsslError(
            "the network's preparation.json is empty, so a bundle would not know what images must go through",
            fix="export a run of `medssl finetune`",
        )
    kind = "image2d" if _sees_pictures(classifier) else "volume"
    steps = monai_preprocessing(classifier.preparation, keys=["image"], kind=kind)
    return [*steps, {"_target_": "EnsureTyped", "keys": ["image"], "dtype": "$torch.float32"}]


def _sees_pictures(classifier: Classifier) -> bool:
    return len(classifier.shape) == 2 and classifier.spec["slice_axis"] is None


def _endings(classifier: Classifier) -> tuple[str, ...]:
    return (".png", ".jpg", ".jpeg") if _sees_pictures(classifier) else (".nii", ".nii.gz")


def _packages(classifier: Classifier) -> tuple[str, ...]:
    pictures = ("pillow",) if _sees_pictures(classifier) else ()
    return (*_PACKAGES, *classifier.packages, *pictures)


def metadata(classifier: Classifier) -> dict[str, Any]:
    """Return the bundle's `metadata.json`."""
    outputs = int(classifier.network_arguments()["outputs"])
    image = {
        "type": "image",
        "format": "magnitude",
        "modality": "n/a",
        "num_channels": classifier.channels,
        "spatial_shape": list(classifier.shape),
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": True,
        "channel_def": {str(c): "image" for c in range(classifier.channels)},
    }
    steps = (
        classifier.names if outputs == len(classifier.names) else [f"beyond {name}" for name in classifier.names[:-1]]
    )
    told: dict[str, Any] = {
        "type": "probabilities" if classifier.task_kind != "regression" else "values",
        "format": "logits",
        "modality": "n/a",
        "num_channels": outputs,
        "spatial_shape": [],
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": False,
        "channel_def": {str(k): name for k, name in enumerate(steps)},
    }
    return {
        "schema": SCHEMA,
        "version": "0.1.0",
        "changelog": {"0.1.0": "exported by medssl"},
        "monai_version": _version("monai"),
        "pytorch_version": _version("torch"),
        "numpy_version": _version("numpy"),
        "required_packages_version": {name: _version(name) for name in _packages(classifier)},
        "name": "medssl classifier",
        "task": f"{classifier.task_kind.capitalize()} of {', '.join(classifier.targets)}",
        "description": f"{classifier.spec['encoder']['name']}, pretrained without labels or from scratch, fine-tuned "
        f"by medssl. It tells of every image the {_KINDS[classifier.task_kind]}: {', '.join(classifier.names)}.",
        "authors": "the exporter; written by medssl",
        "copyright": "see LICENSE",
        "intended_use": "Research. This is no medical device.",
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": told}},
    }


def readme(classifier: Classifier, card: str) -> str:
    """Return the bundle's README: how to run it, what comes out, and the network's own model card."""
    names = "\n".join(f"- `{name}`" for name in classifier.names)
    packages = " ".join(_packages(classifier))
    return f"""# Classification bundle

It needs MONAI and a few small packages, and nothing of medssl:

    pip install "monai>={_version("monai")}" torch {packages}

Run it in the bundle's folder; IMAGES holds {" or ".join(_endings(classifier))} files:

    python -m monai.bundle run --config_file configs/inference.json --bundle_root . --dataset_dir IMAGES

Then `eval/` (or `--output_dir`) has `answers.csv` and `answers.json`: for every image the
{_KINDS[classifier.task_kind]} ({", ".join(classifier.targets)}), in the columns

{names}

What an image goes through before the network is in `configs/inference.json` under `preprocessing`, and as medssl wrote
it in `docs/preparation.json`. The network sees windows of {" x ".join(map(str, classifier.shape))} voxels; `inferer`
averages over them, `answer` makes probabilities or values in units of what comes out.

This is no medical device. Probabilities are as frequent as in the training images: check them on images of your own
scanners and patients before you rely on them.

{card}"""


def _check(classifier: Classifier, out: Path) -> None:
    """Build the network as MONAI will, load the bundle's weights strictly, and compare answers to an image."""
    from monai.bundle import ConfigParser

    parser = ConfigParser(json.loads((out / "configs" / "inference.json").read_text("utf-8")))
    with _importing_from(out):
        network, inferer, answer = (parser.get_parsed_content(key) for key in ("network_def", "inferer", "answer"))
    network.load_state_dict(torch.load(out / "models" / "model.pt", weights_only=True))
    axes = len(classifier.shape) + (classifier.spec["slice_axis"] is not None)
    size = [max(classifier.shape) + 3] * axes
    x = torch.linspace(-1, 1, classifier.channels * torch.Size(size).numel()).reshape(1, classifier.channels, *size)
    with torch.no_grad():
        found = answer(inferer(x, network.eval()))
    if not torch.equal(found, classifier.answer(classifier.predict(x))):
        raise MedsslError("the bundle's answers are not the classifier's", where=str(out), fix="report this")
