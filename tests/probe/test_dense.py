"""Laws of the frozen dense probe."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medssl.errors import DataError
from medssl.methods.method import Losses, Method, Views
from medssl.nets.encoder import DynUNetConfig, Encoder, build_encoder
from medssl.probe import DenseProbe, ProbeConfig, probe_encoder
from medssl.probe.arms import EncoderArm, NoNetworkArm
from medssl.probe.dense import fit_arm, score_image
from medssl.probe.readout import Readout
from medssl.probe.windows import Picture, read_picture
from medssl.store import Store

from ..labelled_store import ellipsoids, write_labelled_store

SPLITS = ("train",) * 4 + ("validation",) + ("test",) * 2


class Pixels(Encoder):
    """An encoder whose features are what it sees: what the probe makes of them is known."""

    def __init__(self, axes: int = 3, multiple: int = 4) -> None:
        nn.Module.__init__(self)
        self.kind = "volume" if axes == 3 else "image2d"
        self.out_channels, self.strides = (1, 1), ((1,) * axes, (multiple,) * axes)
        self.net = (nn.Conv3d if axes == 3 else nn.Conv2d)(1, 1, 1)
        self.preparation, self.seen = {}, []

    def forward(self, x: Tensor, **context: Any) -> list[Tensor]:
        assert not self.training
        self.seen.append(tuple(x.shape))
        return [x, x]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Seven volumes of odd size with two ellipsoids each; brightness alone tells the classes apart."""
    volumes = [ellipsoids((13, 15, 10), seed) for seed in range(len(SPLITS))]
    folder = tmp_path_factory.mktemp("probe") / "store"
    return write_labelled_store(
        folder, [v[0] for v in volumes], [v[1] for v in volumes], splits=SPLITS, spacing_mm=(1.0, 0.5, 2.0)
    )


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    """A small convolutional encoder with fresh weights."""
    torch.manual_seed(0)
    config = DynUNetConfig(channels=(8, 8, 8), features=4, strides=(2, 2, 2))
    return build_encoder(config, channels=1, shape=(16, 16, 16), spacing_mm=(1.0, 0.5, 2.0))


def test_features_that_tell_the_classes_apart_are_read_without_loss(store: Store) -> None:
    pixels = Pixels()
    arm = EncoderArm(pixels)
    readout = fit_arm(arm, store, store.ids_of("train"), ProbeConfig(points=300), 0)
    assert score_image(arm, store, store.ids_of("test")[0], readout).min() > 0.9


@pytest.mark.parametrize("window", [None, (8, 8, 8), (4, 16, 12)], ids=["whole", "cubes", "bars"])
def test_what_a_pointwise_encoder_is_found_to_see_does_not_depend_on_the_window(
    store: Store, window: tuple[int, ...] | None
) -> None:
    picture = read_picture(store, store.ids[0])
    arm = EncoderArm(Pixels(), window=window)
    every = np.argwhere(np.ones(picture.shape, bool))
    np.testing.assert_allclose(arm.at(picture, every)[:, 0], picture.image.numpy().ravel(), atol=1e-5)
    readout = Readout(np.array([[0.0], [1.0]]), np.array([0.5, 0.0]))  # class 1 where brighter than one half
    found = arm.predict(picture, readout)
    clear = np.abs(picture.image[0].numpy() - 0.5) > 1e-4
    np.testing.assert_array_equal(found[clear], (picture.image[0].numpy() > 0.5)[clear])


def test_an_encoder_of_slices_sees_a_volume_slice_by_slice(store: Store) -> None:
    picture = read_picture(store, store.ids[0])
    pixels = Pixels(axes=2)
    arm = EncoderArm(pixels, slice_axis=2)
    every = np.argwhere(np.ones(picture.shape, bool))
    np.testing.assert_allclose(arm.at(picture, every)[:, 0], picture.image.numpy().ravel(), atol=1e-5)
    assert set(pixels.seen) == {(1, 1, 16, 16)}  # 13 x 15 padded to multiples of 4
    assert arm.predict(picture, Readout(np.ones((2, 1)), np.array([1.0, 0.0]))).shape == picture.shape


@pytest.mark.parametrize("arm", ["encoder", "no network"])
def test_whole_images_are_classified_as_their_voxels_are_one_by_one(store: Store, encoder: Encoder, arm: str) -> None:
    picture = read_picture(store, store.ids[1])
    source = EncoderArm(encoder) if arm == "encoder" else NoNetworkArm()
    every = np.argwhere(np.ones(picture.shape, bool))
    features = source.at(picture, every)
    random = np.random.default_rng(0)
    readout = Readout(random.normal(size=(3, features.shape[1])), random.normal(size=3))
    scores = readout.scores(features)
    best = np.sort(scores, 1)
    clear = (best[:, -1] - best[:, -2]) > 1e-3 * np.abs(scores).max()
    assert clear.mean() > 0.8
    np.testing.assert_array_equal(source.predict(picture, readout).ravel()[clear], scores.argmax(1)[clear])


def test_without_a_network_position_is_told_in_mm_from_the_centre_of_the_box() -> None:
    picture = Picture(torch.zeros(1, 5, 5, 5), 0.0, torch.eye(4), (2.0, 1.0, 0.5), ((1, 1, 1), (4, 4, 4)))
    features = NoNetworkArm().at(picture, np.array([[2, 2, 2], [4, 0, 2]]))
    np.testing.assert_array_equal(features[0], 0)
    np.testing.assert_array_equal(features[1, :3], [4.0, -2.0, 0.0])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_without_a_network_brightness_is_blurred_by_millimetres(axis: int) -> None:
    spacing, n, width = (1.0, 0.5, 0.8), 81, 5.0
    wave = torch.exp(-(((torch.arange(n) - n // 2) * spacing[axis]) ** 2) / (2 * width**2))  # of 5 mm
    shape = [n if a == axis else 3 for a in range(3)]
    image = wave.reshape([1, *(n if a == axis else 1 for a in range(3))]).expand(1, *shape).contiguous()
    picture = Picture(image, 0.0, torch.eye(4), spacing, ((0, 0, 0), tuple(shape)))
    found = NoNetworkArm((1.0, 2.0, 4.0)).at(picture, np.array([[size // 2 for size in shape]]))[0, -4:]
    # A Gaussian blurred by another is a wider one, and so much lower.
    np.testing.assert_allclose(found, [width / np.hypot(width, sigma) for sigma in (0.0, 1.0, 2.0, 4.0)], rtol=2e-3)


def test_equal_seeds_give_equal_scores_and_other_seeds_other_labels(store: Store, encoder: Encoder) -> None:
    config = ProbeConfig(images=2, points=200)
    one, two = (probe_encoder(encoder, store, config, seeds=2) for _ in range(2))
    assert one.to_dict() == two.to_dict()
    for table in one.scores.values():
        assert table.shape == (2, 2, 2)
        assert not np.array_equal(table[0], table[1])


def test_fresh_weights_against_fresh_weights_are_not_called_better(store: Store, encoder: Encoder) -> None:
    result = probe_encoder(encoder, store, ProbeConfig(images=2, points=200), seeds=3)
    assert set(result.differences) == {"random weights", "no network"}
    assert not result.differences["random weights"].low > 0.05
    assert "encoder" in str(result)


def test_differences_are_corrected_for_both_controls(store: Store, encoder: Encoder) -> None:
    result = probe_encoder(encoder, store, ProbeConfig(images=2, points=200), seeds=2)
    found = sorted(result.differences.values(), key=lambda interval: interval.p)
    assert [interval.comparisons for interval in found] == [2, 2]
    first = min(1.0, 2 * found[0].p)
    assert found[0].p_corrected == pytest.approx(first)
    assert found[1].p_corrected == pytest.approx(max(first, found[1].p))
    for interval in found:  # with two seeds two comparisons decide nothing
        assert interval.verdict == "undecided"


def test_the_probe_leaves_random_state_and_mode_of_the_encoder_alone(store: Store, encoder: Encoder) -> None:
    encoder.train()
    before, weights = torch.get_rng_state(), [p.clone() for p in encoder.parameters()]
    probe_encoder(encoder, store, ProbeConfig(images=1, points=50), seeds=1)
    assert encoder.training
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(weights, encoder.parameters()))


def test_more_labelled_images_than_there_are_is_one_clear_line(store: Store, encoder: Encoder) -> None:
    with pytest.raises(DataError, match="4 labelled images in split 'train', 9 wanted"):
        probe_encoder(encoder, store, ProbeConfig(images=9))


def test_another_preparation_than_the_encoders_is_warned_about(
    store: Store, encoder: Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    encoder.preparation = {"fingerprint": "other"}
    with caplog.at_level(logging.WARNING):
        probe_encoder(encoder, store, ProbeConfig(images=1, points=50), seeds=1)
    encoder.preparation = {}
    assert "prepared otherwise" in caplog.text


class _Holder(Method):
    def forward(self, views: Views) -> Losses:
        raise AssertionError("an observer trains nothing")


def test_the_observer_logs_the_same_on_every_look_and_its_state_is_plain(store: Store, encoder: Encoder) -> None:
    from medssl.batch import Facts

    method = _Holder(Method.Config(), encoder, Facts(1)).eval()
    probe = DenseProbe(store, ProbeConfig(images=2, points=100, every=7))
    assert probe.every == 7
    looks: list[dict[str, float]] = []
    with torch.no_grad():
        for step in (7, 14):
            log: dict[str, float] = {}
            probe.observe(step, method, log.__setitem__)
            looks.append(log)
    assert looks[0] == looks[1]
    assert set(looks[0]) == {"probe/dice", "probe/no_network"}
    again = DenseProbe(store, ProbeConfig(images=2, points=100))
    again.load_state_dict(probe.state_dict())
    assert again.history == [[7.0, looks[0]["probe/dice"]], [14.0, looks[0]["probe/dice"]]]


def test_the_observer_looks_at_validation_images_and_never_at_test_images(tmp_path: Path, store: Store) -> None:
    probe = DenseProbe(store, ProbeConfig(images=2))
    assert set(probe.scored) == set(store.ids_of("validation"))
