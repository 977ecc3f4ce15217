"""Laws of the classifier: it takes what the encoder pools, looks at every window alike, and tells probabilities."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from medssl.errors import RecipeError, UsageError
from medssl.nets.classifier import Classifier, classifier_for
from medssl.nets.encoder import (
    DynUNetConfig,
    Encoder,
    SegResNetConfig,
    SwinConfig,
    TimmConfig,
    ViTConfig,
    build_encoder,
    load_network,
    save_network,
)
from medssl.nets.image_network import Answer, AttentivePooling, WindowMean, _starts, grade_probabilities
from medssl.nets.segmenter import load_encoder_into

SWIN: dict[str, Any] = {"width": 12, "depths": (1, 1, 1, 1), "heads": (1, 2, 2, 2), "window": 4}
FAMILIES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "dynunet": (DynUNetConfig(channels=(8, 8, 8), features=8), (16, 16, 16)),
    "segresnet": (SegResNetConfig(channels=8, blocks_down=(1, 1), blocks_up=(1,)), (16, 16, 16)),
    "vit": (ViTConfig(patch=8, width=24, depth=3, heads=2, mlp=24), (16, 16, 16)),
    "swin": (SwinConfig(**SWIN), (32, 64, 32)),
    "swin with its decoder": (SwinConfig(**SWIN, decoder=True), (32, 64, 32)),
    "swin, 2D": (SwinConfig(**SWIN), (32, 32)),
    "timm convnext": (TimmConfig(model="test_convnext"), (32, 32)),
    "timm resnet": (TimmConfig(model="test_resnet"), (64, 32)),
    "timm vit": (TimmConfig(model="test_vit"), (32, 32)),
}


def _encoder(family: str) -> Encoder:
    config, crop = FAMILIES[family]
    torch.manual_seed(1)
    return build_encoder(config, channels=1, shape=crop, spacing_mm=(1.0, 1.5, 2.0)[: len(crop)]).eval()


def _small(**options: Any) -> Classifier:
    torch.manual_seed(2)
    section = DynUNetConfig(channels=(8, 8, 8), features=8)
    return classifier_for(section, "multilabel", ("a", "b"), shape=(16, 16, 16), channels=1, **options).eval()


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_classifier_pools_what_its_encoder_pools(family: str) -> None:
    encoder = _encoder(family)
    classifier = classifier_for(encoder, "binary", ("ill",)).eval()
    receipt = load_encoder_into(classifier, encoder)
    assert not receipt.missing
    assert not receipt.unexpected  # but for the decoder, which is named
    x = torch.randn(2, 1, *classifier.shape)
    torch.testing.assert_close(classifier.net.features(x), encoder.pooled(x))  # type: ignore[operator]


@pytest.mark.parametrize("pooling", ["average", "attentive"])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_weight_that_moves_gets_a_gradient_and_the_head_is_what_no_encoder_brings(
    family: str, pooling: str
) -> None:
    encoder = _encoder(family)
    classifier = classifier_for(encoder, "regression", ("ef",), mean=(50.0,), spread=(9.0,), pooling=pooling)
    classifier.train()
    classifier(torch.randn(2, 1, *classifier.shape)).square().sum().backward()
    moving = {name: p for name, p in classifier.named_parameters() if p.requires_grad}
    assert not [name for name, p in moving.items() if p.grad is None]
    head = {id(p) for p in classifier.head_parameters()}
    assert {name for name, p in moving.items() if id(p) in head} == {n for n in moving if not n.startswith("net.body.")}


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_saved_classifier_comes_back_as_it_was(family: str, tmp_path: Path) -> None:
    classifier = classifier_for(_encoder(family), "ordinal", ("grade",), ("0", "1", "2"), ordinal="coral").eval()
    folder = save_network(tmp_path / "classifier", classifier, preparation={}, card="")
    back = load_network(folder)
    assert isinstance(back, Classifier)
    x = torch.randn(1, 1, *classifier.shape)
    assert torch.equal(back.predict(x), classifier.predict(x))
    assert back.names == ("0", "1", "2")


def test_an_image_of_the_crops_size_is_seen_once_and_a_larger_one_by_the_mean_of_its_windows() -> None:
    classifier = _small(overlap=0.0)
    x = torch.randn(1, 1, 32, 16, 16)
    halves = torch.cat([x[:, :, :16], x[:, :, 16:]])
    with torch.no_grad():
        logits, features = classifier.net(halves), classifier.net.features(halves)  # type: ignore[operator]
        torch.testing.assert_close(classifier.predict(x), logits.mean(0, keepdim=True))
        torch.testing.assert_close(classifier.predict(halves[:1]), logits[:1])
        by_features = WindowMean((16, 16, 16), 0.0, mean_of="features")(x, classifier.net)
        torch.testing.assert_close(by_features, classifier.net.logits(features.mean(0, keepdim=True)))  # type: ignore[operator]
    assert not torch.allclose(by_features, classifier.predict(x))


def test_windows_do_not_depend_on_how_many_are_seen_at_once_nor_images_on_their_batch() -> None:
    classifier, x = _small(), torch.randn(2, 1, 20, 25, 11)
    with torch.no_grad():
        alone = WindowMean((16, 16, 16), sw_batch_size=1)(x, classifier.net)
        torch.testing.assert_close(alone, WindowMean((16, 16, 16), sw_batch_size=8)(x, classifier.net))
        torch.testing.assert_close(alone, torch.cat([classifier.predict(x[:1]), classifier.predict(x[1:])]))


def test_a_2d_network_tells_of_a_volume_the_mean_of_its_slices() -> None:
    torch.manual_seed(0)
    section = DynUNetConfig(channels=(8, 8, 8), features=8)
    classifier = classifier_for(section, "binary", ("ill",), shape=(16, 16), channels=1, slice_axis=1).eval()
    x = torch.randn(1, 1, 16, 5, 16)
    with torch.no_grad():
        each = torch.cat([classifier(x[:, :, :, n]) for n in range(5)])
    torch.testing.assert_close(classifier.predict(x), each.mean(0, keepdim=True))


def test_a_small_image_is_filled_up_by_its_lowest_value() -> None:
    classifier, x = _small(), torch.rand(1, 1, 16, 9, 16) - 3
    filled = torch.full((1, 1, 16, 16, 16), float(x.min()))
    filled[:, :, :, :9] = x
    torch.testing.assert_close(classifier.predict(x), classifier.predict(filled))


@given(whole=st.integers(1, 90), size=st.integers(1, 30), overlap=st.floats(0, 0.95))
def test_windows_cover_an_axis_and_overlap_as_much_as_was_asked(whole: int, size: int, overlap: float) -> None:
    starts = _starts(whole, size, overlap)
    assert starts[0] == 0
    assert starts[-1] == max(0, whole - size)
    step = max(1, int(np.floor((1 - overlap) * size)))
    assert all(0 < b - a <= step for a, b in itertools.pairwise(starts))


@given(logits=st.lists(st.floats(-8, 8), min_size=1, max_size=5), ordinal=st.sampled_from(["corn", "coral"]))
def test_grades_have_probabilities_and_corn_multiplies_the_steps_so_far(logits: list[float], ordinal: str) -> None:
    x = torch.tensor([logits], dtype=torch.float64)
    found = grade_probabilities(x, ordinal)[0]
    assert (found > -1e-12).all()
    assert float(found.sum()) == pytest.approx(1)
    steps = x.sigmoid()[0].tolist()
    for grade in range(len(logits) + 1):
        if ordinal == "corn":
            beyond = np.prod(steps[:grade]) * (1 - steps[grade] if grade < len(steps) else 1)
            assert float(found[grade]) == pytest.approx(float(beyond))
    if ordinal == "coral":
        order = torch.tensor([sorted(logits, reverse=True)], dtype=torch.float64)
        beyond_all = grade_probabilities(order, "coral")[0].flip(0).cumsum(0).flip(0)[1:]
        torch.testing.assert_close(beyond_all, order.sigmoid()[0])


def test_weights_of_training_are_taken_off_so_that_probabilities_follow_how_frequent_classes_are() -> None:
    # The best answer without any image: what minimises the weighted cross-entropy over 90, 8 and 2 images.
    counts = torch.tensor([90.0, 8.0, 2.0], dtype=torch.float64)
    weights = torch.tensor([0.4, 3.0, 7.0], dtype=torch.float64)
    best = (counts * weights).log()[None]
    torch.testing.assert_close(Answer("multiclass", weights=weights.tolist())(best)[0], counts / 100)
    odds = (counts[1] * 5 / (counts[0] * 0.7)).log().reshape(1, 1)
    told = Answer("binary", weights=[[0.7, 5.0]])(odds)
    torch.testing.assert_close(told, (counts[1] / (counts[0] + counts[1])).reshape(1, 1))


def test_measures_are_told_in_their_units() -> None:
    told = Answer("regression", mean=[50.0, 3.0], spread=[10.0, 0.5])(torch.tensor([[1.0, -2.0]]))
    assert told.tolist() == [[60.0, 2.0]]


def test_attention_without_a_preference_is_the_mean_and_a_fitting_cell_gets_the_weight() -> None:
    pool, cells = AttentivePooling(6, 2), torch.randn(3, 6, 7)
    with torch.no_grad():
        pool.query.zero_()
        torch.testing.assert_close(pool(cells), cells.mean(2).repeat(1, 2))
        pool.query[0] = 1e3 * nn.functional.layer_norm(cells[0, :, 4], (6,))
    torch.testing.assert_close(pool(cells)[0, :6], cells[0, :, 4])


@pytest.mark.parametrize(
    ("kind", "targets", "classes"),
    [
        ("binary", ("a", "b"), ()),
        ("multiclass", ("a",), ()),
        ("ordinal", ("a", "b"), ("x", "y")),
        ("guess", ("a",), ()),
    ],
)
def test_targets_and_classes_that_do_not_fit_are_refused(kind: str, targets: Any, classes: Any) -> None:
    with pytest.raises(UsageError):
        classifier_for(DynUNetConfig(), kind, targets, classes, shape=(16, 16, 16), channels=1)


def test_a_crop_the_encoder_cannot_see_is_refused() -> None:
    with pytest.raises(RecipeError, match="multiples of"):
        classifier_for(DynUNetConfig(), "binary", ("a",), shape=(18, 16, 16), channels=1)


def test_the_carried_sources_need_nothing_of_medssl() -> None:
    for source in _small().scripts.values():
        assert "medssl" not in source.replace("of medssl", "")
