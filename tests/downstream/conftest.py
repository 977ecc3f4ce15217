"""A store of small volumes that any network can learn, and an encoder for them."""

from __future__ import annotations

import pytest
import torch

from medssl.downstream import FinetuneConfig
from medssl.nets.encoder import DynUNetConfig, Encoder, build_encoder
from medssl.store import Store

from ..labelled_store import ellipsoids, write_labelled_store

SPLITS = ("train",) * 4 + ("validation",) + ("test",) * 2


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Seven volumes with a bright and a dark ellipsoid in noise; smaller than the crop along one axis."""
    volumes = [ellipsoids((18, 16, 13), seed) for seed in range(len(SPLITS))]
    folder = tmp_path_factory.mktemp("downstream") / "store"
    return write_labelled_store(
        folder, [v[0] for v in volumes], [v[1] for v in volumes], splits=SPLITS, spacing_mm=(1.0, 0.5, 2.0)
    )


@pytest.fixture(scope="module")
def network() -> DynUNetConfig:
    """The smallest U-Net."""
    return DynUNetConfig(channels=(8, 8, 8), features=8, strides=(1, 2, 2))


@pytest.fixture(scope="module")
def encoder(network: DynUNetConfig) -> Encoder:
    """An encoder with weights of its own."""
    torch.manual_seed(5)
    return build_encoder(network, channels=1, shape=(16, 16, 16), spacing_mm=(1.0, 0.5, 2.0))


@pytest.fixture(scope="module")
def quick() -> FinetuneConfig:
    """A few steps: enough to see whether things are wired, not to learn well."""
    return FinetuneConfig(steps=6, batch_size=2, crop=(16, 16, 16), warmup_steps=2, workers=0, checkpoint_steps=2)
