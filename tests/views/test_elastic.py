"""Laws of elastic deformation, and agreement with scipy's and MONAI's resampling at the same grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import ndimage

from medssl.batch import Draw, hash64
from medssl.errors import UsageError
from medssl.views.elastic import (
    SHRINK,
    Elastic,
    ElasticConfig,
    apply_elastic,
    crop_points,
    draw_elastic,
    fold_fraction,
    sampling_grid,
    view_points,
)
from medssl.views.fields import RandomFieldConfig, draw_field
from medssl.views.spatial import SpatialConfig, draw_affine, offsets_to_voxels, voxels_to_offsets, warp

from .waiting import NoWaiting

B = 3
KEYS = torch.tensor([hash64(3, n) for n in range(B)])
MILD = ElasticConfig(sd_mm=1.2, field=RandomFieldConfig(length_mm=8.0))
AFFINE = SpatialConfig(rotation=0.3, scale=0.1, shift_mm=1.0, flips=(0,))
by_axes = pytest.mark.parametrize("shape", [(14, 17), (9, 12, 8)], ids=["2D", "3D"])


def spacing(n: int, b: int = B) -> torch.Tensor:
    return torch.tensor([[0.8, 1.0, 1.5][:n]]).repeat(b, 1)


def drawn(shape: tuple[int, ...], config: ElasticConfig = MILD, *, affine: bool = True) -> Elastic:
    n = len(shape)
    matrix = draw_affine(AFFINE, Draw(KEYS).of("affine"), n) if affine else None
    return draw_elastic(config, Draw(KEYS).of("elastic"), shape, spacing(n), matrix=matrix)


def voxels(shape: tuple[int, ...]) -> torch.Tensor:
    index = torch.stack(torch.meshgrid(*(torch.arange(s) for s in shape), indexing="ij"), -1)
    return index.reshape(1, -1, len(shape)).float().expand(B, -1, -1)


@by_axes
def test_no_displacement_is_no_change_bit_for_bit(shape: tuple[int, ...]) -> None:
    """1. Images and labels stay the very same; with an affine map the view is that of `warp`, bit for bit."""
    n, image = len(shape), torch.randn(B, 2, *shape)
    still = drawn(shape, ElasticConfig(), affine=False)
    assert torch.equal(apply_elastic(image, still), image)
    label = torch.randint(0, 4, (B, 1, *shape), dtype=torch.uint8)
    assert torch.equal(apply_elastic(label, still, mode="nearest"), label)
    moved = drawn(shape, ElasticConfig())
    assert moved.matrix is not None
    assert torch.equal(apply_elastic(image, moved), warp(image, moved.matrix, spacing(n), shape))
    never = drawn(shape, MILD.model_copy(update={"probability": 0.0}), affine=False)
    assert torch.equal(apply_elastic(image, never), image)
    assert not never.moved.any()


def test_chance_decides_sample_by_sample() -> None:
    """A sample that is left alone stays bit for bit while its neighbours move."""
    keys = torch.tensor([hash64(4, n) for n in range(40)])
    config = MILD.model_copy(update={"probability": 0.5})
    elastic = draw_elastic(config, Draw(keys), (8, 8), spacing(2, 40))
    image = torch.randn(40, 1, 8, 8)
    same = (apply_elastic(image, elastic) == image).flatten(1).all(1)
    assert torch.equal(same, ~elastic.moved)
    assert 8 < int(same.sum()) < 32


@by_axes
def test_a_coordinate_image_is_mapped_as_the_points_are(shape: tuple[int, ...]) -> None:
    """An image whose values are positions shows where each voxel comes from; view smaller than crop."""
    n, crop = len(shape), tuple(size + 3 for size in shape)
    elastic = drawn(shape)
    grid = torch.meshgrid(*(torch.arange(s).float() for s in crop), indexing="ij")
    image = torch.stack(grid)[None].expand(B, -1, *crop)
    source = offsets_to_voxels(
        view_points(voxels_to_offsets(voxels(shape), shape, spacing(n)), elastic), crop, spacing(n)
    )
    torch.testing.assert_close(sampling_grid(elastic, crop).reshape(B, -1, n), source, atol=1e-4, rtol=0)
    shown = apply_elastic(image, elastic).flatten(2).mT
    lies = ((source >= 0) & (source <= torch.tensor(crop) - 1)).all(-1, keepdim=True)
    assert lies.float().mean() > 0.5
    torch.testing.assert_close(shown.where(lies, source), source, atol=1e-4, rtol=0)


@by_axes
@pytest.mark.filterwarnings("ignore:monai.networks.blocks.Warp. Using PyTorch native grid_sample")
def test_resampling_is_that_of_scipy_and_monai(shape: tuple[int, ...]) -> None:
    from monai.networks.blocks.warp import Warp

    elastic, image = drawn(shape), torch.rand(B, 1, *shape)
    ours, grid = apply_elastic(image, elastic, padding="zeros"), sampling_grid(elastic, shape)
    for i in range(B):
        where = grid[i].movedim(-1, 0).double().numpy()
        theirs = ndimage.map_coordinates(image[i, 0].double().numpy(), where, order=1, mode="grid-constant")
        np.testing.assert_allclose(ours[i, 0].numpy(), theirs, atol=2e-5)
    shift = grid.movedim(-1, 1) - voxels(shape).mT.reshape(B, len(shape), *shape)
    monai = Warp(mode="bilinear", padding_mode="border")(image, shift)
    torch.testing.assert_close(apply_elastic(image, elastic), monai, atol=2e-5, rtol=0)


@by_axes
def test_points_come_back_within_a_hundredth_of_a_millimetre(shape: tuple[int, ...]) -> None:
    n, elastic = len(shape), drawn(shape)
    points = voxels_to_offsets(voxels(shape), shape, spacing(n))
    torch.testing.assert_close(crop_points(view_points(points, elastic), elastic), points, atol=0.01, rtol=0)
    torch.testing.assert_close(view_points(crop_points(points, elastic), elastic), points, atol=0.01, rtol=0)
    assert (view_points(points, elastic) - points).abs().amax() > 0.5


@by_axes
def test_an_endless_length_is_the_affine_map_with_a_shift(shape: tuple[int, ...]) -> None:
    """2. One displacement everywhere is what a shift in the matrix is."""
    n = len(shape)
    elastic = drawn(shape, ElasticConfig(sd_mm=1.5, field=RandomFieldConfig(length_mm=1e5)))
    assert elastic.matrix is not None
    assert elastic.displacement is not None
    shift = elastic.displacement.flatten(2)[..., 0]
    matrix = elastic.matrix.clone()
    matrix[..., -1] += (matrix[..., :-1] @ shift[..., None])[..., 0]
    image = torch.rand(B, 1, *shape)
    torch.testing.assert_close(apply_elastic(image, elastic), warp(image, matrix, spacing(n), shape), atol=5e-3, rtol=0)


@pytest.mark.parametrize(("shape", "b"), [((16, 16), 800), ((6, 8, 6), 200)], ids=["2D", "3D"])
def test_a_mild_setting_never_folds(shape: tuple[int, ...], b: int) -> None:
    """7. An RMS gradient of 0.15 in 1000 draws: nothing is shrunk, det J > 0 at every corner."""
    keys = torch.tensor([hash64(5, n) for n in range(b)])
    mm = torch.ones(b, len(shape))
    elastic = draw_elastic(MILD, Draw(keys), shape, mm)
    assert elastic.displacement is not None
    assert not elastic.folded.any()
    assert not elastic.shrunk.any()
    assert not fold_fraction(elastic.displacement, mm).any()
    assert float(elastic.displacement.square().mean().sqrt()) == pytest.approx(1.2, rel=0.1)


@by_axes
def test_a_strong_setting_is_shrunk_just_until_it_does_not_fold(shape: tuple[int, ...]) -> None:
    keys = torch.tensor([hash64(6, n) for n in range(24)])
    n, mm = len(shape), spacing(len(shape), 24)
    config = ElasticConfig(sd_mm=1.7, field=RandomFieldConfig(length_mm=4.0))
    elastic = draw_elastic(config, Draw(keys), shape, mm)
    raw = 1.7 * draw_field(config.field, Draw(keys).of("displacement"), shape, mm, count=n, displacement=True)
    assert elastic.displacement is not None
    assert not fold_fraction(elastic.displacement, mm).any()
    assert torch.equal(elastic.folded > 0, elastic.shrunk > 0)
    assert 1 <= int(elastic.shrunk.max()) <= config.rounds
    torch.testing.assert_close(elastic.folded, fold_fraction(raw, mm))

    def at(power: torch.Tensor) -> torch.Tensor:
        return raw * (SHRINK ** power.float()).reshape(-1, *(1,) * (n + 1))

    torch.testing.assert_close(elastic.displacement, at(elastic.shrunk))
    before = fold_fraction(at(elastic.shrunk - 1), mm)
    assert (before[elastic.shrunk > 0] > 0).all(), "one round fewer would have folded"
    none = draw_elastic(config.model_copy(update={"rounds": 0}), Draw(keys), shape, mm)
    assert none.displacement is not None
    left_out = none.displacement.flatten(1).abs().amax(1) == 0
    assert torch.equal(left_out, elastic.folded > 0)
    assert torch.equal(none.moved, ~left_out)


def test_folds_are_triangles_turned_over() -> None:
    """Independent: the signed areas of the four triangles about each displaced voxel."""
    mm = torch.tensor([[0.5, 2.0]])
    field = draw_field(RandomFieldConfig(length_mm=3.0), Draw(KEYS[:1]), (12, 9), mm, count=2)
    where = np.stack(np.meshgrid(np.arange(12) * 0.5, np.arange(9) * 2.0, indexing="ij"), -1)
    where = where + 1.5 * field[0].movedim(0, -1).double().numpy()
    turned = np.zeros((12, 9), bool)
    for i, j in np.ndindex(12, 9):
        for a, b in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
            if not 0 <= i + a < 12:
                a = -a
            if not 0 <= j + b < 9:
                b = -b
            one, two = where[i + a, j] - where[i, j], where[i, j + b] - where[i, j]
            turned[i, j] |= (one[0] * two[1] - one[1] * two[0]) * a * b <= 0
    assert 0 < turned.mean() < 1
    assert float(fold_fraction(1.5 * field, mm)[0]) == pytest.approx(turned.mean(), abs=1e-6)


@by_axes
def test_a_mirror_folds_everywhere_and_a_rotation_nowhere(shape: tuple[int, ...]) -> None:
    """det J of linear maps is known: x -> -x along one axis, and a quarter turn in a plane."""
    n = len(shape)
    points = voxels_to_offsets(voxels(shape), shape, spacing(n))
    linear = torch.eye(n)
    linear[0, 0] = -1
    turn = torch.eye(n)
    turn[:2, :2] = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    for matrix, share in ((linear, 1.0), (turn, 0.0)):
        field = (points @ matrix.mT - points).mT.reshape(B, n, *shape)
        assert fold_fraction(field, spacing(n)).tolist() == [share] * B


@pytest.mark.parametrize("n", [2, 3])
def test_linear_maps_fold_where_their_determinant_says(n: int) -> None:
    """100 random matrices, by torch's own determinant; voxels of different edges."""
    linear = torch.randn(100, n, n, generator=torch.Generator().manual_seed(1))
    points = voxels_to_offsets(voxels((3,) * n)[:1].expand(100, -1, -1), (3,) * n, spacing(n, 100))
    field = (points @ linear.mT - points).mT.reshape(100, n, *(3,) * n)
    assert torch.equal(fold_fraction(field, spacing(n, 100)), (torch.linalg.det(linear) <= 0).float())


@by_axes
def test_landmarks_of_a_warped_label_are_the_warped_landmarks(shape: tuple[int, ...]) -> None:
    """9. Within one voxel; labels keep their dtype and gain no value."""
    n, size = len(shape), tuple(2 * s for s in shape)
    mm, config = spacing(n), ElasticConfig(sd_mm=1.5, field=RandomFieldConfig(length_mm=10.0))
    elastic = drawn(size, config)
    centre = torch.tensor(size).float().sub(1).div(2).mul(torch.tensor([0.9, 1.1, 1.0][:n]))
    distance = ((voxels(size) - centre) * mm[:1, None]).norm(dim=-1)
    label = (3 * (distance < 4.0)).reshape(B, 1, *size).to(torch.int16)
    shown = apply_elastic(label, elastic, mode="nearest", padding="zeros")
    assert shown.dtype == torch.int16
    assert set(shown.unique().tolist()) == {0, 3}
    found = crop_points(voxels_to_offsets(centre.expand(B, 1, n), size, mm), elastic)
    wanted = offsets_to_voxels(found, size, mm)[:, 0]
    for i in range(B):
        mean = (shown[i, 0] == 3).nonzero().float().mean(0)
        assert (mean - wanted[i]).abs().max() < 1


@by_axes
def test_a_constant_image_stays_constant(shape: tuple[int, ...]) -> None:
    """10."""
    shown = apply_elastic(torch.full((B, 1, *shape), 3.5), drawn(shape))
    torch.testing.assert_close(shown, torch.full_like(shown, 3.5), atol=1e-5, rtol=0)


@by_axes
def test_a_batch_gives_what_its_samples_give_one_by_one(shape: tuple[int, ...]) -> None:
    n, image, together = len(shape), torch.randn(B, 1, *shape), drawn(shape)
    views = apply_elastic(image, together)
    for i in range(B):
        draw, mm = Draw(KEYS[i : i + 1]), spacing(n)[i : i + 1]
        alone = draw_elastic(MILD, draw.of("elastic"), shape, mm, matrix=draw_affine(AFFINE, draw.of("affine"), n))
        torch.testing.assert_close(apply_elastic(image[i : i + 1], alone), views[i : i + 1], atol=1e-4, rtol=0)


@by_axes
def test_nothing_waits_for_the_device(shape: tuple[int, ...]) -> None:
    image, points = torch.randn(B, 1, *shape), voxels_to_offsets(voxels(shape), shape, spacing(len(shape)))
    with NoWaiting():
        elastic = drawn(shape)
        apply_elastic(image, elastic)
        crop_points(view_points(points, elastic), elastic, rounds=3)


def test_settings_that_tear_are_refused() -> None:
    with pytest.raises(ValidationError, match="at most half of field"):
        ElasticConfig(sd_mm=5.0, field=RandomFieldConfig(length_mm=8.0))
    rough = ElasticConfig(sd_mm=1.0, field=RandomFieldConfig(spectrum="power", exponent=4.0))
    with pytest.raises(UsageError, match="above 4"):
        draw_elastic(rough, Draw(KEYS), (8, 8), spacing(2))


def test_a_single_slice_moves_in_its_plane_only_by_itself() -> None:
    """An axis of one voxel has no gradient and no fold of its own."""
    elastic = draw_elastic(MILD, Draw(KEYS), (10, 10, 1), spacing(3))
    assert not elastic.folded.any()
    assert torch.isfinite(apply_elastic(torch.randn(B, 1, 10, 10, 1), elastic)).all()
