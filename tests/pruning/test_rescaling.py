from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from prunelab.models import resnet20, resnet110, resnet1202
from prunelab.pruning import Masks, PruningError, keep_highest, prune, score
from prunelab.pruning.criteria import SynFlow, synflow
from prunelab.pruning.rescaling import crossing_modules, scaled_at
from prunelab.pruning.surrogate import surrogate_output, surrogate_tensors

from .nets import chain, dense, mlp, residual, seeded, vgg_like

Run = Callable[[Tensor], Tensor]


def surrogate(net: nn.Module, masks: Masks | None = None) -> tuple[dict[str, Tensor], Run]:
    """Absolute weights that take gradients, and the positive linear network with them."""
    masks = masks or dense(net)
    weights = {
        name: (net.get_parameter(name).detach().double().abs() * mask).requires_grad_() for name, mask in masks.items()
    }
    tensors = surrogate_tensors(net, weights, torch.float64)
    return weights, lambda inputs: surrogate_output(net.eval(), tensors, inputs)


def names_of(net: nn.Module, modules: list[nn.Module]) -> set[str]:
    return {name for name, module in net.named_modules() if module in modules}


def crossing_names(net: nn.Module, inputs: Tensor) -> set[str]:
    return names_of(net, crossing_modules(net, surrogate(net)[1], inputs))


IMAGE = torch.ones(1, 2, 6, 6, dtype=torch.float64)


def test_a_chain_is_crossed_everywhere() -> None:
    """Activations and dropout hand their input on under the surrogate: whoever made it is the point, not they."""
    net = vgg_like()
    assert crossing_names(net, IMAGE) == {"", "0", "1", "3", "4", "5", "7", "8", "9"}


def test_a_residual_network_is_crossed_at_stem_and_block_outputs_not_inside_blocks() -> None:
    found = crossing_names(residual(), IMAGE)
    assert {"stem", "blocks", "blocks.0", "blocks.1", "classifier", ""} <= found
    inner = [f"blocks.{i}.{part}" for i in (0, 1) for part in ("conv1", "bn1", "conv2", "bn2", "shortcut")]
    assert not found & set(inner)


def test_the_projects_resnet() -> None:
    torch.manual_seed(0)
    net = resnet20()
    found = crossing_names(net, torch.ones(1, 3, 8, 8, dtype=torch.float64))
    blocks = {f"stage{stage}.{block}" for stage in (1, 2, 3) for block in range(3)}
    assert {"conv1", "bn1", *blocks, "stage1", "stage2", "stage3", "pool", "classifier"} <= found
    assert not [name for name in found if ".branch" in name or ".shortcut" in name]


class Graph(nn.Module):
    """A random directed graph of small layers; the last one is the output."""

    def __init__(self, edges: list[list[int]]) -> None:
        super().__init__()
        self.edges = edges
        self.layers = nn.ModuleList(nn.Linear(2, 2, bias=False) for _ in edges)

    def forward(self, x: Tensor) -> Tensor:
        outputs = [x]
        for layer, sources in zip(self.layers, self.edges, strict=True):
            outputs.append(layer(sum(outputs[i] for i in sources)))
        return outputs[-1]


@pytest.mark.parametrize("seed", range(25))
def test_crossing_points_of_random_graphs_equal_those_of_a_search(seed: int) -> None:
    """A layer is on every path if and only if the output cannot be reached once that layer is taken out."""
    generator = torch.Generator().manual_seed(seed)
    edges = []
    for target in range(1, 9):
        nearest = max(0, target - 3)
        sources = [i for i in range(nearest, target) if torch.rand((), generator=generator) < 0.5]
        edges.append(sources or [target - 1])
    net = seeded(Graph(edges), seed)

    def reachable(without: int) -> bool:
        reached = {0}
        for target, sources in enumerate(edges, start=1):
            if target != without and reached & set(sources):
                reached.add(target)
        return len(edges) in reached

    expected = {f"layers.{i - 1}" for i in range(1, len(edges) + 1) if not reachable(without=i)}
    assert crossing_names(net, torch.ones(1, 2, dtype=torch.float64)) - {""} == expected


class FunctionalResidual(nn.Module):
    """Sums outside of modules; an activation module, the identity here, begins each branch: it is no crossing point."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 3, bias=False) for _ in range(5))
        self.activations = nn.ModuleList(nn.ReLU() for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        for layer, activation in zip(self.layers, self.activations, strict=True):
            x = x * 3 + layer(activation(x))
        return x


class CalledTwice(nn.Module):
    """Once on every path, once in a branch only."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3, bias=False)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        return self.head(x + self.layer(x))


@pytest.mark.parametrize(
    ("net", "inputs"),
    [
        (vgg_like(), IMAGE),
        (residual(), IMAGE),
        (mlp(3, 5, 4, 2), torch.ones(1, 3)),
        (seeded(FunctionalResidual(), 0), torch.ones(1, 3)),
        (seeded(CalledTwice(), 0), torch.ones(1, 3)),
    ],
    ids=["vgg", "residual", "mlp", "functional residual", "called twice"],
)
def test_scaled_scores_equal_plain_ones_up_to_one_power_of_two(net: nn.Module, inputs: Tensor) -> None:
    """Bit for bit, and in every layer the same: so the masks are the same too."""
    inputs = inputs.double()
    weights, run = surrogate(net)
    with torch.no_grad():
        for weight in weights.values():
            weight.mul_(37)
    plain = torch.autograd.grad(run(inputs).sum(), list(weights.values()))
    with scaled_at(crossing_modules(net, run, inputs)):
        total = run(inputs).sum()
    scaled = torch.autograd.grad(total, list(weights.values()))

    factors = {
        (a / b).item() for p, s in zip(plain, scaled, strict=True) for a, b in zip(p.view(-1), s.view(-1), strict=True)
    }
    assert len(factors) == 1
    mantissa, exponent = math.frexp(factors.pop())
    assert mantissa == 0.5
    assert exponent > 2  # something was scaled at all
    masks = dense(net)
    choose = [
        keep_highest({n: w.detach() * g for (n, w), g in zip(weights.items(), gradients, strict=True)}, 0.2, masks)
        for gradients in (plain, scaled)
    ]
    assert choose[0] == choose[1]


def test_hooks_are_gone_afterwards() -> None:
    net = residual()
    points = crossing_modules(net, surrogate(net)[1], IMAGE)
    with pytest.raises(KeyError), scaled_at(points):
        raise KeyError
    assert not any(module._forward_hooks for module in net.modules())


def test_signals_from_end_to_end_of_the_floating_range() -> None:
    """Scaled to a maximum in [.5, 1), and an all-zero signal stays zero."""
    layer = nn.Identity()
    with scaled_at([layer]):
        for value in (5e-324, 1e-300, 0.3, 1.0, 1e300, 1.7e308):
            result = layer(torch.tensor([value, 0.0], dtype=torch.float64))
            assert 0.5 <= result[0] < 1
            assert result[1] == 0
        assert torch.equal(layer(torch.zeros(2)), torch.zeros(2))


def narrow(depth: int, factor: float) -> nn.Sequential:
    """`depth` layers of two units, no activation: the weights of seed 0, times `factor`."""
    net = seeded(nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(depth))), 0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(factor)
    return net


@pytest.mark.parametrize("factor", [10.0, 0.01], ids=["overflows", "underflows"])
def test_two_thousand_layers(factor: float) -> None:
    """R is about 1e2000 or 1e-4000: scores are finite, conserved from layer to layer, and their ranking is that of a
    network whose R can be written down."""
    inputs = torch.ones(1, 2, dtype=torch.float64)
    plain = surrogate(narrow(2000, factor))[1](inputs).sum().item()
    assert plain in (0.0, math.inf)
    scores = score(narrow(2000, factor), synflow, example_input=inputs)
    sums = torch.stack([values.sum() for values in scores.values()])
    torch.testing.assert_close(sums, sums[0].expand(2000), rtol=1e-9, atol=0)
    assert sums[0] > 0
    for before, after in pairwise(scores.values()):
        torch.testing.assert_close(before.sum(1), after.sum(0), rtol=1e-9, atol=0)


def test_overflowing_and_moderate_weights_give_the_same_masks() -> None:
    """All weights of all layers times a power of two: R overflows, the ranking is the same bit for bit."""
    inputs = torch.ones(1, 3, dtype=torch.float64)
    net, large = mlp(3, 6, 6, 6, 2), mlp(3, 6, 6, 6, 2)
    with torch.no_grad():
        for parameter in large.parameters():
            parameter.mul_(2.0**300)
    masks = prune(net, synflow, density=0.1, rounds=20, example_input=inputs)
    assert prune(large, synflow, density=0.1, rounds=20, example_input=inputs) == masks


def test_a_network_without_points_that_overflows_raises() -> None:
    """Nothing to scale at between its layers: scores that are inf or NaN are never sorted."""

    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.ParameterList(nn.Parameter(torch.ones(2, 2)) for _ in range(3))
            self.head = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            for weight in self.weights:
                x = x @ weight
            return self.head(x)

    net = Functional().double()
    with torch.no_grad():
        for weight in net.weights:
            weight.fill_(1e200)
    with pytest.raises(PruningError, match="inf or NaN"):
        score(net, synflow, example_input=torch.ones(1, 2, dtype=torch.float64))


def test_float32_is_rescaled_where_float64_need_not_be() -> None:
    net = chain(*[[[1e9, 2e9], [3e9, 1e9]]] * 6)
    inputs = torch.ones(1, 2, dtype=torch.float64)
    single = score(net, SynFlow(precision="float32"), example_input=inputs)
    double = score(net, synflow, example_input=inputs)
    ratios = torch.cat([(single[name].double() / double[name]).flatten() for name in double])
    torch.testing.assert_close(ratios, ratios[0].expand_as(ratios), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("build", "num_scores"), [(resnet110, 1_722_416), (resnet1202, 19_334_192)])
def test_synflow_is_finite_for_the_deepest_models(build: Callable[[], nn.Module], num_scores: int) -> None:
    """`score` raises on inf and NaN. The classifier's scores and the stem's both sum to R, up to the same factor."""
    torch.manual_seed(0)
    scores = score(build(), synflow, example_input=torch.zeros(1, 3, 8, 8))
    assert sum(values.numel() for values in scores.values()) == num_scores
    assert scores["conv1.weight"].sum().item() == pytest.approx(scores["classifier.weight"].sum().item(), rel=1e-9)
    assert scores["conv1.weight"].sum() > 0
