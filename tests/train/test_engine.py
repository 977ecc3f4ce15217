"""Laws of the engine that no method can show alone."""

from __future__ import annotations

import json
import logging
import math
import shutil
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from medssl.batch import Facts
from medssl.errors import RunError
from medssl.methods.method import Group, Losses, Method
from medssl.train import TrainConfig, read_metrics, train
from medssl.train.checkpoint import newest_checkpoint
from medssl.train.optimiser import learning_rate

from ..methods.toys import ToyLoader, make

QUICK: dict[str, Any] = {"steps": 4, "warmup_steps": 1, "checkpoint_steps": 2, "log_steps": 2, "device": "cpu"}


def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path: Path) -> None:
    method, loader = make("queue")
    train(method, loader, TrainConfig(**QUICK), tmp_path)
    newest = tmp_path / "checkpoints" / "step-00000004"
    whole = (newest / "method.safetensors").read_bytes()
    for damage in (whole[: len(whole) // 2], whole[:-1] + bytes([whole[-1] ^ 1])):
        (newest / "method.safetensors").write_bytes(damage)
        found = newest_checkpoint(tmp_path / "checkpoints")
        assert found is not None
        assert found.name == "step-00000002"
    assert train(*make("queue"), TrainConfig(**QUICK), tmp_path, resume=True).resumed_from == 2
    assert (newest / "method.safetensors").read_bytes() == whole


def test_resuming_without_a_checkpoint_starts_anew_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="medssl"):
        assert train(*make("queue"), TrainConfig(**QUICK), tmp_path, resume=True).resumed_from == 0
    assert "starts anew" in caplog.text


def test_a_checkpoint_of_another_method_is_refused(tmp_path: Path) -> None:
    train(*make("queue"), TrainConfig(**QUICK), tmp_path)
    with pytest.raises(RunError, match="does not fit"):
        train(*make("text tokens"), TrainConfig(**QUICK), tmp_path, resume=True)


def test_a_batch_that_does_not_divide_is_refused_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="8 samples a step do not divide into 1 ranks x 3 microbatches"):
        train(*make("queue"), TrainConfig(**QUICK, microbatches=3), tmp_path)


def test_a_batch_without_what_the_method_needs_is_refused_by_name(tmp_path: Path) -> None:
    class Needy(type(make("queue")[0])):  # type: ignore[misc]
        needs = ("image", "phase")

    method, loader = make("queue")
    method.__class__ = Needy
    with pytest.raises(RunError, match="Needy needs phase"):
        train(method, loader, TrainConfig(**QUICK), tmp_path)


class Sick(Method):
    """A method whose loss is NaN in chosen steps."""

    def __init__(self, sick: set[int]) -> None:
        super().__init__(self.Config(), torch.nn.Linear(2, 1), Facts(9))
        self.sick, self.after = sick, []

    def views(self, batch: Any, step: int) -> dict[str, Any]:
        return {"factor": torch.tensor(math.nan if step in self.sick else 1.0), "n": len(batch["index"])}

    def forward(self, views: dict[str, Any]) -> Losses:
        return Losses.of(value=self.encoder(torch.ones(views["n"], 2)).mean() * views["factor"])

    def after_step(self, step: int, seen: Mapping[str, torch.Tensor]) -> None:
        self.after.append(step)


def test_a_step_without_a_finite_gradient_changes_nothing_and_is_counted(tmp_path: Path) -> None:
    method = Sick({1})
    weights: list[torch.Tensor] = []

    class Watch:
        every = 1

        def observe(self, step: int, method: Any, log: Callable[[str, float], None]) -> None:
            weights.append(method.encoder.weight.clone())

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            pass

    train(method, ToyLoader(), TrainConfig(**QUICK | {"log_steps": 1}), tmp_path, observers=[Watch()])
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
    assert method.after == [0, 2, 3]
    lines = read_metrics(tmp_path)
    assert lines[1]["loss/total"] is None
    assert [line.get("health/skipped_steps", 0) for line in lines] == [0, 1, 0, 0]


def test_a_run_whose_gradient_stays_infinite_stops(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not finite in 3 steps in a row"):
        train(Sick(set(range(1, 9))), ToyLoader(), TrainConfig(**QUICK | {"steps": 9, "patience": 3}), tmp_path)


def test_observers_change_nothing_and_see_eval_mode_without_gradient(tmp_path: Path) -> None:
    states = []

    class Looks:
        every = 1

        def observe(self, step: int, method: Any, log: Callable[[str, float], None]) -> None:
            states.append((method.training, torch.is_grad_enabled()))
            torch.rand(5)  # may draw: training draws from the sample's key and the step alone
            log("health/looked", float(step))

        def state_dict(self) -> dict[str, Any]:
            return {"seen": len(states)}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            pass

    one, two = make("memory with k-means"), make("memory with k-means")
    train(*one, TrainConfig(**QUICK), tmp_path / "one")
    train(*two, TrainConfig(**QUICK), tmp_path / "two", observers=[Looks()])
    assert states == [(False, False)] * 4
    for key, value in one[0].state_dict().items():
        assert torch.equal(value, two[0].state_dict()[key])
    assert read_metrics(tmp_path / "two")[-1]["health/looked"] == 4


class Stops:
    """An observer that asks to stop after some steps, and remembers it."""

    every = 1

    def __init__(self, after: int) -> None:
        self.after, self.stop = after, False

    def observe(self, step: int, method: Any, log: Callable[[str, float], None]) -> None:
        self.stop = step >= self.after

    def state_dict(self) -> dict[str, Any]:
        return {"stop": self.stop}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.stop = state["stop"]


def test_an_observer_may_end_the_run_and_a_resumed_run_takes_no_step_more(tmp_path: Path) -> None:
    method, loader = make("queue")
    config = TrainConfig(**QUICK | {"steps": 9, "checkpoint_steps": 100, "log_steps": 100})
    result = train(method, loader, config, tmp_path, observers=[Stops(3)])
    assert result.steps == 3
    assert read_metrics(tmp_path)[-1]["step"] == 3
    again, loader = make("queue")
    resumed = train(again, loader, config, tmp_path, observers=[Stops(99)], resume=True)
    assert (resumed.resumed_from, resumed.steps) == (3, 3)
    for key, value in again.state_dict().items():
        assert torch.equal(value, method.state_dict()[key])


def test_a_group_waits_its_frozen_steps_and_others_do_not(tmp_path: Path) -> None:
    method, loader = make("prototypes frozen at first")
    start = method.state_dict()["prototypes"].clone()
    train(method, loader, TrainConfig(**QUICK | {"steps": 2}), tmp_path / "two")
    assert torch.equal(method.state_dict()["prototypes"], start)
    method, loader = make("prototypes frozen at first")
    train(method, loader, TrainConfig(**QUICK | {"steps": 3}), tmp_path / "three")
    assert not torch.equal(method.state_dict()["prototypes"], start)


def test_a_parameter_in_two_groups_is_refused(tmp_path: Path) -> None:
    method = Sick(set())
    weight = method.encoder.weight
    method.groups = lambda: [Group((weight,)), Group((weight,))]  # type: ignore[method-assign]
    with pytest.raises(RunError, match="two groups"):
        train(method, ToyLoader(), TrainConfig(**QUICK), tmp_path)


def test_the_rate_rises_to_its_peak_and_falls_to_its_share_of_it() -> None:
    config = TrainConfig(steps=100, warmup_steps=10, learning_rate=2.0, final_rate=0.1)
    rates = [learning_rate(step, config) for step in range(100)]
    assert rates.index(max(rates)) == 10
    assert rates[10] == 2.0
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[99] == pytest.approx(0.2, rel=0.01)


def test_metrics_hold_no_time_and_times_no_metric(tmp_path: Path) -> None:
    train(*make("queue"), TrainConfig(**QUICK), tmp_path)
    for line in read_metrics(tmp_path):
        assert not [key for key in line if "time" in key or "second" in key]
    times = [json.loads(line) for line in (tmp_path / "times.jsonl").read_text().splitlines()]
    assert [line["step"] for line in times] == [2, 4]
    assert all(line["seconds"] >= line["data_wait"] >= 0 for line in times)


def test_skipped_steps_are_a_share_of_the_steps(tmp_path: Path) -> None:
    train(Sick({1}), ToyLoader(), TrainConfig(**QUICK | {"log_steps": 4}), tmp_path)
    assert read_metrics(tmp_path)[-1]["health/skipped_steps"] == 0.25


def test_a_result_whose_last_loss_is_not_finite_is_still_json(tmp_path: Path) -> None:
    result = train(Sick({3}), ToyLoader(), TrainConfig(**QUICK), tmp_path)
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["metrics"]["loss/total"] is None


def test_batch_norm_is_refused_where_a_step_is_cut(tmp_path: Path) -> None:
    method = Sick(set())
    method.norm = torch.nn.BatchNorm1d(1)
    with pytest.raises(RunError, match="batch norm"):
        train(method, ToyLoader(), TrainConfig(**QUICK, microbatches=2), tmp_path)


def test_a_run_killed_before_its_pictures_makes_the_same_ones(tmp_path: Path) -> None:
    method, loader = make("anatomy")
    train(method, loader, TrainConfig(**QUICK), tmp_path)
    picture = tmp_path / "panels" / "correspondence.png"
    before = picture.read_bytes()
    shutil.rmtree(tmp_path / "panels")
    method, loader = make("anatomy")
    train(method, loader, TrainConfig(**QUICK), tmp_path, resume=True)
    assert picture.read_bytes() == before


def test_tensorboard_reads_the_metrics_and_no_file_tells_the_host(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(*make("queue"), TrainConfig(**QUICK), tmp_path)
    train(*make("queue"), TrainConfig(**QUICK | {"steps": 4}), tmp_path, resume=True)
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss/total")]
    wanted = [(line["step"], line["loss/total"]) for line in read_metrics(tmp_path)]
    assert [step for step, _ in found] == [step for step, _ in wanted]
    assert [value for _, value in found] == pytest.approx([value for _, value in wanted], rel=1e-6)
    assert not [path for path in tmp_path.rglob("*") if socket.gethostname() in path.name]
