"""Early stopping: looks at validation images while a network trains, and keeps the weights that did best there."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..errors import DataError
from ..methods.method import Method
from ..nets.task_network import TaskNetwork
from ..store import Store
from .config import FinetuneConfig
from .task import Task


class BestWeights:
    """An observer of the engine that asks it to stop after `config.stop_after` looks without a better value.

    What it knows stands in the run's checkpoints, the best weights too: a run that was killed ends as if it had not
    been. Of equal looks the first counts.

    Args:
        task: what is measured.
        store: holds the validation images.
        images: which they are; patients of none of the labelled images.
        config: the recipe's section `finetune`.
    """

    def __init__(self, task: Task, store: Store, images: Sequence[str], config: FinetuneConfig) -> None:
        self.task, self.store, self.images, self.config = task, store, tuple(images), config
        self.every, self.patience = config.check_steps, config.stop_after
        self.stop, self.best_step, self.best_value, self.worse = False, 0, -math.inf, 0
        self._weights: dict[str, Tensor] = {}

    def observe(self, step: int, method: Method, log: Callable[[str, float], None]) -> None:
        """Score whole validation images, and remember the weights if they are the best so far.

        Raises:
            DataError: the measure has no value on them, as an AUROC of one class.
        """
        network = method.encoder
        assert isinstance(network, TaskNetwork)
        value = self.task.look(network, self.store, self.config, self.images)
        measure = self.task.measured(self.store, self.config)
        log(f"validation/{measure}", value)
        if math.isnan(value):
            raise DataError(
                f"{measure} cannot be told on the {len(self.images)} validation images that are to stop the training",
                where=str(self.store.folder),
                fix="set finetune.stop_after to 0, or split the data otherwise",
            )
        if value > self.best_value or not self._weights:
            self.best_step, self.best_value, self.worse = step, value, 0
            self._weights = {name: held.detach().to("cpu", copy=True) for name, held in network.state_dict().items()}
        else:
            self.worse += 1
            self.stop = self.worse >= self.patience

    def restore(self, network: TaskNetwork) -> None:
        """Give a network the best weights."""
        network.load_state_dict(self._weights, strict=True)

    def state_dict(self) -> dict[str, Any]:
        """Return what is known so far."""
        return {
            "stop": self.stop,
            "best_step": self.best_step,
            "best_value": self.best_value,
            "worse": self.worse,
            "weights": dict(self._weights),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.stop, self.worse = bool(state["stop"]), int(state["worse"])
        self.best_step, self.best_value = int(state["best_step"]), float(state["best_value"])
        self._weights = dict(state["weights"])
