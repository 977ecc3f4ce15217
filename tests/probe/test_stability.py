"""Laws of stability: no change is no distance, and more change is more."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from medssl.errors import DataError
from medssl.nets.encoder import DynUNetConfig, Encoder, build_encoder
from medssl.probe import ProbeConfig, StabilityConfig, probe_stability
from medssl.probe.stability import _compared, changed
from medssl.probe.windows import Picture, read_picture
from medssl.store import Store

from ..labelled_store import ellipsoids, write_labelled_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Six small volumes of six patients."""
    volumes = [ellipsoids((13, 15, 10), seed)[0] for seed in range(6)]
    folder = tmp_path_factory.mktemp("stability") / "store"
    return write_labelled_store(folder, volumes, [None] * 6, splits=["test"] * 6, spacing_mm=(1.0, 0.5, 2.0))


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    """A small convolutional encoder with fresh weights."""
    torch.manual_seed(0)
    config = DynUNetConfig(channels=(8, 8, 8), features=4, strides=(2, 2, 2))
    return build_encoder(config, channels=1, shape=(16, 16, 16), spacing_mm=None)


@pytest.fixture
def picture(store: Store) -> Picture:
    """One of them."""
    return read_picture(store, store.ids[0])


def test_more_noise_means_less_agreement(store: Store, encoder: Encoder) -> None:
    few = StabilityConfig(noise=(0.01, 2.0), shift_mm=(1.0,), gamma=(1.25,))
    result = probe_stability(encoder, store, ProbeConfig(stability=few), seeds=1)
    assert list(result.scores) == ["noise 0.01", "noise 2", "shift 1 mm", "gamma 1.25"]
    little, much = (result.scores[name]["encoder"] for name in ("noise 0.01", "noise 2"))
    assert little["agreement"] > 0.95 > much["agreement"]
    assert little["reliability"] > 0.95 > much["reliability"]
    assert little["recognised"] == 1.0
    assert set(result.differences) == set(result.scores)
    json.dumps(result.to_dict(), allow_nan=False)
    assert "stability of frozen features: 6 test images of 6 patients" in str(result)


def test_equal_seeds_give_equal_results(store: Store, encoder: Encoder) -> None:
    config = ProbeConfig(stability=StabilityConfig(images=3, noise=(0.5,), shift_mm=(1.0,), gamma=(0.8,)))
    one, two = (probe_stability(encoder, store, config, seeds=1).to_dict() for _ in range(2))
    assert one == two
    assert one["images"] == 3


def test_one_scan_is_in_memory_at_a_time(store: Store, encoder: Encoder) -> None:
    held: list[int] = []

    class Watched(Store):
        def read(self, image_id: str, start: object = None, size: object = None) -> np.ndarray:
            held.append(sum(type(one) is Picture for one in gc.get_objects()))
            return super().read(image_id)

    watched = Watched(store.folder, store.rows, {}, store.preparation)
    few = StabilityConfig(noise=(0.1,), shift_mm=(), gamma=())
    probe_stability(encoder, watched, ProbeConfig(stability=few), seeds=1)
    assert len(held) == 12  # six images, two arms
    assert max(held) - held[0] <= 2  # the last image and its changed copy, let go once this one is read


@pytest.mark.parametrize(("kind", "amount"), [("noise", 0.0), ("shift_mm", 0.0), ("gamma", 1.0)])
def test_a_change_by_nothing_changes_nothing(picture: Picture, kind: str, amount: float) -> None:
    torch.testing.assert_close(changed(picture, kind, amount).image, picture.image, atol=1e-5, rtol=1e-5)


def test_a_shift_is_in_millimetres(picture: Picture) -> None:
    moved = changed(picture, "shift_mm", 2.0).image  # 2, 4 and 1 voxels
    torch.testing.assert_close(moved[:, :-2, :-4, :-1], picture.image[:, 2:, 4:, 1:], atol=1e-4, rtol=1e-4)


def test_gamma_keeps_the_darkest_and_the_brightest_voxel(picture: Picture) -> None:
    new = changed(picture, "gamma", 0.7).image
    torch.testing.assert_close(new.max(), picture.image.max())
    torch.testing.assert_close(new.min(), picture.image.min())
    assert (new.mean() > picture.image.mean()).item()


def test_equal_copies_are_reliable_and_noise_alone_is_not() -> None:
    features = np.random.default_rng(0).normal(size=(50, 8))
    agreement, reliability, recognised = _compared(features, features)
    np.testing.assert_allclose(agreement, 1)
    assert (reliability, recognised) == (1.0, 1.0)
    agreement, reliability, recognised = _compared(features, np.random.default_rng(1).normal(size=(50, 8)))
    assert abs(agreement.mean()) < 0.2
    assert abs(reliability) < 0.2
    assert recognised < 0.2


def test_reliability_is_that_of_a_one_way_analysis_of_variance() -> None:
    from scipy.stats import f_oneway

    random = np.random.default_rng(3)
    before = random.normal(size=(20, 1))
    after = before + random.normal(0, 0.5, size=(20, 1))
    mean, spread = before.mean(), before.std()
    f = f_oneway(*[[(a - mean) / spread, (b - mean) / spread] for a, b in zip(before[:, 0], after[:, 0])]).statistic
    assert _compared(before, after)[1] == pytest.approx((f - 1) / (f + 1))


def test_one_image_is_one_clear_line(tmp_path: Path, encoder: Encoder) -> None:
    single = write_labelled_store(tmp_path / "s", [ellipsoids((8, 8, 8), 0)[0]], [None], splits=["test"])
    with pytest.raises(DataError, match="1 images in split 'test', 2 wanted"):
        probe_stability(encoder, single)
