"""Early stopping: looks at validation images while a segmenter trains, and keeps the weights that did best there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..methods.method import Method
from ..nets.segmenter import Segmenter
from ..store import Store
from .config import FinetuneConfig
from .scoring import dice_on


class BestWeights:
    """An observer of the engine that asks it to stop after `config.stop_after` looks without a better Dice.

    What it knows stands in the run's checkpoints, the best weights too: a run that was killed ends as if it had not
    been. Of equal looks the first counts.

    Args:
        store: holds the validation images.
        images: which they are; patients of none of the labelled images.
        config: the recipe's section `finetune`.
    """

    def __init__(self, store: Store, images: Sequence[str], config: FinetuneConfig) -> None:
        self.store, self.images, self.every, self.patience = store, tuple(images), config.check_steps, config.stop_after
        self.stop, self.best_step, self.best_dice, self.worse = False, 0, -1.0, 0
        self._weights: dict[str, Tensor] = {}

    def observe(self, step: int, method: Method, log: Callable[[str, float], None]) -> None:
        """Score whole validation images, and remember the weights if they are the best so far."""
        segmenter = method.encoder
        assert isinstance(segmenter, Segmenter)
        dice = dice_on(segmenter, self.store, self.images)
        log("validation/dice", dice)
        if dice > self.best_dice:
            self.best_step, self.best_dice, self.worse = step, dice, 0
            self._weights = {
                name: value.detach().to("cpu", copy=True) for name, value in segmenter.state_dict().items()
            }
        else:
            self.worse += 1
            self.stop = self.worse >= self.patience

    def restore(self, segmenter: Segmenter) -> None:
        """Give a segmenter the best weights."""
        segmenter.load_state_dict(self._weights, strict=True)

    def state_dict(self) -> dict[str, Any]:
        """Return what is known so far."""
        return {
            "stop": self.stop,
            "best_step": self.best_step,
            "best_dice": self.best_dice,
            "worse": self.worse,
            "weights": dict(self._weights),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.stop, self.worse = bool(state["stop"]), int(state["worse"])
        self.best_step, self.best_dice = int(state["best_step"]), float(state["best_dice"])
        self._weights = dict(state["weights"])
