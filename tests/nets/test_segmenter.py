"""Laws of the segmentation network: logits on the image's own grid, from networks that need nothing of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser

from medssl.errors import RecipeError, UsageError, WeightsError
from medssl.nets.encoder import (
    DynUNetConfig,
    SegResNetConfig,
    ViTConfig,
    build_encoder,
    load_network,
    save_network,
)
from medssl.nets.segmenter import Segmenter, load_encoder_into, segmenter_for

SMALL: dict[str, tuple[Any, tuple[int, ...]]] = {
    "dynunet-half": (DynUNetConfig(channels=(8, 8, 16), features=4), (16, 24, 16)),
    "dynunet-thin": (DynUNetConfig(channels=(8, 8, 16), features=4, strides=((2, 2, 1), 2, 2)), (16, 24, 8)),
    "dynunet-full-2d": (DynUNetConfig(channels=(8, 8, 16), strides=(1, 2, 2)), (16, 24)),
    "dynunet-half-2d": (DynUNetConfig(channels=(8, 8, 16)), (16, 24)),
    "segresnet": (SegResNetConfig(channels=8, blocks_down=(1, 1), blocks_up=(1,)), (8, 12, 8)),
    "unetr": (ViTConfig(patch=16, width=24, depth=12, heads=2, mlp=24), (32, 16, 16)),
}
every_network = pytest.mark.parametrize("kind", list(SMALL))


def pair(kind: str) -> tuple[Any, Segmenter]:
    torch.manual_seed(0)
    config, shape = SMALL[kind]
    encoder = build_encoder(config, channels=1, shape=shape)
    return encoder, segmenter_for(encoder, 3, labels=("background", "head", "tail"))


@every_network
def test_logits_stand_on_the_grid_of_the_image(kind: str) -> None:
    _, segmenter = pair(kind)
    assert segmenter(torch.randn(2, 1, *SMALL[kind][1])).shape == (2, 3, *SMALL[kind][1])


@every_network
def test_every_trained_parameter_gets_a_gradient(kind: str) -> None:
    _, segmenter = pair(kind)
    segmenter(torch.randn(2, 1, *SMALL[kind][1])).square().mean().backward()
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
    [("dynunet-half", [24, 24 * 4 * 27]), ("dynunet-full-2d", [3, 3 * 8]), ("segresnet", [3, 3 * 8])],
)
def test_a_u_net_brings_its_decoder_and_only_the_output_block_is_new(kind: str, sizes: list[int]) -> None:
    encoder, segmenter = pair(kind)
    load_encoder_into(segmenter, encoder)
    assert sorted(p.numel() for p in segmenter.head_parameters()) == sizes
    body, head = segmenter.body().parameters(), {id(p) for p in segmenter.head_parameters()}
    theirs = {p.detach().numpy().tobytes() for p in encoder.net.parameters()}
    assert all(p.detach().numpy().tobytes() in theirs for p in body if id(p) not in head)


@every_network
def test_monai_builds_the_same_network_from_its_definition(kind: str) -> None:
    _, segmenter = pair(kind)
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
def test_it_consists_of_monais_and_torchs_classes(kind: str) -> None:
    _, segmenter = pair(kind)
    homes = {type(module).__module__.split(".")[0] for module in segmenter.net.modules()}
    assert homes <= {"monai", "torch", "einops"}


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


def test_a_vit_that_unetr_cannot_take_is_named_before_training() -> None:
    encoder = build_encoder(ViTConfig(patch=8, width=24, depth=4, heads=2, mlp=24), channels=1, shape=(16, 16, 16))
    with pytest.raises(RecipeError, match=r"patches of \(8, 8, 8\) and 4 blocks has no segmenter"):
        segmenter_for(encoder, 2)


@pytest.mark.parametrize(("classes", "labels"), [(1, ()), (3, ("background", "lesion"))])
def test_classes_that_make_no_segmentation_are_refused(classes: int, labels: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        segmenter_for(pair("segresnet")[0], classes, labels=labels)
