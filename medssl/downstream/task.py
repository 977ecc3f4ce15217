"""What a task adds to fine-tuning and to comparison: its network, its loss, its scores.

`finetune` and `compare_encoders` know tasks by this contract alone.

Shapes: P patients.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from ..batch import Facts
from ..config import result_fields
from ..loading import Loader
from ..methods.method import Method
from ..metrics import mean_of
from ..nets.task_network import TaskNetwork
from ..prepare import PrepareConfig
from ..progress import Progress, silent
from ..store import Store
from .config import FinetuneConfig
from .start import Design, settled

Keep = Callable[[str, NDArray[Any]], None]
"""Called with an image's id and what was found in it, as an array."""


class Score(Protocol):
    """How well one image was done; plain numbers, kept as JSON."""

    @property
    def image_id(self) -> str: ...

    @property
    def subject_id(self) -> str: ...

    def to_dict(self) -> dict[str, Any]: ...


class Task(ABC):
    """One task, as fine-tuning and comparison use it. It holds nothing: all it needs is in the store and the section.

    A network is built with weights drawn from `config.seed` alone, so that arms of one seed begin with equal new parts.
    """

    name: ClassVar[str]
    """As `medssl finetune NAME` has it."""
    measure: ClassVar[str]
    """What is compared, in the field's words; more is better."""

    def measured(self, store: Store, config: FinetuneConfig) -> str:
        """Return the name of the measure for these data; `measure` where it does not depend on them."""
        return self.measure

    def decides(self, config: FinetuneConfig) -> dict[str, Any]:
        """Return the values of the section that decide a training of this task: not those of the other tasks' parts."""
        others = {"detection", "classification"} - {self.name}
        return {key: value for key, value in result_fields(config).items() if key not in others}

    @abstractmethod
    def images(self, store: Store, split: str, config: FinetuneConfig) -> tuple[str, ...]:
        """Return the images of a split that can be learned from and scored.

        Raises:
            DataError: there are none, or the store has nothing for this task.
        """

    def preparation(
        self, data: Path | str, config: FinetuneConfig, prepare: PrepareConfig | None
    ) -> PrepareConfig | None:
        """Return how to prepare images for a network from scratch; may be planned from the data."""
        return prepare

    def settle(self, config: FinetuneConfig, design: Design, store: Store) -> FinetuneConfig:
        """Return the section as it holds for this start and these data."""
        return settled(config, design)

    @abstractmethod
    def build(self, design: Design, store: Store, config: FinetuneConfig, images: Sequence[str]) -> TaskNetwork:
        """Build the network, with an encoder's weights in it where the design has one."""

    @abstractmethod
    def loader(self, network: TaskNetwork, store: Store, config: FinetuneConfig, images: Sequence[str]) -> Loader:
        """Return the crops to train on, in an order that `config.seed` alone decides."""

    @abstractmethod
    def method(
        self, network: TaskNetwork, store: Store, config: FinetuneConfig, images: Sequence[str], facts: Facts
    ) -> Method:
        """Return what the engine trains."""

    @abstractmethod
    def score(
        self,
        network: TaskNetwork,
        store: Store,
        config: FinetuneConfig,
        images: Sequence[str],
        *,
        progress: Progress = silent,
        keep: Keep | None = None,
    ) -> tuple[Any, ...]:
        """Do the task on whole images and score each; the network is left in the mode it was in."""

    def look(self, network: TaskNetwork, store: Store, config: FinetuneConfig, images: Sequence[str]) -> float:
        """Return the measure on validation images, for early stopping; may spare what the measure does not need.

        It is nan where the measure has no value on them.
        """
        return float(mean_of(self.table(self.score(network, store, config, images), store, config)))

    @abstractmethod
    def score_from(self, value: Mapping[str, Any]) -> Any:
        """Take back what a score's `to_dict` gave, checked: a value out of range raises ValueError."""

    @abstractmethod
    def table(self, scores: Sequence[Any], store: Store, config: FinetuneConfig) -> NDArray[np.float64]:
        """Return (P,): the measure by patient, in the order of their sorted ids; its mean is the measure.

        A measure of a whole group, as the area under a curve is, is shared out among patients by the jackknife
        (`metrics.shares`); nan where a patient says nothing.
        """

    def further(self, scores: Sequence[Any], store: Store, config: FinetuneConfig) -> dict[str, float]:
        """Return other numbers that stand beside the measure in a comparison, by name; nan where there is none."""
        return {}

    @abstractmethod
    def summary(self, scores: Sequence[Any], store: Store, config: FinetuneConfig) -> dict[str, Any]:
        """Return all that is told of the scores together, as plain JSON types."""

    @abstractmethod
    def lines(self, summary: Mapping[str, Any]) -> list[str]:
        """Return the summary as a person reads it, the measure in the first line."""

    @abstractmethod
    def keeper(self, folder: Path, store: Store) -> Keep:
        """Return what keeps each image's result in a folder, in a form others read."""

    @abstractmethod
    def card(self, network: TaskNetwork, config: FinetuneConfig) -> str:
        """Return what the network gives, as list items of its model card."""
