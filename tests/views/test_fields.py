"""Laws of Gaussian random fields, each by its number in the list of invariants they were designed by.

Statistics are of draws with fixed keys; each bound says of how many standard errors it is.
"""

from __future__ import annotations

import math

import pytest
import torch

from medssl.batch import Draw, hash64
from medssl.errors import UsageError
from medssl.views.fields import RandomFieldConfig, check_field, draw_field

GAUSSIAN = RandomFieldConfig(length_mm=4.0)


def draws(b: int, name: str = "field") -> Draw:
    return Draw(torch.tensor([hash64(7, n) for n in range(b)])).of(name)


def fields(
    config: RandomFieldConfig, b: int, shape: tuple[int, ...], mm: tuple[float, ...], **options: int
) -> torch.Tensor:
    return draw_field(config, draws(b), shape, torch.tensor([mm]).expand(b, -1), **options)


SPECTRA = {
    "gaussian": GAUSSIAN,
    "matern": RandomFieldConfig(spectrum="matern", length_mm=4.0),
    "power": RandomFieldConfig(spectrum="power", exponent=6.0),
}


@pytest.mark.parametrize("config", SPECTRA.values(), ids=SPECTRA)
@pytest.mark.parametrize("shape", [(8, 9), (4, 5, 4)], ids=["2D", "3D"])
def test_mean_0_and_sd_1_at_every_voxel(config: RandomFieldConfig, shape: tuple[int, ...]) -> None:
    """3. Of 1500 draws; 4 standard errors, since there are up to 80 voxels."""
    b = 1500
    field = fields(config, b, shape, (1.0, 1.5, 1.0)[: len(shape)])[:, 0].double()
    assert field.mean(0).abs().max() < 4 / math.sqrt(b)
    assert (field.square().mean(0).sqrt() - 1).abs().max() < 4 / math.sqrt(2 * b)


def test_strength_varies_from_sample_to_sample() -> None:
    """Dividing by the sample's own sd or extremes would make every sample equally strong."""
    sd = fields(RandomFieldConfig(length_mm=6.0), 200, (16, 16), (1.0, 1.0)).flatten(1).std(1)
    assert sd.std() > 0.1


@pytest.mark.parametrize("n", [2, 3])
def test_covariance_at_one_length_is_that_of_a_gaussian(n: int) -> None:
    """4. Every lag up to two lengths along each axis, within 0.05."""
    size, length = (20, 4) if n == 2 else (10, 2)
    config = RandomFieldConfig(length_mm=length)
    field = fields(config, 500 if n == 2 else 200, (size,) * n, (1.0,) * n)[:, 0]
    for axis in range(1, n + 1):
        for lag in (length // 2, length, 2 * length):
            one, two = field.narrow(axis, 0, size - lag), field.narrow(axis, lag, size - lag)
            assert float((one * two).mean()) == pytest.approx(math.exp(-((lag / length) ** 2) / 2), abs=0.05)


def test_matern_covariance_is_its_closed_form() -> None:
    """nu = 3/2: (1 + r / L) exp(-r / L), with P as in Whittle 1954 and L the scale of the spectrum."""
    config = RandomFieldConfig(spectrum="matern", length_mm=3.0, smoothness=1.5)
    field = fields(config, 600, (24, 24), (1.0, 1.0))[:, 0]
    for lag in (1, 3, 6):
        measured = float((field[:, lag:] * field[:, :-lag]).mean())
        assert measured == pytest.approx((1 + lag / 3) * math.exp(-lag / 3), abs=0.05)


def test_millimetres_mean_the_same_at_every_spacing() -> None:
    """5. Spacing (1, 1, 4) against (1, 1, 1): equal covariance at 4 mm along each axis, within 0.06."""
    for mm in ((1.0, 1.0, 4.0), (1.0, 1.0, 1.0)):
        field = fields(GAUSSIAN, 200, (12, 12, int(12 / mm[2])), mm)[:, 0]
        for axis in (1, 2, 3):
            lag, size = int(4 / mm[axis - 1]), field.shape[axis]
            one, two = field.narrow(axis, 0, size - lag), field.narrow(axis, lag, size - lag)
            assert float((one * two).mean()) == pytest.approx(math.exp(-0.5), abs=0.06)


def test_parameters_names_and_samples_are_independent() -> None:
    """6. Correlation over 600 draws below 4 standard errors; the same key repeats exactly, alone and in a batch."""
    b, mm = 600, torch.ones(600, 2)
    one = draw_field(GAUSSIAN, draws(b), (6, 6), mm, count=2)
    two = draw_field(GAUSSIAN, draws(b, "other view"), (6, 6), mm)
    bound = 4 / math.sqrt(b)
    assert (one[:, 0] * one[:, 1]).mean(0).abs().max() < bound
    assert (one[:, :1] * two).mean(0).abs().max() < bound
    assert (one[1:] * one[:-1]).mean(0).abs().max() < bound
    assert torch.equal(one, draw_field(GAUSSIAN, draws(b), (6, 6), mm, count=2))
    single = draw_field(GAUSSIAN, Draw(draws(b).key[5:6]), (6, 6), mm[:1], count=2)
    torch.testing.assert_close(single, one[5:6], atol=1e-6, rtol=0)


@pytest.mark.parametrize("config", SPECTRA.values(), ids=SPECTRA)
def test_opposite_borders_are_unrelated(config: RandomFieldConfig) -> None:
    """8. |r| < 0.3 on 24 mm of six lengths of correlation; without padding it is near 1."""
    field = fields(config, 800, (24, 24), (1.0, 1.0))[:, 0]
    assert float((field[:, 0] * field[:, -1]).mean().abs()) < 0.3
    assert float((field[..., 0] * field[..., -1]).mean().abs()) < 0.3


def test_an_endless_length_leaves_one_number_a_sample() -> None:
    """2. The field is then a global parameter, standard normal over samples (4 standard errors of 1500)."""
    field = fields(RandomFieldConfig(length_mm=1e5), 1500, (5, 4), (1.0, 2.0))[:, 0].flatten(1)
    assert (field - field[:, :1]).abs().max() < 1e-3
    assert float(field[:, 0].square().mean().sqrt()) == pytest.approx(1, abs=4 / math.sqrt(3000))


@pytest.mark.parametrize("config", [GAUSSIAN, RandomFieldConfig(spectrum="power", exponent=5.5)], ids=str)
def test_gradient_does_not_grow_with_resolution(config: RandomFieldConfig) -> None:
    """11. Twice as many voxels in the same millimetres: less than 10 % more."""
    rms = []
    for size in (32, 64):
        mm = 32 / size
        field = fields(config, 60, (size, size), (mm, mm), displacement=True)[:, 0]
        rms.append(float((field.diff(dim=1) / mm).square().mean().sqrt()))
    assert rms[1] == pytest.approx(rms[0], rel=0.1)


@pytest.mark.parametrize("n", [2, 3])
def test_spectra_that_are_noise_are_refused(n: int) -> None:
    """11. Displacement needs an exponent above n + 2, or a smoothness above 1; a field an exponent above n."""
    matern = RandomFieldConfig(spectrum="matern", smoothness=1.0)

    def power(exponent: float) -> RandomFieldConfig:
        return RandomFieldConfig(spectrum="power", exponent=exponent)

    with pytest.raises(UsageError, match=f"above {n + 2}"):
        check_field(power(n + 2), n, displacement=True)
    with pytest.raises(UsageError, match="smoothness above 1"):
        draw_field(matern, draws(1), (4,) * n, torch.ones(1, n), displacement=True)
    with pytest.raises(UsageError, match=f"above {n}"):
        draw_field(power(n), draws(1), (4,) * n, torch.ones(1, n))
    check_field(power(n + 2.01), n, displacement=True)
    check_field(power(n + 2), n)
    check_field(matern, n)


def test_a_sample_has_its_own_spacing() -> None:
    """A batch of two spacings gives what each gives alone."""
    mm = torch.tensor([[1.0, 1.0], [2.0, 3.0]])
    together = draw_field(GAUSSIAN, draws(2), (6, 7), mm)
    for i in range(2):
        alone = draw_field(GAUSSIAN, Draw(draws(2).key[i : i + 1]), (6, 7), mm[i : i + 1])
        torch.testing.assert_close(alone, together[i : i + 1], atol=1e-6, rtol=0)
