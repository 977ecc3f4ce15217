"""What every method may rely on, shown by the toys: resuming, layouts, export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from medssl.nets.encoder import load_encoder, save_network
from medssl.train import TrainConfig, train

from .toys import REAL, TOYS, Planes, ToyLoader, assert_same_gradient, gradients, make, small_encoder

STEPS = 6


def run(name: str, out: Path, *, weights: Path | None = None, **keys: Any) -> dict[str, torch.Tensor]:
    method, loader = make(name, steps=STEPS, weights=weights)
    options = {"steps": STEPS, "warmup_steps": 1, "checkpoint_steps": 2, "log_steps": 2, "keep_checkpoints": 9}
    train(method, loader, TrainConfig(**(options | keys), device="cpu"), out)
    return method.state_dict()


def saved(path: Path) -> bytes:
    return (path / "checkpoints" / f"step-{STEPS:08d}" / "method.safetensors").read_bytes()


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first") / "encoder"
    return save_network(folder, small_encoder(7), preparation={}, card="")


def weights_for(name: str, first_run: Path) -> Path | None:
    return first_run if name == "second stage" else None


@pytest.mark.parametrize("name", TOYS)
def test_a_run_cut_at_any_checkpoint_and_resumed_ends_with_the_same_bytes(
    name: str, tmp_path: Path, first_run: Path
) -> None:
    import shutil

    weights = weights_for(name, first_run)
    run(name, tmp_path / "whole", weights=weights)
    for cut in (2, 4):
        other = tmp_path / f"cut-{cut}"
        shutil.copytree(tmp_path / "whole", other)
        for later in sorted((other / "checkpoints").glob("step-*"))[cut // 2 :]:
            shutil.rmtree(later)
        method, loader = make(name, steps=STEPS, weights=weights)
        config = TrainConfig(steps=STEPS, warmup_steps=1, checkpoint_steps=3, log_steps=2, device="cpu")
        assert train(method, loader, config, other, resume=True).resumed_from == cut
        assert saved(other) == saved(tmp_path / "whole")
        assert (other / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("name", TOYS)
def test_every_trained_parameter_moves(name: str, tmp_path: Path, first_run: Path) -> None:
    weights = weights_for(name, first_run)
    before = {
        k: v.clone() for k, v in make(name, steps=STEPS, weights=weights)[0].named_parameters() if v.requires_grad
    }
    after = run(name, tmp_path, weights=weights)
    assert [k for k, v in before.items() if torch.equal(v, after[k])] == []


def step_gradients(name: str, micros: int, first_run: Path, steps: int = 3) -> dict[str, torch.Tensor]:
    """State after three steps in double precision, where only a wrong law differs by more than 1e-9."""
    import tempfile

    method, loader = make(name, steps=STEPS, weights=weights_for(name, first_run))
    method.double()
    with tempfile.TemporaryDirectory() as out:
        config = TrainConfig(steps=steps, warmup_steps=1, microbatches=micros, device="cpu", clip=0)
        train(method, loader, config, out)
    return method.state_dict()


@pytest.mark.parametrize("name", TOYS)
def test_microbatches_take_the_same_step_as_the_whole_batch(name: str, first_run: Path) -> None:
    whole, parts = step_gradients(name, 1, first_run), step_gradients(name, 4, first_run)
    for key, value in whole.items():
        torch.testing.assert_close(
            parts[key].double(), value.double(), rtol=1e-7, atol=1e-9, msg=lambda m, k=key: f"{k}: {m}"
        )


@pytest.mark.parametrize("name", REAL)
def test_microbatches_of_a_shipped_method_give_the_gradient_of_the_whole_batch(name: str) -> None:
    whole = gradients(name)
    for micros in (2, 4):
        assert_same_gradient(whole, gradients(name, microbatches=micros))


@pytest.mark.parametrize("name", REAL)
def test_microbatches_in_bf16_stay_near_the_whole_batch(name: str) -> None:
    assert_same_gradient(gradients(name), gradients(name, microbatches=2, precision="bf16"), tolerance=0.1)


@pytest.mark.parametrize("name", TOYS)
def test_every_encoder_leaves_and_comes_back_whole(name: str, tmp_path: Path, first_run: Path) -> None:
    method, _ = make(name, weights=weights_for(name, first_run))
    for leaving, encoder in method.encoders().items():
        folder = save_network(tmp_path / leaving, encoder, preparation={"version": 1}, card="# card\n")
        again = load_encoder(folder)
        assert again.receipt is not None
        assert not again.receipt.missing
        image = torch.rand(2, 1, 16, 16)
        encoder.eval()
        for one, two in zip(encoder(image), again(image), strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=0)
        second = save_network(tmp_path / f"{leaving}-2", again, preparation={"version": 1}, card="# card\n")
        assert (second / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_a_second_stage_starts_from_the_first_stages_weights(first_run: Path) -> None:
    method, _ = make("second stage", weights=first_run)
    first = load_file(first_run / "model.safetensors")
    for holder in ("encoder.net.", "first.module.net."):
        state = {k.removeprefix(holder): v for k, v in method.state_dict().items() if k.startswith(holder)}
        assert state.keys() == first.keys()
        assert all(torch.equal(state[k], first[k]) for k in first)


def test_absent_planes_change_nothing() -> None:
    method, loader = make("planes of variable number")
    assert isinstance(method, Planes)
    assert isinstance(loader, ToyLoader)
    batch = next(loader.stream(0, 1))
    image = batch["image"].float() / 800
    views = method.views(batch | {"image": image}, 0)
    changed = dict(views)
    changed["image"] = torch.where(views["present"][..., None, None, None], views["image"], torch.full_like(image, 9.0))
    assert not views["present"].all()
    assert torch.equal(method(views).total, method(changed).total)
