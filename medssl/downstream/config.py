"""The recipe's section `finetune`: how an encoder is turned into a task network."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from ..config import Section, no_result
from ..views.intensity import IntensityConfig
from ..views.spatial import SpatialConfig
from .classification_config import ClassificationConfig
from .detection_config import DetectionConfig


class FinetuneConfig(Section):
    """How a task network is trained, from an encoder or from scratch, and how it is scored.

    The whole pretrained network is taken over and, unless `train` says otherwise, all of it is trained: freezing first
    lost (Dice .789 whole, .776 half frozen, .581 head only on hippocampus with few labels). Training from scratch has
    nothing to keep, and always trains everything at one rate, whatever `train` and `layer_decay` say.
    """

    train: Literal["full", "linear", "head_first", "lora"] = "full"
    """What moves. `full`: all weights. `linear`: only those that no encoder brings, the output block (for a ViT its
    decoder). `head_first`: those for `head_steps`, then all. `lora`: those, and a small correction of each attention
    matrix (arXiv:2106.09685), added to the weights at the end."""
    head_steps: NonNegativeInt = 50
    """Steps of `head_first` in which the pretrained weights wait."""
    lora_rank: PositiveInt = 8
    """Rank of the corrections of `lora`."""
    lora_scale: PositiveFloat = 2.0
    """What the corrections are multiplied by: alpha over rank in the paper's words."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Share of its rate that a layer keeps for each layer above it, as in BEiT (arXiv:2106.08254); 1: all alike."""
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
    loss: Literal["cross_entropy", "focal"] = "cross_entropy"
    """What stands beside the Dice loss; `focal` (arXiv:1708.02002) leaves easy voxels out."""
    focal_gamma: NonNegativeFloat = 2.0
    """How much `focal` leaves them out; 0 is cross-entropy."""
    dice_weight: NonNegativeFloat = 1.0
    """Weight of the Dice loss beside cross-entropy or focal loss."""
    deep_supervision: bool = False
    """Let coarser outputs of the decoder learn too, each with half the weight of the finer one before it."""
    decoder: Literal["unetr", "light"] = "unetr"
    """On the tokens of a ViT: UNETR's decoder, or a light one."""
    check_steps: PositiveInt = 50
    """Steps between two looks at the validation images, where `stop_after` asks for them."""
    stop_after: NonNegativeInt = 0
    """Looks without a better validation Dice after which training stops; the weights of the best look are kept, also
    where all steps are taken. 0: no look, the last weights are kept."""
    spatial: SpatialConfig = SpatialConfig(rotation=0.4, scale=0.2, shift_mm=5.0)
    """Random rotation, scaling and shift of image and label together."""
    intensity: IntensityConfig = IntensityConfig()
    """Random gamma, contrast, brightness and noise of the image."""
    overlap: float = Field(default=0.5, ge=0, lt=1)
    """Share by which windows, weighted by a Gaussian about their centre, overlap at inference."""
    mirror_axes: tuple[NonNegativeInt, ...] = ()
    """Axes of the image that are mirrored when images are scored, in all combinations, the logits averaged: 2, 4 or 8
    times the work. Only axes in `spatial.flips`: a network that was not trained on mirrored images may find nothing in
    them (one of hippocampus: Dice .06 instead of .88). Not where a label tells left from right. An exported bundle does
    not mirror."""
    surface_tolerance_mm: NonNegativeFloat = 1.0
    """Distance within which a surface counts as found, for surface Dice; in voxels where images have no spacing."""
    detection: DetectionConfig = DetectionConfig()
    """What a detector finds, and how."""
    classification: ClassificationConfig = ClassificationConfig()
    """What is told of whole images, and how."""
    plan: bool = False
    """Take crop, batch size and, where images are still to be prepared, spacing from the data within `memory_gb`, as
    `--plan` shows them."""
    memory_gb: PositiveFloat = 8.0
    """Memory that a training step may take, in GB."""
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
