"""Laws of fine-tuning runs."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from medssl.downstream import FinetuneConfig, finetune
from medssl.errors import DataError, MedsslError, RunError, UsageError
from medssl.files import write_json
from medssl.nets.encoder import DynUNetConfig, Encoder, load_network, save_network
from medssl.prepare import PrepareConfig, preparation_of
from medssl.store import Store

from ..labelled_store import ellipsoids, write_labelled_store


def _weights(run: Path) -> bytes:
    return (run / "segmenter" / "model.safetensors").read_bytes()


def test_a_run_repeated_gives_the_same_bytes_and_scores(
    store: Store, encoder: Encoder, quick: FinetuneConfig, tmp_path: Path
) -> None:
    one, two = (finetune(encoder, store, tmp_path / name, quick) for name in ("one", "two"))
    assert _weights(one.out) == _weights(two.out)
    assert one.scores == two.scores
    other = finetune(encoder, store, tmp_path / "three", quick.model_copy(update={"seed": 1}))
    assert _weights(other.out) != _weights(one.out)


def test_workers_do_not_change_the_result(
    store: Store, encoder: Encoder, quick: FinetuneConfig, tmp_path: Path
) -> None:
    one = finetune(encoder, store, tmp_path / "one", quick)
    two = finetune(encoder, store, tmp_path / "two", quick.model_copy(update={"workers": 2}))
    assert _weights(one.out) == _weights(two.out)


def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(
    store: Store, encoder: Encoder, quick: FinetuneConfig, tmp_path: Path
) -> None:
    def stop(phase: str, done: int, total: int) -> None:
        if phase == "fine-tune" and done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(encoder, store, tmp_path / "stopped", quick, progress=stop)
    assert not (tmp_path / "stopped" / "scores.json").exists()
    resumed = finetune(encoder, store, tmp_path / "stopped", quick, resume=True)
    assert resumed.training.resumed_from == 4
    whole = finetune(encoder, store, tmp_path / "whole", quick)
    assert _weights(resumed.out) == _weights(whole.out)


def test_resuming_with_other_values_or_into_a_filled_folder_is_refused(
    store: Store, encoder: Encoder, quick: FinetuneConfig, tmp_path: Path
) -> None:
    finetune(encoder, store, tmp_path / "run", quick)
    with pytest.raises(RunError, match="another finetune"):
        finetune(encoder, store, tmp_path / "run", quick.model_copy(update={"steps": 7}), resume=True)
    with pytest.raises(RunError, match="another start"):
        finetune(None, store, tmp_path / "run", quick, resume=True)
    with pytest.raises(MedsslError, match="already there"):
        finetune(encoder, store, tmp_path / "run", quick)


def test_the_saved_network_segments_as_the_run_did_and_predictions_lie_on_the_images_grid(
    store: Store, encoder: Encoder, quick: FinetuneConfig, tmp_path: Path
) -> None:
    import nibabel

    from medssl.downstream.scoring import score_images

    result = finetune(encoder, store, tmp_path / "run", quick)
    segmenter = load_network(result.network)
    kept: dict[str, np.ndarray] = {}
    again = score_images(segmenter, store, store.ids_of("test"), keep=kept.__setitem__)  # type: ignore[arg-type]
    assert again == result.scores
    for image_id, found in kept.items():
        picture = nibabel.load(result.out / "predictions" / f"{image_id}.nii.gz")
        np.testing.assert_array_equal(np.asarray(picture.dataobj), found)
        np.testing.assert_allclose(picture.affine, store.affine(image_id))


@pytest.mark.slow
def test_a_hundred_steps_from_scratch_find_bright_and_dark_ellipsoids(
    store: Store, network: DynUNetConfig, quick: FinetuneConfig, tmp_path: Path
) -> None:
    config = quick.model_copy(update={"steps": 100, "batch_size": 4})
    result = finetune("none", store, tmp_path / "run", config, network=network)
    assert result.start == "scratch"
    assert result.value > 0.8
    assert "Dice" in str(result)
    assert json.loads((result.out / "scores.json").read_text())["dice"] == pytest.approx(result.value)


def test_only_the_chosen_images_are_learned_from(
    store: Store, encoder: Encoder, quick: FinetuneConfig, tmp_path: Path
) -> None:
    result = finetune(encoder, store, tmp_path / "run", quick, images=store.ids_of("train")[:1])
    assert result.labelled == 1
    assert json.loads((result.out / "finetune.json").read_text())["images"] == [store.ids_of("train")[0]]


def test_an_encoder_folder_brings_its_weights_with_a_receipt(
    store: Store, encoder: Encoder, quick: FinetuneConfig, tmp_path: Path
) -> None:
    save_network(tmp_path / "pretrained" / "encoder", encoder, preparation={}, card="# card\n")
    result = finetune(tmp_path / "pretrained", store, tmp_path / "run", quick)
    assert result.start == "encoder"
    assert result.receipt is not None
    assert not result.receipt.missing
    assert _weights(result.out) == _weights(finetune(encoder, store, tmp_path / "same", quick).out)


def test_a_store_without_labels_and_a_split_without_images_are_one_clear_line(
    store: Store, encoder: Encoder, quick: FinetuneConfig, tmp_path: Path
) -> None:
    image, label = ellipsoids((16, 16, 16), 0)
    bare = write_labelled_store(tmp_path / "bare", [image], [None], splits=["train"])
    with pytest.raises(DataError, match="label map"):
        finetune(encoder, bare.folder, tmp_path / "run", quick)
    alone = write_labelled_store(tmp_path / "alone", [image], [label], splits=["train"])
    with pytest.raises(DataError, match="no labelled images in split 'test'"):
        finetune(encoder, alone, tmp_path / "run2", quick)


def test_images_with_other_channels_than_the_encoders_are_refused(
    store: Store, quick: FinetuneConfig, network: DynUNetConfig, tmp_path: Path
) -> None:
    from medssl.nets.encoder import build_encoder

    colour = build_encoder(network, channels=3, shape=(16, 16, 16))
    with pytest.raises(DataError, match="1 channels, the network 3"):
        finetune(colour, store, tmp_path / "run", quick)


def test_a_datalist_is_prepared_as_the_encoder_was(
    encoder: Encoder, quick: FinetuneConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import nibabel

    entries: dict[str, list[dict[str, str]]] = {"training": [], "test": []}
    for i, split in enumerate(("training", "training", "test")):
        image, label = ellipsoids((16, 16, 16), i)
        for name, array in (("image", (1000 * image).astype(np.int16)), ("label", label)):
            nibabel.save(nibabel.Nifti1Image(array, np.diag([1, 1, 2, 1.0])), tmp_path / f"{name}{i}.nii.gz")
        entries[split].append({"image": f"image{i}.nii.gz", "label": f"label{i}.nii.gz"})
    write_json(tmp_path / "datalist.json", entries)
    encoder.preparation = preparation_of(PrepareConfig(workers=0))
    with caplog.at_level(logging.WARNING):
        result = finetune(encoder, tmp_path / "datalist.json", tmp_path / "run", quick)
    made = Store.open(result.out / "store").preparation
    assert made["fingerprint"] == encoder.preparation["fingerprint"]
    assert "prepared otherwise" not in caplog.text
    assert json.loads((result.network / "preparation.json").read_text()) == made
    encoder.preparation = {}
    with pytest.raises(MedsslError, match="nothing says how to prepare"):
        finetune(None, tmp_path / "datalist.json", tmp_path / "other", quick)


def test_deep_supervision_and_focal_loss_train_and_leave_a_network_without_them(
    store: Store, encoder: Encoder, network: DynUNetConfig, quick: FinetuneConfig, tmp_path: Path
) -> None:
    config = quick.model_copy(update={"deep_supervision": True, "loss": "focal", "stop_after": 1, "check_steps": 3})
    result = finetune(encoder, store, tmp_path / "run", config)
    assert {"loss/focal", "loss/dice"} <= set(result.training.metrics)
    plain = finetune(encoder, store, tmp_path / "plain", quick)
    saved = [load_network(run.network).state_dict() for run in (result, plain)]
    assert set(saved[0]) == set(saved[1])


def test_scores_tell_every_measure_by_label_and_a_run_mirrors_what_it_scores(
    store: Store, encoder: Encoder, quick: FinetuneConfig, tmp_path: Path
) -> None:
    from medssl.downstream.scoring import score_images

    config = quick.model_copy(update={"mirror_axes": (0, 2), "surface_tolerance_mm": 2.5})
    result = finetune(encoder, store, tmp_path / "run", config)
    segmenter = load_network(result.network)
    again = score_images(segmenter, store, store.ids_of("test"), mirror_axes=(0, 2), tolerance_mm=2.5)  # type: ignore[arg-type]
    assert again == result.scores
    assert again != score_images(segmenter, store, store.ids_of("test"), tolerance_mm=2.5)  # type: ignore[arg-type]
    known = json.loads((result.out / "scores.json").read_text())
    assert set(known["labels"]) == {"1", "2"}
    assert set(known["labels"]["1"]) == {"dice", "hausdorff95_mm", "surface_dice", "volume_error_ml"}
    assert known["surface_tolerance"] == 2.5
    assert known["labels"]["1"]["volume_error_ml"] == pytest.approx(
        np.mean([score["volume_error_ml"][0] for score in known["scores"]])
    )
    assert "surface Dice" in str(result)
    assert "mirrored along axes 0, 2" in (result.network / "README.md").read_text()


def test_what_a_run_keeps_names_no_folder(
    store: Store, encoder: Encoder, quick: FinetuneConfig, tmp_path: Path
) -> None:
    out = tmp_path / "of a patient" / "run"
    finetune(encoder, store, out, quick)
    for path in out.rglob("*"):
        assert not path.is_file() or b"of a patient" not in path.read_bytes(), path.name


def test_images_of_patients_that_are_scored_are_not_learned_from(
    store: Store, encoder: Encoder, quick: FinetuneConfig, tmp_path: Path
) -> None:
    images = (*store.ids_of("train")[:1], *store.ids_of("test")[:1])
    with pytest.raises(DataError, match="1 of the images to train on are of patients that are scored"):
        finetune(encoder, store, tmp_path / "run", quick, images=images)
    assert not (tmp_path / "run").exists()


def test_a_network_keeps_the_values_of_the_label_maps(
    store: Store, encoder: Encoder, quick: FinetuneConfig, tmp_path: Path
) -> None:
    result = finetune(encoder, store, tmp_path / "run", quick)
    assert load_network(result.network).values == (0, *store.classes)


def test_several_processes_are_refused(
    store: Store, encoder: Encoder, quick: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="one process"):
        finetune(encoder, store, tmp_path / "run", quick)
