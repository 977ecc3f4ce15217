"""Classification, grading and regression of whole images as a method of the engine.

Crops are augmented; each has the targets of its image, of which those not known count for no loss. Class weights stand
at each sample's own loss, so that a term stays a mean over samples of each one's own value.

Shapes: B batch, C channels, T targets, K classes, I images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..batch import Batch, Draw, Facts
from ..methods.method import Group, Losses, Method, Views
from ..nets.classifier import Classifier
from ..views.intensity import change_intensity
from ..views.spatial import draw_affine, spacing_of, warp
from .config import FinetuneConfig
from .layers import hold_still, train_groups


class Classification(Method):
    """Trains a classifier.

    Args:
        config: the recipe's section `finetune`.
        encoder: the classifier, with the pretrained weights already in it, or without; it knows kind and weights.
        facts: of the data.
        truth: image to its class number (1,), or to a number a target (T,), nan where not known.
    """

    truth: Tensor
    weights: Tensor
    needs: ClassVar[tuple[str, ...]] = ("image", "image_id", "affine")

    def __init__(
        self, config: FinetuneConfig, encoder: Classifier, facts: Facts, *, truth: Mapping[str, Sequence[float]]
    ) -> None:
        super().__init__(config, encoder, facts)
        self._place = {image_id: n for n, image_id in enumerate(truth)}
        table = torch.tensor([list(values) for values in truth.values()], dtype=torch.float32)  # (I, T)
        spec = encoder.spec
        if encoder.task_kind == "regression":
            table = (table.double() - torch.tensor(spec["mean"])) / torch.tensor(spec["spread"])
        self.register_buffer("truth", table.float(), persistent=False)
        weights = spec["weights"] if spec["weights"] is not None else _ones(encoder)
        self.register_buffer("weights", torch.tensor(weights, dtype=torch.float32), persistent=False)

    def views(self, batch: Batch, step: int) -> Views:
        """Return `image` (B, C, ...), augmented, and `truth` (B, T), measures less their mean over their spread."""
        hold_still(self.encoder, self.config, step)  # the engine has put everything in train mode just before
        draw, image = Draw(batch["key"]), batch["image"].float()
        shape, n = tuple(image.shape[2:]), image.ndim - 2
        matrix, spacing = draw_affine(self.config.spatial, draw.of("spatial"), n), spacing_of(batch["affine"], n)
        image = change_intensity(warp(image, matrix, spacing, shape), self.config.intensity, draw.of("intensity"))
        places = torch.tensor([self._place[image_id] for image_id in batch["image_id"]], device=image.device)
        return {"image": image, "truth": self.truth[places]}

    def forward(self, views: Views) -> Losses:
        """Return the one term, named after the loss."""
        logits, truth = self.encoder(views["image"]).float(), views["truth"]
        knobs, kind = self.config.classification, self.encoder.task_kind
        if kind == "regression":
            name, loss = knobs.regression_loss, measure_loss(logits, truth, knobs.regression_loss)
        elif kind in ("binary", "multilabel"):
            name, loss = "binary_cross_entropy", finding_loss(logits, truth, self.weights)
        else:
            grade = truth[:, 0].long()
            if kind == "ordinal":
                name, loss = knobs.ordinal, grade_loss(logits, grade, knobs.ordinal)
            else:
                name = "cross_entropy"
                loss = functional.cross_entropy(logits, grade, reduction="none", label_smoothing=knobs.label_smoothing)
            loss = loss * self.weights[grade]
        term = loss.mean()
        return Losses(term, {name: term})

    def groups(self) -> list[Group]:
        """Return what moves, and how fast: the body's layers, and pooling and head at a rate of their own."""
        return train_groups(self.encoder, self.config)

    def encoders(self) -> dict[str, nn.Module]:
        """Return the classifier."""
        return {"classifier": self.encoder}


def _ones(classifier: Classifier) -> Any:
    return [1.0] * len(classifier.classes) if classifier.classes else [[1.0, 1.0]] * len(classifier.targets)


def finding_loss(logits: Tensor, truth: Tensor, weights: Tensor) -> Tensor:
    """Return each sample's mean cross-entropy over the findings that are known of it: (B,); 0 where none is.

    Args:
        logits: (B, T).
        truth: (B, T), 0 or 1, nan where not known.
        weights: (T, 2), of samples without and with each finding.
    """
    known = ~torch.isnan(truth)
    wanted = truth.nan_to_num()
    loss = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    loss = loss * torch.where(wanted > 0, weights[:, 1], weights[:, 0]) * known
    return loss.sum(1) / known.sum(1).clamp_min(1)


def grade_loss(logits: Tensor, grade: Tensor, ordinal: str) -> Tensor:
    """Return each sample's loss over the steps of a scale, over their number: (B,).

    Args:
        logits: (B, K - 1): of being beyond each step; for CORN given that the one before is passed.
        grade: (B,) int64, 0 to K - 1.
        ordinal: `corn`: a step counts for the samples that reach it; `coral`: each counts for all.

    Source: CORN, arXiv:2111.08851, equation 6, whose division by the samples that reach a step, a number of the batch,
        becomes one by the number of steps; CORAL, arXiv:1901.07884, equation 4, with equal importance.
    """
    step = torch.arange(logits.shape[1], device=logits.device)
    beyond = (grade[:, None] > step).to(logits.dtype)  # (B, K - 1)
    loss = functional.binary_cross_entropy_with_logits(logits, beyond, reduction="none")
    if ordinal == "corn":
        loss = loss * (grade[:, None] >= step)
    return loss.mean(1)


def measure_loss(found: Tensor, truth: Tensor, loss: str) -> Tensor:
    """Return each sample's mean loss over the measures that are known of it: (B,); 0 where none is.

    Args:
        found: (B, T), standardised.
        truth: (B, T), standardised, nan where not known.
        loss: `huber` (quadratic up to one standard deviation), `mse` or `mae`.
    """
    known = ~torch.isnan(truth)
    error = (found - truth.nan_to_num()) * known
    if loss == "huber":
        each = functional.huber_loss(error, torch.zeros_like(error), reduction="none")
    else:
        each = error.square() if loss == "mse" else error.abs()
    return each.sum(1) / known.sum(1).clamp_min(1)
