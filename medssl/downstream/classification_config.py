"""The recipe's section `finetune.classification`: what is told of a whole image, and how a classifier learns it."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from ..config import Section

Kind = Literal["binary", "multiclass", "multilabel", "ordinal", "regression"]


class ClassificationConfig(Section):
    """A linear head on an encoder's pooled features, for classes, findings, grades, or measures in their own unit."""

    targets: tuple[str, ...] = ()
    """What is told: findings or measures by their names, `modality`, `view`, or one group such as sex. None: all
    findings and measures of the store."""
    kind: Literal["auto", "binary", "multiclass", "multilabel", "ordinal", "regression"] = "auto"
    """Of the targets. `auto`: several targets of 0 and 1 are `multilabel`, one is `binary`; whole numbers or words of
    at most 20 kinds are `multiclass`; other numbers are `regression`. Grades that have an order are `ordinal`, which
    must be said."""
    ordinal: Literal["corn", "coral"] = "corn"
    """How grades are learned: each step of the scale by its own weights, given the one before (CORN,
    arXiv:2111.08851), or all by one (CORAL, arXiv:1901.07884)."""
    class_weights: Literal["balanced", "none"] = "balanced"
    """`balanced`: all classes of the training images weigh the same together, and of a finding those with and without
    it; the weights are taken off again where probabilities are told, which so are as frequent as in training. `none`:
    all images weigh the same."""
    most_weight: float = Field(default=10.0, ge=1)
    """Largest weight of a class against the mean of the images."""
    regression_loss: Literal["huber", "mse", "mae"] = "huber"
    """On values less the training images' mean, over their standard deviation."""
    pooling: Literal["average", "attentive"] = "average"
    """How the coarsest feature map, of a ViT its tokens, becomes one vector: its mean, or means weighted by how well
    each cell fits a learned query (after arXiv:2404.08471, without its projections)."""
    heads: int = Field(default=4, ge=1, le=64)
    """Queries of `attentive` pooling; each gives a vector of all features."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the pooled features left out in each training step."""
    windows: Literal["logits", "features"] = "logits"
    """What is averaged over the windows, or slices, of an image larger than the crop: what the head gives for each, or
    the pooled features, which the head then sees once."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the wanted probability spread over all classes; of `multiclass` alone."""
    by: tuple[str, ...] = ()
    """Groups (sex, scanner, site) by which scores are also told apart; none: all that the store knows."""
    bins: int = Field(default=10, ge=2, le=100)
    """Of equal width, for the expected calibration error."""
    draws: int = Field(default=1000, ge=100, le=100_000)
    """Resamplings of patients for the intervals of each score."""
    tolerance: NonNegativeFloat = 0.0
    """Regression alone: errors up to this, in the target's unit, count as agreement (share within it); 0: not told."""
    fewest: PositiveInt = 5
    """Patients a subgroup must have to be scored by itself."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(set(self.targets)) != len(self.targets):
            raise ValueError("targets must not name one twice")
        if self.kind in ("binary", "multiclass", "ordinal") and len(self.targets) > 1:
            raise ValueError(f"{self.kind} takes one target, got {len(self.targets)}; several are multilabel")
        return self
