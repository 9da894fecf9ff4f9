"""Conservation of scores, per hidden unit and per layer (Tanaka et al. 2020, figures 3 and 4)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunelab.paper.figures import layer_conservation_figure, unit_conservation_figure
from prunelab.paper.result import Result, Say
from prunelab.paper.subject import CRITERIA, Subject
from prunelab.pruning import PruningError, score
from prunelab.pruning.criteria import Snip
from prunelab.report.plots import layer_name
from prunelab.report.repeats import aligned_table

# beside the paper's criteria SNIP's score before its absolute value is taken: what the paper calls synaptic saliency
SCORED = {**CRITERIA, "saliency": Snip(batch_norm="running", signed=True)}


def unit_sums(net: nn.Module, scores: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    """(layer, in, out, absolute) for every layer but the last: sums over the scores of the weights that lead into each
    of its units, and of those that lead out; absolute = sum of the absolute values of both. Each of shape (units,).

    Units are channels of convolutions and outputs of linear layers. `net` must be a chain: an nn.Sequential of layers.
    Raises: PruningError for others, where a unit's weights cannot be told from the order of the layers.
    """
    if not isinstance(net, nn.Sequential) or any("." in name.removesuffix(".weight") for name in scores):
        raise PruningError("conservation per unit needs a network that is a chain, such as vgg16_bn, conv6 or mlp")
    for before, after in pairwise(scores):
        entering = scores[before].flatten(1)
        num_units = len(entering)
        # a linear layer behind a convolution sees each channel at several places, one after the other
        leaving = scores[after].reshape(len(scores[after]), num_units, -1).transpose(0, 1).flatten(1)
        yield before, entering.sum(1), leaving.sum(1), entering.abs().sum(1) + leaving.abs().sum(1)


def residuals(incoming: Tensor, outgoing: Tensor, absolute: Tensor) -> Tensor:
    """|in - out| / (sum of |scores| at the unit), in [0, 1]; 0 is conserved. Units without a score count as 0."""
    return (incoming - outgoing).abs() / torch.where(absolute > 0, absolute, 1.0)


def log_slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Slope of the least-squares line through (log x, log |y|); nan for fewer than two different x. 0s are left out."""
    points = [(a, abs(b)) for a, b in zip(x, y, strict=True) if b != 0]
    if len({a for a, _ in points}) < 2:
        return float("nan")
    log_x, log_y = np.log(np.array(points)).T
    centred = log_x - log_x.mean()
    return float((centred * log_y).sum() / (centred**2).sum())


def conservation(subject: Subject, criteria: Sequence[str], say: Say) -> tuple[Result, Result]:
    """(per unit, per layer), scored in float64: incoming against outgoing sums; mean score against layer size.

    At initialisation biases, shifts and running means are 0, so that batch norm on running statistics only scales:
    scores of the form w * dR/dw are then conserved for any R of the outputs, whatever the pictures.
    """
    net = deepcopy(subject.net).double()
    sizes = {name: mask.numel() for name, mask in subject.dense.items()}
    unit_rows: list[dict[str, Any]] = []
    layer_rows: list[dict[str, Any]] = []
    unit_lines, layer_lines = [], []
    for name in criteria:
        say(f"{subject.network}, seed {subject.seed}: {name} in float64")
        criterion = SCORED[name]
        options = subject.options(criterion)
        options["batches"] = [(images.double(), labels) for images, labels in options["batches"]]
        scores = score(net, criterion, **options)
        found = []
        for layer, incoming, outgoing, absolute in unit_sums(net, scores):
            found.append(residuals(incoming, outgoing, absolute))
            for unit, (into, out, residual) in enumerate(
                zip(incoming.tolist(), outgoing.tolist(), found[-1].tolist(), strict=True)
            ):
                unit_rows.append(
                    {
                        **{"criterion": name, "layer": layer_name(layer), "unit": unit},
                        **{"incoming": into, "outgoing": out, "residual": residual},
                    }
                )
        of_units = torch.cat(found)
        unit_lines.append([name, f"{len(of_units):,}", f"{of_units.median():.2g}", f"{of_units.max():.2g}"])
        means = {layer: float(values.mean()) for layer, values in scores.items()}
        totals = [means[layer] * size for layer, size in sizes.items()]
        slope = log_slope(list(sizes.values()), list(means.values()))
        spread = (max(totals) - min(totals)) / max(map(abs, totals))
        layer_lines.append([name, f"{slope:.3f}", f"{spread:.2g}"])
        for layer, size in sizes.items():
            layer_rows.append(
                {
                    **{"criterion": name, "layer": layer_name(layer), "layer_size": size},
                    **{"mean_score": means[layer], "total_score": means[layer] * size, "slope": slope},
                }
            )
    units = aligned_table([["criterion", "hidden units", "median residual", "largest residual"], *unit_lines])
    layers = aligned_table([["criterion", "log-log slope", "spread of the layers' totals"], *layer_lines])
    return (
        Result(unit_rows, units, unit_conservation_figure(unit_rows, subject.network)),
        Result(layer_rows, layers, layer_conservation_figure(layer_rows, subject.network)),
    )
