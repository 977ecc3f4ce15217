"""What is read from frozen features of whole images: by neighbours, by one linear layer, by attentive pooling.

Features are standardised by the training images: each one minus their mean, over their spread.

Shapes: N training images, Q scored images, F features, T tokens, K classes (1 for a measure).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ..metrics.retrieval import cosine_similarity, knn
from .readout import logistic

Table = NDArray[np.float64]
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Of the squared weights of a linear layer; one is chosen on folds of the training patients."""
_FOLDS = 4


@dataclass(frozen=True)
class Answers:
    """Training images' answers: class numbers or a measure, (N,), and whose images they are."""

    values: Table
    patients: tuple[str, ...]
    classes: int
    """K, or 0 for a measure."""


def standardized(train: Table, other: Table) -> tuple[Table, Table]:
    """Take off the training images' mean and divide by their spread; a feature that does not vary becomes 0."""
    mean, spread = train.mean(0), train.std(0)
    spread = np.where(spread > 1e-6 * (1 + np.abs(mean)), spread, np.inf)
    return (train - mean) / spread, (other - mean) / spread


def by_neighbours(train: Table, answers: Answers, scored: Table, *, neighbours: int, temperature: float) -> Table:
    """Let the most similar training images vote: shares (Q, K), or the weighted mean of their measure (Q, 1).

    Source: Wu et al. 2018, arXiv:1805.01978, section 3.4.
    """
    train, scored = standardized(train, scored)
    similarity = cosine_similarity(scored, train)
    if answers.classes:
        labels = answers.values.astype(np.int64)
        return knn(similarity, labels, classes=answers.classes, k=neighbours, temperature=temperature)
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :neighbours]
    found = np.take_along_axis(similarity, nearest, 1)
    weight = np.exp((found - found[:, :1]) / temperature)
    mean = (weight * answers.values[nearest]).sum(1, keepdims=True) / weight.sum(1, keepdims=True)
    return np.asarray(mean, dtype=np.float64)


def by_linear_layer(train: Table, answers: Answers, scored: Table) -> Table:
    """Fit a logistic, or for a measure a ridge, regression: probabilities (Q, K) or values (Q, 1).

    Its penalty is the one of `PENALTIES` with the least loss on left-out training patients.
    """
    folds = _folds(answers.patients)
    best = PENALTIES[len(PENALTIES) // 2]
    if len(set(folds.tolist())) > 1:
        losses = {penalty: _held_out_loss(train, answers, folds, penalty) for penalty in PENALTIES}
        best = min(losses, key=lambda penalty: losses[penalty])
    return _linear(train, answers, scored, best)


def _held_out_loss(train: Table, answers: Answers, folds: NDArray[np.int64], penalty: float) -> float:
    total = 0.0
    for fold in np.unique(folds):
        out, rest = folds == fold, folds != fold
        kept = tuple(patient for patient, inside in zip(answers.patients, rest) if inside)
        found = _linear(train[rest], Answers(answers.values[rest], kept, answers.classes), train[out], penalty)
        truth = answers.values[out]
        if answers.classes:
            likely = found[np.arange(len(truth)), truth.astype(np.int64)]
            total -= float(np.log(np.maximum(likely, 1e-12)).sum())
        else:
            total += float(((found[:, 0] - truth) ** 2).sum())
    return total


def _linear(train: Table, answers: Answers, scored: Table, penalty: float) -> Table:
    x, q = standardized(train, scored)
    if answers.classes:
        weight, bias = logistic(x, answers.values.astype(np.int64), answers.classes, penalty)
        scores = q @ weight.T + bias
        scores = np.exp(scores - scores.max(1, keepdims=True))
        return np.asarray(scores / scores.sum(1, keepdims=True), dtype=np.float64)
    mean = answers.values.mean()
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    # Ridge, (X'X + N penalty) w = X'y, by the singular values of X, because F is often larger than N.
    weight = vt.T @ ((s / (s**2 + len(x) * penalty)) * (u.T @ (answers.values - mean)))
    return np.asarray((q @ weight + mean)[:, None], dtype=np.float64)


def _folds(patients: Sequence[str]) -> NDArray[np.int64]:
    """Number the images by fold, all of a patient in one."""
    order = {patient: n % _FOLDS for n, patient in enumerate(sorted(set(patients)))}
    return np.array([order[patient] for patient in patients], dtype=np.int64)


def by_attention(
    train: Sequence[NDArray[np.floating]],
    answers: Answers,
    scored: Sequence[NDArray[np.floating]],
    *,
    heads: int,
    steps: int,
    learning_rate: float,
    seed: int,
) -> Table:
    """Train queries that weigh an image's tokens, and one linear layer on what they gather.

    The features stay frozen. Each head's weights are the softmax of a learned query with the tokens; the weighted means
    of all heads go into the layer. Queries begin near zero, that is as mean pooling.

    Args:
        train: tokens of each training image, (T, F), T may differ.
        answers: of the training images.
        scored: tokens of each scored image.
        heads: queries.
        steps: of AdamW on up to 64 images each.
        learning_rate: falls to zero along a cosine.
        seed: of the first queries and of the order of images.

    Returns:
        Probabilities (Q, K), or values of a measure (Q, 1).

    Source: attentive probe of Bardes et al. 2024, V-JEPA, arXiv:2404.08471, appendix; here without an MLP, because
        labelled images are few.
    """
    every = np.concatenate(train).astype(np.float64)
    _, flat = standardized(every, np.concatenate([*train, *scored]).astype(np.float64))
    sizes = [len(tokens) for tokens in (*train, *scored)]
    tokens, held = _padded(np.split(flat.astype(np.float32), np.cumsum(sizes)[:-1]))  # (N + Q, T, F), (N + Q, T)
    random = torch.Generator().manual_seed(seed & ((1 << 63) - 1))
    n, features, outputs = len(train), tokens.shape[2], answers.classes or 1
    query = (torch.randn(heads, features, generator=random) * 0.02).requires_grad_()
    weight = torch.zeros(outputs, heads * features, requires_grad=True)
    bias = torch.zeros(outputs, requires_grad=True)
    optimizer = torch.optim.AdamW([query, weight, bias], lr=learning_rate, weight_decay=0.1)
    centre, spread = float(answers.values.mean()), float(answers.values.std()) or 1.0
    truth = torch.as_tensor(answers.values if answers.classes else (answers.values - centre) / spread)
    with torch.enable_grad():
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * 0.5 * (1 + np.cos(np.pi * step / steps))
            some = torch.randperm(n, generator=random)[: min(n, 64)]
            found = _attended(tokens[some], held[some], query) @ weight.T + bias
            if answers.classes:
                loss = functional.cross_entropy(found, truth[some].long())
            else:
                loss = functional.mse_loss(found[:, 0], truth[some].float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        found = torch.cat(
            [
                _attended(tokens[at : at + 64], held[at : at + 64], query) @ weight.T + bias
                for at in range(n, len(tokens), 64)
            ]
        )
        out = found.double().softmax(1) if answers.classes else found.double() * spread + centre
    return np.asarray(out.numpy(), dtype=np.float64)


def _attended(tokens: Tensor, held: Tensor, query: Tensor) -> Tensor:
    """Return the weighted means of all heads, (N, heads x F)."""
    scores = tokens @ query.T / tokens.shape[2] ** 0.5  # (N, T, heads)
    share = scores.masked_fill(~held[..., None], float("-inf")).softmax(1)
    return torch.einsum("nth,ntf->nhf", share, tokens).flatten(1)


def _padded(rows: Sequence[NDArray[np.float32]]) -> tuple[Tensor, Tensor]:
    longest = max(len(row) for row in rows)
    tokens = torch.zeros(len(rows), longest, rows[0].shape[1])
    held = torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.from_numpy(np.ascontiguousarray(row))
        held[i, : len(row)] = True
    return tokens, held
