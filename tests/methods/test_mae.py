"""Laws of masked autoencoding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medssl.batch import rows
from medssl.errors import RunError
from medssl.losses.reconstruction import masked_patch_error, masked_voxel_error, standardized_patches
from medssl.methods.anatomy import Anatomy
from medssl.methods.mae import MAE
from medssl.nets.encoder import DynUNetConfig, SwinConfig, ViTConfig, build_encoder
from medssl.nets.patches import patchify, unpatchify

from .data import batch_of, facts_of

SHAPE = (16, 16, 16)
ENCODERS = {
    "tokens": ViTConfig(patch=4, width=24, depth=2, heads=2, mlp=48),
    "dense": DynUNetConfig(channels=(8, 8, 16), strides=(2, 2, 2), features=8),
}


def make(form: str, shape: tuple[int, ...] = SHAPE, **keys: Any) -> MAE:
    torch.manual_seed(0)
    encoder = build_encoder(ENCODERS[form], channels=1, shape=shape, spacing_mm=(1.0,) * len(shape))
    config = MAE.Config(form=form, block=4, decoder_width=24, decoder_layers=1, decoder_heads=2, **keys)
    return MAE(config, encoder, facts_of(shape))


@pytest.mark.parametrize("form", ENCODERS)
@pytest.mark.parametrize("shape", [SHAPE, (16, 16)], ids=["3D", "2D"])
def test_what_is_hidden_never_reaches_the_encoder(form: str, shape: tuple[int, ...]) -> None:
    method = make(form, shape).eval()
    views = method.views(batch_of(shape=shape), 0)
    changed = dict(views)
    if form == "dense":
        changed["image"] = torch.where(views["mask"], torch.full_like(views["image"], 1e3), views["image"])
    else:
        patches = patchify(views["image"], method.patch)
        patches = torch.where(views["mask"][..., None], torch.full_like(patches, 1e3), patches)
        changed["image"] = unpatchify(patches, method.patch, shape)
    assert torch.equal(method._rebuild(views)[0], method._rebuild(changed)[0])


@pytest.mark.parametrize("form", ENCODERS)
def test_the_loss_is_blind_to_what_was_predicted_where_the_image_was_visible(form: str) -> None:
    method = make(form).eval()
    views = method.views(batch_of(), 0)
    prediction, target, _ = method._rebuild(views)
    error, hidden = (masked_patch_error, views["target"][..., None])
    if form == "dense":
        error, hidden = masked_voxel_error, views["target"]
    spoiled = torch.where(hidden, prediction, torch.full_like(prediction, float("nan")))
    assert torch.equal(error(spoiled, target, views["target"]).mean(), method(views).total)


def test_only_visible_tokens_are_encoded() -> None:
    method = make("tokens", ratio=0.75)
    views = method.views(batch_of(), 0)
    seen: list[int] = []
    method.encoder.net.blocks[0].register_forward_hook(lambda module, given, out: seen.append(given[0].shape[1]))
    method(views)
    assert seen == [16]  # a quarter of 4 x 4 x 4 patches


@pytest.mark.parametrize("form", ENCODERS)
def test_padding_is_no_target(form: str) -> None:
    method = make(form)
    batch = batch_of()
    batch["box"][:, 1, 0] = 9
    views = method.views(batch, 0)
    voxels = views["target"]
    if form == "tokens":
        voxels = unpatchify(voxels[..., None].expand(-1, -1, 64).float(), method.patch, SHAPE) > 0
    assert voxels[:, :, :8].any()
    assert not voxels[:, :, 9:].any()


@pytest.mark.parametrize("form", ENCODERS)
def test_views_of_a_batch_are_those_of_its_samples_one_by_one(form: str) -> None:
    from medssl.views.intensity import IntensityConfig
    from medssl.views.spatial import SpatialConfig

    method = make(form, spatial=SpatialConfig(flips=(0,)), intensity=IntensityConfig(probability=0.7))
    batch = batch_of(4)
    whole = method.views(batch, 0)
    for i in range(4):
        for key, value in method.views(rows(batch, i, i + 1), 0).items():
            assert torch.equal(value[0], whole[key][i]), key


@pytest.mark.parametrize("form", ENCODERS)
def test_every_trained_parameter_gets_a_gradient(form: str) -> None:
    method = make(form)
    method(method.views(batch_of(), 0)).total.backward()
    trained = {id(p) for group in method.groups() for p in group.parameters}
    assert [n for n, p in method.named_parameters() if id(p) in trained and p.grad is None] == []


@pytest.mark.parametrize("form", ENCODERS)
def test_one_batch_can_be_learned_by_heart(form: str) -> None:
    method = make(form)
    views = method.views(batch_of(2), 0)
    optimiser = torch.optim.AdamW([p for g in method.groups() for p in g.parameters], 1e-2)
    first = last = 0.0
    for step in range(120):
        loss = method(views).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        first, last = (first or float(loss.detach())), float(loss.detach())
        assert step < 120
    assert last < 0.2 * first


def test_the_loss_is_that_of_the_reference_implementation(shared: Path) -> None:
    reference = np.load(shared.parent / "methods" / "fixtures" / "cardiac_mim_loss.npz", allow_pickle=False)
    volume, prediction = (torch.from_numpy(reference[key]) for key in ("volume", "prediction"))
    patch, mask = (int(reference["patch"]),) * 3, torch.from_numpy(reference["mask"]).bool()
    patches = patchify(volume, patch)
    torch.testing.assert_close(patches, torch.from_numpy(reference["patches"]), rtol=0, atol=0)
    target = standardized_patches(patches, floor=float(reference["floor"]))
    torch.testing.assert_close(target, torch.from_numpy(reference["target_floor"]), rtol=1e-10, atol=1e-10)
    loss = masked_patch_error(prediction, target, mask).mean()
    torch.testing.assert_close(loss.double(), torch.from_numpy(reference["loss_floor"]), rtol=1e-5, atol=1e-5)


def test_a_flat_patch_keeps_a_small_target() -> None:
    noise = 1e-4 * torch.randn(1, 1, 64, generator=torch.Generator().manual_seed(0))
    assert standardized_patches(noise, floor=0.02).abs().max() < 0.05
    assert standardized_patches(noise, floor=1e-9).abs().max() > 1


def test_bf16_gives_a_finite_loss_near_that_of_float32() -> None:
    for form in ENCODERS:
        method = make(form)
        views = method.views(batch_of(), 0)
        exact = method(views).total
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = method(views).total
        torch.testing.assert_close(rough.float(), exact, rtol=0.05, atol=0.02)


def test_an_encoder_whose_finest_map_trains_a_part_of_it_is_refused() -> None:
    section = SwinConfig(width=12, depths=(1, 1, 1, 1), heads=(1, 1, 2, 2), window=2)
    encoder = build_encoder(section, channels=1, shape=(32, 32, 32), spacing_mm=(1.0, 1.0, 1.0))
    with pytest.raises(RunError, match="trains only a part of it"):
        MAE(MAE.Config(form="dense"), encoder, facts_of((32, 32, 32)))
    with pytest.raises(RunError, match="trains only a part of it"):
        Anatomy(Anatomy.Config(), encoder, facts_of((32, 32, 32)))
