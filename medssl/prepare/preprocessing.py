"""The preparation as MONAI's transforms: one list serves the store and the bundle, so that they cannot drift apart.

An item is a MONAI bundle's config item, a dict with `_target_` and arguments.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from ..config import fingerprint, result_fields
from ..errors import DataError, MedsslError, RecipeError
from ..version import __version__
from .config import Percentiles, PrepareConfig, TransformConfig, Window

Item = dict[str, Any]
VERSION = 1
"""Version of preparation.json."""


def preparation_of(config: PrepareConfig) -> dict[str, Any]:
    """Return what `preparation.json` holds: it travels with the store, the encoder and the bundle."""
    return {
        "version": VERSION,
        "medssl": __version__,
        "fingerprint": fingerprint(config),
        "prepare": result_fields(config),
    }


def config_of(preparation: Mapping[str, Any]) -> PrepareConfig:
    """Return the section that a `preparation.json` was written from.

    Raises:
        DataError: it is none, or of a version that is not known.
    """
    if preparation.get("version") != VERSION or "prepare" not in preparation:
        raise DataError(
            f"the preparation has version {preparation.get('version')}, wanted {VERSION}",
            where="preparation.json",
            fix="prepare the store again",
        )
    return PrepareConfig.model_validate(preparation["prepare"])


def monai_preprocessing(
    preparation: Mapping[str, Any], *, keys: Sequence[str], label_keys: Sequence[str] = (), kind: str = "volume"
) -> list[Item]:
    """Return the preparation, reading and scaling included, as config items of a MONAI bundle.

    Args:
        preparation: what `preparation.json` holds.
        keys: dictionary keys of images.
        label_keys: keys of label maps; they are resampled without interpolation and not scaled.
        kind: `volume`, or `image2d` and `rgb2d` for pictures, as (row, column).

    Raises:
        MedsslError: a transform of medssl is among them, which a bundle without medssl cannot hold.
    """
    config = config_of(preparation)
    every = [*keys, *label_keys]
    load: Item = {"_target_": "LoadImaged", "keys": every}
    if kind != "volume":
        load |= {"reader": "PILReader", "reverse_indexing": False}
    spatial = spatial_items(config, keys, label_keys, kind=kind)
    if ours := [item["_target_"] for item in spatial if item["_target_"].startswith("medssl.")]:
        raise MedsslError(
            f"{ours[0]} is not part of MONAI, so a bundle cannot prepare images as this recipe does",
            where="prepare.transforms",
            fix="use transforms of monai.transforms",
        )
    return [load, {"_target_": "EnsureChannelFirstd", "keys": every}, *spatial, scaling_item(config, keys)]


def spatial_items(
    config: PrepareConfig, keys: Sequence[str], label_keys: Sequence[str] = (), *, kind: str = "volume"
) -> list[Item]:
    """Return what stands between reading and scaling: orientation, spacing and the named transforms."""
    items: list[Item] = []
    every = [*keys, *label_keys]
    if kind == "volume" and config.orientation is not None:
        # The labels spell out RAS+ world axes; MONAI would otherwise guess them from the reader's metadata.
        labels = [["L", "R"], ["P", "A"], ["I", "S"]]
        items.append({"_target_": "Orientationd", "keys": every, "axcodes": config.orientation, "labels": labels})
    if kind == "volume" and config.spacing_mm is not None:
        mode = ["bilinear"] * len(keys) + ["nearest"] * len(label_keys)
        items.append({"_target_": "Spacingd", "keys": every, "pixdim": list(config.spacing_mm), "mode": mode})
    return items + [_named_item(transform, keys, label_keys) for transform in config.transforms]


def scaling_item(config: PrepareConfig, keys: Sequence[str]) -> Item:
    """Return the scaling as MONAI's transform."""
    scaling = config.scaling
    if isinstance(scaling, Window):
        return {
            "_target_": "ScaleIntensityRanged",
            "keys": list(keys),
            "a_min": scaling.low,
            "a_max": scaling.high,
            "b_min": scaling.to[0],
            "b_max": scaling.to[1],
            "clip": True,
        }
    if isinstance(scaling, Percentiles):
        return {
            "_target_": "ScaleIntensityRangePercentilesd",
            "keys": list(keys),
            "lower": scaling.lower,
            "upper": scaling.upper,
            "b_min": scaling.to[0],
            "b_max": scaling.to[1],
            "clip": True,
        }
    return {"_target_": "NormalizeIntensityd", "keys": list(keys)}


def is_spatial(item: Item) -> bool:
    """Say whether an item moves voxels and leaves their values, but for interpolation."""
    return _moves(_class_at(item["_target_"]))


def instance(item: Item) -> Any:
    """Make the transform an item describes.

    Raises:
        RecipeError: its class does not take these arguments.
    """
    arguments = {key: value for key, value in item.items() if key != "_target_"}
    try:
        return _class_at(item["_target_"])(**arguments)
    except (TypeError, ValueError) as error:
        raise RecipeError(
            f"{item['_target_']} does not take these arguments: {error}", where="prepare.transforms"
        ) from error


def _named_item(transform: TransformConfig, keys: Sequence[str], label_keys: Sequence[str]) -> Item:
    """Turn a named transform into its dictionary form, applied to images, and to labels where it moves voxels."""
    found = _dictionary_form(transform.name)
    spatial = _moves(found)
    name = found.__name__ if found.__module__.startswith("monai.transforms") else f"{found.__module__}.{found.__name__}"
    labels = list(label_keys) if spatial else []
    item: Item = {"_target_": name, "keys": [*keys, *labels], **transform.arguments}
    parameters = inspect.signature(found.__init__).parameters
    if "source_key" in parameters and "source_key" not in item:
        item["source_key"] = keys[0]
    interpolates = "mode" in parameters and found.__module__.startswith("monai.transforms.spatial")
    if labels and interpolates and not isinstance(item.get("mode"), (list, tuple)):
        mode = item.get("mode", parameters["mode"].default)
        item["mode"] = [str(getattr(mode, "value", mode))] * len(keys) + ["nearest"] * len(labels)
    return item


def _dictionary_form(name: str) -> type[Any]:
    """Find the class a recipe names, in the form that works on dictionaries.

    Raises:
        RecipeError: there is no such class, it is no transform of voxels in memory, or it draws at random.
    """
    from monai.transforms import MapTransform, Transform
    from monai.transforms.traits import RandomizableTrait

    where = "prepare.transforms"
    module_name, _, class_name = name.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise RecipeError(f"{module_name} cannot be imported", where=where) from error
    found = getattr(module, class_name, None)
    if not (isinstance(found, type) and issubclass(found, Transform)):
        raise RecipeError(f"{name} is no transform", where=where, fix="name a class of monai.transforms")
    if not found.__module__.startswith(("monai.transforms.", "medssl.")) or found.__module__.startswith(
        ("monai.transforms.io", "monai.transforms.lazy")
    ):
        raise RecipeError(f"{name} does not change voxels in memory", where=where, fix="leave it out")
    if issubclass(found, RandomizableTrait):
        raise RecipeError(
            f"{name} draws at random, and a store must come out the same each time",
            where=where,
            fix="make it an augmentation of the method",
        )
    if issubclass(found, MapTransform):
        return found
    form = getattr(module, f"{class_name}d", None)
    if not (isinstance(form, type) and issubclass(form, MapTransform)):
        raise RecipeError(f"{name} has no form for dictionaries ({class_name}d)", where=where, fix="write one")
    return form


def _class_at(target: str) -> type[Any]:
    return _dictionary_form(target if "." in target else f"monai.transforms.{target}")


def _moves(found: type[Any]) -> bool:
    from monai.transforms.traits import LazyTrait

    return issubclass(found, LazyTrait) or found.__module__.startswith(
        ("monai.transforms.spatial", "monai.transforms.croppad")
    )
