"""Laws of our views as MONAI transforms: within MONAI's own Compose, readers and random states."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch

from medssl.batch import Draw
from medssl.config import Section
from medssl.errors import UsageError
from medssl.views.artefacts import BiasFieldConfig, BlurConfig, CutoutConfig, LowResolutionConfig, RicianConfig
from medssl.views.elastic import ElasticConfig
from medssl.views.fields import RandomFieldConfig
from medssl.views.intensity import IntensityConfig, change_intensity
from medssl.views.monai import VIEWS, apply_view, as_monai, as_monai_dict
from medssl.views.spatial import SpatialConfig, draw_affine, warp

FIELD = RandomFieldConfig(length_mm=8.0)
STRONG: dict[str, Section] = {
    "affine": SpatialConfig(),
    "elastic": ElasticConfig(sd_mm=1.2, field=FIELD),
    "intensity": IntensityConfig(probability=1.0),
    "rician": RicianConfig(sd=0.3, probability=1.0),
    "blur": BlurConfig(sigma_mm=2.0, probability=1.0),
    "coarse": LowResolutionConfig(spacing_mm=6.0, probability=1.0),
    "bias": BiasFieldConfig(sd=0.3, field=FIELD, probability=1.0),
    "cutout": CutoutConfig(boxes=2, size_mm=(4.0, 8.0), probability=1.0),
}
by_view = pytest.mark.parametrize("config", STRONG.values(), ids=STRONG)
MM = (1.0, 1.5, 2.0)


def test_every_view_is_tried_here() -> None:
    assert {type(config) for config in STRONG.values()} == set(VIEWS)


def meta(image: torch.Tensor) -> Any:
    from monai.data import MetaTensor

    return MetaTensor(image, affine=torch.diag(torch.tensor([*MM, 1.0])))


@by_view
@pytest.mark.parametrize("shape", [(12, 10), (8, 9, 7)], ids=["2D", "3D"])
def test_an_array_is_changed_as_a_batch_of_one(config: Section, shape: tuple[int, ...]) -> None:
    """With the key that the random state gave; a seed given again repeats, the next call differs."""
    n, image = len(shape), torch.rand(2, *shape)
    transform = as_monai(config, spacing=MM[:n]).set_random_state(7)
    out = transform(image)
    batched = apply_view(image[None], config, Draw(transform.key), torch.tensor([MM[:n]]))[0]
    assert torch.equal(out.as_tensor(), batched)
    assert not torch.equal(out.as_tensor(), image)
    assert torch.equal(transform(image, randomize=False).as_tensor(), batched)
    assert not torch.equal(transform(image).as_tensor(), batched)
    assert torch.equal(transform.set_random_state(7)(image.numpy()).as_tensor(), batched)


def test_views_are_those_of_their_own_functions() -> None:
    image, draw, mm = torch.rand(2, 1, 8, 9), Draw(torch.tensor([3, 4])), torch.tensor([[1.0, 2.0]] * 2)
    config = IntensityConfig()
    assert torch.equal(apply_view(image, config, draw, mm), change_intensity(image, config, draw))
    moved = warp(image, draw_affine(SpatialConfig(), draw, 2), mm, (8, 9))
    assert torch.equal(apply_view(image, SpatialConfig(), draw, mm), moved)


@by_view
def test_a_dictionary_moves_image_and_label_alike(config: Section) -> None:
    """In MONAI's Compose, seeded by it; spacing is the MetaTensor's; labels keep type and values, affines stay."""
    from monai.transforms import Compose

    image = torch.rand(1, 8, 9, 7)
    label = torch.randint(0, 3, (1, 8, 9, 7), dtype=torch.uint8)
    view = as_monai_dict(config, ("image", "label"), mode=("bilinear", "nearest"))
    given = {"image": meta(image), "label": meta(label), "name": "kept"}
    out = Compose([view]).set_random_state(5)(given)
    assert out["name"] == "kept"
    assert torch.equal(given["image"].as_tensor(), image), "what was given stays"
    draw, mm = Draw(view.key), torch.tensor([MM])
    assert torch.equal(out["image"].as_tensor(), apply_view(image[None], config, draw, mm)[0])
    assert torch.equal(out["label"].as_tensor(), apply_view(label[None], config, draw, mm, mode="nearest")[0])
    assert out["label"].dtype == torch.uint8
    assert torch.equal(out["image"].affine, given["image"].affine)
    moves = isinstance(config, (SpatialConfig, ElasticConfig))
    assert torch.equal(out["label"].as_tensor(), label) is not moves


def test_a_pickled_transform_goes_on_as_it_would_have() -> None:
    """Workers that are spawned receive it by pickle."""
    array = as_monai(STRONG["rician"], spacing=MM).set_random_state(1)
    table = as_monai_dict(STRONG["blur"], "image", spacing=MM).set_random_state(1)
    image = torch.rand(1, 6, 6, 6)
    there = pickle.loads(pickle.dumps(array))
    assert torch.equal(there(image).as_tensor(), array(image).as_tensor())
    other = pickle.loads(pickle.dumps(table))
    assert torch.equal(other({"image": image})["image"].as_tensor(), table({"image": image})["image"].as_tensor())


def test_keys_use_all_their_bits() -> None:
    transform = as_monai(STRONG["blur"], spacing=MM[:2]).set_random_state(0)
    keys = []
    for _ in range(200):
        transform.randomize()
        keys.append(int(transform.key))
    assert len(set(keys)) == 200
    bits = np.array([[(key >> bit) & 1 for bit in range(64)] for key in keys])
    assert np.abs(bits.mean(0) - 0.5).max() < 4.5 / np.sqrt(4 * 200), "4.5 standard errors, since there are 64 bits"


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(UsageError, match="RandomFieldConfig is not a view's config"):
        as_monai(FIELD)
    with pytest.raises(UsageError, match="1 modes for 2 keys"):
        as_monai_dict(STRONG["blur"], ("a", "b"), mode=("nearest",))
    with pytest.raises(UsageError, match="spacing in mm"):
        as_monai(STRONG["blur"])(torch.rand(1, 6, 6))
    with pytest.raises(UsageError, match="spacing in mm"):
        as_monai(STRONG["blur"], spacing=(1.0, 1.0))(torch.rand(1, 6, 6, 6))
    with pytest.raises(KeyError):
        as_monai_dict(STRONG["blur"], "image", spacing=MM[:2])({"label": torch.rand(1, 6, 6)})
