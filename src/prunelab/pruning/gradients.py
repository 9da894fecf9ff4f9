"""Gradients of the scoring loss with respect to the masked weights, over fixed labelled batches."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from prunelab.pruning.scoring import Batch, Scoring, call_with, evaluation_mode

BatchNorm = Literal["running", "batch"]

# cross-entropy of a uniform guess is ln(classes); ten times that means logits so large that softmax is a step
SATURATED = 10.0


def masked_weights(scoring: Scoring) -> dict[str, Tensor]:
    """w * mask as fresh leaf tensors that take gradients."""
    return {
        name: weight.masked_fill(~scoring.masks[name], 0).requires_grad_() for name, weight in scoring.weights().items()
    }


def loss_gradient(
    scoring: Scoring, *, batch_norm: BatchNorm = "running", temperature: float = 1.0
) -> dict[str, Tensor]:
    """dL/d(w * mask), L = mean of loss(outputs / temperature, labels) over all samples of all batches.

    Each batch's mean loss counts by its number of samples, so with running statistics the result does not depend on
    how samples are cut into batches, up to rounding. Memory does not grow with the number of batches.
    Warns when the loss has saturated (above 10 ln(classes)): gradients then say little about the weights.
    """

    def gradient(loss: Tensor, weights: dict[str, Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)

    mean, loss, num_classes = _mean_over_samples(scoring, gradient, batch_norm, temperature)
    if scoring.round == 0:
        warn_if_saturated(loss, num_classes)
    return mean


def hessian_vector_product(
    scoring: Scoring, vector: Mapping[str, Tensor], *, batch_norm: BatchNorm, temperature: float
) -> dict[str, Tensor]:
    """H v, H the Hessian of the same L as in `loss_gradient` with respect to w * mask, exact by double backward.

    Memory does not grow with the number of batches.
    """

    def product(loss: Tensor, weights: dict[str, Tensor]) -> tuple[Tensor, ...]:
        leaves = list(weights.values())
        gradients = torch.autograd.grad(loss, leaves, create_graph=True, materialize_grads=True)
        along = torch.stack([(g * vector[name]).sum() for name, g in zip(weights, gradients, strict=True)]).sum()
        return torch.autograd.grad(along, leaves, materialize_grads=True)

    return _mean_over_samples(scoring, product, batch_norm, temperature)[0]


def _mean_over_samples(
    scoring: Scoring,
    derivative: Callable[[Tensor, dict[str, Tensor]], tuple[Tensor, ...]],
    batch_norm: BatchNorm,
    temperature: float,
) -> tuple[dict[str, Tensor], float, int]:
    """The mean of `derivative(loss, weights)`, one tensor per weight, and of the loss; and the number of classes."""
    weights = masked_weights(scoring)
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}

    # a function, so that a batch's graph and gradients are gone before the next batch is read
    def add(batch: Batch) -> tuple[float, int]:
        loss, num_classes = batch_loss(scoring, weights, batch, temperature)
        torch._foreach_add_(list(total.values()), derivative(loss, weights), alpha=len(batch[0]))
        return loss.item() * len(batch[0]), num_classes

    num_samples, loss_sum, most_classes = 0, 0.0, 0
    with evaluation_mode(scoring.net, batch_statistics=batch_norm == "batch"):
        for batch in scoring.batches:
            batch_sum, num_classes = add(batch)
            num_samples += len(batch[0])
            loss_sum += batch_sum
            most_classes = max(most_classes, num_classes)
    torch._foreach_div_(list(total.values()), num_samples)
    return total, loss_sum / num_samples, most_classes


def scoring_loss(scoring: Scoring, *, batch_norm: BatchNorm = "running") -> float:
    """Mean loss of the masked network over the scoring batches."""
    weights = masked_weights(scoring)
    loss_sum, num_samples = 0.0, 0
    with evaluation_mode(scoring.net, batch_statistics=batch_norm == "batch"), torch.no_grad():
        for batch in scoring.batches:
            loss_sum += batch_loss(scoring, weights, batch)[0].item() * len(batch[0])
            num_samples += len(batch[0])
    return loss_sum / num_samples


def batch_loss(
    scoring: Scoring, weights: Mapping[str, Tensor], batch: Batch, temperature: float = 1.0
) -> tuple[Tensor, int]:
    """Mean loss of one batch and the size of the outputs' last dimension."""
    inputs, labels = batch[0], batch[1]
    outputs = call_with(scoring.net, weights, inputs)
    return scoring.loss(outputs / temperature, labels), outputs.shape[-1] if outputs.dim() > 1 else 1


def warn_if_saturated(loss: float, num_classes: int) -> None:
    if num_classes > 1 and loss > SATURATED * math.log(num_classes):
        warnings.warn(
            f"the scoring loss has saturated: {loss:.3g}, against {math.log(num_classes):.2f} for a uniform guess "
            f'among {num_classes} classes; gradient scores mean little here (batch_norm: "batch" usually mends it)',
            stacklevel=2,
        )
