from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from prunelab.pruning import PruningError
from prunelab.pruning.surrogate import PositiveLinear, check_linear, surrogate_output, surrogate_tensors

from .nets import mlp, residual, seeded, vgg_like, with_dropout

ONES = torch.ones(1, 2, 6, 6, dtype=torch.float64)


def output(net: nn.Module, inputs: Tensor, **options: object) -> Tensor:
    weights = {n: p.detach().abs() for n, p in net.named_parameters() if p.dim() > 1}
    return surrogate_output(net.eval(), surrogate_tensors(net, weights, torch.float64), inputs, **options)


def test_is_the_plain_network_where_that_is_positive_and_linear() -> None:
    """Absolute weights, no shifts: on ones the network's own forward pass gives the same numbers."""
    for net in (vgg_like(), residual()):
        plain = type(net)() if not isinstance(net, nn.Sequential) else vgg_like()
        plain.double().eval()
        plain.load_state_dict(
            {
                name: torch.zeros_like(value)
                if name.endswith(("bias", "running_mean"))
                else value.abs()
                if value.is_floating_point()
                else value
                for name, value in net.state_dict().items()
            }
        )
        torch.testing.assert_close(output(net, ONES), plain(ONES), rtol=1e-12, atol=0)


ACTIVATIONS: list[Callable[[Tensor], Tensor]] = [
    *(F.relu, F.relu_, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.hardswish, F.hardtanh),
    *(F.tanh, F.sigmoid, F.softplus, F.softsign, F.hardsigmoid, F.logsigmoid, F.softshrink, F.hardshrink),
    *(torch.relu, torch.relu_, torch.tanh, torch.sigmoid, torch.selu, torch.celu, torch.tanh_, torch.sigmoid_),
    *(lambda x: x.relu(), lambda x: x.tanh(), lambda x: x.sigmoid_(), lambda x: x.relu_(), lambda x: x.softmax(-1)),
    *(lambda x: torch.clamp(x, 0, 1), lambda x: x.clamp(max=1), lambda x: x.clamp_(min=1), lambda x: x.clip(0, 1)),
    *(lambda x: torch.clip(x, 0, 1), lambda x: x.clip_(0, 1), lambda x: F.softmax(x, dim=-1)),
    *(lambda x: F.log_softmax(x, -1), lambda x: torch.softmax(x, -1), lambda x: F.prelu(x, torch.ones(1).double())),
    *(lambda x: F.dropout(x, 0.5), lambda x: F.dropout2d(x, 0.5), lambda x: F.alpha_dropout(x), F.tanhshrink),
]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_clamps_and_dropout_are_the_identity(activation: Callable[[Tensor], Tensor]) -> None:
    x = torch.linspace(0.1, 9, 12, dtype=torch.float64).view(1, 2, 2, 3)
    with PositiveLinear():
        assert torch.equal(activation(x.clone()), x)


MODULES = [
    *(
        nn.ReLU(),
        nn.ReLU(inplace=True),
        nn.ReLU6(),
        nn.LeakyReLU(),
        nn.PReLU(),
        nn.RReLU(),
        nn.ELU(),
        nn.SELU(),
        nn.CELU(),
    ),
    *(nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Mish(), nn.Hardswish(), nn.Hardsigmoid(), nn.Hardtanh(), nn.Sigmoid()),
    *(nn.Tanh(), nn.Softplus(), nn.Softsign(), nn.Softmax(-1), nn.LogSoftmax(-1), nn.Softmin(-1), nn.Threshold(1, 0)),
    *(
        nn.Hardshrink(),
        nn.Softshrink(),
        nn.Tanhshrink(),
        nn.LogSigmoid(),
        nn.Dropout(),
        nn.Dropout2d(),
        nn.AlphaDropout(),
    ),
]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: type(module).__name__)
def test_modules_of_activation_are_the_identity(module: nn.Module) -> None:
    x = torch.linspace(0.1, 9, 12).view(1, 2, 2, 3)
    with PositiveLinear():
        assert torch.equal(module(x.clone()), x)


def test_own_activations_stay() -> None:
    x = torch.linspace(0.1, 9, 12)
    with PositiveLinear(activations="own"):
        assert torch.equal(torch.tanh(x), F.tanh(x))
        assert (torch.tanh(x) < 1.0001).all()


def test_biases_are_left_out_however_they_are_given() -> None:
    x, w, b = torch.ones(2, 3), torch.ones(4, 3), torch.ones(4)
    image, kernel = torch.ones(1, 2, 5, 5), torch.ones(4, 2, 3, 3)
    plain = F.conv2d(image, kernel, None, 2, 1)
    with PositiveLinear():
        for result in (
            F.linear(x, w, b),
            F.linear(x, w, bias=b),
            F.linear(x, weight=w, bias=b),
            F.linear(input=x, weight=w),
        ):
            assert torch.equal(result, x @ w.t())
        assert torch.equal(F.conv2d(image, kernel, b, 2, 1), plain)
        assert torch.equal(F.conv2d(image, kernel, bias=b, stride=2, padding=1), plain)
        assert torch.equal(F.conv2d(image, weight=kernel, bias=None, stride=2, padding=1), plain)


NORMS = [
    (nn.BatchNorm1d(4), (3, 4)),
    (nn.BatchNorm1d(4), (3, 4, 5)),
    (nn.BatchNorm2d(4), (3, 4, 5, 5)),
    (nn.BatchNorm2d(4, affine=False), (3, 4, 5, 5)),
    (nn.BatchNorm3d(4), (1, 4, 2, 2, 2)),
    (nn.BatchNorm2d(4, track_running_stats=False), (3, 4, 5, 5)),
    (nn.GroupNorm(2, 4), (3, 4, 5)),
    (nn.InstanceNorm2d(4, affine=True), (3, 4, 5, 5)),
    (nn.InstanceNorm2d(4, track_running_stats=True), (3, 4, 5, 5)),
    (nn.LayerNorm(5), (3, 4, 5)),
    (nn.LayerNorm((4, 5)), (3, 4, 5)),
    (nn.LayerNorm(5, elementwise_affine=False), (3, 4, 5)),
    (nn.RMSNorm(5), (3, 4, 5)),
]


@pytest.mark.parametrize(("norm", "shape"), NORMS, ids=lambda value: str(value))
def test_norms_are_a_positive_factor(norm: nn.Module, shape: tuple[int, ...]) -> None:
    """Absolute weight / sqrt(running variance + eps), variance 1 without eps where none is kept; no shift, no mean."""
    norm = norm.double().eval()
    with torch.no_grad():
        for tensor in (*norm.parameters(), *norm.buffers()):
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 2, generator=torch.Generator().manual_seed(0))
        if getattr(norm, "weight", None) is not None:
            norm.weight.neg_()
    factor = torch.ones((), dtype=torch.float64)
    if getattr(norm, "weight", None) is not None:
        factor = norm.weight.detach().abs()
    if getattr(norm, "running_var", None) is not None:
        factor = factor / (norm.running_var + norm.eps).sqrt()
    per_channel = not isinstance(norm, nn.LayerNorm | nn.RMSNorm)
    if factor.dim() and per_channel:
        factor = factor.view(-1, *[1] * (len(shape) - 2))
    x = torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(output(norm, x), x * factor, rtol=1e-12, atol=0)


def test_power_squares_the_factors_too() -> None:
    net = with_dropout()
    squares = surrogate_tensors(net, {}, torch.float64, power=2)
    assert torch.equal(squares["1.weight"], net[1].weight.detach() ** 2)
    norm = nn.BatchNorm1d(2).double()
    norm.running_var.copy_(torch.tensor([4.0, 9.0]))
    tensors = surrogate_tensors(norm, {}, torch.float64, power=2)
    result = surrogate_output(norm.eval(), tensors, torch.ones(1, 2, dtype=torch.float64), power=2)
    torch.testing.assert_close(result, torch.tensor([[1 / 4, 1 / 9]], dtype=torch.float64), rtol=1e-4, atol=0)


LAYERS: dict[str, tuple[Callable[..., Tensor], tuple[int, ...], dict[str, Any], tuple[int, ...]]] = {
    "linear": (F.linear, (4, 3), {}, (2, 5, 3)),
    "conv1d": (F.conv1d, (4, 3, 3), {"padding": 1}, (2, 3, 7)),
    "conv2d": (F.conv2d, (4, 3, 3, 2), {"stride": 2}, (2, 3, 7, 6)),
    "pointwise": (F.conv2d, (4, 3, 1, 1), {}, (2, 3, 5, 5)),
    "one picture": (F.conv2d, (4, 3, 3, 3), {"padding": "same"}, (3, 5, 5)),
    "grouped": (F.conv2d, (4, 3, 3, 3), {"groups": 2}, (2, 6, 5, 5)),
    "depthwise": (F.conv2d, (3, 1, 3, 3), {"groups": 3}, (2, 3, 5, 5)),
    "conv3d": (F.conv3d, (4, 3, 2, 2, 2), {"dilation": 2}, (1, 3, 4, 4, 4)),
    "transposed": (F.conv_transpose2d, (3, 4, 3, 3), {"stride": 2}, (2, 3, 5, 5)),
}


@pytest.mark.parametrize("reachability", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_one_number_for_all_weights_of_a_layer(name: str, reachability: bool) -> None:
    layer, shape, options, sizes = LAYERS[name]
    inputs = torch.rand(sizes, dtype=torch.float64) - 0.4
    expanded = torch.full((), 0.25, dtype=torch.float64).expand(shape)
    with PositiveLinear(reachability=reachability), FlopCounterMode(display=False) as short:
        found = layer(inputs, expanded, torch.ones(4), **options)
    with FlopCounterMode(display=False) as whole:
        wanted = layer((inputs > 0).double() if reachability else inputs, expanded.clone(), **options)
    shorter = 1 if name in ("grouped", "depthwise", "transposed") else 4
    assert short.get_total_flops() * shorter == whole.get_total_flops() > 0
    torch.testing.assert_close(found, wanted, rtol=1e-14, atol=1e-14)
    found.add_(1)  # a tensor of its own


def test_outputs_other_than_one_tensor_are_refused() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    with pytest.raises(PruningError, match="returns a tuple"):
        surrogate_output(Two(), {}, ONES)


# --- networks with and without a positive linear network inside ---


class Attention(nn.Module):
    """Self-attention without anything else: on equal tokens it would look linear."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.qkv = nn.Linear(4, 12)
        self.packed = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        if self.kind == "packed":
            x, _ = self.packed(x, x, x, need_weights=False)
        elif self.kind == "scaled_dot_product":
            x = F.scaled_dot_product_attention(q, k, v)
        else:
            x = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        return self.head(x.mean(1))


class SqueezeExcitation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return (x * self.gate(x)).mean((2, 3))


class PositionEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(1, 2))
        self.linear = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x + self.position)


class Wrapped(nn.Module):
    """The culprit is one of several modules."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 2, 3, padding=1)
        self.block = SqueezeExcitation()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.stem(x))


TOKENS = torch.ones(1, 5, 4, dtype=torch.float64)


@pytest.mark.parametrize(
    ("net", "inputs", "culprit"),
    [
        (Attention("packed"), TOKENS, r"packed \(MultiheadAttention\)"),
        (Attention("scaled_dot_product"), TOKENS, r"the network itself \(Attention\)"),
        (Attention("by hand"), TOKENS, r"the network itself \(Attention\)"),
        (Wrapped(), ONES, r"block \(SqueezeExcitation\)"),
        (PositionEmbedding(), ONES[:, :, 0, 0], r"the network itself \(PositionEmbedding\)"),
        (nn.Sequential(nn.Conv2d(2, 4, 3), nn.LocalResponseNorm(2)), ONES, r"1 \(LocalResponseNorm\)"),
        (nn.Sequential(nn.Conv2d(2, 4, 3), nn.GLU(1)), ONES, r"1 \(GLU\)"),
        (nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), TOKENS, r"self_attn \(MultiheadAttention\)"),
    ],
)
def test_networks_that_are_not_linear_are_refused_by_the_name_of_the_culprit(
    net: nn.Module, inputs: Tensor, culprit: str
) -> None:
    with pytest.raises(PruningError, match=rf"means nothing on this network: {culprit}") as caught:
        check_linear(net.double().eval(), inputs)
    assert "\n" not in str(caught.value)


class Tokens(nn.Module):
    """Layer norms, GELU, a learned scale per channel: linear once these are taken as what they are."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 6)
        self.norm = nn.LayerNorm(6)
        self.scale = nn.Parameter(torch.full((6,), 1e-6))
        self.inner = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head((x + self.scale * self.inner(self.norm(x))).mean(1))


@pytest.mark.parametrize(
    ("net", "inputs"),
    [
        (vgg_like(), ONES),
        (residual(), ONES),
        (with_dropout(), ONES),
        (Tokens(), TOKENS),
        (mlp(2, 3, 2, activation=nn.Sigmoid), ONES[:, :, 0, 0]),
        (nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.ReLU6(), nn.Upsample(scale_factor=2), nn.Flatten()), ONES),
        (nn.Sequential(nn.ConvTranspose2d(2, 4, 3, 2), nn.InstanceNorm2d(4), nn.Hardswish(), nn.AvgPool2d(2)), ONES),
    ],
)
def test_networks_that_are_linear_pass(net: nn.Module, inputs: Tensor) -> None:
    check_linear(net.double().eval(), inputs)
    check_linear(net.float().eval(), inputs)


def test_the_check_does_not_overflow_in_deep_residual_networks() -> None:
    """150 blocks double the signal 150 times: more than float32 holds, and no reason to refuse."""

    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Conv2d(2, 2, 3, padding=1) for _ in range(150))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = x + layer(x)
            return x

    check_linear(seeded(Deep(), 0).float(), ONES.float())


def test_the_check_is_not_misled_by_trained_norms() -> None:
    """Running variances of 1e-12 in 40 layers would multiply the signal by 1e240, and by as much again in float32."""
    layers: list[nn.Module] = []
    for _ in range(60):
        layers += [nn.Linear(2, 2), nn.BatchNorm1d(2, eps=1e-15)]
        layers[-1].running_var.fill_(1e-14)
    check_linear(nn.Sequential(*layers).double().eval(), ONES[:, :, 0, 0])
