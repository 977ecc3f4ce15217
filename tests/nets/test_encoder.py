"""Laws every encoder obeys: what its maps are, what it keeps, and that MONAI's class computes the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import monai.networks.nets
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from medssl.errors import DataError, RecipeError, WeightsError
from medssl.nets.dynunet import dynunet_arguments
from medssl.nets.encoder import (
    DynUNetConfig,
    Encoder,
    SegResNetConfig,
    SwinConfig,
    TimmConfig,
    ViTConfig,
    build_encoder,
    encoder_from_spec,
    load_encoder,
    save_network,
)
from medssl.nets.segresnet import segresnet_arguments
from medssl.nets.swin import swin_arguments, swin_unetr_arguments
from medssl.nets.vit import vit_arguments
from medssl.nets.weights import read_weights

# The smallest of each kind, in 3D and 2D, with an axis that differs from the others.
SMALL: dict[str, tuple[Any, tuple[int, ...], tuple[float, ...] | None]] = {
    "dynunet-3d": (DynUNetConfig(channels=(8, 8, 16), features=4), (16, 24, 16), (1.0, 1.0, 3.0)),
    "dynunet-2d": (DynUNetConfig(channels=(8, 8, 16), features=4, strides=(1, 2, (2, 1))), (16, 24), None),
    "segresnet-3d": (
        SegResNetConfig(channels=8, blocks_down=(1, 1), blocks_up=(1,), features=4),
        (8, 12, 8),
        (1.0, 1.0, 1.0),
    ),
    "segresnet-2d": (SegResNetConfig(channels=8, blocks_down=(1, 1, 1), blocks_up=(1, 1)), (16, 24), None),
    "vit-3d": (ViTConfig(patch=(4, 8, 4), width=36, depth=4, heads=2, mlp=40), (8, 24, 12), (1.0, 1.0, 2.0)),
    "vit-2d": (ViTConfig(patch=8, width=24, depth=2, heads=2, mlp=40), (16, 24), None),
    "swin-3d": (SwinConfig(width=12, depths=(1, 1, 1, 1), heads=(1, 2, 2, 2), window=(3, 4, 3)), (32, 64, 32), None),
    "swin-2d": (
        SwinConfig(width=12, depths=(2, 1, 1, 1), heads=(1, 2, 2, 2), window=4, convolutions=True),
        (64, 32),
        None,
    ),
    "swin-whole-3d": (
        SwinConfig(width=12, depths=(1, 1, 1, 1), heads=(1, 2, 2, 2), window=2, decoder=True, features=4),
        (32, 64, 32),
        None,
    ),
    "swin-whole-2d": (
        SwinConfig(width=12, depths=(1, 1, 1, 1), heads=(1, 2, 2, 2), window=4, convolutions=True, decoder=True),
        (64, 32),
        None,
    ),
    # timm's own smallest networks, made for tests.
    "timm-resnet-2d": (TimmConfig(model="test_resnet"), (64, 96), None),
    "timm-convnext-2d": (TimmConfig(model="test_convnext"), (64, 32), None),
    "timm-vit-2d": (TimmConfig(model="test_vit"), (32, 48), None),
}
every_encoder = pytest.mark.parametrize("kind", list(SMALL))


def build(kind: str, channels: int = 2) -> Encoder:
    torch.manual_seed(0)
    config, shape, spacing = SMALL[kind]
    return build_encoder(config, channels=channels, shape=shape, spacing_mm=spacing)


def image(kind: str, batch: int = 2, channels: int = 2) -> torch.Tensor:
    return torch.randn(batch, channels, *SMALL[kind][1], generator=torch.Generator().manual_seed(1))


@every_encoder
def test_maps_have_the_channels_and_strides_that_the_encoder_states(kind: str) -> None:
    encoder, x = build(kind), image(kind)
    maps = encoder(x)
    assert len(maps) == len(encoder.out_channels) == len(encoder.strides)
    for level, channels, stride in zip(maps, encoder.out_channels, encoder.strides):
        assert level.shape == (2, channels, *(n // s for n, s in zip(x.shape[2:], stride)))
    assert encoder.kind == ("volume" if kind.endswith("3d") else "image2d")
    assert encoder.pooled(x).shape == (2, encoder.out_channels[-1])


@every_encoder
def test_a_batch_gives_the_maps_of_its_samples_one_by_one(kind: str) -> None:
    # In float64: norms over the few voxels at a U-Net's bottom enlarge rounding.
    encoder, x = build(kind).double().eval(), image(kind, batch=3).double()
    maps = encoder(x)
    for i in range(3):
        for whole, single in zip(maps, encoder(x[i : i + 1])):
            torch.testing.assert_close(whole[i : i + 1], single, rtol=1e-6, atol=1e-6)


@every_encoder
def test_every_trained_parameter_gets_a_gradient_from_the_finest_map_or_the_encoder_says_no(kind: str) -> None:
    encoder = build(kind)
    encoder(image(kind))[0].sin().mean().backward()
    without = [n for n, p in encoder.named_parameters() if p.requires_grad and p.grad is None]
    assert (without == []) is encoder.finest_trains_all
    encoder.zero_grad()
    encoder(image(kind))[0 if encoder.finest_trains_all else -1].sin().mean().backward()
    assert [n for n, p in encoder.named_parameters() if p.requires_grad and p.grad is None] == []


@every_encoder
def test_pooled_is_the_mean_of_the_deepest_map(kind: str) -> None:
    encoder, x = build(kind).eval(), image(kind)
    deepest = encoder(x)[0 if "vit" in kind else -1]
    torch.testing.assert_close(encoder.pooled(x), deepest.flatten(2).mean(2))


@every_encoder
def test_the_spec_survives_json_and_builds_the_same_network(kind: str) -> None:
    encoder = build(kind)
    again = encoder_from_spec(json.loads(json.dumps(encoder.spec)))
    assert again.spec == encoder.spec
    again.net.load_state_dict(encoder.net.state_dict())
    for one, two in zip(encoder.eval()(image(kind)), again.eval()(image(kind))):
        assert torch.equal(one, two)


@every_encoder
def test_saved_and_loaded_it_computes_the_same_and_saves_the_same_bytes(kind: str, tmp_path: Path) -> None:
    encoder = build(kind)
    save_network(tmp_path / "one", encoder, preparation={"spacing_mm": [1, 1, 1]}, card="# card")
    loaded = load_encoder(tmp_path / "one")
    assert not loaded.training
    assert loaded.preparation == {"spacing_mm": [1, 1, 1]}
    assert loaded.receipt is not None
    assert not loaded.receipt.missing
    for one, two in zip(encoder.eval()(image(kind)), loaded(image(kind))):
        assert torch.equal(one, two)
    save_network(tmp_path / "two", loaded, preparation={"spacing_mm": [1, 1, 1]}, card="# card")
    for name in ("config.json", "model.safetensors", "preparation.json", "README.md"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@every_encoder
def test_the_file_loads_strictly_into_monais_class_which_computes_the_same(kind: str, tmp_path: Path) -> None:
    # Of a timm network: into timm's.
    encoder, x = build(kind).eval(), image(kind)
    config, shape, _ = SMALL[kind]
    weights = read_weights(save_network(tmp_path, encoder, preparation={}, card="") / "model.safetensors")
    if kind.startswith("dynunet"):
        arguments = dynunet_arguments(config, channels=2, axes=len(shape), out_channels=config.features)
        net: Any = monai.networks.nets.DynUNet(**arguments)
    elif kind.startswith("timm"):
        # The table of positions has the size of timm's own file, for 160 pixels.
        size = {"dynamic_img_size": True} if "vit" in kind else {}
        net = timm.create_model(config.model, in_chans=2, num_classes=0, **size)
    elif kind.startswith("swin-whole"):
        arguments = swin_unetr_arguments(config, channels=2, axes=len(shape), out_channels=config.features)
        net = monai.networks.nets.SwinUNETR(**arguments)
    elif kind.startswith("swin"):
        net = monai.networks.nets.swin_unetr.SwinTransformer(**swin_arguments(config, channels=2, axes=len(shape)))
    elif kind.startswith("segresnet"):
        arguments = segresnet_arguments(config, channels=2, axes=len(shape), out_channels=config.features)
        net = monai.networks.nets.SegResNet(**arguments)
    else:
        net = monai.networks.nets.ViT(**vit_arguments(config, channels=2, shape=shape))
    net.load_state_dict(weights, strict=True)
    theirs = net.eval().forward_features(x) if kind.startswith("timm") else net.eval()(x)
    if kind.startswith("vit"):
        tokens, hidden = theirs
        torch.testing.assert_close(encoder.tokens(x), tokens, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(encoder(x)[-1].flatten(2), hidden[encoder.taps[0]].mT, rtol=1e-5, atol=1e-5)
    elif kind.startswith("timm"):
        deepest = encoder(x)[0].flatten(2).mT if "vit" in kind else encoder(x)[-1]
        torch.testing.assert_close(deepest, theirs[:, net.num_prefix_tokens :] if "vit" in kind else theirs)
    elif kind.startswith("swin") and "whole" not in kind:
        for ours, map_ in zip(encoder(x), theirs, strict=True):
            torch.testing.assert_close(ours, map_, rtol=1e-5, atol=1e-5)
    else:
        torch.testing.assert_close(encoder(x)[0], theirs, rtol=1e-5, atol=1e-5)


@every_encoder
def test_only_the_network_is_a_child_of_the_encoder(kind: str) -> None:
    assert [name for name, _ in build(kind).named_children()] == ["net"]


@every_encoder
def test_an_image_that_does_not_fit_the_strides_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="voxels"):
        build(kind)(torch.zeros(1, 2, *(n + 1 for n in SMALL[kind][1])))


@given(extra=st.integers(0, 2))
def test_a_u_net_sees_any_multiple_of_its_strides(extra: int) -> None:
    encoder = build("dynunet-3d")
    shape = tuple(n + extra * m for n, m in zip((16, 24, 16), encoder.multiple))
    assert encoder(torch.zeros(1, 2, *shape))[0].shape[2:] == tuple(n // 2 for n in shape)


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (DynUNetConfig(), (20, 40, 32)),
        (DynUNetConfig(), (8, 8, 8)),
        (DynUNetConfig(strides=(2, 2, (2, 2))), (16, 16, 16)),
        (SegResNetConfig(), (12, 16, 16)),
        (ViTConfig(patch=16), (24, 32, 32)),
        (SwinConfig(width=12), (32, 48, 32)),
        (SwinConfig(width=12, window=(7, 7)), (32, 32, 32)),
        (SwinConfig(width=12, decoder=True), (32, 32, 32)),
        (DynUNetConfig(), (4, 16, 16, 16)),
    ],
    ids=[
        "odd crop",
        "one voxel left",
        "strides of 2D",
        "odd crop segresnet",
        "broken patches",
        "odd crop swin",
        "window of 2D",
        "one voxel left swin",
        "four axes",
    ],
)
def test_a_crop_that_does_not_fit_the_network_is_a_recipe_error(config: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(RecipeError):
        build_encoder(config, channels=1, shape=shape)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("stride", [1, 2, 3, 4, 5])
def test_every_stride_the_section_accepts_can_be_built_and_others_are_named(stride: int, residual: bool) -> None:
    values = {"channels": (8, 8, 8), "strides": (stride, 1, 2), "residual": residual}
    if stride > (2 if residual else 4):
        with pytest.raises(ValueError, match="strides go up to"):
            DynUNetConfig(**values)
        return
    encoder = build_encoder(DynUNetConfig(**values), channels=1, shape=(4 * stride, 4 * stride, 4 * stride))
    assert encoder(torch.randn(1, 1, *(4 * stride,) * 3))[0].shape == (1, 32, 4, 4, 4)


@pytest.mark.parametrize("convolutions", [False, True], ids=["first version", "second version"])
def test_a_swins_file_loads_strictly_into_monais_swinunetr(convolutions: bool, tmp_path: Path) -> None:
    config = SwinConfig(width=12, depths=(1, 1, 1, 1), heads=(1, 2, 2, 2), window=4, convolutions=convolutions)
    encoder = build_encoder(config, channels=1, shape=(32, 32, 64)).eval()
    weights = read_weights(save_network(tmp_path, encoder, preparation={}, card="") / "model.safetensors")
    net: Any = monai.networks.nets.SwinUNETR(
        1, 2, depths=config.depths, num_heads=config.heads, window_size=4, feature_size=12, use_v2=convolutions
    )
    net.swinViT.load_state_dict(weights, strict=True)
    x = torch.randn(1, 1, 32, 32, 64)
    for ours, theirs in zip(encoder(x), net.eval().swinViT(x, net.normalize), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model", ["test_resnet", "test_convnext", "test_vit"])
def test_weights_of_colour_pictures_see_a_grey_one_as_three_equal_channels(model: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    colour = timm.create_model(model, num_classes=5)  # with a classifier, as timm's files have it
    save_file(colour.state_dict(), tmp_path / "timm.safetensors")
    config = TimmConfig(model=model, weights=tmp_path / "timm.safetensors")
    grey = build_encoder(config, channels=1, shape=(160, 160)).eval()
    assert grey.receipt is not None
    assert not grey.receipt.missing
    assert all(name.startswith(("fc.", "head.")) for name in grey.receipt.unexpected)
    x = torch.randn(1, 1, 160, 160)
    theirs = colour.eval().forward_intermediates(x.expand(-1, 3, -1, -1), norm=True, intermediates_only=True)
    torch.testing.assert_close(grey(x)[0 if model == "test_vit" else -1], theirs[-1], rtol=1e-4, atol=1e-4)


def test_a_timm_vit_takes_weights_of_another_picture_size_under_a_prefix(tmp_path: Path) -> None:
    given = timm.create_model("test_vit", img_size=96, in_chans=1, num_classes=0).state_dict()
    save_file({f"module.{name}": tensor for name, tensor in given.items()}, tmp_path / "w.safetensors")
    config = TimmConfig(model="test_vit", weights=tmp_path / "w.safetensors", weights_prefix="module.")
    encoder = build_encoder(config, channels=1, shape=(32, 32))
    assert encoder.receipt is not None
    assert not encoder.receipt.missing
    assert torch.equal(encoder.net.get_parameter("blocks.0.attn.qkv.weight"), given["blocks.0.attn.qkv.weight"])
    assert encoder.net.get_parameter("pos_embed").std() > 0


def test_weights_of_another_timm_network_are_refused_with_the_files_name(tmp_path: Path) -> None:
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), tmp_path / "resnet.safetensors")
    with pytest.raises(WeightsError, match=r"resnet\.safetensors"):
        build_encoder(
            TimmConfig(model="test_convnext", weights=tmp_path / "resnet.safetensors"), channels=1, shape=(32, 32)
        )


@pytest.mark.parametrize(
    ("model", "shape", "says"),
    [
        ("resnet_50", (32, 32), "did you mean"),
        ("hf-hub:timm/resnet50.a1_in1k", (32, 32), "timm has no network"),
        ("test_resnet", (32, 32, 32), "2D images"),
        ("mixer_s32_224", (64, 64), "does not take pictures"),
        ("test_resnet", (48, 32), "multiples"),
    ],
    ids=["misspelt", "from the network", "volume", "fixed size", "odd crop"],
)
def test_a_timm_network_that_cannot_be_is_named(model: str, shape: tuple[int, ...], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        build_encoder(TimmConfig(model=model), channels=1, shape=shape)


@pytest.mark.parametrize("knobs", [{"width": 16}, {"heads": (5, 6, 12, 24)}], ids=["width", "heads"])
def test_a_swin_that_monai_cannot_build_is_refused_by_its_section(knobs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="multiple"):
        SwinConfig(**knobs)


def test_the_smallest_accepted_crop_can_be_trained_on() -> None:
    encoder = build_encoder(DynUNetConfig(channels=(8, 8, 8)), channels=1, shape=(16, 8, 8))
    encoder(torch.randn(1, 1, 16, 8, 8))[0].sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in encoder.parameters())


def test_weights_of_a_recipe_come_from_a_run_a_folder_or_a_file_alike(tmp_path: Path) -> None:
    config, shape, spacing = SMALL["dynunet-3d"]
    encoder = build("dynunet-3d")
    folder = save_network(tmp_path / "run" / "encoder", encoder, preparation={}, card="")
    for path in (tmp_path / "run", folder, folder / "model.safetensors"):
        torch.manual_seed(5)
        started = build_encoder(
            config.model_copy(update={"weights": path}), channels=2, shape=shape, spacing_mm=spacing
        )
        assert started.receipt is not None
        assert all(torch.equal(a, b) for a, b in zip(started.parameters(), encoder.parameters()))


def test_weights_of_another_width_are_refused_with_their_names(tmp_path: Path) -> None:
    folder = save_network(tmp_path / "encoder", build("dynunet-3d"), preparation={}, card="")
    config = DynUNetConfig(channels=(8, 8, 24), features=4, weights=folder)
    with pytest.raises(WeightsError, match=r"bottleneck.*\(other shape\)"):
        build_encoder(config, channels=2, shape=(16, 24, 16))


def test_a_network_without_one_weight_loads_only_when_that_is_asked_for(tmp_path: Path) -> None:
    encoder = build("segresnet-3d")
    folder = save_network(tmp_path / "encoder", encoder, preparation={}, card="")
    from safetensors.torch import load_file

    weights = load_file(folder / "model.safetensors")
    del weights["convInit.conv.weight"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(WeightsError, match=r"convInit\.conv\.weight"):
        load_encoder(folder)
    partial = load_encoder(folder, allow_partial=True)
    assert partial.receipt is not None
    assert partial.receipt.missing == ("convInit.conv.weight",)


@pytest.mark.parametrize("damage", ["no folder", "empty", "no json", "new format", "unknown kind"])
def test_a_folder_that_is_no_network_is_one_clear_line(damage: str, tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    if damage != "no folder":
        folder.mkdir()
    if damage in ("no json", "new format", "unknown kind"):
        save_network(folder, build("vit-2d"), preparation={}, card="")
        config = json.loads((folder / "config.json").read_text())
        config |= {"format": 99} if damage == "new format" else {"kind": "quine"}
        (folder / "config.json").write_text("{" if damage == "no json" else json.dumps(config))
    with pytest.raises(DataError) as caught:
        load_encoder(folder)
    assert "\n" not in str(caught.value)
