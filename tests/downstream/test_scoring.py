"""Laws of scoring whole images."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from medssl.downstream import FinetuneConfig, ImageScore
from medssl.downstream.scoring import hausdorff_of, patient_dice, predict_mirrored, score_image, score_images
from medssl.downstream.segmenting import build_segmenter
from medssl.downstream.start import Design
from medssl.errors import RecipeError
from medssl.nets.encoder import Encoder
from medssl.store import Store


def test_a_perfect_segmentation_scores_one_and_zero_mm(store: Store) -> None:
    row = store.row(store.ids[0])
    label = store.label(store.ids[0])[0].astype(np.int64)
    score = score_image(label, label, row, classes=3)
    assert score.dice == (1.0, 1.0)
    assert score.hausdorff95_mm == (0.0, 0.0)
    assert score.surface_dice == (1.0, 1.0)
    assert score.volume_error_ml == (0.0, 0.0)


def test_distances_are_in_mm_of_the_images_own_spacing(store: Store) -> None:
    row = store.row(store.ids[0])  # 1, 0.5, 2 mm
    label = np.zeros(row.shape, np.int64)
    label[5, 5, 5] = 1
    for axis, mm in enumerate((1.0, 0.5, 2.0)):
        assert score_image(np.roll(label, 2, axis), label, row, classes=3).hausdorff95_mm[0] == pytest.approx(2 * mm)


def test_what_was_missed_has_dice_zero_and_no_distance_and_what_is_nowhere_has_neither(store: Store) -> None:
    row = store.row(store.ids[0])
    label = np.zeros(row.shape, np.int64)
    label[2:4] = 1
    score = score_image(np.zeros_like(label), label, row, classes=3)
    assert score.dice == (0.0, None)
    assert score.hausdorff95_mm == (None, None)
    assert score.surface_dice == (0.0, None)
    assert score.volume_error_ml == (pytest.approx(-2 * 16 * 13 * 1 * 0.5 * 2 / 1000), None)
    assert ImageScore.from_dict(json.loads(json.dumps(score.to_dict()))) == score


def test_images_of_one_patient_count_as_one() -> None:
    scores = [ImageScore(str(i), p, (d,), (1.0,)) for i, (p, d) in enumerate([("b", 0.2), ("a", 1.0), ("b", 0.4)])]
    np.testing.assert_allclose(patient_dice(scores), [1.0, 0.3])
    assert hausdorff_of(scores).shape == (3, 1)


def test_scoring_leaves_the_segmenter_in_its_mode_and_hands_on_what_it_found(
    store: Store, encoder: Encoder, quick: FinetuneConfig
) -> None:
    segmenter = build_segmenter(Design(None, encoder), store, quick, store.ids).train()
    kept: dict[str, np.ndarray] = {}
    scores = score_images(segmenter, store, store.ids_of("test"), keep=kept.__setitem__)
    assert segmenter.training
    assert [score.image_id for score in scores] == list(store.ids_of("test"))
    for score in scores:
        label = store.label(score.image_id)[0].astype(np.int64)
        assert kept[score.image_id].shape == store.shape(score.image_id)
        assert score == score_image(kept[score.image_id], label, store.row(score.image_id), classes=3)


def test_a_network_of_slices_segments_a_volume_slice_by_slice(store: Store, quick: FinetuneConfig) -> None:
    from medssl.nets.encoder import DynUNetConfig

    flat = quick.model_copy(update={"crop": (16, 16), "slice_axis": 2})
    network = DynUNetConfig(channels=(8, 8, 8), features=8, strides=(1, 2, 2))
    segmenter = build_segmenter(Design(None, network), store, flat, store.ids).eval()
    image = torch.rand(1, 1, 16, 16, 5)
    found = segmenter.predict(image)
    one = segmenter.predict(image[..., 2:3])
    torch.testing.assert_close(found[..., 2:3], one, atol=1e-5, rtol=1e-5)


def test_surface_dice_forgives_what_lies_within_the_tolerance_in_mm(store: Store) -> None:
    row = store.row(store.ids[0])  # 1, 0.5, 2 mm
    label = np.zeros(row.shape, np.int64)
    label[4:9, 4:9, 4:9] = 1
    moved = np.roll(label, 1, 2)
    assert score_image(moved, label, row, classes=3, tolerance_mm=2.0).surface_dice[0] == 1
    found = score_image(moved, label, row, classes=3, tolerance_mm=0.9).surface_dice[0]
    assert found is not None
    assert found < 1


def test_an_image_without_spacing_and_one_of_two_axes_have_no_volume(store: Store) -> None:
    row = store.row(store.ids[0])
    label = np.ones(row.shape, np.int64)
    assert score_image(label, label, replace(row, spacing_mm=None), classes=2).volume_error_ml == (None,)
    flat = replace(row, spacing_mm=(1.0, 1.0))
    assert score_image(label[0], label[0], flat, classes=2).volume_error_ml == (None,)


@pytest.mark.parametrize("axes", [(0,), (2,), (0, 2), (0, 1, 2)], ids=str)
def test_mirrored_prediction_of_a_mirror_image_is_the_mirrored_prediction(
    axes: tuple[int, ...], store: Store, encoder: Encoder, quick: FinetuneConfig
) -> None:
    segmenter = build_segmenter(Design(None, encoder), store, quick, store.ids).eval()
    image = torch.rand(1, 1, 16, 16, 16)
    found = predict_mirrored(segmenter, image, axes)
    for axis in axes:
        other = predict_mirrored(segmenter, image.flip(axis + 2), axes).flip(axis + 2)
        torch.testing.assert_close(other, found, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, segmenter.predict(image), atol=1e-4)


def test_one_mirrored_axis_is_the_mean_of_two_predictions_and_no_axis_is_one(
    store: Store, encoder: Encoder, quick: FinetuneConfig
) -> None:
    segmenter = build_segmenter(Design(None, encoder), store, quick, store.ids).eval()
    image = torch.rand(1, 1, 16, 16, 16)
    plain, turned = segmenter.predict(image), segmenter.predict(image.flip(3)).flip(3)
    torch.testing.assert_close(predict_mirrored(segmenter, image, (1, 1)), (plain + turned) / 2)
    assert torch.equal(predict_mirrored(segmenter, image, ()), plain)
    with pytest.raises(RecipeError, match="axis 3 cannot be mirrored in an image of 3 axes"):
        predict_mirrored(segmenter, image, (3,))


def test_windows_count_most_where_their_centre_is(store: Store, encoder: Encoder, quick: FinetuneConfig) -> None:
    segmenter = build_segmenter(Design(None, encoder), store, quick, store.ids).eval()
    ramp = torch.linspace(-1, 1, 16).abs()  # the distance from a window's centre along one axis

    class Distance(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return ramp.expand(len(x), 3, *x.shape[2:]).clone()

    segmenter.net = Distance()
    found = segmenter.predict(torch.zeros(1, 1, 16, 16, 24))[0, 0, 8, 8]  # two windows, half overlapping
    # Where both look, a plain mean of their distances is at least 8/15; weights by a Gaussian lean to the nearer one.
    both = found[8:16]
    plain = (ramp[8:16] + ramp[:8]) / 2
    assert (both <= plain + 1e-6).all()
    assert both[0] < plain[0] - 0.2
