"""A recipe's `prepare` names transforms; it cannot smuggle in code, chance or files."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from medssl.config import fingerprint
from medssl.errors import MedsslError, RecipeError
from medssl.prepare import PrepareConfig, config_of, monai_preprocessing, preparation_of
from medssl.prepare.preprocessing import instance, spatial_items

CROP = {"name": "monai.transforms.CropForeground", "margin": 2}


@pytest.mark.parametrize(
    "transform",
    [
        {"name": "os.system", "command": "true"},
        {"name": "monai.data.Dataset"},
        {"name": "monai.transforms.__loader__"},
        {"name": "monai.transforms"},
        {"name": "$monai.transforms.Flip"},
        {**CROP, "select_fn": "$lambda x: x > 0"},
        {**CROP, "margin": "@margin"},
        {**CROP, "margin": [1, "%other#margin"]},
        {**CROP, "inner": {"_target_": "os.system"}},
        {**CROP, "_mode_": "callable"},
    ],
    ids=lambda transform: str(list(transform.values())),
)
def test_names_of_other_roots_and_expressions_are_refused(transform: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PrepareConfig.model_validate({"transforms": [transform]})


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("monai.transforms.RandFlip", "draws at random"),
        ("monai.transforms.SaveImage", "does not change voxels in memory"),
        ("monai.transforms.LoadImaged", "does not change voxels in memory"),
        ("monai.transforms.NoSuchThing", "is no transform"),
        ("monai.transforms.allow_missing_keys_mode", "is no transform"),
        ("monai.transforms.nothing.Flip", "cannot be imported"),
        ("medssl.store.Store", "is no transform"),
    ],
)
def test_what_is_no_fixed_change_of_voxels_is_refused(name: str, reason: str) -> None:
    config = PrepareConfig.model_validate({"transforms": [{"name": name}]})
    with pytest.raises(RecipeError, match=reason):
        spatial_items(config, ["image"])


def test_wrong_arguments_are_a_recipe_error() -> None:
    config = PrepareConfig.model_validate({"transforms": [CROP | {"margins": 1}]})
    (*_, item) = spatial_items(config, ["image"])
    instance(item)  # CropForeground hands what it does not know to its padding
    config = PrepareConfig.model_validate({"transforms": [{"name": "monai.transforms.Flip", "axis": 0}]})
    (*_, item) = spatial_items(config, ["image"])
    with pytest.raises(RecipeError, match="Flipd does not take these arguments"):
        instance(item)


@pytest.mark.parametrize("codes", ["RAA", "XYZ", "RA", "ras"])
def test_an_orientation_names_three_directions(codes: str) -> None:
    with pytest.raises(ValidationError):
        PrepareConfig(orientation=codes)


def test_arguments_count_wherever_they_are_written() -> None:
    beside = PrepareConfig.model_validate({"transforms": [CROP]})
    below = PrepareConfig.model_validate({"transforms": [{"name": CROP["name"], "arguments": {"margin": 2}}]})
    assert beside == below
    assert fingerprint(beside) != fingerprint(PrepareConfig.model_validate({"transforms": [CROP | {"margin": 3}]}))


def test_workers_and_codec_do_not_change_the_fingerprint() -> None:
    assert fingerprint(PrepareConfig(workers=0, codec="zstd")) == fingerprint(PrepareConfig())
    assert fingerprint(PrepareConfig(spacing_mm=(1, 1, 1))) != fingerprint(PrepareConfig())


def test_a_preparation_gives_back_its_config() -> None:
    config = PrepareConfig.model_validate(
        {"transforms": [CROP], "spacing_mm": [1, 2, 3], "scaling": {"name": "window", "low": -1000, "high": 400}}
    )
    assert config_of(preparation_of(config)) == config


def test_labels_are_moved_without_interpolation_and_never_scaled() -> None:
    config = PrepareConfig.model_validate(
        {
            "spacing_mm": [1, 1, 1],
            "transforms": [
                CROP,
                {"name": "monai.transforms.Resize", "spatial_size": [8, 8, 8]},
                {"name": "monai.transforms.ThresholdIntensity", "threshold": 3},
            ],
        }
    )
    items = monai_preprocessing(preparation_of(config), keys=["image"], label_keys=["label"])
    by_name = {item["_target_"]: item for item in items}
    assert list(by_name) == [
        "LoadImaged",
        "EnsureChannelFirstd",
        "Orientationd",
        "Spacingd",
        "CropForegroundd",
        "Resized",
        "ThresholdIntensityd",
        "ScaleIntensityRangePercentilesd",
    ]
    assert by_name["Spacingd"]["mode"] == ["bilinear", "nearest"]
    assert by_name["Resized"]["mode"] == ["area", "nearest"]
    assert by_name["CropForegroundd"]["source_key"] == "image"
    assert by_name["ThresholdIntensityd"]["keys"] == ["image"]
    assert by_name["ScaleIntensityRangePercentilesd"]["keys"] == ["image"]


def test_a_preparation_of_another_version_is_refused() -> None:
    with pytest.raises(MedsslError, match="version 99"):
        config_of({"version": 99})


def test_reading_the_section_imports_nothing_heavy() -> None:
    code = (
        "import sys, medssl.prepare; medssl.prepare.PrepareConfig();"
        "print(sorted({'torch', 'monai', 'SimpleITK', 'pydicom', 'blosc2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
