"""Laws of the ways to train: what moves, how fast, and what is left behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from medssl.batch import Facts
from medssl.downstream import FinetuneConfig, Segmentation, finetune
from medssl.downstream.layers import LowRank, add_low_rank, hold_still, layers, merge_low_rank
from medssl.downstream.start import Design, settled
from medssl.errors import RecipeError
from medssl.nets.config import DynUNetConfig, SegResNetConfig, SwinConfig, TimmConfig, ViTConfig
from medssl.nets.encoder import Encoder, build_encoder, load_network, save_network
from medssl.nets.segmenter import Segmenter, load_encoder_into, segmenter_for
from medssl.store import Store
from medssl.views.intensity import IntensityConfig
from medssl.views.spatial import SpatialConfig

VIT = ViTConfig(patch=8, width=24, depth=4, heads=2, mlp=24)
NETWORKS = {
    "dynunet": DynUNetConfig(channels=(8, 8, 8), features=8, strides=(1, 2, 2)),
    "segresnet": SegResNetConfig(channels=8, features=8, blocks_down=(1, 1, 1), blocks_up=(1, 1)),
    "vit": VIT,
    "swin": SwinConfig(width=12, depths=(1, 1, 1, 1), heads=(1, 2, 2, 2), window=2),
    "timm-resnet": TimmConfig(model="test_resnet"),
    "timm-convnext": TimmConfig(model="test_convnext"),
    "timm-vit": TimmConfig(model="test_vit"),
}
ATTENTION = {"vit": 8, "swin": 8, "timm-vit": None}
"""Networks with attention, and how many matrices it has: two a block."""
STILL = {"spatial": SpatialConfig(rotation=0, scale=0, shift_mm=0), "intensity": IntensityConfig(probability=0)}


def _segmenter(name: str) -> tuple[Segmenter, Encoder]:
    """A segmenter of two axes with the weights of an encoder."""
    torch.manual_seed(3)
    encoder = build_encoder(NETWORKS[name], channels=1, shape=_shape(name))
    segmenter = segmenter_for(encoder, 3)
    load_encoder_into(segmenter, encoder)
    return segmenter, encoder


def _shape(name: str) -> tuple[int, int]:
    return (64, 32) if name == "swin" else (32, 32)  # a Swin needs two cells at its coarsest stage


def _trained(segmenter: Segmenter, config: FinetuneConfig, steps: int = 3) -> list[float]:
    """Take a few steps as the engine does, parameters in no group frozen, and return the losses."""
    from medssl.train.config import TrainConfig
    from medssl.train.optimiser import Optimiser, check_groups

    method = Segmentation(config, segmenter, Facts(steps), classes=(1, 2))
    groups = method.groups()
    check_groups(method, groups)
    optimiser = Optimiser(groups, TrainConfig(steps=100, learning_rate=config.learning_rate, warmup_steps=0))
    torch.manual_seed(4)
    image = torch.randn(2, 1, *segmenter.shape)
    views = {"image": image, "label": torch.randint(0, 3, (2, *segmenter.shape))}
    losses = []
    for step in range(steps):
        method.train()
        hold_still(segmenter, config, step)
        loss = method(views).total
        loss.backward()
        optimiser.step(step)
        losses.append(loss.item())
    return losses


def _copy(segmenter: Segmenter) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in segmenter.state_dict().items()}


def _head_names(segmenter: Segmenter) -> set[str]:
    head = {id(p) for p in segmenter.head_parameters()}
    return {name for name, p in segmenter.named_parameters(remove_duplicate=False) if id(p) in head}


@pytest.mark.parametrize("name", NETWORKS)
def test_linear_moves_the_head_alone(name: str) -> None:
    segmenter, _ = _segmenter(name)
    before, head = _copy(segmenter), _head_names(segmenter)
    _trained(segmenter, FinetuneConfig(train="linear"))
    moved = {key for key, value in segmenter.state_dict().items() if not torch.equal(value, before[key])}
    assert moved
    assert moved <= head


@pytest.mark.parametrize("name", NETWORKS)
def test_head_first_leaves_the_body_for_its_steps_and_then_moves_it(name: str) -> None:
    segmenter, _ = _segmenter(name)
    head = _head_names(segmenter)
    config = FinetuneConfig(train="head_first", head_steps=2)
    before = _copy(segmenter)
    _trained(segmenter, config, steps=2)
    early = {key for key, value in segmenter.state_dict().items() if not torch.equal(value, before[key])}
    assert early
    assert early <= head
    segmenter, _ = _segmenter(name)
    _trained(segmenter, config, steps=3)
    late = {key for key, value in segmenter.state_dict().items() if not torch.equal(value, before[key])}
    assert late - head


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_of_the_body_stands_in_one_layer(name: str) -> None:
    segmenter, _ = _segmenter(name)
    head = {id(p) for p in segmenter.head_parameters()}
    ids = [id(p) for layer in layers(segmenter) for p in layer]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(p) for p in segmenter.parameters()} - head


def test_a_vits_layers_are_its_patches_its_blocks_and_its_norm() -> None:
    segmenter, _ = _segmenter("vit")
    body = dict(segmenter.body().named_parameters())
    names = {id(p): n for n, p in body.items()}
    firsts = [names[id(layer[0])].split(".")[:2] for layer in layers(segmenter)]
    assert firsts[0][0] == "patch_embedding"
    assert firsts[1:-1] == [["blocks", str(i)] for i in range(4)]
    assert firsts[-1][0] == "norm"


def test_a_unets_layers_go_down_and_up() -> None:
    segmenter, _ = _segmenter("dynunet")
    names = {id(p): n for n, p in segmenter.body().named_parameters()}
    firsts = [names[id(layer[0])].split(".")[0] for layer in layers(segmenter)]
    assert firsts == ["input_block", "downsamples", "bottleneck", "upsamples", "upsamples"]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_rate_falls_by_the_same_share_from_each_layer_to_the_one_below(name: str) -> None:
    segmenter, _ = _segmenter(name)
    config = FinetuneConfig(layer_decay=0.5, learning_rate=1e-3, head_learning_rate=4e-3)
    groups = Segmentation(config, segmenter, Facts(1), classes=(1, 2)).groups()
    rates = {id(p): group.rate for group in groups for p in group.parameters}
    parts = layers(segmenter)
    for i, layer in enumerate(parts):
        moving = [p for p in layer if p.requires_grad]
        assert {rates[id(p)] for p in moving} <= {0.5 ** (len(parts) - i)}
    assert {rates[id(p)] for p in segmenter.head_parameters()} == {4.0}
    assert sum(len(group.parameters) for group in groups) == len([p for p in segmenter.parameters() if p.requires_grad])


@pytest.mark.parametrize("name", ATTENTION)
def test_lora_changes_nothing_at_first_and_moves_only_thin_matrices_and_the_head(name: str) -> None:
    segmenter, _ = _segmenter(name)
    image, head = torch.randn(1, 1, *_shape(name)), _head_names(segmenter)
    plain = segmenter.eval()(image)
    config = FinetuneConfig(train="lora", lora_rank=2)
    add_low_rank(segmenter, config)
    torch.testing.assert_close(segmenter(image), plain)
    before = _copy(segmenter)
    _trained(segmenter, config)
    moved = {key for key, value in segmenter.state_dict().items() if not torch.equal(value, before[key])}
    assert {key for key in moved if ".parametrizations." not in key} <= head
    assert {key.rpartition(".")[2] for key in moved - head} == {"a", "b"}
    small = [module for module in segmenter.modules() if isinstance(module, LowRank)]
    assert ATTENTION[name] in (None, len(small))
    assert all(part.a.shape[0] == part.b.shape[1] == 2 for part in small)


@pytest.mark.parametrize("name", ATTENTION)
def test_merged_corrections_give_the_same_logits_under_the_names_the_network_had(name: str) -> None:
    segmenter, encoder = _segmenter(name)
    names, config = set(segmenter.state_dict()), FinetuneConfig(train="lora", lora_rank=2)
    add_low_rank(segmenter, config)
    _trained(segmenter, config)
    image = torch.randn(1, 1, *_shape(name))
    with torch.no_grad():
        corrected = segmenter.eval()(image)
        merge_low_rank(segmenter)
        torch.testing.assert_close(segmenter(image), corrected)
    assert set(segmenter.state_dict()) == names
    body, own = segmenter.body().state_dict(), encoder.net.state_dict()
    changes = [body[key] - own[key] for key in own if key.endswith("attn.qkv.weight")]
    assert changes
    assert all(torch.linalg.matrix_rank(change, atol=1e-6) == 2 for change in changes)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_way_to_train_lowers_the_loss_of_one_batch(name: str) -> None:
    ways = ["full", "linear", "head_first", *(["lora"] if name in ATTENTION else [])]
    for way in ways:
        segmenter, _ = _segmenter(name)
        config = FinetuneConfig(train=way, head_steps=2, layer_decay=0.8)  # type: ignore[arg-type]
        if way == "lora":
            add_low_rank(segmenter, config)
        losses = _trained(segmenter, config, steps=5)
        assert losses[-1] < losses[0], way


def test_a_frozen_body_keeps_its_batch_statistics() -> None:
    segmenter, _ = _segmenter("timm-resnet")
    before = {name: value.clone() for name, value in segmenter.body().named_buffers()}
    _trained(segmenter, FinetuneConfig(train="linear"))
    assert before
    assert all(torch.equal(value, before[name]) for name, value in segmenter.body().named_buffers())


def test_a_timm_vits_first_layer_holds_its_tokens_and_positions() -> None:
    segmenter, _ = _segmenter("timm-vit")
    names = {id(p): n.split(".")[0] for n, p in segmenter.body().named_parameters()}
    first, second, *_ = layers(segmenter)
    assert {"pos_embed", "patch_embed"} <= {names[id(p)] for p in first}
    assert {names[id(p)] for p in second} == {"blocks"}


def test_corrections_are_drawn_from_the_seed() -> None:
    drawn = []
    for seed in (0, 0, 1):
        segmenter, _ = _segmenter("vit")
        add_low_rank(segmenter, FinetuneConfig(train="lora", seed=seed))
        drawn.append(next(m.a for m in segmenter.modules() if isinstance(m, LowRank)))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_network_without_attention_has_no_lora() -> None:
    segmenter, _ = _segmenter("dynunet")
    with pytest.raises(RecipeError, match="dynunet has no attention to correct"):
        add_low_rank(segmenter, FinetuneConfig(train="lora"))


@pytest.mark.parametrize("way", ["linear", "head_first", "lora"])
def test_scratch_trains_everything_at_one_rate_whatever_the_encoders_do(way: str) -> None:
    config = FinetuneConfig(train=way, layer_decay=0.7)  # type: ignore[arg-type]
    scratch = settled(config, Design(None, VIT))
    assert (scratch.train, scratch.layer_decay) == ("full", 1.0)
    _, encoder = _segmenter("vit")
    assert settled(config, Design(encoder, encoder)) is config


def test_a_lora_run_leaves_a_network_that_loads_strictly_and_resumes_to_the_same_bytes(
    store: Store, quick: FinetuneConfig, tmp_path: Path
) -> None:
    _, encoder = _segmenter("vit")
    save_network(tmp_path / "run" / "encoder", encoder, preparation={}, card="#\n")
    config = quick.model_copy(update={"crop": (32, 32), "train": "lora", "lora_rank": 2, **STILL})

    def stop(phase: str, done: int, total: int) -> None:
        if phase == "fine-tune" and done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(tmp_path / "run", store, tmp_path / "stopped", config, progress=stop)
    resumed = finetune(tmp_path / "run", store, tmp_path / "stopped", config, resume=True)
    whole = finetune(tmp_path / "run", store, tmp_path / "whole", config)
    assert resumed.training.resumed_from == 4
    files = [result.network / "model.safetensors" for result in (resumed, whole)]
    assert files[0].read_bytes() == files[1].read_bytes()
    network = load_network(whole.network)
    assert not any("parametrizations" in name for name in network.state_dict())
