"""Magnitudes rebalance towards conservation as training goes on (Tanaka et al. 2020, figure 5b)."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from prunelab.paper.collapse import least_kept
from prunelab.paper.conservation import log_slope
from prunelab.paper.figures import training_conservation_figure
from prunelab.paper.result import Result, Say
from prunelab.paper.subject import Subject
from prunelab.report.plots import layer_name
from prunelab.report.repeats import aligned_table


@dataclass(frozen=True)
class Training:
    """SGD with momentum .9 and constant rate. scale: of the weights at initialisation."""

    lr: float
    weight_decay: float
    scale: float = 1.0

    def __str__(self) -> str:
        smaller = f", initial weights times {self.scale:g}" if self.scale != 1 else ""
        return f"learning rate {self.lr:g}, weight decay {self.weight_decay:g}{smaller}"


def train_epoch(
    net: nn.Module, optimizer: torch.optim.Optimizer, batches: Sequence[tuple[Tensor, Tensor]]
) -> tuple[float, float]:
    """(mean loss, accuracy) over the batches, before the step on each of them."""
    net.train()
    loss_sum, num_right, num_seen = 0.0, 0, 0
    for images, labels in batches:
        outputs = net(images)
        loss = cross_entropy(outputs, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss_sum += loss.item() * len(labels)
        num_right += int((outputs.argmax(-1) == labels).sum())
        num_seen += len(labels)
    return loss_sum / num_seen, num_right / num_seen


def training_conservation(
    subject: Subject, trainings: Sequence[Training], epochs: int, batch_size: int, say: Say
) -> Result:
    """Mean squared weight of each layer against its size, at initialisation and after each epoch, and its growth.

    On the training pictures, un-augmented. Gradient flow without weight decay adds the same sum of squares to every
    layer of a ReLU network without batch norm (biases counted): the growth has slope -1 from the start, and the
    squares themselves, which magnitude pruning ranks, would follow once it outweighs what was there at
    initialisation. Weight decay of strength l lets the differences of the layers' sums fade, as exp(-2 l t).
    Critical compression is that of pruning these magnitudes once (`least_kept`).
    """
    rows: list[dict[str, Any]] = []
    for training in trainings:
        rows += _train(subject, training, epochs, batch_size, say)
    lines = []
    shown = shown_epochs(epochs)
    for row in {(row["training"], row["epoch"]): row for row in rows if row["epoch"] in shown}.values():
        numbers = (row["train_loss"], row["train_accuracy"], row["slope"], row["slope_of_growth"])
        texts = ["-" if number != number else f"{number:.3f}" for number in numbers]
        critical = f"{row['critical_compression']:,.1f}"
        lines.append([row["training"], str(row["epoch"]), *texts, critical, row["first_empty_layer"]])
    header = ["training", "epoch", "train loss", "train accuracy", "slope of mean squares", "slope of their growth"]
    table = aligned_table([[*header, "critical compression of magnitude", "first empty layer"], *lines])
    return Result(rows, table, training_conservation_figure(rows, shown, subject.network))


def _train(subject: Subject, training: Training, epochs: int, batch_size: int, say: Say) -> list[dict[str, Any]]:
    """A row for each layer after each epoch, and before the first."""
    net, module = deepcopy(subject.net), subject.module
    images = subject.fit(module.normalise(module.arrays.train_images[module.train_indices]))
    labels = module.arrays.train_labels[module.train_indices]
    options: dict[str, Any] = {"lr": training.lr, "weight_decay": training.weight_decay, "momentum": 0.9}
    optimizer, order = torch.optim.SGD(net.parameters(), **options), torch.Generator().manual_seed(subject.seed)
    sizes = {name: mask.numel() for name, mask in subject.dense.items()}
    for name in sizes:
        net.get_parameter(name).data.mul_(training.scale)
    rows: list[dict[str, Any]] = []
    start: dict[str, float] = {}
    for epoch in range(epochs + 1):
        loss, accuracy = float("nan"), float("nan")
        if epoch:
            chosen = torch.randperm(len(images), generator=order).split(batch_size)
            loss, accuracy = train_epoch(net, optimizer, [(images[part], labels[part]) for part in chosen])
        parameters = dict(net.named_parameters())
        means = {name: float(parameters[name].detach().square().mean()) for name in sizes}
        start = start or means
        num_kept, layer = least_kept({name: parameters[name].detach().abs() for name in sizes})
        growth = {name: means[name] - start[name] for name in sizes}
        slopes = [log_slope(list(sizes.values()), list(values.values())) for values in (means, growth)]
        trained = f"loss {loss:.3f}, accuracy {accuracy:.3f}, " if epoch else ""
        say(f"{training}: epoch {epoch}, {trained}slope {slopes[0]:.3f}")
        for name, size in sizes.items():
            rows.append(
                {
                    **{"training": str(training), "epoch": epoch, "layer": layer_name(name), "layer_size": size},
                    **{"mean_square": means[name], "growth": growth[name]},
                    **{"train_loss": loss, "train_accuracy": accuracy},
                    **{"slope": slopes[0], "slope_of_growth": slopes[1]},
                    "critical_compression": subject.dense.num_weights / num_kept,
                    "first_empty_layer": layer_name(layer),
                }
            )
    return rows


def shown_epochs(epochs: int) -> list[int]:
    """0, 1, 2, 5, 10, 20, 50, ... and the last."""
    steps = (digit * 10**power for power in range(len(str(epochs)) + 1) for digit in (1, 2, 5))
    return sorted({0, epochs, *(step for step in steps if step <= epochs)})
