"""Laws of the segmentation task and of its two losses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.losses import DeepSupervisionLoss, DiceLoss, FocalLoss
from torch import Tensor

from medssl.batch import Batch, rows
from medssl.downstream import FinetuneConfig, Segmentation
from medssl.downstream.segmentation import cross_entropy, dice_loss, focal, over_levels
from medssl.downstream.segmenting import build_segmenter, label_loader
from medssl.downstream.start import Design
from medssl.nets.config import DynUNetConfig
from medssl.nets.encoder import Encoder
from medssl.store import Store
from medssl.views.intensity import IntensityConfig
from medssl.views.scaling import scale
from medssl.views.spatial import SpatialConfig

STILL = SpatialConfig(rotation=0, scale=0, shift_mm=0)
PLAIN = IntensityConfig(probability=0)


def _task(store: Store, network: DynUNetConfig, config: FinetuneConfig) -> tuple[Segmentation, Batch]:
    images = store.ids_of("train")
    segmenter = build_segmenter(Design(None, network), store, config, images)
    loader = label_loader(store, config, segmenter.shape, images)
    return Segmentation(config, segmenter, loader.facts(1), classes=store.classes), scale(loader.batch(0))


def _case(seed: int, b: int = 3, k: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, k, (b, 5, 4, 3), generator=generator)
    label[0][label[0] == 2] = 0  # a class that is not in the first sample
    return torch.randn(b, k, 5, 4, 3, generator=generator), label


def test_without_augmentation_views_are_the_crops_themselves(store: Store, network: DynUNetConfig) -> None:
    task, batch = _task(store, network, FinetuneConfig(spatial=STILL, intensity=PLAIN, crop=(16, 16, 16), batch_size=3))
    views = task.views(batch, 0)
    there = slice(0, 13)  # the images are 13 voxels long, the crop 16
    torch.testing.assert_close(views["image"][..., there], batch["image"][..., there], atol=1e-5, rtol=0)
    assert torch.equal(views["label"][..., there], batch["label"][:, 0, ..., there].long())


def test_beyond_an_images_end_stands_what_windows_are_filled_with_and_counts_for_no_loss(
    store: Store, network: DynUNetConfig
) -> None:
    """An image far smaller than its crop: in training as MONAI's inferer pads it, up to where the padding lies."""
    config = FinetuneConfig(spatial=STILL, intensity=PLAIN, crop=(16, 16, 16), batch_size=3)
    task, batch = _task(store, network, config)
    views = task.views(batch, 0)
    known = batch["image"][..., :13]
    want = torch.nn.functional.pad(known, (0, 3, 0, 0, 0, 0), mode="replicate")
    torch.testing.assert_close(views["image"], want, atol=1e-5, rtol=0)
    assert (views["label"][..., 13:] == -100).all()
    segmenter = build_segmenter(Design(None, network), store, config, store.ids_of("train"))
    assert segmenter.inferer_definition()["padding_mode"] == "replicate"


def test_image_and_label_are_turned_together(store: Store, network: DynUNetConfig) -> None:
    config = FinetuneConfig(intensity=PLAIN, crop=(16, 16, 16), batch_size=8)
    task, batch = _task(store, network, config)
    batch["image"] = batch["label"].float()
    views = task.views(batch, 0)
    counts = views["label"] >= 0
    off = (views["image"][:, 0] - views["label"]).abs()[counts]
    assert (views["label"] != batch["label"][:, 0]).any()
    assert (off < 0.5).float().mean() > 0.97  # all but voxels on a border, where one is linear and one is nearest


def test_a_batch_is_augmented_as_its_samples_are_one_by_one(store: Store, network: DynUNetConfig) -> None:
    task, batch = _task(store, network, FinetuneConfig(crop=(16, 16, 16), batch_size=4))
    whole = task.views(batch, 0)
    for i in range(4):
        one = task.views(rows(batch, i, i + 1), 0)
        for key in whole:
            assert torch.equal(whole[key][i : i + 1], one[key])


def test_one_crop_is_turned_otherwise_in_every_sample(store: Store, network: DynUNetConfig) -> None:
    task, batch = _task(store, network, FinetuneConfig(crop=(16, 16, 16), batch_size=4))
    same = {key: value[:1].expand(4, *value.shape[1:]) for key, value in batch.items() if key in task.needs}
    label = task.views({**same, "key": batch["key"]}, 0)["label"]
    assert all(not torch.equal(label[i], label[j]) for i in range(4) for j in range(i))


def test_what_lies_outside_the_crop_counts_for_no_loss(store: Store, network: DynUNetConfig) -> None:
    config = FinetuneConfig(spatial=SpatialConfig(shift_mm=9.0), crop=(16, 16, 16), batch_size=2)
    task, batch = _task(store, network, config)
    label = task.views(batch, 0)["label"]
    outside = label < 0
    assert outside.any()
    logits = torch.randn(2, 3, *label.shape[1:])
    other = torch.where(outside[:, None], torch.randn_like(logits), logits)
    torch.testing.assert_close(cross_entropy(logits, label), cross_entropy(other, label))
    torch.testing.assert_close(dice_loss(logits, label), dice_loss(other, label))


def test_label_values_are_numbered_in_rising_order(store: Store, network: DynUNetConfig) -> None:
    task, batch = _task(store, network, FinetuneConfig(spatial=STILL, crop=(16, 16, 16), batch_size=2))
    task.values = torch.tensor([0, 7, 255])
    coded = batch | {"label": torch.tensor([0, 7, 255])[batch["label"].long()]}
    assert torch.equal(task.views(coded, 0)["label"][..., :13], batch["label"][:, 0, ..., :13].long())


@given(seed=st.integers(0, 30))
def test_dice_loss_equals_monais_where_every_class_is_present(seed: int) -> None:
    logits, label = _case(seed)
    theirs = DiceLoss(include_background=False, to_onehot_y=True, softmax=True, smooth_nr=0, reduction="none")
    want = theirs(logits, label[:, None]).flatten(1)  # (B, K - 1)
    ours = dice_loss(logits, label)
    torch.testing.assert_close(ours[1:], want[1:].mean(1))
    torch.testing.assert_close(ours[0], want[0, [0, 2]].mean())  # class 2 is not in the first sample


@given(seed=st.integers(0, 30))
def test_each_sample_has_its_own_loss_whatever_stands_beside_it(seed: int) -> None:
    logits, label = _case(seed)
    label[1, :2] = -100
    for loss in (cross_entropy, dice_loss):
        whole = loss(logits, label)
        torch.testing.assert_close(whole, torch.cat([loss(logits[i : i + 1], label[i : i + 1]) for i in range(3)]))


@pytest.mark.parametrize("label", [torch.full((1, 4, 4), -100), torch.zeros(1, 4, 4, dtype=torch.long)])
def test_a_crop_without_anything_to_learn_gives_a_finite_loss_and_gradient(label: Tensor) -> None:
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    (cross_entropy(logits, label) + dice_loss(logits, label)).sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@given(seed=st.integers(0, 30), gamma=st.sampled_from([0.5, 2.0, 3.0]))
def test_focal_loss_equals_monais(seed: int, gamma: float) -> None:
    logits, label = _case(seed)
    theirs = FocalLoss(include_background=True, to_onehot_y=True, use_softmax=True, gamma=gamma, reduction="none")
    want = theirs(logits, label[:, None]).sum(1).flatten(1).mean(1)  # one class of a voxel counts
    torch.testing.assert_close(focal(logits, label, gamma=gamma), want, rtol=1e-4, atol=1e-6)


def test_focal_loss_without_its_gamma_is_cross_entropy_and_with_it_leaves_easy_voxels_out() -> None:
    logits, label = _case(1)
    label[1, :2] = -100
    torch.testing.assert_close(focal(logits, label, gamma=0.0), cross_entropy(logits, label))
    sure = (40.0 * torch.nn.functional.one_hot(label.clamp_min(0), 4).movedim(-1, 1)).requires_grad_(True)
    loss = focal(sure, label, gamma=0.5).sum()
    loss.backward()
    assert loss < 1e-6
    assert sure.grad is not None
    assert torch.isfinite(sure.grad).all()


def test_over_levels_equals_monais_deep_supervision_on_a_mean_of_weights_one() -> None:
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 3, (2, 8, 8, 8), generator=generator)
    outputs = [torch.randn(2, 3, n, n, n, generator=generator) for n in (8, 4, 2)]
    theirs = DeepSupervisionLoss(DiceLoss(to_onehot_y=True, softmax=True), weight_mode="exp")
    ours = over_levels(lambda x, y: DiceLoss(to_onehot_y=True, softmax=True)(x, y[:, None]), outputs, label)
    want = theirs(outputs, label[:, None].float()) / (1 + 0.5 + 0.25)
    torch.testing.assert_close(ours, want.expand(2))


@given(seed=st.integers(0, 30))
def test_one_output_is_the_loss_itself_and_voxels_that_count_not_count_at_no_level(seed: int) -> None:
    logits, label = _case(seed)
    torch.testing.assert_close(over_levels(dice_loss, [logits], label), dice_loss(logits, label))
    label[:, :3] = -100
    small = torch.randn(3, 4, 5, 2, 3)
    other = small.clone()
    other[:, :, :3] += 1
    for loss in (cross_entropy, dice_loss, focal):
        torch.testing.assert_close(over_levels(loss, [logits, small], label), over_levels(loss, [logits, other], label))


def test_the_task_takes_a_list_of_logits_and_names_its_terms_by_the_switch(
    store: Store, network: DynUNetConfig
) -> None:
    config = FinetuneConfig(crop=(16, 16, 16), batch_size=2, loss="focal")
    task, batch = _task(store, network, config)
    views = task.views(batch, 0)
    one = task(views)
    assert set(one.terms) == {"focal", "dice"}
    inner = task.encoder.forward

    def levels(x: Tensor) -> list[Tensor]:
        logits = inner(x)
        return [logits, logits[..., ::2, ::2, ::2]]

    task.encoder.forward = levels  # what a network with deep supervision gives in training
    two = task(views)
    assert two.total.shape == ()
    assert two.total != one.total
    assert task.panels(views)["segmentation"].shape == (3, 16, 48)


def test_a_perfect_segmentation_has_no_loss() -> None:
    _, label = _case(0)
    logits = 50.0 * torch.nn.functional.one_hot(label, 4).movedim(-1, 1)
    assert cross_entropy(logits, label).max() < 1e-6
    assert dice_loss(logits, label).max() < 1e-6


def test_every_parameter_is_trained_once_and_the_new_head_faster(store: Store, network: DynUNetConfig) -> None:
    config = FinetuneConfig(learning_rate=1e-3, head_learning_rate=4e-3, crop=(16, 16, 16))
    task, _ = _task(store, network, config)
    groups = task.groups()
    ids = [id(p) for group in groups for p in group.parameters]
    assert sorted(ids) == sorted({id(p) for p in task.parameters() if p.requires_grad})
    head = {id(p) for p in task.encoder.head_parameters()}  # type: ignore[operator]
    for group in groups:
        assert {id(p) in head for p in group.parameters} == {group.rate == 4.0}


@pytest.mark.parametrize(
    ("way", "still"), [("full", (False, False)), ("linear", (True, True)), ("head_first", (True, False))], ids=str
)
def test_batch_norm_of_a_body_waits_as_long_as_the_body_does(
    way: str, still: tuple[bool, bool], store: Store, network: DynUNetConfig
) -> None:
    config = FinetuneConfig(crop=(16, 16, 16), batch_size=2, train=way, head_steps=3)  # type: ignore[arg-type]
    task, batch = _task(store, network.model_copy(update={"norm": "batch"}), config)
    for step, waits in zip((2, 3), still):
        task.train()
        task.views(batch, step)
        norms = [m for m in task.modules() if isinstance(m, torch.nn.BatchNorm3d)]
        assert norms
        assert all(norm.training is not waits for norm in norms)


def test_one_batch_is_overfitted(store: Store, network: DynUNetConfig) -> None:
    config = FinetuneConfig(spatial=STILL, intensity=PLAIN, crop=(16, 16, 16), batch_size=2)
    task, batch = _task(store, network, config)
    views = task.views(batch, 0)
    optimiser = torch.optim.AdamW(task.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = task(views).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_arms_of_a_seed_begin_with_the_same_head_and_differ_in_the_body(
    store: Store, encoder: Encoder, quick: FinetuneConfig
) -> None:
    scratch, warm = (build_segmenter(Design(e, encoder), store, quick, store.ids) for e in (None, encoder))
    other = build_segmenter(Design(None, encoder), store, quick.model_copy(update={"seed": 1}), store.ids)
    for a, b, c in zip(scratch.head_parameters(), warm.head_parameters(), other.head_parameters()):
        assert torch.equal(a, b)
        assert a.ndim == 1 or not torch.equal(a, c)
    assert warm.receipt is not None
    assert not warm.receipt.missing
    state = warm.body().state_dict()
    brought = [name for name in encoder.net.state_dict() if not name.startswith("output_block")]
    assert brought
    assert all(torch.equal(encoder.net.state_dict()[name], state[name]) for name in brought)


def test_panels_are_pictures(store: Store, network: DynUNetConfig) -> None:
    task, batch = _task(store, network, FinetuneConfig(crop=(16, 16, 16), batch_size=2))
    panel = task.panels(task.views(batch, 0))["segmentation"]
    assert panel.shape == (3, 16, 48)
    assert 0 <= panel.min() <= panel.max() <= 1
