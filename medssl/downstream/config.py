"""The recipe's section `finetune`: how an encoder is turned into a task network."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from ..config import Section, no_result
from ..views.intensity import IntensityConfig
from ..views.spatial import SpatialConfig


class FinetuneConfig(Section):
    """How a segmenter is trained, from an encoder or from scratch, and how it is scored.

    The whole pretrained network is taken over and all of it is trained: freezing first lost (Dice .789 whole, .776 half
    frozen, .581 head only on hippocampus with few labels).
    """

    steps: PositiveInt = 300
    """Optimiser steps."""
    batch_size: PositiveInt = 8
    """Crops of one step."""
    crop: tuple[PositiveInt, ...] | None = None
    """Voxels of a crop, and of the window at inference; none takes the crop the encoder was trained on."""
    slice_axis: NonNegativeInt = 2
    """Axis of a volume along which a network of 2D images sees slices."""
    label_fraction: float = Field(default=0.5, ge=0, le=1)
    """Share of the crops centred on a labelled voxel, all classes alike."""
    learning_rate: PositiveFloat = 3e-3
    """Peak rate of AdamW for the network's body."""
    learning_rates: tuple[PositiveFloat, ...] = ()
    """Rates that `compare` tries for every arm, scratch too, and chooses from by validation images; none: no search."""
    head_learning_rate: PositiveFloat = 5e-3
    """Peak rate for the new output block."""
    weight_decay: NonNegativeFloat = 0.01
    """Decoupled decay; not applied to norms and biases."""
    warmup_steps: NonNegativeInt = 20
    """Steps over which the rate rises; a cosine down to 0 follows."""
    clip: NonNegativeFloat = 5.0
    """Largest norm of the whole gradient; 0 switches clipping off."""
    dice_weight: NonNegativeFloat = 1.0
    """Weight of the Dice loss beside cross-entropy."""
    spatial: SpatialConfig = SpatialConfig(rotation=0.4, scale=0.2, shift_mm=5.0)
    """Random rotation, scaling and shift of image and label together."""
    intensity: IntensityConfig = IntensityConfig()
    """Random gamma, contrast, brightness and noise of the image."""
    overlap: float = Field(default=0.5, ge=0, lt=1)
    """Share by which windows overlap at inference."""
    split: Literal["test", "validation"] = "test"
    """Images that are scored at the end."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the intervals."""
    seed: int = 0
    """Decides new weights, order of samples, and every augmentation."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Type of the forward pass in training."""
    microbatches: PositiveInt = no_result(1)
    """Parts a step is computed in, to save memory."""
    checkpoint_steps: PositiveInt = no_result(200)
    """Steps between two checkpoints."""
    workers: NonNegativeInt = no_result(2)
    """Threads that decode crops."""
    device: str = no_result("auto")
    """`auto` takes the accelerator that torch finds, else the CPU."""
