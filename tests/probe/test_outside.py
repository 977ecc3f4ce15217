"""Laws of networks given from outside: judged as they are, and left as they were."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.networks.nets import SegResNet
from monai.networks.nets import ViT as MonaiViT
from monai.networks.nets.swin_unetr import SwinTransformer
from torch import Tensor, nn

from medssl.nets.encoder import ViTConfig, build_encoder
from medssl.probe import ProbeConfig, as_encoder, probe_encoder
from medssl.probe.outside import with_random_weights
from medssl.probe.pooling import Pooler
from medssl.probe.windows import Picture

from ..labelled_store import ellipsoids, write_labelled_store

SMALL = {"hidden_size": 24, "mlp_dim": 32, "num_layers": 2, "num_heads": 2}


def timm(name: str, **options: Any) -> nn.Module:
    import timm as library

    return library.create_model(name, **options)


def swin() -> nn.Module:
    """Four stages, as MONAI's class is written for."""
    return SwinTransformer(1, 6, (4, 4), (2, 2), depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), spatial_dims=2)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "timm ConvNeXt": (lambda: timm("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 8, 8)), (32, 32)),
    "timm ViT": (lambda: timm("vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=24, num_heads=2), (32, 32)),
    "MONAI ViT": (lambda: MonaiViT(1, (16, 16, 16), (8, 8, 8), **SMALL), (16, 16, 16)),
    "MONAI ViT, classifier": (
        lambda: MonaiViT(1, (16, 16), (8, 8), classification=True, spatial_dims=2, **SMALL),
        (16, 16),
    ),
    "MONAI Swin": (swin, (32, 32)),
    "MONAI SegResNet": (lambda: SegResNet(3, 8, 1, 2, blocks_down=(1, 1), blocks_up=(1,)), (16, 16, 16)),
    "own": (lambda: nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU()), (16, 16)),
}


@pytest.fixture(params=list(NETWORKS))
def network(request: pytest.FixtureRequest) -> tuple[nn.Module, tuple[int, ...]]:
    """A network with fresh weights, and what it sees."""
    torch.manual_seed(0)
    make, shape = NETWORKS[request.param]
    return make(), shape


def test_maps_are_as_channels_and_strides_say(network: tuple[nn.Module, tuple[int, ...]]) -> None:
    module, shape = network
    encoder = as_encoder(module, shape=shape).eval()
    maps = encoder(torch.rand(2, 1, *shape))
    assert [m.shape[1] for m in maps] == list(encoder.out_channels)
    assert [tuple(m.shape[2:]) for m in maps] == [
        tuple(n // s for n, s in zip(shape, step)) for step in encoder.strides
    ]
    cells = [m[0, 0].numel() for m in maps]
    assert cells == sorted(cells, reverse=True)
    assert encoder.pooled(torch.rand(2, 1, *shape)).ndim == 2


def test_random_weights_are_drawn_anew_by_the_seed_and_the_network_stays_as_it_is(
    network: tuple[nn.Module, tuple[int, ...]],
) -> None:
    module, shape = network
    encoder = as_encoder(module, shape=shape).eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.get_rng_state()
    one, two, other = (with_random_weights(encoder, seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    x = torch.rand(1, 1, *shape)
    with torch.no_grad():
        torch.testing.assert_close(one.pooled(x), two.pooled(x))
        assert not torch.allclose(one.pooled(x), other.pooled(x))
        assert not torch.allclose(one.pooled(x), encoder.pooled(x))


def test_a_network_from_outside_is_probed_as_ours_are(tmp_path: Path) -> None:
    volumes = [ellipsoids((13, 15, 10), seed) for seed in range(6)]
    store = write_labelled_store(
        tmp_path / "store", [v[0] for v in volumes], [v[1] for v in volumes], splits=["train"] * 4 + ["test"] * 2
    )
    config = ProbeConfig(images=2, points=100)
    for name in ("MONAI SegResNet", "timm ConvNeXt"):  # the second sees the slices
        make, shape = NETWORKS[name]
        result = probe_encoder(as_encoder(make(), shape=shape), store, config, seeds=1)
        assert set(result.scores) == {"encoder", "random weights", "no network"}


def test_monais_vit_given_from_outside_gives_what_it_gives_as_ours() -> None:
    torch.manual_seed(0)
    ours = build_encoder(ViTConfig(width=24, depth=2, heads=2, mlp=32, patch=8), channels=1, shape=(16, 16, 16)).eval()
    x = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(as_encoder(ours.net, shape=(16, 16, 16))(x)[0], ours(x)[0])


def test_timms_own_pooling_is_taken() -> None:
    net = NETWORKS["timm ViT"][0]().eval()
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        own = net.forward_head(net.forward_features(x), pre_logits=True)
        torch.testing.assert_close(as_encoder(net, shape=(32, 32)).pooled(x), own)


def test_grey_is_repeated_in_the_channels_and_normalised_as_said() -> None:
    seen: list[Tensor] = []

    def maps(net: nn.Module, x: Tensor) -> Tensor:
        seen.append(x)
        return net(x)

    encoder = as_encoder(nn.Conv2d(3, 2, 1), shape=(4, 4), maps=maps, normalize=((0.1, 0.2, 0.3), (1.0, 2.0, 4.0)))
    x = torch.rand(1, 1, 4, 4)
    encoder.eval()(x)
    for channel, (mean, deviation) in enumerate(((0.1, 1.0), (0.2, 2.0), (0.3, 4.0))):
        torch.testing.assert_close(seen[-1][:, channel], (x[:, 0] - mean) / deviation)


def test_a_network_of_one_size_sees_larger_images_through_windows_of_it() -> None:
    encoder = as_encoder(NETWORKS["MONAI ViT"][0](), shape=(16, 16, 16))
    picture = Picture(torch.rand(1, 20, 9, 30), 0.0, torch.eye(4), (1.0, 1.0, 1.0), ((0, 0, 0), (20, 9, 30)))
    assert np.isfinite(Pooler(encoder).whole(picture)).all()


@pytest.mark.parametrize(("multiple", "seen"), [(None, (16, 16)), ((4, 4), (12, 8))], ids=["not told", "told"])
def test_a_small_image_is_padded_to_what_the_network_is_said_to_take(
    multiple: tuple[int, int] | None, seen: tuple[int, int]
) -> None:
    shapes: list[tuple[int, ...]] = []

    def maps(net: nn.Module, x: Tensor) -> Tensor:
        shapes.append(tuple(x.shape[2:]))
        return net(x)

    encoder = as_encoder(nn.Conv2d(1, 2, 1), shape=(16, 16), maps=maps, multiple=multiple)
    shapes.clear()
    Pooler(encoder).whole(Picture(torch.rand(1, 11, 7), 0.0, torch.eye(4), (1.0, 1.0), ((0, 0), (11, 7))))
    assert set(shapes) == {seen}


def test_a_vector_counts_as_one_cell() -> None:
    encoder = as_encoder(nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), shape=(8, 8))
    assert encoder.strides == ((8, 8),)
    assert encoder.fixed == (8, 8)


def test_what_gives_no_features_is_refused() -> None:
    class Silent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(1, 1, 1)

        def forward(self, x: Tensor) -> None:
            return None

    with pytest.raises(ValueError, match="give `maps`"):
        as_encoder(Silent(), shape=(8, 8))


def test_rebuild_makes_the_random_control() -> None:
    def make() -> nn.Module:
        torch.nn.init.constant_((net := nn.Conv2d(1, 2, 1)).weight, 7.0)
        return net

    encoder = with_random_weights(as_encoder(nn.Conv2d(1, 2, 1), shape=(4, 4), rebuild=make), 0)
    assert torch.equal(encoder.net.weight, torch.full((2, 1, 1, 1), 7.0))
