"""Laws of the segmentation network: logits on the image's own grid, from networks that need nothing of ours."""

from __future__ import annotations

import ast
import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.bundle import ConfigParser

from medssl.errors import RecipeError, UsageError, WeightsError
from medssl.nets.decoders import PatchUNETR, steps_up
from medssl.nets.encoder import (
    DynUNetConfig,
    SegResNetConfig,
    SwinConfig,
    TimmConfig,
    ViTConfig,
    build_encoder,
    load_network,
    save_network,
)
from medssl.nets.segmenter import Segmenter, load_encoder_into, segmenter_for, segmenter_from_spec
from medssl.nets.vit import vit_arguments

TINY_SWIN = SwinConfig(width=12, depths=(1, 1, 1, 1), heads=(1, 2, 2, 2), window=4)
SMALL: dict[str, tuple[Any, tuple[int, ...]]] = {
    "dynunet-half": (DynUNetConfig(channels=(8, 8, 16), features=4), (16, 24, 16)),
    "dynunet-thin": (DynUNetConfig(channels=(8, 8, 16), features=4, strides=((2, 2, 1), 2, 2)), (16, 24, 8)),
    "dynunet-full-2d": (DynUNetConfig(channels=(8, 8, 16), strides=(1, 2, 2)), (16, 24)),
    "dynunet-half-2d": (DynUNetConfig(channels=(8, 8, 16)), (16, 24)),
    "segresnet": (SegResNetConfig(channels=8, blocks_down=(1, 1), blocks_up=(1,)), (8, 12, 8)),
    "unetr": (ViTConfig(patch=16, width=24, depth=12, heads=2, mlp=24), (32, 16, 16)),
    "unetr-small-patches": (ViTConfig(patch=8, width=24, depth=3, heads=2, mlp=24), (16, 16, 8)),
    "unetr-thick-slices": (ViTConfig(patch=(2, 8, 12), width=24, depth=5, heads=2, mlp=24), (4, 16, 24)),
    "unetr-2d": (ViTConfig(patch=14, width=24, depth=12, heads=2, mlp=24), (28, 42)),
    "vit-light": (ViTConfig(patch=8, width=24, depth=4, heads=2, mlp=24), (16, 16, 8)),
    "vit-light-2d": (ViTConfig(patch=(4, 8), width=24, depth=1, heads=2, mlp=24), (8, 16)),
    "swin": (TINY_SWIN, (32, 64, 32)),
    "swin-2d": (TINY_SWIN.model_copy(update={"convolutions": True}), (64, 64)),
    "swin-whole": (TINY_SWIN.model_copy(update={"decoder": True, "features": 4}), (32, 64, 32)),
    "swin-light": (TINY_SWIN, (32, 32, 32)),
    "timm-resnet": (TimmConfig(model="test_resnet"), (32, 64)),
    "timm-convnext": (TimmConfig(model="test_convnext"), (32, 64)),
    "timm-vit": (TimmConfig(model="test_vit"), (32, 48)),
}
every_network = pytest.mark.parametrize("kind", list(SMALL))


def pair(kind: str) -> tuple[Any, Segmenter]:
    torch.manual_seed(0)
    config, shape = SMALL[kind]
    encoder = build_encoder(config, channels=1, shape=shape)
    decoder: Any = "light" if "light" in kind else "unetr"
    return encoder, segmenter_for(encoder, 3, labels=("background", "head", "tail"), decoder=decoder)


@every_network
def test_logits_stand_on_the_grid_of_the_image(kind: str) -> None:
    _, segmenter = pair(kind)
    assert segmenter(torch.randn(2, 1, *SMALL[kind][1])).shape == (2, 3, *SMALL[kind][1])


@every_network
def test_every_trained_parameter_gets_a_gradient(kind: str) -> None:
    _, segmenter = pair(kind)
    segmenter(torch.randn(2, 1, *SMALL[kind][1])).sin().mean().backward()
    assert [n for n, p in segmenter.named_parameters() if p.requires_grad and p.grad is None] == []


@every_network
def test_all_of_the_encoder_goes_in_but_its_output_block(kind: str) -> None:
    encoder, segmenter = pair(kind)
    receipt = load_encoder_into(segmenter, encoder)
    assert not receipt.missing
    assert not receipt.unexpected
    head = {id(p) for p in segmenter.head_parameters()}
    body = [(n, p) for n, p in segmenter.body().named_parameters() if id(p) not in head]
    theirs = dict(encoder.net.named_parameters())
    assert len(body) > 10
    assert all(torch.equal(p, theirs[n]) for n, p in body)
    assert head


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("dynunet-half", [24, 24 * 4 * 27]),
        ("dynunet-full-2d", [3, 3 * 8]),
        ("segresnet", [3, 3 * 8]),
        ("swin-whole", [3, 3 * 12]),
    ],
)
def test_a_u_net_brings_its_decoder_and_only_the_output_block_is_new(kind: str, sizes: list[int]) -> None:
    encoder, segmenter = pair(kind)
    load_encoder_into(segmenter, encoder)
    assert sorted(p.numel() for p in segmenter.head_parameters()) == sizes
    body, head = segmenter.body().parameters(), {id(p) for p in segmenter.head_parameters()}
    theirs = {p.detach().numpy().tobytes() for p in encoder.net.parameters()}
    assert all(p.detach().numpy().tobytes() in theirs for p in body if id(p) not in head)


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose `scripts` can be imported, and are forgotten afterwards."""
    (tmp_path / "scripts").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "scripts"]:
        del sys.modules[name]


@every_network
def test_monai_builds_the_same_network_from_its_definition(kind: str, bundle: Path) -> None:
    _, segmenter = pair(kind)
    if segmenter.script is not None:
        (bundle / "scripts" / "network.py").write_text(segmenter.script)
    config = json.loads(json.dumps({"imports": ["$import torch"], **segmenter.definition()}))
    network = ConfigParser(config).get_parsed_content("network_def")
    network.load_state_dict(segmenter.net.state_dict(), strict=True)
    x = torch.randn(1, 1, *SMALL[kind][1])
    assert torch.equal(network.eval()(x), segmenter.eval()(x))


@every_network
def test_saved_and_loaded_it_computes_the_same(kind: str, tmp_path: Path) -> None:
    _, segmenter = pair(kind)
    save_network(tmp_path, segmenter, preparation={"a": 1}, card="")
    loaded = load_network(tmp_path)
    assert isinstance(loaded, Segmenter)
    assert loaded.labels == ("background", "head", "tail")
    x = torch.randn(1, 1, *SMALL[kind][1])
    assert torch.equal(loaded(x), segmenter.eval()(x))


@every_network
def test_it_consists_of_monais_and_torchs_classes_and_of_those_the_bundle_carries(kind: str) -> None:
    _, segmenter = pair(kind)
    homes = {type(module).__module__ for module in segmenter.net.modules()}
    ours = {home for home in homes if home.split(".")[0] not in ("monai", "torch", "einops", "timm")}
    assert ours == ({"medssl.nets.decoders"} if segmenter.script is not None else set())
    assert (segmenter.script is None) is (
        kind.startswith(("dynunet", "segresnet")) or kind in ("unetr", "swin", "swin-2d", "swin-whole")
    )


@pytest.mark.parametrize(("everywhere", "packages"), [(False, {"torch", "monai"}), (True, {"torch", "monai", "timm"})])
def test_the_file_that_bundles_carry_imports_torch_and_monai_and_timm_where_it_is_used(
    everywhere: bool, packages: set[str]
) -> None:
    script = pair("vit-light")[1].script
    assert script is not None
    tree = ast.parse(script)
    names = {
        name.split(".")[0]
        for node in (ast.walk(tree) if everywhere else tree.body)
        for name in ([a.name for a in node.names] if isinstance(node, ast.Import) else [])
        + ([node.module or "."] if isinstance(node, ast.ImportFrom) else [])
    }
    assert names - set(sys.stdlib_module_names) == packages


@pytest.mark.parametrize("size", [(16, 24, 16), (21, 30, 17), (9, 40, 16)], ids=["window", "odd", "smaller than it"])
def test_predict_covers_images_of_any_size(size: tuple[int, ...]) -> None:
    _, segmenter = pair("dynunet-half")
    logits = segmenter.eval().predict(torch.randn(1, 1, *size))
    assert logits.shape == (1, 3, *size)
    assert not logits.requires_grad
    assert logits.isfinite().all()


def test_predict_of_one_window_is_forward() -> None:
    _, segmenter = pair("dynunet-half")
    x = torch.randn(1, 1, 16, 24, 16)
    torch.testing.assert_close(segmenter.eval().predict(x), segmenter(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_network_of_images_sees_volumes_slice_by_slice(axis: int) -> None:
    encoder, _ = pair("dynunet-half-2d")
    segmenter = segmenter_for(encoder, 2, slice_axis=axis).eval()
    shape = [16, 24]
    shape.insert(axis, 3)
    x = torch.randn(1, 1, *shape)
    slices = [segmenter(one) for one in x.unbind(2 + axis)]
    torch.testing.assert_close(segmenter.predict(x), torch.stack(slices, 2 + axis), rtol=1e-4, atol=1e-5)


def test_a_section_builds_the_same_kind_of_network_as_the_encoder() -> None:
    encoder, segmenter = pair("dynunet-half")
    scratch = segmenter_for(SMALL["dynunet-half"][0], 3, shape=(16, 24, 16), channels=1)
    assert [(n, p.shape) for n, p in scratch.named_parameters()] == [
        (n, p.shape) for n, p in segmenter.named_parameters()
    ]
    assert scratch.spec["encoder"] == encoder.spec


def test_another_crop_than_the_encoders_is_possible() -> None:
    encoder, _ = pair("unetr")
    segmenter = segmenter_for(encoder, 2, shape=(16, 32, 16))
    load_encoder_into(segmenter, encoder)
    assert segmenter(torch.randn(1, 1, 16, 32, 16)).shape == (1, 2, 16, 32, 16)


def test_weights_of_another_kind_are_refused() -> None:
    encoder, _ = pair("segresnet")
    _, segmenter = pair("dynunet-half")
    with pytest.raises(WeightsError, match="segresnet cannot go into dynunet"):
        load_encoder_into(segmenter, encoder)


def test_with_patches_of_16_and_12_blocks_our_unetr_is_monais() -> None:
    _, monais = pair("unetr")
    config, shape = SMALL["unetr"]
    ours = PatchUNETR(vit_arguments(config, channels=1, shape=shape), 3)
    steps = {"encoder1": "image", "decoder5": "ups.0", "decoder4": "ups.1", "decoder3": "ups.2", "decoder2": "ups.3"}
    named = {}
    for name, tensor in monais.net.state_dict().items():
        first, rest = name.split(".", 1)
        if first in ("encoder2", "encoder3", "encoder4"):
            # One block with steps inside there, a chain of blocks here.
            part = 4 - int(first[-1])
            found = re.fullmatch(r"blocks\.(\d)\.(\d)\.(.*)", rest)
            if found is None:
                name = f"skips.{part}.0.{rest}"
            else:
                number, convolves, inner = int(found[1]), found[2] == "1", found[3]
                prefix = f"layer.{inner}" if convolves else f"transp_conv_init.{inner}"
                name = f"skips.{part}.{1 + 2 * number + convolves}.{prefix}"
        elif first in steps:
            name = f"{steps[first]}.{rest}"
        named[name] = tensor
    ours.load_state_dict(named, strict=True)
    x = torch.randn(1, 1, *shape)
    torch.testing.assert_close(ours.eval()(x), monais.eval()(x))


@given(stride=st.lists(st.integers(1, 40), min_size=2, max_size=3))
def test_the_steps_of_a_decoder_lead_from_the_map_to_the_image(stride: list[int]) -> None:
    steps = steps_up(stride)
    assert [math.prod(axis) for axis in zip(*steps)] == stride
    assert len(steps) == 1 or all(max(step) > 1 for step in steps)


@pytest.mark.parametrize("kind", ["dynunet-half", "dynunet-thin", "dynunet-full-2d", "dynunet-half-2d"])
def test_deep_supervision_adds_coarser_logits_in_training_alone_and_changes_nothing_else(
    kind: str, tmp_path: Path
) -> None:
    config, shape = SMALL[kind]
    config = config.model_copy(update={"channels": (8, 8, 16, 24), "strides": (*config.strides, 1)})
    encoder = build_encoder(config, channels=1, shape=shape)
    networks = []
    for deep in (False, True):
        torch.manual_seed(0)
        networks.append(segmenter_for(encoder, 3, deep_supervision=deep))
        load_encoder_into(networks[-1], encoder)
    plain, deep_network = networks
    x = torch.randn(2, 1, *shape)
    logits = deep_network(x)
    assert isinstance(logits, list)
    assert [tuple(level.shape) for level in logits] == [
        (2, 3, *shape),
        *((2, 3, *(n // s for n, s in zip(shape, stride))) for stride in encoder.strides[1:-1]),
    ]
    torch.testing.assert_close(logits[0], plain(x))
    assert torch.equal(deep_network.eval()(x), plain.eval()(x))
    assert torch.equal(deep_network.predict(x), plain.predict(x))
    sum(level.sin().mean() for level in deep_network.train()(x)).backward()
    assert [n for n, p in deep_network.named_parameters() if p.requires_grad and p.grad is None] == []
    heads = {id(p) for p in deep_network.supervision.parameters()}
    assert len(heads) == 4
    assert heads <= {id(p) for p in deep_network.head_parameters()}
    assert deep_network.spec == plain.spec
    for name, network in (("plain", plain), ("deep", deep_network)):
        save_network(tmp_path / name, network, preparation={}, card="")
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "plain" / file).read_bytes() == (tmp_path / "deep" / file).read_bytes()


def test_deep_supervision_of_a_network_without_levels_is_named_before_training() -> None:
    with pytest.raises(RecipeError, match="which vit has not"):
        segmenter_for(pair("unetr")[0], 2, deep_supervision=True)


@pytest.mark.parametrize("kind", ["dynunet-half", "segresnet", "swin-whole"])
def test_a_u_net_takes_no_light_decoder(kind: str) -> None:
    with pytest.raises(RecipeError, match="decoder of its own"):
        segmenter_for(pair(kind)[0], 2, decoder="light")


def test_a_crop_that_swinunetr_cannot_normalize_is_named_before_training() -> None:
    encoder = build_encoder(TINY_SWIN, channels=1, shape=(32, 32, 32))
    with pytest.raises(RecipeError, match="one voxel at the bottom"):
        segmenter_for(encoder, 2)


def test_a_network_saved_before_decoders_could_be_chosen_has_its_familys_own() -> None:
    spec = dict(pair("unetr")[1].spec)
    assert spec.pop("decoder") == "unetr"
    assert segmenter_from_spec(spec).net.__class__.__name__ == "UNETR"


@pytest.mark.parametrize(("classes", "labels"), [(1, ()), (3, ("background", "lesion"))])
def test_classes_that_make_no_segmentation_are_refused(classes: int, labels: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        segmenter_for(pair("segresnet")[0], classes, labels=labels)
