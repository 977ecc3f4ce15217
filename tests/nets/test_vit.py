"""Laws of the ViT: only kept patches are looked at, and positions are millimetres."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medssl.nets.config import ViTConfig
from medssl.nets.encoder import build_encoder
from medssl.nets.patches import patchify, unpatchify
from medssl.nets.vit import ViT, patch_centres, sine_positions

CONFIG = ViTConfig(patch=(4, 4, 2), width=48, depth=3, heads=4, mlp=64)
SHAPE, SPACING = (8, 12, 8), (1.0, 0.5, 2.0)
PATCHES = 2 * 3 * 4


def vit() -> ViT:
    torch.manual_seed(0)
    encoder = build_encoder(CONFIG, channels=1, shape=SHAPE, spacing_mm=SPACING)
    assert isinstance(encoder, ViT)
    return encoder.eval()


@given(seed=st.integers(0, 100), kept=st.integers(1, PATCHES))
def test_tokens_are_blind_to_patches_that_are_not_kept(seed: int, kept: int) -> None:
    encoder, generator = vit(), torch.Generator().manual_seed(seed)
    x = torch.randn(2, 1, *SHAPE, generator=generator)
    keep = torch.rand(2, PATCHES, generator=generator).argsort(1)[:, :kept]
    patches = patchify(x, encoder.patch)
    hidden = torch.ones(2, PATCHES, dtype=torch.bool).scatter(1, keep, False)
    patches[hidden] = float("nan")
    assert torch.equal(encoder.tokens(x, keep), encoder.tokens(unpatchify(patches, encoder.patch, SHAPE), keep))


def test_only_kept_patches_pass_through_the_blocks() -> None:
    encoder, seen = vit(), []
    encoder.net.blocks[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    encoder.tokens(torch.randn(2, 1, *SHAPE), torch.arange(5).expand(2, 5))
    assert seen == [(2, 5, 48)]


def test_tokens_follow_the_order_in_which_patches_are_kept() -> None:
    encoder, x = vit(), torch.randn(1, 1, *SHAPE)
    keep = torch.tensor([[7, 2, 19]])
    torch.testing.assert_close(encoder.tokens(x, keep)[:, [1, 2, 0]], encoder.tokens(x, keep[:, [1, 2, 0]]))


def test_keeping_every_patch_is_keeping_none_apart() -> None:
    encoder, x = vit(), torch.randn(2, 1, *SHAPE)
    torch.testing.assert_close(encoder.tokens(x, torch.arange(PATCHES).expand(2, -1)), encoder.tokens(x))


def test_positions_depend_on_millimetres_and_not_on_voxels() -> None:
    coarse = patch_centres((4, 4), (2, 2), (2.0, 2.0), "cpu")
    fine = patch_centres((4, 4), (4, 4), (1.0, 1.0), "cpu")
    assert torch.equal(coarse, fine)
    torch.testing.assert_close(coarse.mean(1), torch.zeros(1, 2))


def test_moving_a_point_moves_all_similarities_alike() -> None:
    """The inner product of two positions depends on their distance alone, as attention wants it."""
    points = torch.tensor([[0.0, 0.0, 0.0], [3.0, -8.0, 11.0]])
    moved = points + torch.tensor([5.0, 40.0, -7.0])
    a, b = (sine_positions(p, 50, (16, 512)) for p in (points, moved))
    torch.testing.assert_close(a[0] @ a[1], b[0] @ b[1], rtol=1e-4, atol=1e-4)
    assert a.shape == (2, 50)


def test_the_table_in_the_network_holds_the_recipes_positions() -> None:
    encoder = vit()
    table = encoder.net.patch_embedding.position_embeddings
    assert torch.equal(table, encoder.positions(encoder.grid, SPACING))
    assert not table.requires_grad


def test_giving_the_recipes_spacing_changes_nothing_and_another_does() -> None:
    encoder, x = vit(), torch.randn(2, 1, *SHAPE)
    assert torch.equal(encoder.tokens(x), encoder.tokens(x, spacing_mm=SPACING))
    assert not torch.allclose(encoder.tokens(x), encoder.tokens(x, spacing_mm=(3.0, 0.5, 2.0)))


def test_each_image_of_a_batch_may_have_its_own_spacing() -> None:
    encoder, x = vit(), torch.randn(2, 1, *SHAPE)
    spacing = torch.tensor([[1.0, 0.5, 2.0], [3.0, 1.0, 1.0]])
    keep = torch.tensor([[0, 5], [9, 3]])
    both = encoder.tokens(x, keep, spacing)
    for i in range(2):
        alone = encoder.tokens(x[i : i + 1], keep[i : i + 1], tuple(spacing[i].tolist()))
        torch.testing.assert_close(both[i : i + 1], alone)


def test_a_larger_crop_keeps_the_distances_between_patches() -> None:
    encoder = vit()
    small, large = encoder.positions((2, 3, 4))[0], encoder.positions((4, 5, 6))[0]
    inner = large.unflatten(0, (4, 5, 6))[1:3, 1:4, 1:5].flatten(0, 2)
    torch.testing.assert_close(small, inner)
    assert encoder(torch.randn(1, 1, 16, 20, 12))[0].shape == (1, 48, 4, 5, 6)


def test_it_runs_in_bfloat16_autocast_near_its_float32_result() -> None:
    encoder, x = vit(), torch.randn(2, 1, *SHAPE)
    with torch.autocast("cpu", torch.bfloat16):
        half = encoder.tokens(x, torch.arange(6).expand(2, 6))
    full = encoder.tokens(x, torch.arange(6).expand(2, 6))
    assert half.isfinite().all()
    torch.testing.assert_close(half.float(), full, rtol=0, atol=0.1)


def test_weights_of_another_crop_keep_this_crops_positions(tmp_path: pytest.TempPathFactory) -> None:
    from medssl.nets.encoder import save_network

    folder = save_network(tmp_path, vit(), preparation={}, card="")  # type: ignore[arg-type]
    other = build_encoder(CONFIG.model_copy(update={"weights": folder}), channels=1, shape=(8, 8, 8))
    assert other.receipt is not None
    assert other.receipt.reshaped == ("patch_embedding.position_embeddings",)
    assert isinstance(other, ViT)
    assert torch.equal(other.net.patch_embedding.position_embeddings, other.positions((2, 2, 4)))
    assert torch.equal(other.net.norm.weight, vit().net.norm.weight)
