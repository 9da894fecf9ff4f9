"""Is SynFlow's R a flow? The maximal flow of the graph of |W| beside it.

    python questions/max_flow.py [--seeds 3] [--output FOLDER]

LeNet-300-100 as a graph: a node for each unit, an edge of capacity |w| for each weight, all inputs joined to a source,
all outputs to a sink. The maximal flow sums, R multiplies along paths.
"""

from __future__ import annotations

import asking
import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.sparse import csr_matrix  # type: ignore[import-untyped]
from scipy.sparse.csgraph import maximum_flow  # type: ignore[import-untyped]
from scipy.stats import spearmanr  # type: ignore[import-untyped]
from torch import Tensor, nn

DENSITIES = (0.3, 0.1, 0.03, 0.01)
LARGEST = 2**30  # capacities and flow are 32-bit integers; no flow exceeds the sum of a layer


def max_flow(layers: list[Tensor]) -> float:
    """Maximal flow through layers of weights (out, in); |w| is rounded to 2**-30 of the largest sum of a layer."""
    sizes = [layers[0].shape[1], *(layer.shape[0] for layer in layers)]
    starts = np.cumsum([0, *sizes])
    source, sink = starts[-1], starts[-1] + 1
    unit = max(layer.abs().sum().item() for layer in layers) / LARGEST
    heads, tails, capacities = [], [], []
    for index, layer in enumerate(layers):
        ends, begins = layer.nonzero(as_tuple=True)
        tails.append(begins.numpy() + starts[index])
        heads.append(ends.numpy() + starts[index + 1])
        capacities.append((layer[ends, begins].abs().double() / unit).round().numpy())
    tails += [np.full(sizes[0], source), np.arange(starts[-2], starts[-1])]
    heads += [np.arange(sizes[0]), np.full(sizes[-1], sink)]
    capacities += [np.full(sizes[0] + sizes[-1], LARGEST)]
    data, rows, columns = (np.concatenate(parts).astype(np.int32) for parts in (capacities, tails, heads))
    graph = csr_matrix((data, (rows, columns)), shape=(sink + 1, sink + 1))
    return float(maximum_flow(graph, source, sink).flow_value * unit)


def path_sum(layers: list[Tensor]) -> float:
    """R = 1' prod |W_l| 1."""
    signal = torch.ones(layers[0].shape[1], dtype=torch.float64)
    for layer in layers:
        signal = layer.abs().double() @ signal
    return signal.sum().item()


def weights_of(net: nn.Module) -> list[Tensor]:
    return [layer.weight.detach() for layer in net.modules() if isinstance(layer, nn.Linear)]


def ask(seeds: int) -> asking.Answer:
    rows, points = [], []
    for density in DENSITIES:
        for name in asking.CRITERIA:
            found = []
            for seed in range(seeds):
                net = asking.build(asking.lenet, seed)
                dense = weights_of(net)
                of_dense = (path_sum(dense), max_flow(dense))
                masks = asking.pruned(net, name, density, seed)
                masks.apply_to(net)
                kept = weights_of(net)
                shares = (path_sum(kept) / of_dense[0], max_flow(kept) / of_dense[1])
                found.append((*shares, asking.trained(asking.lenet, seed, masks)))
            points += [(name, density, *numbers) for numbers in found]
            shares_of_r, shares_of_flow, accuracies = zip(*found, strict=True)
            means = [f"{sum(shares_of_r) / seeds:.2g}", f"{sum(shares_of_flow) / seeds:.2g}"]
            rows.append([f"{density:g}", f"`{name}`", *means, asking.spread(accuracies)])
    head = ["density", "criterion", "R / dense R", "flow / dense flow", "accuracy"]
    return asking.Answer(f"{asking.table(head, rows)}\n\n{_ranks(points)}", _figure(points))


def _ranks(points: list[tuple[str, float, float, float, float]]) -> str:
    rows = []
    for density in DENSITIES:
        _, _, of_r, of_flow, accuracies = zip(*(p for p in points if p[1] == density), strict=True)
        pairs = ((of_r, of_flow), (of_r, accuracies), (of_flow, accuracies))
        rows.append([f"{density:g}", *(f"{spearmanr(*pair).statistic:.2f}" for pair in pairs)])
    head = ["density", "rank correlation of R and flow", "of R and accuracy", "of flow and accuracy"]
    return asking.table(head, rows)


def _figure(points: list[tuple[str, float, float, float, float]]) -> Figure:
    figure = Figure((5.5, 3.4), layout="constrained")
    axes = figure.subplots()
    for name in asking.CRITERIA:
        own = [point for point in points if point[0] == name]
        alive = [point for point in own if point[2] > 0]  # 0 has no place on a log axis
        title = f"{name} ({len(own) - len(alive)} of {len(own)} at 0)" if len(alive) < len(own) else name
        axes.loglog([point[2] for point in alive], [point[3] for point in alive], ".", label=title)
    axes.set(xlabel="R / dense R", ylabel="maximal flow / dense flow")
    axes.grid(color="#e0e0e0")
    axes.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    asking.main("max_flow", ask, __doc__)
