"""Laws of simulated artefacts, and agreement with MONAI's transforms at the same parameters."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from medssl.batch import Draw, hash64
from medssl.views.artefacts import (
    BiasFieldConfig,
    BlurConfig,
    CutoutConfig,
    LowResolutionConfig,
    Rician,
    RicianConfig,
    apply_bias_field,
    apply_blur,
    apply_cutout,
    apply_low_resolution,
    apply_rician,
    cutout_mask,
    draw_bias_field,
    draw_blur,
    draw_cutout,
    draw_low_resolution,
    draw_rician,
    signal_zero,
)
from medssl.views.fields import RandomFieldConfig
from medssl.views.scaling import scaled

from .waiting import NoWaiting

SHAPES = {"2D": (13, 10), "3D": (9, 12, 7)}
by_axes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
MM = (0.7, 1.3, 2.5)


def draws(b: int) -> Draw:
    return Draw(torch.tensor([hash64(9, n) for n in range(b)]))


def spacing(n: int, b: int) -> Tensor:
    return torch.tensor([MM[:n]]).repeat(b, 1)


View = Callable[[Tensor, Draw, Tensor, float], Tensor]


def noise(image: Tensor, draw: Draw, mm: Tensor, p: float) -> Tensor:
    return apply_rician(image, draw_rician(RicianConfig(sd=0.3, probability=p), draw, tuple(image.shape[1:])))


def blur(image: Tensor, draw: Draw, mm: Tensor, p: float) -> Tensor:
    return apply_blur(image, draw_blur(BlurConfig(sigma_mm=2.0, probability=p), draw), mm)


def coarse(image: Tensor, draw: Draw, mm: Tensor, p: float) -> Tensor:
    config = LowResolutionConfig(spacing_mm=4.0, axes="each", probability=p)
    return apply_low_resolution(image, draw_low_resolution(config, draw, tuple(image.shape[2:]), mm))


def bias(image: Tensor, draw: Draw, mm: Tensor, p: float) -> Tensor:
    config = BiasFieldConfig(sd=0.3, field=RandomFieldConfig(length_mm=6.0), probability=p)
    return apply_bias_field(image, draw_bias_field(config, draw, tuple(image.shape[2:]), mm))


def cutout(image: Tensor, draw: Draw, mm: Tensor, p: float) -> Tensor:
    config = CutoutConfig(boxes=2, size_mm=(2.0, 6.0), probability=p)
    return apply_cutout(image, draw_cutout(config, draw, tuple(image.shape[2:]), mm), mm)


VIEWS = {"noise": noise, "blur": blur, "coarse": coarse, "bias": bias, "cutout": cutout}
by_view = pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)


@by_axes
def test_defaults_change_nothing(shape: tuple[int, ...]) -> None:
    image, draw, mm = torch.randn(2, 1, *shape), draws(2), spacing(len(shape), 2)
    assert torch.equal(apply_rician(image, draw_rician(RicianConfig(), draw, (1, *shape))), image)
    assert torch.equal(apply_blur(image, draw_blur(BlurConfig(), draw), mm), image)
    low = draw_low_resolution(LowResolutionConfig(), draw, shape, mm)
    assert torch.equal(apply_low_resolution(image, low), image)
    assert torch.equal(apply_bias_field(image, draw_bias_field(BiasFieldConfig(), draw, shape, mm)), image)
    assert torch.equal(apply_cutout(image, draw_cutout(CutoutConfig(), draw, shape, mm), mm), image)


@by_view
@by_axes
def test_chance_leaves_samples_bit_for_bit(view: View, shape: tuple[int, ...]) -> None:
    """Never at 0, always at 1, and at a half some of both; shapes and types stay."""
    b = 16
    image, mm = torch.rand(b, 2, *shape) + 0.5, spacing(len(shape), b)
    assert torch.equal(view(image, draws(b), mm, 0.0), image)
    counts = []
    for p in (1.0, 0.5):
        out = view(image, draws(b), mm, p)
        assert out.shape == image.shape
        assert out.dtype == torch.float32
        counts.append(int((out != image).flatten(1).any(1).sum()))
    assert counts[0] >= b - 2, "a box may miss every voxel's centre, a size may round to what it was"
    assert 2 < counts[1] < 14


@by_view
@by_axes
def test_a_batch_gives_what_its_samples_give_one_by_one(view: View, shape: tuple[int, ...]) -> None:
    image, mm = torch.rand(3, 1, *shape), spacing(len(shape), 3) * torch.tensor([[1.0], [1.5], [0.8]])
    together = view(image, draws(3), mm, 1.0)
    for i in range(3):
        alone = view(image[i : i + 1], Draw(draws(3).key[i : i + 1]), mm[i : i + 1], 1.0)
        torch.testing.assert_close(alone, together[i : i + 1], atol=2e-6, rtol=0)


@by_view
@by_axes
def test_nothing_waits_for_the_device(view: View, shape: tuple[int, ...]) -> None:
    image, draw, mm = torch.rand(2, 1, *shape), draws(2), spacing(len(shape), 2)
    with NoWaiting():
        view(image, draw, mm, 0.5)


@by_axes
@pytest.mark.parametrize("view", [noise, blur, coarse, cutout], ids=["noise", "blur", "coarse", "cutout"])
def test_a_constant_image_stays_constant(view: View, shape: tuple[int, ...]) -> None:
    """Borders too. Noise is in units of the image's deviation, which is 0; cutout fills with the mean."""
    image = torch.full((4, 1, *shape), 2.5)
    torch.testing.assert_close(view(image, draws(4), spacing(len(shape), 4), 1.0), image, atol=1e-5, rtol=0)


@by_axes
def test_blur_is_that_of_monai(shape: tuple[int, ...]) -> None:
    """MONAI takes what lies outside as 0; divided by the blurred ones that is ours, and in the middle it is itself."""
    from monai.transforms import GaussianSmooth

    n, image = len(shape), torch.rand(2, 1, *shape)
    sigma_mm, mm = torch.tensor([0.9, 1.6]), spacing(n, 2)
    ours = apply_blur(image, sigma_mm, mm)
    for i in range(2):
        theirs = GaussianSmooth(sigma=[float(s) for s in sigma_mm[i] / mm[i]])
        wanted = theirs(image[i]) / theirs(torch.ones_like(image[i]))
        torch.testing.assert_close(ours[i], wanted, atol=2e-6, rtol=0)
    narrow = apply_blur(image, torch.full((2, n), 0.8), torch.ones(2, n))
    middle = tuple(slice(3, size - 3) for size in shape)  # 4 x 0.8 reaches 3 voxels
    torch.testing.assert_close(narrow[0, 0][middle], GaussianSmooth(sigma=0.8)(image[0])[0][middle], atol=1e-3, rtol=0)


def test_blur_is_in_millimetres() -> None:
    """A point spreads by the same mm along axes of different spacing: variance sigma^2 and a voxel's own, h^2 / 12."""
    image = torch.zeros(1, 1, 61, 41)
    image[0, 0, 30, 20] = 1
    out = apply_blur(image, torch.tensor([3.0]), torch.tensor([[1.0, 2.0]]))[0, 0]
    for axis, (size, mm) in enumerate(((61, 1.0), (41, 2.0))):
        where = (torch.arange(size) - size // 2) * mm
        spread = float((out.sum(1 - axis) * where.square()).sum() / out.sum())
        assert spread == pytest.approx(9 + mm**2 / 12, rel=0.02)


@by_axes
@pytest.mark.parametrize("down", ["area", "nearest"])
def test_low_resolution_is_that_of_monai(shape: tuple[int, ...], down: str) -> None:
    from monai.transforms import RandSimulateLowResolution

    image = torch.rand(3, 1, *shape)
    for i, zoom in enumerate((0.35, 0.5, 0.8)):
        theirs = RandSimulateLowResolution(
            prob=1.0,
            downsample_mode=down,
            upsample_mode="bilinear" if len(shape) == 2 else "trilinear",
            zoom_range=(zoom, zoom),
        )
        kept = torch.tensor([[int(np.round(size * zoom)) for size in shape]])
        ours = apply_low_resolution(image[i : i + 1], kept, down=down)[0]
        torch.testing.assert_close(ours, torch.as_tensor(theirs(image[i])).as_subclass(Tensor), atol=2e-6, rtol=0)


def test_low_resolution_is_in_millimetres() -> None:
    """Axes keep as many voxels as fit, never finer than before; `one` touches one axis, `all` agrees in mm."""
    b, shape, mm = 300, (40, 40, 12), torch.tensor([[1.0, 1.0, 4.0]]).repeat(300, 1)
    size = torch.tensor(shape)

    def kept(axes: str) -> Tensor:
        config = LowResolutionConfig(spacing_mm=5.0, axes=axes, probability=1.0)
        out = draw_low_resolution(config, draws(b), shape, mm)
        assert out is not None
        assert (out >= 1).all()
        assert (out <= size).all()
        return out

    every = kept("each")
    assert (size * mm / every)[:, :2].amax() < 5.4
    assert every[:, 0].float().std() > 2
    assert (every[:, 0] != every[:, 1]).any()
    same = kept("all")
    assert torch.equal(same[:, 0], same[:, 1])
    fine = same[:, 0] > 10  # finer than 4 mm: the axis of slices stays
    assert (same[fine, 2] == 12).all()
    assert (same[~fine, 2] < 12).any()
    touched = (kept("one") < size).sum(1)
    assert int(touched.max()) == 1


@by_axes
def test_rician_noise_is_that_of_monai(shape: tuple[int, ...]) -> None:
    """Given the noise that MONAI drew."""
    from monai.transforms import RandRicianNoise

    image = torch.rand(1, 1, *shape)
    theirs = RandRicianNoise(prob=1.0, std=0.2, sample_std=False).set_random_state(3)
    wanted = torch.as_tensor(theirs(image[0].clone())).as_subclass(Tensor)
    sd = image.std(correction=0)
    given = Rician(torch.as_tensor(theirs._noise1)[None] / sd, torch.as_tensor(theirs._noise2)[None] / sd)
    torch.testing.assert_close(apply_rician(image, given)[0], wanted, atol=1e-6, rtol=0)


def test_background_noise_is_rayleigh() -> None:
    """Where there is no signal: mean sd sqrt(pi / 2), variance sd^2 (2 - pi / 2), within 4 standard errors."""
    image = torch.zeros(1, 1, 100, 100)
    image[..., 50:] = 1.0
    draw, config = draws(1), RicianConfig(sd=0.4, probability=1.0)
    sd = float(draw.of("sd").uniform(high=0.4)[0]) * 0.5  # the image's own deviation is 1/2
    dark = apply_rician(image, draw_rician(config, draw, (1, 100, 100)))[..., :50].double()
    spread = sd * math.sqrt(2 - math.pi / 2)
    assert float(dark.mean()) == pytest.approx(sd * math.sqrt(math.pi / 2), abs=4 * spread / math.sqrt(5000))
    assert float(dark.std()) == pytest.approx(spread, rel=4 / math.sqrt(2 * 5000) * 1.1)


def test_no_signal_may_have_any_value() -> None:
    """Of an image that is shifted and scaled, told its zero, noise and bias are shifted and scaled alike."""
    image, shape = torch.rand(2, 1, 8, 8), (8, 8)
    intensity = torch.tensor([[0.0, 1.0, 0.4, 0.2], [0.0, 1.0, 0.1, 0.5]])
    zero, size = signal_zero(intensity), intensity[:, 3].reshape(2, 1, 1, 1)
    torch.testing.assert_close(scaled(torch.zeros_like(image), intensity)[:, 0, 0, 0], zero)
    drawn = draw_rician(RicianConfig(sd=0.3, probability=1.0), draws(2), (1, *shape))
    assert drawn is not None
    field = draw_bias_field(BiasFieldConfig(sd=0.3, probability=1.0), draws(2), shape, torch.ones(2, 2))
    normal = scaled(image, intensity)
    for raw, told in (
        (apply_rician(image, drawn), apply_rician(normal, drawn, zero=zero)),
        (apply_bias_field(image, field), apply_bias_field(normal, field, zero=zero)),
    ):
        torch.testing.assert_close(told, (raw - intensity[:, 2].reshape(2, 1, 1, 1)) / size, atol=1e-5, rtol=0)


@by_axes
def test_bias_field_is_that_of_monai(shape: tuple[int, ...]) -> None:
    """MONAI's field is a polynomial; with it as the logarithm the image is MONAI's."""
    from monai.transforms import RandBiasField

    image = torch.rand(1, 2, *shape)
    theirs = RandBiasField(prob=1.0, coeff_range=(0.05, 0.2)).set_random_state(1)
    wanted = torch.as_tensor(theirs(image[0])).as_subclass(Tensor)
    field = torch.as_tensor(theirs._generate_random_field(shape, theirs.degree, theirs._coeff)).float()
    torch.testing.assert_close(apply_bias_field(image, field[None, None])[0], wanted, atol=1e-5, rtol=1e-5)


@by_axes
def test_bias_is_log_normal_smooth_and_keeps_zero(shape: tuple[int, ...]) -> None:
    """Invariant 10 of random fields; one factor for all channels; sd within 4 standard errors of 600 draws."""
    b, n = 600, len(shape)
    config = BiasFieldConfig(sd=0.2, field=RandomFieldConfig(length_mm=8.0), probability=1.0)
    field = draw_bias_field(config, draws(b), shape, spacing(n, b))
    assert field is not None
    corner = field.flatten(1)[:, 0]
    assert float(corner.square().mean().sqrt()) == pytest.approx(0.2, rel=4 / math.sqrt(2 * b))
    image = torch.ones(b, 2, *shape)
    image[:, :, 0] = 0
    out = apply_bias_field(image, field)
    assert not out[:, :, 0].any()
    torch.testing.assert_close(out[:, 0, 1:].log(), field[:, 0, 1:], atol=1e-5, rtol=0)
    assert torch.equal(out[:, 0], out[:, 1])


@by_axes
def test_cutout_is_that_of_monai(shape: tuple[int, ...]) -> None:
    """The boxes that MONAI drew, told in mm."""
    from monai.transforms import RandCoarseDropout

    n, image = len(shape), torch.rand(1, 2, *shape)
    theirs = RandCoarseDropout(holes=3, spatial_size=(3,) * n, fill_value=0.25, prob=1.0).set_random_state(2)
    wanted = torch.as_tensor(theirs(image[0].clone())).as_subclass(Tensor)
    mm, centre = spacing(n, 1), (torch.tensor(shape) - 1) / 2
    low = torch.tensor([[part.start for part in hole[1:]] for hole in theirs.hole_coords])
    high = torch.tensor([[part.stop for part in hole[1:]] for hole in theirs.hole_coords])
    boxes = torch.stack([low - 0.5 - centre, high - 0.5 - centre], 1)[None] * mm
    assert torch.equal(apply_cutout(image, boxes, mm, fill=0.25)[0], wanted)


@by_axes
def test_boxes_are_in_millimetres_and_within_reach(shape: tuple[int, ...]) -> None:
    n, b = len(shape), 200
    config = CutoutConfig(boxes=1, size_mm=(3.0, 6.0), probability=1.0)
    mm = spacing(n, b)
    boxes = draw_cutout(config, draws(b), shape, mm)
    assert boxes is not None
    edges, centre = boxes[:, :, 1] - boxes[:, :, 0], boxes.mean(2)
    assert edges.amin() >= 3
    assert edges.amax() <= 6
    assert (centre.abs() <= torch.tensor(shape) * mm[:, None] / 2).all()
    assert centre.std(0).div(torch.tensor(shape) * mm[0]).sub(1 / math.sqrt(12)).abs().max() < 0.05
    mask = cutout_mask(boxes, shape, mm)
    for axis, size in enumerate(shape):
        hit = mask.movedim(axis + 2, 1).flatten(2).any(2).sum(1)
        assert (hit <= 6.0 / mm[0, axis] + 1).all()
        assert size >= int(hit.max()) > 0


def test_sizes_that_make_no_box_are_refused() -> None:
    with pytest.raises(ValueError, match="smallest to a largest"):
        CutoutConfig(size_mm=(5.0, 2.0))
