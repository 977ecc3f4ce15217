"""The `train` section of a recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from ..config import Section, no_result


class TrainConfig(Section):
    """How long and how a method is trained, and how often its state is kept."""

    steps: PositiveInt = 1000
    """Optimiser steps."""
    learning_rate: PositiveFloat = 1e-3
    """Peak rate of AdamW, reached after the warm-up; a group's own factor multiplies it."""
    weight_decay: float = 0.05
    """Decoupled decay; not applied to norms, biases and tokens."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of AdamW's two moments."""
    warmup_steps: NonNegativeInt = 50
    """Steps over which the rate rises linearly from nearly 0."""
    final_rate: float = 0.0
    """Share of the peak rate that the cosine ends at."""
    clip: float = 5.0
    """Largest norm of the whole gradient; 0 switches clipping off."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Type of the forward pass; weights, optimiser and losses stay in float32."""
    microbatches: PositiveInt = no_result(1)
    """Parts an optimiser step is computed in, to save memory."""
    seed: int = 0
    """Decides initial weights, order of samples, and every augmentation."""
    checkpoint_steps: PositiveInt = no_result(200)
    """Steps between two checkpoints."""
    checkpoint_minutes: PositiveFloat = no_result(10.0)
    """Longest time between two checkpoints, in minutes."""
    keep_checkpoints: PositiveInt = no_result(2)
    """How many of the newest checkpoints stay on disk."""
    log_steps: PositiveInt = 10
    """Steps between two lines of `metrics.jsonl`; a line holds the means over them."""
    patience: PositiveInt = 10
    """Consecutive steps without a finite gradient after which the run stops."""
    device: str = no_result("auto")
    """`auto` takes the accelerator that torch finds, else the CPU."""
