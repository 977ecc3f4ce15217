"""Scaling equals its formula on any number of leading axes, and leaves its input alone."""

from __future__ import annotations

import pytest
import torch

from medssl.views.scaling import scale


@pytest.mark.parametrize("lead", [(3,), (3, 2)], ids=["samples", "views"])
@pytest.mark.parametrize("spatial", [(4, 5), (4, 5, 6)], ids=["picture", "volume"])
@pytest.mark.parametrize("dtype", [torch.int16, torch.uint8, torch.float32], ids=str)
def test_scaling_equals_its_formula(lead: tuple[int, ...], spatial: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 255, (*lead, 2, *spatial), generator=generator).to(dtype)
    intensity = torch.rand((*lead, 4), generator=generator) * torch.tensor([50.0, 100, 20, 30]) + torch.tensor(
        [0.0, 100, 0, 1]
    )
    batch = {"image": image.clone(), "intensity": intensity}
    out = scale(batch)["image"]
    assert out.dtype == torch.float32
    assert torch.equal(batch["image"], image)
    for place in torch.cartesian_prod(*(torch.arange(n) for n in lead)).reshape(-1, len(lead)).tolist():
        low, high, shift, size = intensity[tuple(place)].tolist()
        wanted = (image[tuple(place)].float().clamp(low, high) - shift) / size
        torch.testing.assert_close(out[tuple(place)], wanted)


def test_streams_are_scaled_each() -> None:
    stream = {"image": torch.full((1, 1, 2, 2), 7), "intensity": torch.tensor([[0.0, 10, 2, 5]])}
    out = scale({"one": stream, "two": stream})
    assert out["two"]["image"].unique().tolist() == [1.0]
