"""Networks made to break the analysis: each has dead channels, and something that a hasty rule gets wrong."""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunelab.compaction import CompactionError, compact, count_channels
from prunelab.pruning import Masks, prunable_names

from .exactness import assert_exact, make_trained, ragged_masks

WIDTH = 6


class Net(nn.Module):
    """conv BN [middle] conv BN ReLU pool linear; `middle` takes (the network, BN's output) and gives WIDTH channels."""

    def __init__(self, middle: Callable[[Net, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.middle = middle
        self.conv1, self.bn1 = nn.Conv2d(2, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH)
        self.conv2, self.bn2 = nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH)
        self.pool, self.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(WIDTH, 3)
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self, self.bn1(self.conv1(x)))
        return self.classifier(self.pool(F.relu(self.bn2(self.conv2(x)))).flatten(1))


def batch(seed: int = 0, size: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(size, 2, 6, 6, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(3, (size,), generator=generator)


def conv(inputs: int = WIDTH, outputs: int = WIDTH, **options: object) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1, **options)  # type: ignore[arg-type]


def overwritten_by_a_sum(net: Net, x: Tensor) -> Tensor:
    y = net.a(F.relu(x))
    y.add_(net.b(F.relu(x)))  # what y holds is read under its first name
    return y


def overwritten_through_a_view(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    y.flatten(1).add_(1)
    return y


def overwritten_by_relu(net: Net, x: Tensor) -> Tensor:
    y = F.relu(x, inplace=True)
    return x + net.a(y)


def overwritten_in_part(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    y[:, 1:].sub_(1)
    return y


def written_out(net: Net, x: Tensor) -> Tensor:
    y = net.a(F.relu(x))
    torch.add(y, 1, out=y)
    return y


def shuffled(net: Net, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def squeezed(net: Net, x: Tensor) -> Tensor:
    x = F.relu(x)
    return x * torch.sigmoid(net.b(F.relu(net.a(F.adaptive_avg_pool2d(x, 1)))))


def attended(net: Net, x: Tensor) -> Tensor:
    tokens = F.relu(x).flatten(2).transpose(1, 2)
    return net.a(tokens, tokens, tokens)[0].transpose(1, 2).unflatten(2, (6, 6))


def recurrent(net: Net, x: Tensor) -> Tensor:
    return net.a(F.relu(x).flatten(2).transpose(1, 2))[0].transpose(1, 2).unflatten(2, (6, 6))


def in_place_residual(net: Net, x: Tensor) -> Tensor:
    identity = F.relu(x, inplace=True)
    out = net.a(identity)
    out += identity
    return F.relu_(out)


def tied() -> dict[str, nn.Module]:
    one, other = conv(bias=False), conv()
    other.weight = one.weight
    return {"a": one, "b": other}


MIDDLES: dict[str, tuple[Callable[[Net, Tensor], Tensor], Callable[[], dict[str, nn.Module]]]] = {
    "relu": (lambda net, x: F.relu(x), dict),
    "relu in place": (lambda net, x: F.relu(x, inplace=True), dict),
    "input by keyword": (lambda net, x: F.relu(input=x), dict),
    "module by keyword": (lambda net, x: net.a(input=F.relu(x)), lambda: {"a": conv()}),
    "gelu": (lambda net, x: F.gelu(x), dict),
    "leaky": (lambda net, x: F.leaky_relu(x, 0.1), dict),
    "nothing": (lambda net, x: x, dict),
    "normalised twice": (lambda net, x: F.relu(net.a(x)), lambda: {"a": nn.BatchNorm2d(WIDTH)}),
    "no affine": (lambda net, x: F.relu(net.a(x)), lambda: {"a": nn.BatchNorm2d(WIDTH, affine=False)}),
    "no statistics": (
        lambda net, x: F.relu(net.a(x)),
        lambda: {"a": nn.BatchNorm2d(WIDTH, track_running_stats=False)},
    ),
    "pooled before relu": (lambda net, x: F.relu(F.max_pool2d(x, 2)), dict),
    "averaged before relu": (lambda net, x: F.relu(F.avg_pool2d(x, 2)), dict),
    "relu and sum": (lambda net, x: F.relu(x) + x, dict),
    "relu and layer": (lambda net, x: F.relu(x) + net.a(x), lambda: {"a": conv()}),
    "shared layer": (lambda net, x: net.a(F.relu(net.a(F.relu(x)))), lambda: {"a": conv()}),
    "tied weights": (lambda net, x: net.b(F.relu(net.a(F.relu(x)))), tied),
    "weight taken": (lambda net, x: F.conv2d(net.a(F.relu(x)), net.a.weight), lambda: {"a": conv()}),
    "dead sum": (lambda net, x: F.relu(x + net.a(F.relu(x))), lambda: {"a": conv(bias=False)}),
    "sum with a factor": (lambda net, x: F.relu(torch.add(x, net.a(x), alpha=2)), lambda: {"a": conv()}),
    "sum with a number": (lambda net, x: F.relu(x) + 1, dict),
    "number first": (lambda net, x: 1 - F.relu(x), dict),
    "quotient": (lambda net, x: F.relu(x) / 2, dict),
    "quotient of two": (lambda net, x: F.relu(x) / (1 + F.relu(x)), dict),
    "broadcast": (lambda net, x: F.relu(x) + net.a(F.relu(x)), lambda: {"a": conv(WIDTH, 1)}),
    "aligned at the end": (lambda net, x: F.relu(x) + F.relu(x).mean((0, 1)), dict),
    "squeeze and excite": (squeezed, lambda: {"a": conv(WIDTH, 2), "b": conv(2, WIDTH)}),
    "shuffle": (shuffled, dict),
    "shape read": (lambda net, x: F.relu(x) * x.shape[1], dict),
    "size read": (lambda net, x: F.relu(x) / x.size(1), dict),
    "baked view": (lambda net, x: F.relu(x).view(-1, WIDTH, 36).view(-1, WIDTH, 6, 6), dict),
    "cat with itself": (lambda net, x: net.a(torch.cat([F.relu(x)] * 2, 1)), lambda: {"a": conv(2 * WIDTH)}),
    "cat before relu": (lambda net, x: net.a(F.relu(torch.cat([x, x], 1))), lambda: {"a": conv(2 * WIDTH)}),
    "cat of pixels": (lambda net, x: torch.cat([F.relu(x), F.relu(x)], dim=2), dict),
    "halves": (lambda net, x: torch.cat(F.relu(x).chunk(2, 1)[::-1], 1), dict),
    "reversed": (lambda net, x: F.relu(x)[:, [5, 4, 3, 2, 1, 0]], dict),
    "some pixels": (lambda net, x: F.relu(x)[:, :, ::2, 1:], dict),
    "padded with 0": (lambda net, x: F.relu(F.pad(x, (1, 1, 1, 1))), dict),
    "padded with 1": (lambda net, x: F.pad(F.relu(x), (1, 1, 1, 1), "constant", 1), dict),
    "constant_pad_nd": (lambda net, x: torch.constant_pad_nd(F.relu(x), (1, 1), 1.0), dict),
    "channels padded": (lambda net, x: net.a(F.pad(F.relu(x), (0, 0, 0, 0, 1, 1))), lambda: {"a": conv(WIDTH + 2)}),
    "reflected": (lambda net, x: F.pad(F.relu(x), (1, 1, 1, 1), mode="reflect"), dict),
    "upsampled": (lambda net, x: F.interpolate(F.relu(x), scale_factor=2), dict),
    "pool over channels": (lambda net, x: F.max_pool2d(F.relu(x).flatten(2), 3, 1, 1).unflatten(2, (6, 6)), dict),
    "softmax": (lambda net, x: F.relu(x).softmax(1), dict),
    "softmax module": (lambda net, x: net.a(F.relu(x)), lambda: {"a": nn.Softmax2d()}),
    "group norm": (lambda net, x: F.relu(net.a(x)), lambda: {"a": nn.GroupNorm(2, WIDTH)}),
    "layer norm": (lambda net, x: F.relu(net.a(x)), lambda: {"a": nn.LayerNorm([WIDTH, 6, 6])}),
    "instance norm": (lambda net, x: F.relu(net.a(x)), lambda: {"a": nn.InstanceNorm2d(WIDTH, affine=True)}),
    "transposed": (lambda net, x: F.relu(net.a(F.relu(x))), lambda: {"a": nn.ConvTranspose2d(WIDTH, WIDTH, 2)}),
    "prelu": (lambda net, x: net.a(x), lambda: {"a": nn.PReLU()}),
    "prelu by channel": (lambda net, x: net.a(x), lambda: {"a": nn.PReLU(WIDTH)}),
    "depthwise": (lambda net, x: F.relu(net.a(F.relu(x))), lambda: {"a": conv(groups=WIDTH)}),
    "depthwise, twice as many": (
        lambda net, x: net.b(F.relu(net.a(F.relu(x)))),
        lambda: {"a": conv(WIDTH, 2 * WIDTH, groups=WIDTH), "b": conv(2 * WIDTH)},
    ),
    "grouped": (lambda net, x: F.relu(net.a(F.relu(x))), lambda: {"a": conv(groups=3)}),
    "grouped residual": (lambda net, x: F.relu(x + net.a(F.relu(x))), lambda: {"a": conv(groups=2)}),
    "attention": (attended, lambda: {"a": nn.MultiheadAttention(WIDTH, 2, batch_first=True)}),
    "recurrent": (recurrent, lambda: {"a": nn.LSTM(WIDTH, WIDTH, batch_first=True)}),
    "product in place": (lambda net, x: F.relu(x.mul_(2)), dict),
    "residual in place": (in_place_residual, lambda: {"a": conv(bias=False)}),
    "sum overwrites": (overwritten_by_a_sum, lambda: {"a": conv(bias=False), "b": conv()}),
    "view overwrites": (overwritten_through_a_view, lambda: {"a": conv(bias=False)}),
    "relu overwrites": (overwritten_by_relu, lambda: {"a": conv()}),
    "slice overwrites": (overwritten_in_part, lambda: {"a": conv(bias=False)}),
    "operator in place": (lambda net, x: F.relu(operator.iadd(net.a(x), x)), lambda: {"a": conv()}),
    "one channel": (lambda net, x: net.b(F.relu(net.a(F.relu(x)))), lambda: {"a": conv(WIDTH, 1), "b": conv(1)}),
    "mean of pixels": (lambda net, x: F.relu(x) - F.relu(x).mean((2, 3), keepdim=True), dict),
    "mean of channels": (lambda net, x: F.relu(x) - F.relu(x).mean(1, keepdim=True), dict),
    "mean of all": (lambda net, x: F.relu(x) - F.relu(x).mean(), dict),
    "unused": (lambda net, x: [F.relu(x), net.a(x)][0], lambda: {"a": conv()}),
    "detached": (lambda net, x: F.relu(x) + net.a(F.relu(x)).detach(), lambda: {"a": conv()}),
    "double call of a norm": (lambda net, x: F.relu(net.a(F.relu(net.a(x)))), lambda: {"a": nn.BatchNorm2d(WIDTH)}),
}


def make(name: str, seed: int = 0) -> Net:
    middle, layers = MIDDLES[name]
    torch.manual_seed(seed)
    net = Net(middle, **layers()).double()
    for module in net.modules():  # so that shifts are 0 and the rule of channels that are 0 for ever is tried
        if isinstance(module, nn.Conv2d) and module.bias is not None and seed % 2 == 0:
            nn.init.zeros_(module.bias)
    return net


@pytest.mark.parametrize("name", MIDDLES)
def test_exact(name: str) -> None:
    removed = 0
    with torch.random.fork_rng(devices=[]):
        for seed in range(3):
            net = make(name, seed)
            masks = ragged_masks(net, 0.9, seed, 0.5)
            if seed == 2:
                make_trained(net, seed)
            found = assert_exact(net, masks, batch(seed), multiple=4 if seed == 1 else 1)
            removed += count_channels(net) - count_channels(found.net)
    assert removed > 0, "whatever is pinned, conv2 is not"


@pytest.mark.parametrize(
    ("name", "dead"),
    [
        ("relu", True),
        ("pooled before relu", True),
        ("residual in place", True),
        ("depthwise", True),
        ("squeeze and excite", True),
        ("cat with itself", True),
        ("upsampled", True),
        ("no affine", True),
        ("gelu", False),  # slope at 0 is not 0: the shift learns
        ("nothing", False),
        ("relu and sum", False),
        ("shared layer", False),
        ("shuffle", False),
        ("group norm", False),
        ("padded with 1", False),
    ],
)
def test_channels_without_weights(name: str, dead: bool) -> None:
    """conv1 has no weights for two of its channels, and all that can read them reads them."""
    with torch.random.fork_rng(devices=[]):
        net = make(name)
    masks = dict(Masks.dense(net, prunable_names(net)))
    masks["conv1.weight"][[1, 4]] = False
    for path in ("a.weight", "b.weight"):
        if name == "residual in place" and path in masks:
            masks[path][[1, 4]] = False
        if name == "squeeze and excite" and path == "b.weight":
            nn.init.zeros_(net.b.bias)
    found = assert_exact(net, Masks(masks), batch())
    assert len(found.net.conv1.weight) == (WIDTH - 2 if dead else WIDTH)


def test_a_shift_that_two_read_is_not_dead() -> None:
    """One way leads into a ReLU, on the other the shift learns."""
    net = make("relu and layer")
    masks = dict(Masks.dense(net, prunable_names(net)))
    masks["conv1.weight"][2] = False
    found = assert_exact(net, Masks(masks), batch())
    assert len(found.net.conv1.weight) == WIDTH


def test_shifts_and_statistics_of_trained_networks_keep_channels() -> None:
    net = make("relu")
    masks = dict(Masks.dense(net, prunable_names(net)))
    masks["conv1.weight"][1:] = False
    with torch.no_grad():
        net.bn1.bias[1] = 0.1
        net.bn1.running_mean[2] = -0.1
    found = assert_exact(net, Masks(masks), batch())
    assert found.index.kept["conv1.weight"][0].tolist() == [0, 1, 2]


def test_a_residual_stream_keeps_what_any_reader_needs() -> None:
    net = make("residual in place")
    masks = dict(Masks.dense(net, prunable_names(net)))
    masks["conv2.weight"][:, [0, 3, 5]] = False  # the stream's end reads three, the branch reads a fourth
    masks["a.weight"][:, [0, 3]] = False
    found = assert_exact(net, Masks(masks), batch())
    assert found.index.kept["conv1.weight"][0].tolist() == [1, 2, 4, 5]
    assert found.index.kept["conv2.weight"][1].tolist() == [1, 2, 4, 5]


def test_dead_layers_keep_one_channel() -> None:
    net = make("relu")
    masks = dict(Masks.dense(net, prunable_names(net)))
    masks["conv2.weight"][:] = False
    found = assert_exact(net, Masks(masks), batch())
    assert (len(found.net.conv1.weight), len(found.net.conv2.weight)) == (1, 1)


@pytest.mark.parametrize(("multiple", "width"), [(1, 3), (2, 4), (4, 4), (5, 5), (8, 6)])
def test_widths_are_rounded_up_to_a_multiple_or_the_full_width(multiple: int, width: int) -> None:
    net = make("grouped residual")
    masks = dict(Masks.dense(net, prunable_names(net)))
    masks["conv2.weight"][:, :] = False
    masks["conv2.weight"][:, :3] = True
    masks["a.weight"][3:] = False
    found = assert_exact(net, Masks(masks), batch(), multiple=multiple)
    # two groups of three channels, which go as a whole
    assert len(found.net.conv1.weight) == len(found.net.a.weight) == (3 if multiple == 1 else 6)
    plain = make("relu")
    masks = dict(Masks.dense(plain, prunable_names(plain)))
    masks["conv2.weight"][:, 3:] = False
    assert len(assert_exact(plain, Masks(masks), batch(), multiple=multiple).net.conv1.weight) == width


def test_masks_of_shifts_and_scales() -> None:
    net = make("relu")
    names = [*prunable_names(net), "bn1.weight", "bn1.bias", "conv2.bias"]
    masks = dict(ragged_masks(net, 0.8, 3))
    generator = torch.Generator().manual_seed(0)
    for name in names[-3:]:
        masks[name] = torch.rand(WIDTH, generator=generator) < 0.5
    make_trained(net, 0)
    found = assert_exact(net, Masks(masks), batch())
    assert found.masks.keys() == masks.keys()
    assert found.masks["bn1.bias"].shape == found.net.bn1.bias.shape


def plus_one(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
    return output + 1


@pytest.mark.parametrize("path", ["conv1", "bn1", "pool"])
def test_layers_with_hooks_are_pinned(path: str) -> None:
    net = make("relu")
    net.get_submodule(path).register_forward_hook(plus_one)
    assert_exact(net, ragged_masks(net, 0.9, 1, 0.5), batch())


def test_layers_with_a_forward_of_their_own_are_pinned() -> None:
    net = make("relu")
    net.bn1.forward = torch.cos
    assert_exact(net, ragged_masks(net, 0.9, 1, 0.5), batch())


def test_frozen_parameters_stay_frozen() -> None:
    net = make("relu")
    net.conv1.weight.requires_grad_(False)
    found = assert_exact(net, ragged_masks(net, 0.9, 1, 0.5), batch())
    assert not found.net.conv1.weight.requires_grad
    assert found.net.conv2.weight.requires_grad


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    net = make("relu")
    net.conv2.bias.data[0] = value
    with pytest.raises(CompactionError, match=r"conv2\.bias holds values that are not finite"):
        compact(net, ragged_masks(net, 0.9, 1), batch()[0][:1])


def test_other_dimensions() -> None:
    for convolution, norm, shape in (
        (nn.Conv1d, nn.BatchNorm1d, (4, 2, 9)),
        (nn.Conv3d, nn.BatchNorm3d, (4, 2, 3, 3, 3)),
    ):
        torch.manual_seed(0)
        layers = [convolution(2, 6, 3, padding=1), norm(6), nn.ReLU(), convolution(6, 6, 3), nn.ReLU(), nn.Flatten()]
        inputs = torch.randn(shape, dtype=torch.float64)
        width = nn.Sequential(*layers).double()(inputs).shape[1]
        net = nn.Sequential(*layers, nn.Linear(width, 3)).double()
        nn.init.zeros_(layers[0].bias)
        nn.init.zeros_(layers[1].running_mean)
        found = assert_exact(net, ragged_masks(net, 0.8, 0, 0.5), (inputs, torch.tensor([0, 1, 2, 0])))
        assert count_channels(found.net) < count_channels(net)
