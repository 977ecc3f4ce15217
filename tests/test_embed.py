"""Laws of embedding: the same scan gives the same vector however it is given, and nothing says whose it is."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import nn

from medssl.demo_data import demo_folder
from medssl.embed import embed_images
from medssl.errors import DataError, MedsslError, UsageError
from medssl.index import Index
from medssl.ingest import build_index
from medssl.nets.encoder import DynUNetConfig, Encoder, build_encoder, load_encoder, save_network
from medssl.prepare import PrepareConfig, ZScore, build_store, preparation_of
from medssl.probe import as_encoder
from medssl.store import Store

HIPPOCAMPUS = demo_folder() / "hippocampus"
PREPARE = PrepareConfig(workers=0)
SMALL = DynUNetConfig(channels=(8, 8, 8), features=4, strides=(2, 2, 2))


def made(shape: tuple[int, ...], channels: int = 1) -> Encoder:
    torch.manual_seed(0)
    encoder = build_encoder(SMALL, channels=channels, shape=shape, spacing_mm=None)
    encoder.preparation = preparation_of(PREPARE)
    return encoder.eval()


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    """A small encoder of volumes with fresh weights, smaller than the scans: they are seen through windows."""
    return made((24, 32, 24))


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shipped hippocampus volumes, under names nobody may read in what is written."""
    folder = tmp_path_factory.mktemp("scans")
    for path in sorted((HIPPOCAMPUS / "images").iterdir())[:2]:
        shutil.copy(path, folder / f"MUSTERMANN_{path.name}")
    return folder


@pytest.fixture(scope="module")
def labels(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their label maps."""
    folder = tmp_path_factory.mktemp("labels")
    for path in scans.iterdir():
        shutil.copy(HIPPOCAMPUS / "labels" / path.name.removeprefix("MUSTERMANN_"), folder / path.name)
    return folder


def test_scans_an_index_and_a_store_of_them_give_the_same_vectors(
    encoder: Encoder, scans: Path, labels: Path, tmp_path: Path
) -> None:
    index = Index.open(build_index(scans, tmp_path / "index", labels=labels))
    store = Store.open(build_store(index, PREPARE, tmp_path / "store"))
    for per in ("image", "slice", "region"):
        given = (
            embed_images(encoder, scans, per=per, labels=labels if per == "region" else None),
            embed_images(encoder, [index.folder], per=per),
            embed_images(encoder, index, per=per),
            embed_images(encoder, store, per=per),
            embed_images(encoder, str(store.folder), per=per),
        )
        for other in given[1:]:
            assert other.image_ids == given[0].image_ids
            assert other.columns == given[0].columns
            np.testing.assert_allclose(other.embeddings, given[0].embeddings, rtol=1e-4, atol=1e-5)


def test_scans_are_prepared_as_the_encoders_own_images_were(scans: Path, tmp_path: Path) -> None:
    config = PrepareConfig(spacing_mm=(2.0, 2.0, 2.0), orientation="LPS", scaling=ZScore(), workers=0)
    encoder = made((24, 32, 24))
    encoder.preparation = preparation_of(config)
    store = Store.open(build_store(build_index(scans, tmp_path / "index"), config, tmp_path / "store"))
    own, theirs = embed_images(encoder, scans, per="slice"), embed_images(encoder, store, per="slice")
    np.testing.assert_allclose(own.embeddings, theirs.embeddings, rtol=1e-3, atol=1e-5)
    assert len(own.image_ids) == sum(store.shape(image_id)[2] for image_id in store.ids)


def test_a_folder_of_an_encoder_embeds_as_the_encoder_and_the_same_bytes_each_time(
    encoder: Encoder, scans: Path, tmp_path: Path
) -> None:
    folder = save_network(tmp_path / "encoder", encoder, preparation=encoder.preparation, card="")
    results = [embed_images(folder, sorted(scans.iterdir())[::step], tmp_path / f"{step}.parquet") for step in (1, -1)]
    assert (tmp_path / "1.parquet").read_bytes() == (tmp_path / "-1.parquet").read_bytes()
    own = embed_images(load_encoder(folder), scans)
    np.testing.assert_array_equal(results[0].embeddings, own.embeddings)


def test_the_file_holds_the_rows_and_names_nobody(encoder: Encoder, scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "embeddings.parquet"
    result = embed_images(encoder, scans, out)
    table = pq.read_table(out)
    assert table.column_names == ["image_id", "embedding"]
    assert table["image_id"].to_pylist() == list(result.image_ids)
    np.testing.assert_array_equal(np.stack(table["embedding"].to_numpy()), result.embeddings)
    assert result.embeddings.shape == (2, 8)
    assert table.schema.metadata[b"per"] == b"image"
    everything = out.read_bytes() + str(table.schema.metadata).encode() + str(table.to_pylist()).encode()
    for word in (b"MUSTERMANN", b"hippocampus", str(scans).encode(), b".nii"):
        assert word not in everything
    json.dumps(result.to_dict(), allow_nan=False)
    assert "2 vectors of 8 numbers, one an image, of 2 images" in str(result)


def test_slices_and_regions_say_where_they_are(encoder: Encoder, scans: Path, labels: Path, tmp_path: Path) -> None:
    index = Index.open(build_index(scans, tmp_path / "index"))
    slices = embed_images(encoder, index, tmp_path / "slices.parquet", per="slice")
    table = pq.read_table(tmp_path / "slices.parquet")
    for row in index.rows:
        mine = [i for i, image_id in enumerate(slices.image_ids) if image_id == row.image_id]
        assert [slices.columns["slice"][i] for i in mine] == list(range(row.shape[2]))
        np.testing.assert_allclose([slices.columns["offset_mm"][i] for i in mine], np.arange(row.shape[2]) * 1.0)
    assert table.column_names == ["image_id", "slice", "offset_mm", "embedding"]
    regions = embed_images(encoder, scans, tmp_path / "regions.parquet", per="region", labels=labels)
    assert regions.columns["region"] == (1, 2, 1, 2)
    assert all(count > 100 for count in regions.columns["voxels"])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_offset_of_a_slice_is_in_mm_along_the_axis_of_slices(encoder: Encoder, scans: Path, axis: int) -> None:
    prepare = PrepareConfig(spacing_mm=(4.0, 3.0, 2.5), workers=0)
    result = embed_images(encoder, sorted(scans.iterdir())[0], per="slice", prepare=prepare, slice_axis=axis)
    assert len(result.columns["slice"]) > 5
    offsets = np.array(result.columns["slice"]) * prepare.spacing_mm[axis]
    np.testing.assert_allclose(result.columns["offset_mm"], offsets)


def test_a_mixture_of_scans_and_an_index_is_in_the_order_of_ids(encoder: Encoder, scans: Path, tmp_path: Path) -> None:
    whole = embed_images(encoder, scans)
    for n, path in enumerate(sorted(scans.iterdir())):
        other = next(p for p in scans.iterdir() if p != path)
        build_index(path, tmp_path / str(n))
        mixed = embed_images(encoder, [other, tmp_path / str(n)])
        assert mixed.image_ids == whole.image_ids
        np.testing.assert_allclose(mixed.embeddings, whole.embeddings, rtol=1e-5)


def test_a_dicom_series_is_one_image(tmp_path: Path) -> None:
    result = embed_images(made((32, 32, 16)), demo_folder() / "ct")
    assert result.embeddings.shape == (1, 8)
    assert np.isfinite(result.embeddings).all()


def test_no_word_of_a_dicom_header_leaves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    import pydicom

    series = tmp_path / "GEHEIM"
    series.mkdir()
    for path in sorted((demo_folder() / "ct").glob("CT*")):
        dataset = pydicom.dcmread(path)
        dataset.PatientName, dataset.PatientID, dataset.AccessionNumber = "GEHEIM^NAME", "GEHEIM-ID", "GEHEIM-7"
        dataset.save_as(series / path.name)
    result = embed_images(made((32, 32, 16)), series, tmp_path / "e.parquet", prepare=PrepareConfig(modalities=("CT",)))
    said = capsys.readouterr()
    everything = (tmp_path / "e.parquet").read_bytes() + str(pq.read_table(tmp_path / "e.parquet").to_pylist()).encode()
    everything += f"{result} {result!r} {caplog.text} {said.out} {said.err}".replace(str(tmp_path), "").encode()
    assert b"GEHEIM" not in everything
    assert b"1.3.12" not in everything


def test_pictures_and_volumes_go_through_an_encoder_of_2d_images(scans: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for i in range(2):
        Image.fromarray(random.integers(0, 255, (40, 50), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    flat = made((32, 32))
    assert embed_images(flat, tmp_path).images == 2
    volumes = embed_images(flat, scans)
    slices = embed_images(flat, scans, per="slice")
    for i, image_id in enumerate(volumes.image_ids):
        mine = [row for row, name in zip(slices.embeddings, slices.image_ids) if name == image_id]
        np.testing.assert_allclose(np.mean(mine, 0), volumes.embeddings[i], rtol=1e-3, atol=1e-5)


def test_a_network_from_outside_embeds_with_the_preparation_it_is_given(scans: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv3d(1, 6, 4, 4), nn.ReLU())
    result = embed_images(as_encoder(net, shape=(32, 32, 32)), scans, prepare=PREPARE)
    assert result.embeddings.shape == (2, 6)


def test_what_cannot_be_read_or_does_not_fit_is_counted_and_the_rest_embedded(
    encoder: Encoder, scans: Path, tmp_path: Path
) -> None:
    for path in scans.iterdir():
        shutil.copy(path, tmp_path)
    first = sorted(tmp_path.iterdir())[0]
    (tmp_path / "broken.nii.gz").write_bytes(gzip.compress(gzip.decompress(first.read_bytes())[:2000]))
    Image.fromarray(np.arange(200, dtype=np.uint8).reshape(10, 20)).save(tmp_path / "picture.png")
    result = embed_images(encoder, tmp_path)
    assert result.images == 2
    assert result.problems["file-truncated"] == 1
    assert result.problems["encoder-of-volumes"] == 1
    assert "problems:" in str(result)


def test_scans_of_another_modality_are_left_out(encoder: Encoder) -> None:
    with pytest.raises(DataError, match="modality 1"):
        embed_images(encoder, demo_folder() / "ct", prepare=PrepareConfig(modalities=("MR",)))


def test_nothing_to_embed_is_one_clear_line_and_leaves_no_file(encoder: Encoder, scans: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no-label-map 2"):
        embed_images(encoder, scans, tmp_path / "out.parquet", per="region")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_not_overwritten(encoder: Encoder, scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    out.write_text("mine")
    with pytest.raises(MedsslError, match="already there"):
        embed_images(encoder, scans, out)
    assert out.read_text() == "mine"


def test_a_path_that_is_not_there_and_labels_of_a_store_are_refused(
    encoder: Encoder, scans: Path, labels: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        embed_images(encoder, tmp_path / "nowhere")
    index = build_index(scans, tmp_path / "index")
    with pytest.raises(UsageError, match="in it already"):
        embed_images(encoder, [index.folder], labels=labels)
