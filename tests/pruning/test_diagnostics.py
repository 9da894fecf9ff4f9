from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from prunelab.models import resnet20, resnet110
from prunelab.pruning import Masks, PruningError, score
from prunelab.pruning.criteria import synflow
from prunelab.pruning.diagnostics import (
    collapsed_layers,
    count_leaked,
    count_macs,
    effective_density,
    effective_masks,
    mask_overlap,
    zero_score_share,
)
from prunelab.pruning.preflight import preflight

from .nets import Residual, chain, dense, mlp, random_masks, residual, two_by_two, vgg_like


def as_bool(*rows: list[int]) -> Tensor:
    return torch.tensor(rows, dtype=torch.bool)


# --- collapse, overlap, leaks, zero scores ---


def test_collapsed_layers_are_empty_ones_beside_others() -> None:
    masks = Masks({"a": as_bool([0, 0]), "b": as_bool([0, 1]), "c": as_bool([0, 0])})
    assert collapsed_layers(masks) == ["a", "c"]
    assert collapsed_layers(dense(vgg_like())) == []
    assert collapsed_layers(Masks({"a": as_bool([0, 0])})) == []


def test_overlap_is_intersection_over_union() -> None:
    a = Masks({"a": as_bool([1, 1, 0]), "b": as_bool([1, 0])})
    b = Masks({"a": as_bool([0, 1, 1]), "b": as_bool([1, 0])})
    assert mask_overlap(a, b) == mask_overlap(b, a) == 2 / 4
    assert mask_overlap(a, a) == 1
    empty = Masks({"a": as_bool([0])})
    assert mask_overlap(empty, empty) == 1
    with pytest.raises(ValueError, match="b"):
        mask_overlap(a, Masks({"a": a["a"]}))


def test_leaked_weights_are_pruned_ones_that_are_not_zero() -> None:
    net = mlp(3, 2)
    masks = Masks({"0.weight": as_bool([1, 0, 0], [0, 1, 0])})
    masks.apply_to(net)
    assert count_leaked(net, masks) == 0
    with torch.no_grad():
        net[0].weight[0, 1] = 1e-30
        net[0].weight[1, 2] = float("nan")
        net[0].weight[0, 2] = -0.0
    assert count_leaked(net, masks) == 2


def test_leaked_weights_are_pruned_ones_that_left_their_frozen_values() -> None:
    """Frozen at .1, 0, .3 and .4: of .1, -0, NaN and .4 + 1 ulp the last two departed; kept ones may be anything."""
    net = mlp(3, 2).float()
    masks = Masks({"0.weight": as_bool([1, 0, 0], [0, 1, 0])})
    frozen = {"0.weight": torch.tensor([[9.0, 0.1, 0.0], [0.3, 9.0, 0.4]], dtype=torch.float32)}
    masks.apply_to(net, frozen)
    assert count_leaked(net, masks, frozen) == 0
    assert count_leaked(net, masks) == 3
    with torch.no_grad():
        net[0].weight[0, 2] = -0.0
        net[0].weight[1, 0] = float("nan")
        net[0].weight[1, 2] = torch.nextafter(torch.tensor(0.4), torch.tensor(1.0))
    assert count_leaked(net, masks, frozen) == 2


def test_zero_score_share_is_of_kept_weights() -> None:
    masks = Masks({"a": as_bool([1, 1, 0, 1])})
    assert zero_score_share({"a": torch.tensor([[0.0, 2.0, 0.0, -0.0]])}, masks) == 2 / 3


# --- effective density ---


def test_a_hidden_unit_without_a_way_out() -> None:
    """3 of 6 weights kept; the second unit's weight leads nowhere: 2 of 6 are on a path."""
    masks = Masks({"0.weight": as_bool([1, 0], [1, 0]), "2.weight": as_bool([1, 0])})
    assert masks.density == 3 / 6
    assert effective_density(two_by_two(), masks, torch.zeros(1, 2)) == 2 / 6
    effective = effective_masks(two_by_two(), masks, torch.zeros(1, 2))
    assert effective["0.weight"].tolist() == [[True, False], [False, False]]


def test_a_hidden_unit_without_a_way_in() -> None:
    masks = Masks({"0.weight": as_bool([0, 1], [0, 0]), "2.weight": as_bool([1, 1])})
    assert effective_density(two_by_two(), masks, torch.zeros(1, 2)) == 2 / 6


def test_signs_and_sizes_of_weights_and_modes_do_not_matter() -> None:
    net = vgg_like().train()
    masks = random_masks(net, 0.3)
    expected = effective_masks(net, masks, torch.zeros(1, 2, 6, 6))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        for buffer in net.buffers():
            buffer.zero_()
    assert effective_masks(net, masks, torch.full((1, 2, 6, 6), -3.0)) == expected
    assert net.training


Edge = tuple[object, object, tuple[str, int] | None]  # from, to, (parameter, flat index) or None for free passage


def on_a_path(edges: list[Edge], sources: set[object], sinks: set[object]) -> set[tuple[str, int]]:
    """The parameters' entries that are on a path from a source to a sink, by plain graph search."""

    def reachable(start: set[object], steps: dict[object, list[object]]) -> set[object]:
        found, stack = set(start), list(start)
        while stack:
            for target in steps.get(stack.pop(), []):
                if target not in found:
                    found.add(target)
                    stack.append(target)
        return found

    forward: dict[object, list[object]] = {}
    backward: dict[object, list[object]] = {}
    for begin, end, _ in edges:
        forward.setdefault(begin, []).append(end)
        backward.setdefault(end, []).append(begin)
    after, before = reachable(sources, forward), reachable(sinks, backward)
    return {use for begin, end, use in edges if use is not None and begin in after and end in before}


def linear_edges(name: str, mask: Tensor, source: str, target: str) -> Iterator[Edge]:
    for i, j in mask.nonzero().tolist():
        yield (source, j), (target, i), (name, i * mask.shape[1] + j)


def conv_edges(
    name: str, mask: Tensor, source: str, target: str, size: int, stride: int = 1, padding: int = 1, groups: int = 1
) -> Iterator[Edge]:
    """Every use of every kept kernel tap on a size x size image."""
    flat = torch.arange(mask.numel()).view(mask.shape)
    out_size = (size + 2 * padding - mask.shape[2]) // stride + 1
    for o, i, dy, dx in mask.nonzero().tolist():
        channel = i + (o // (mask.shape[0] // groups)) * mask.shape[1]
        for y, x in product(range(out_size), repeat=2):
            from_y, from_x = y * stride + dy - padding, x * stride + dx - padding
            if 0 <= from_y < size and 0 <= from_x < size:
                yield (source, channel, from_y, from_x), (target, o, y, x), (name, int(flat[o, i, dy, dx]))


def pool_edges(source: str, target: str, channels: int, size: int, window: int) -> Iterator[Edge]:
    for c, y, x in product(range(channels), range(size), range(size)):
        yield (source, c, y, x), (target, c, y // window, x // window), None


def pixels(name: str, channels: int, size: int) -> set[object]:
    return {(name, c, y, x) for c, y, x in product(range(channels), range(size), range(size))}


def entries(masks: Masks) -> set[tuple[str, int]]:
    return {(name, i) for name, mask in masks.items() for i in mask.flatten().nonzero().flatten().tolist()}


@pytest.mark.parametrize("seed", range(20))
def test_fully_connected_equals_path_search(seed: int) -> None:
    net = mlp(4, 5, 5, 3)
    masks = random_masks(net, 0.3, seed)
    edges = [edge for name, mask in masks.items() for edge in linear_edges(name, mask, name[0], str(int(name[0]) + 2))]
    expected = on_a_path(edges, {("0", j) for j in range(4)}, {("6", i) for i in range(3)})
    assert entries(effective_masks(net, masks, torch.zeros(1, 4))) == expected


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveMaxPool2d(2), nn.AdaptiveAvgPool2d(2)])
@pytest.mark.parametrize("seed", range(4))
def test_convolutions_and_pooling_equal_path_search(seed: int, pool: nn.Module) -> None:
    """Stride, groups, padding, and a linear layer that sees single pixels: a border tap may be the only dead one."""
    net = nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1, groups=2), nn.BatchNorm2d(4), nn.ReLU(), pool),
        *(nn.Conv2d(4, 2, 3, stride=2, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(2, 2)),
    )
    masks = random_masks(net, 0.25, seed)
    edges = [
        *conv_edges("0.weight", masks["0.weight"], "image", "first", 4, groups=2),
        *pool_edges("first", "pooled", 4, 4, 2),
        *conv_edges("4.weight", masks["4.weight"], "pooled", "second", 2, stride=2),
        *((("second", c, 0, 0), ("flat", c), None) for c in range(2)),
        *linear_edges("7.weight", masks["7.weight"], "flat", "out"),
    ]
    expected = on_a_path(edges, pixels("image", 2, 4), {("out", 0), ("out", 1)})
    assert entries(effective_masks(net, masks, torch.zeros(1, 2, 4, 4))) == expected


@pytest.mark.parametrize("seed", range(12))
def test_residual_networks_equal_path_search(seed: int) -> None:
    """Identity shortcuts let the signal pass a dead branch; weights of a branch that ends dead do not count."""
    net, size = Residual(), 3
    masks = random_masks(net, 0.12, seed)

    def block(prefix: str, source: str, target: str, shortcut: list[Edge]) -> list[Edge]:
        return [
            *conv_edges(f"{prefix}.conv1.weight", masks[f"{prefix}.conv1.weight"], source, f"{prefix} inner", size),
            *conv_edges(f"{prefix}.conv2.weight", masks[f"{prefix}.conv2.weight"], f"{prefix} inner", target, size),
            *shortcut,
        ]

    name = "blocks.1.shortcut.weight"
    edges = [
        *conv_edges("stem.weight", masks["stem.weight"], "image", "stream", size),
        *block("blocks.0", "stream", "middle", list(pool_edges("stream", "middle", 3, size, 1))),
        *block("blocks.1", "middle", "end", list(conv_edges(name, masks[name], "middle", "end", size, padding=0))),
        *((pixel, ("flat", pixel[1]), None) for pixel in pixels("end", 4, size)),
        *linear_edges("classifier.weight", masks["classifier.weight"], "flat", "out"),
    ]
    expected = on_a_path(edges, pixels("image", 2, size), {("out", i) for i in range(3)})
    assert entries(effective_masks(net, masks, torch.zeros(1, 2, size, size))) == expected


def test_kernel_taps_that_see_only_padding_are_on_no_path() -> None:
    """A 3x3 kernel with padding 1 on a picture of one pixel: only its centre ever sees it."""
    net = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1))
    effective = effective_masks(net, dense(net), torch.zeros(1, 1, 1, 1))
    assert effective["0.weight"].flatten().tolist() == [False] * 4 + [True] + [False] * 4


def test_no_path_at_all_is_zero() -> None:
    masks = Masks({"0.weight": as_bool([1, 1], [0, 0]), "2.weight": as_bool([0, 1])})
    assert effective_density(two_by_two(), masks, torch.zeros(1, 2)) == 0


def test_layers_that_are_not_pruned_pass_everything() -> None:
    net = two_by_two()
    masks = Masks({"0.weight": as_bool([1, 0], [0, 0])})
    assert effective_density(net, masks, torch.zeros(1, 2)) == 1 / 4


def test_deep_networks_do_not_overflow() -> None:
    """About 15^300 paths, more than float64 holds; whether there is one, it can tell."""
    net = nn.Sequential(*(nn.Linear(30, 30, bias=False) for _ in range(300)))
    masks = random_masks(net, 0.5)
    assert effective_density(net, masks, torch.zeros(1, 30)) == masks.density


def test_deep_residual_networks_do_not_overflow() -> None:
    net = resnet110()
    assert effective_density(net, dense(net), torch.zeros(1, 3, 8, 8)) == 1


def test_whole_number_inputs_are_taken_as_they_are() -> None:
    net = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(8, 2))
    masks = Masks({"2.weight": torch.arange(16).view(2, 8) % 2 == 0})
    assert effective_density(net, masks, torch.tensor([[4, 0]])) == 0.5


class Attention(nn.Module):
    def __init__(self, packed: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 2)
        self.packed = packed

    def forward(self, x: Tensor) -> Tensor:
        if self.packed:
            x, _ = self.attention(x, x, x)
        else:
            x = nn.functional.scaled_dot_product_attention(x, x, x)
        return self.head(x.mean(1))


@pytest.mark.parametrize(
    ("net", "inputs"),
    [
        (Attention(packed=True), torch.zeros(1, 3, 4)),
        (Attention(packed=False), torch.zeros(1, 3, 4)),
        (nn.Sequential(nn.Conv2d(1, 1, 3), nn.MaxPool2d(2, dilation=2)), torch.zeros(1, 1, 9, 9)),
    ],
)
def test_what_cannot_be_followed_is_refused(net: nn.Module, inputs: Tensor) -> None:
    with pytest.raises(PruningError, match="cannot be followed"):
        effective_density(net, dense(net), inputs)


def test_max_pooling_that_returns_indices_is_refused() -> None:
    class Indices(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3)
            self.pool = nn.MaxPool2d(2, return_indices=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.pool(self.conv(x))[0]

    net = Indices()
    with pytest.raises(PruningError, match="cannot be followed"):
        effective_density(net, dense(net), torch.zeros(1, 1, 6, 6))


def test_networks_with_several_outputs_are_refused() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.linear(x), x

    with pytest.raises(PruningError, match="returns a tuple"):
        effective_density(Two(), dense(Two()), torch.zeros(1, 2))


# --- multiply-adds, counted by hand ---


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x))


class Windows(nn.Module):
    """Tokens stand in the batch dimension while the linear layer runs, as window attention has it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.reshape(-1, 3)).view(x.shape[0], -1, 4)


MACS = [
    (nn.Linear(3, 4), (1, 3), 12),
    (nn.Linear(3, 4), (1, 5, 3), 12 * 5),  # on tokens
    (nn.Linear(3, 4), (1, 5, 6, 3), 12 * 30),
    (nn.Conv2d(2, 4, 3), (1, 2, 8, 8), 72 * 36),
    (nn.Conv2d(2, 4, 3, padding=1), (1, 2, 8, 8), 72 * 64),  # padding counts as a position like any other
    (nn.Conv2d(2, 4, 3, stride=2, padding=1), (1, 2, 8, 8), 72 * 16),
    (nn.Conv2d(2, 4, 3, dilation=2), (1, 2, 8, 8), 72 * 16),
    (nn.Conv2d(4, 4, 3, groups=4), (1, 4, 8, 8), 36 * 36),  # depthwise
    (nn.Conv2d(4, 8, (1, 3), groups=2), (1, 4, 8, 8), 8 * 2 * 3 * 8 * 6),
    (nn.Conv1d(2, 4, 3), (1, 2, 8), 24 * 6),
    (nn.Conv3d(1, 2, 2), (1, 1, 3, 3, 3), 16 * 8),
    (nn.ConvTranspose2d(2, 4, 3, stride=2), (1, 2, 5, 5), 72 * 25),  # each input pixel meets the whole kernel
    (Twice(), (1, 3), 18),
    (Windows(), (1, 5, 3), 12 * 5),
    (nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2)), (1, 1, 6, 6), 18 * 16),
]


@pytest.mark.parametrize(("net", "shape", "count"), MACS, ids=lambda value: str(value).splitlines()[0])
def test_macs_counted_by_hand(net: nn.Module, shape: tuple[int, ...], count: int) -> None:
    assert count_macs(net, torch.zeros(shape)) == count
    assert count_macs(net, torch.zeros(shape), dense(net)) == count
    none_kept = Masks({name: torch.zeros_like(mask) for name, mask in dense(net).items()})
    assert count_macs(net, torch.zeros(shape), none_kept) == 0


def test_macs_under_a_mask_count_kept_weights_not_values() -> None:
    """By layer: kept weights times positions; a kept weight that happens to be 0 counts, an unmasked layer in full."""
    net = vgg_like()
    masks = Masks({name: random_masks(net)[name] for name in ("0.weight", "4.weight")})
    with torch.no_grad():
        net[0].weight.zero_()
    kept = masks.layer_num_kept()
    expected = kept["0.weight"] * 36 + kept["4.weight"] * 9 + 15
    assert count_macs(net, torch.zeros(1, 2, 6, 6, dtype=torch.float64), masks) == expected
    assert count_macs(net, torch.zeros(1, 2, 6, 6, dtype=torch.float64)) == 72 * 36 + 180 * 9 + 15


def test_macs_are_of_one_example() -> None:
    assert count_macs(nn.Linear(3, 4), torch.zeros(7, 3)) == 12


def test_macs_of_resnet20() -> None:
    """By hand, 32x32: stem 442,368; stage 1: 6 * 2,359,296; stages 2 and 3: 1,179,648 + 5 * 2,359,296 each and their
    1x1 shortcuts of 131,072 each; classifier 640."""
    blocks = 6 * 2_359_296 + 2 * (1_179_648 + 5 * 2_359_296) + 2 * 131_072
    assert count_macs(resnet20(), torch.zeros(1, 3, 32, 32)) == 442_368 + blocks + 640


def test_counting_leaves_no_trace() -> None:
    net = residual().train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    count_macs(net, torch.zeros(1, 2, 4, 4, dtype=torch.float64))
    effective_density(net, dense(net), torch.zeros(1, 2, 4, 4))
    assert net.training
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_chain_of_given_weights() -> None:
    """The helper these tests rest on."""
    assert [tuple(parameter.shape) for parameter in chain([[1, 2]], [[3], [4]]).parameters()] == [(1, 2), (2, 1)]


class SelfAttention(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=batch_first)
        self.head = nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.attention(tokens, tokens, tokens)[0]).mean((0, 1))[None]


@pytest.mark.parametrize("batch_first", [True, False])
def test_macs_of_attention(batch_first: bool) -> None:
    net = SelfAttention(batch_first)
    tokens = torch.zeros(1, 5 if batch_first else 1, 4)
    num_tokens = tokens.numel() // 4
    # three projections and the output's, 4 x 4 weights each, and the head's 12, once per token
    assert count_macs(net, tokens) == num_tokens * (3 * 16 + 16 + 12)
    in_proj = torch.zeros(12, 4, dtype=torch.bool)
    in_proj[4] = True  # one row of the keys' projection
    out_proj = torch.eye(4, dtype=torch.bool)
    masks = Masks({"attention.in_proj_weight": in_proj, "attention.out_proj.weight": out_proj})
    assert count_macs(net, tokens, masks) == num_tokens * (4 + 4 + 12)


def test_recurrent_layers_are_not_followed() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lower, self.cell, self.head = nn.Linear(3, 4), nn.LSTM(4, 4), nn.Linear(4, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.head(self.cell(self.lower(inputs))[0])

    net = Recurrent()
    with pytest.raises(PruningError, match="paths through lstm cannot be followed"):
        effective_density(net, Masks.dense(net, ["lower.weight"]), torch.zeros(1, 3))


def test_a_network_that_casts_has_no_effective_density_but_a_report() -> None:
    class Casts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.layer((inputs - 0.1).float())

    net, example = Casts(), torch.zeros(1, 3)
    masks = Masks.dense(net, ["layer.weight"])
    with pytest.raises(PruningError, match=r"the network cannot be run in torch.float64"):
        effective_density(net, masks, example)
    assert preflight(net, masks, example, density_requested=1.0).effective_density is None
    with pytest.raises(PruningError, match=r"the network cannot be run in torch.float64"):
        score(net, synflow, example_input=example)
