from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, weight_norm

from prunelab.pruning import PruningError, prunable_names
from prunelab.pruning.prunable import unpruned_parameters

from .nets import residual, vgg_like


class Zoo(nn.Module):
    """One of each kind of layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(1, 2, 3)
        self.conv3 = nn.Conv3d(1, 2, 3)
        self.up = nn.ConvTranspose2d(2, 2, 3)
        self.embedding = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm(4)
        self.prelu = nn.PReLU()
        self.attention = nn.MultiheadAttention(4, 2)
        self.gru = nn.GRU(4, 4)
        self.scale = nn.Parameter(torch.ones(3))
        self.head = nn.Linear(4, 2)


DEFAULT = ["conv1.weight", "conv3.weight", "up.weight", "attention.out_proj.weight", "head.weight"]


def test_weights_of_convolutions_and_linear_layers() -> None:
    assert prunable_names(Zoo()) == DEFAULT
    assert prunable_names(vgg_like()) == ["0.weight", "4.weight", "9.weight"]
    assert prunable_names(nn.Linear(2, 2)) == ["weight"]


def test_order_is_that_of_the_parameters() -> None:
    net = residual()
    names = prunable_names(net)
    assert names == [name for name, _ in net.named_parameters() if name in set(names)]


def test_what_is_pruned_and_what_is_not_is_listed_with_reasons() -> None:
    """Attention's packed matrix is not pruned by default, and the list says so; with include it is."""
    net = Zoo()
    names = prunable_names(net, exclude=["head.*"])
    unpruned = {name: (size, reason) for name, size, reason in unpruned_parameters(net, names)}
    assert unpruned["attention.in_proj_weight"] == (48, "MultiheadAttention parameter")
    assert unpruned["head.weight"] == (8, "excluded")
    assert unpruned["scale"] == (3, "Zoo parameter")
    assert unpruned["norm.weight"] == (4, "LayerNorm parameter")
    assert sorted([*unpruned, *names]) == sorted(name for name, _ in net.named_parameters())

    included = prunable_names(net, include=["*.in_proj_weight"])
    assert set(included) == {*DEFAULT, "attention.in_proj_weight"}
    assert "attention.in_proj_weight" not in {name for name, _, _ in unpruned_parameters(net, included)}


def test_patterns_include_then_exclude() -> None:
    assert prunable_names(Zoo(), exclude=["conv*", "up.*"]) == ["attention.out_proj.weight", "head.weight"]
    assert "embedding.weight" in prunable_names(Zoo(), include=["embedding.weight"])
    assert "embedding.weight" not in prunable_names(Zoo(), include=["embedding.*"], exclude=["*bedding.weight"])


@pytest.mark.parametrize("patterns", [{"include": ["head.wait"]}, {"exclude": ["head.*", "body.*"]}])
def test_a_pattern_that_matches_nothing_is_an_error(patterns: dict[str, list[str]]) -> None:
    with pytest.raises(PruningError, match=r"head\.wait|body\.\*"):
        prunable_names(Zoo(), **patterns)


def test_nothing_left_to_prune_is_an_error() -> None:
    with pytest.raises(PruningError, match="nothing to prune"):
        prunable_names(vgg_like(), exclude=["*"])
    with pytest.raises(PruningError, match="nothing to prune"):
        prunable_names(nn.Sequential(nn.ReLU(), nn.BatchNorm1d(3)))


def test_frozen_weights_count() -> None:
    net = vgg_like().requires_grad_(False)
    assert prunable_names(net) == ["0.weight", "4.weight", "9.weight"]


class LoraLinear(nn.Module):
    """As low-rank adapters look: the layer that was there inside, two small ones beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer = nn.Linear(4, 4)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(4, 1, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(1, 4, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


@pytest.mark.parametrize(
    ("wrapped", "reason"),
    [
        (lambda: parametrizations.weight_norm(nn.Linear(4, 4)), "computes its weight"),
        (lambda: parametrizations.orthogonal(nn.Linear(4, 4)), "computes its weight"),
        (lambda: parametrizations.spectral_norm(nn.Conv2d(4, 4, 3)), "computes its weight"),
        pytest.param(
            lambda: weight_norm(nn.Linear(4, 4)),
            "computes its weight",
            marks=pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning"),
        ),
        (lambda: prune.l1_unstructured(nn.Linear(4, 4), "weight", 0.5), "computes its weight"),
        (LoraLinear, "LoRA"),
        (lambda: nn.LazyLinear(4), "no weight yet"),
        (lambda: nn.LazyConv2d(4, 3), "no weight yet"),
    ],
)
def test_weights_that_are_not_plain_parameters_are_refused_by_name(
    wrapped: Callable[[], nn.Module], reason: str
) -> None:
    net = nn.ModuleDict({"first": nn.Linear(4, 4), "second": wrapped()})
    with pytest.raises(PruningError, match=rf"second.*{reason}") as caught:
        prunable_names(net)
    assert "\n" not in str(caught.value)


def test_a_lazy_module_after_its_first_batch_is_a_plain_one() -> None:
    net = nn.Sequential(nn.LazyLinear(3))
    net(torch.ones(1, 2))
    assert prunable_names(net) == ["0.weight"]


def test_any_module_of_any_library() -> None:
    """A network that knows nothing of prunelab: layers by subclass, nested, in lists."""

    class Scaled(nn.Conv2d):
        pass

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stages = nn.ModuleList([nn.Sequential(Scaled(1, 1, 1)), nn.ModuleDict({"x": nn.Linear(1, 1)})])

    assert prunable_names(Net()) == ["stages.0.0.weight", "stages.1.x.weight"]


def test_a_wrapped_weight_may_be_excluded() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    nn.utils.parametrizations.weight_norm(net[0])
    assert prunable_names(net, exclude=["0.*"]) == ["1.weight"]
    with pytest.raises(PruningError, match=r"0 \(ParametrizedLinear\) computes its weight"):
        prunable_names(net)
