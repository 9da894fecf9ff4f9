"""The positive linear network inside a network: what SynFlow scores, and what carries a signal at all.

A network without shifts, with absolute weights and every activation the identity is linear and positive: each input-
output path contributes the product of its weights. For ReLU networks on positive input that is the network itself
with absolute weights; for others it must be made so. `PositiveLinear` does that while the network's own `forward`
runs, by intercepting torch's functions, so that it needs no knowledge of the network's modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunelab.pruning.errors import PruningError
from prunelab.pruning.scoring import call_with

CHANNELS = {F.linear: -1, F.conv1d: -2, F.conv2d: -3, F.conv3d: -4}  # the dimension of channels
TRANSPOSED = {F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d}
_WEIGHTED = CHANNELS.keys() | TRANSPOSED
_NORMS = {F.batch_norm, F.layer_norm, F.group_norm, F.instance_norm, F.rms_norm}
_ACTIVATIONS = {
    getattr(namespace, name + in_place)
    for name in (
        *("relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "gelu", "silu", "mish", "threshold"),
        *("tanh", "sigmoid", "logsigmoid", "softplus", "softsign", "tanhshrink", "hardshrink", "softshrink"),
        *("hardtanh", "hardsigmoid", "hardswish", "clamp", "clamp_min", "clamp_max", "clip"),
        *("softmax", "softmin", "log_softmax"),
    )
    for in_place in ("", "_")
    for namespace in (F, torch, Tensor)
    if hasattr(namespace, name + in_place)
}
_DROPOUTS = {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout}
# nn.MaxPool and F.max_pool arrive here under the names that torch dispatches them to
_MAX_POOLS = {
    **dict.fromkeys((F.max_pool1d, torch.max_pool1d), F.avg_pool1d),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), F.avg_pool2d),
    **dict.fromkeys((F.max_pool3d, torch.max_pool3d), F.avg_pool3d),
}
_ADAPTIVE_MAX_POOLS = {
    **dict.fromkeys((F.adaptive_max_pool1d, torch.adaptive_max_pool1d), F.adaptive_avg_pool1d),
    F.adaptive_max_pool2d: F.adaptive_avg_pool2d,
    F.adaptive_max_pool3d: F.adaptive_avg_pool3d,
}
_UNFOLLOWABLE = {
    *(F.scaled_dot_product_attention, F.multi_head_attention_forward),
    *(torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu, torch.lstm_cell, torch.gru_cell),
    *(F.max_pool1d_with_indices, F.max_pool2d_with_indices, F.max_pool3d_with_indices),
}
# where the affine factor of a norm stands, if it is not among the arguments called `weight`
_POSITIONS = {
    F.batch_norm: ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    F.instance_norm: (
        "input",
        "running_mean",
        "running_var",
        "weight",
        "bias",
        "use_input_stats",
        "momentum",
        "eps",
    ),
    F.layer_norm: ("input", "normalized_shape", "weight", "bias", "eps"),
    F.group_norm: ("input", "num_groups", "weight", "bias", "eps"),
    F.rms_norm: ("input", "normalized_shape", "weight", "eps"),
}


class PositiveLinear(TorchFunctionMode):
    """While active: biases, shifts and running means are 0, norms multiply by abs(weight) / sqrt(running_var + eps)
    (running_var: 1 for norms that keep none), dropout and activations are the identity.

    power: of the factor that running variances give; 2 goes with squared weights.
    activations: "own" leaves the activations as they are (to measure what they cost in conservation).
    reachability: signals are yes or no: the input of every weighted layer becomes 1 where it is positive, and so does
    the gradient that leaves it; norms are the identity, max pooling is average pooling (its gradient reaches all).
    constant: tensors that will be the same in every pass with this object: factors of norms made of them are held.
    """

    def __init__(
        self,
        *,
        activations: str = "identity",
        power: int = 1,
        reachability: bool = False,
        constant: Iterable[Tensor] = (),
    ) -> None:
        super().__init__()
        self.activations = activations
        self.power = power
        self.reachability = reachability
        self._constant = {id(tensor): tensor for tensor in constant}  # held, so that no other gets their number
        self._factors: dict[tuple[Any, ...], Tensor] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _WEIGHTED:
            inputs, weight, *rest = (*args, *(kwargs[key] for key in ("input", "weight") if key in kwargs))
            inputs, rest = _reach(inputs) if self.reachability else inputs, rest[1:]  # without the bias
            options = {key: value for key, value in kwargs.items() if key not in ("input", "weight", "bias")}
            if _has_equal_outputs(func, inputs, weight):
                # torch would write all weights of `check_linear` out, in float64
                first = func(inputs, weight[:1], None, *rest, **options)
                sizes = list(first.shape)
                sizes[CHANNELS[func]] = len(weight)
                return first.expand(sizes).contiguous()
            return func(inputs, weight, None, *rest, **options)
        if func in _NORMS:
            return self._scale(**dict(zip(_POSITIONS[func], args, strict=False)), **kwargs)
        if func in _DROPOUTS or (func in _ACTIVATIONS and self.activations == "identity"):
            return args[0] if args else kwargs["input"]
        if self.reachability and func in _UNFOLLOWABLE:
            raise PruningError(f"paths through {func.__name__} cannot be followed")
        if self.reachability and func in _MAX_POOLS:
            return _average_instead(func, *args, **kwargs)
        if self.reachability and func in _ADAPTIVE_MAX_POOLS:
            return _ADAPTIVE_MAX_POOLS[func](args[0], args[1])
        return func(*args, **kwargs)

    def _scale(
        self,
        input: Tensor,
        weight: Tensor | None = None,
        running_var: Tensor | None = None,
        eps: float | None = 1e-5,
        normalized_shape: Sequence[int] | None = None,
        **_: Any,
    ) -> Tensor:
        if self.reachability:
            return input
        made_of = [tensor for tensor in (weight, running_var) if tensor is not None]
        is_constant = bool(made_of) and all(id(tensor) in self._constant for tensor in made_of)
        key = id(weight), id(running_var), eps, input.dim(), normalized_shape is None
        if is_constant and key in self._factors:
            return input * self._factors[key]
        factor = torch.ones((), dtype=input.dtype, device=input.device)
        if running_var is not None:
            factor = (running_var + (eps or 0.0)).rsqrt() ** self.power
        if weight is not None:
            factor = factor * weight
        if normalized_shape is None and factor.dim():  # one per channel; layer norms scale the last dimensions
            factor = factor.view(1, -1, *[1] * (input.dim() - 2))
        if is_constant:
            self._factors[key] = factor
        return input * factor


def _has_equal_outputs(func: Callable[..., Any], inputs: Tensor, weight: Tensor) -> bool:
    """Whether all of a constant weight is one number in memory, and every output of the layer reads all inputs."""
    if func not in CHANNELS or weight.requires_grad or weight.dim() < 2 or inputs.dim() < -CHANNELS[func]:
        return False
    is_one_number = not any(step for step, size in zip(weight.stride(), weight.shape, strict=True) if size > 1)
    return is_one_number and weight.shape[1] == inputs.shape[CHANNELS[func]]


class _Reach(torch.autograd.Function):
    """1 where a signal arrives; backwards, 1 where a signal leaves. Counts of paths overflow, this cannot."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        return (inputs > 0).to(inputs.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return (gradients[0] > 0).to(gradients[0].dtype)


def _reach(inputs: Tensor) -> Tensor:
    return _Reach.apply(inputs)


def _average_instead(
    pool: Callable[..., Tensor],
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    **_: Any,
) -> Tensor:
    if any(step != 1 for step in (dilation if isinstance(dilation, Sequence) else [dilation])):
        raise PruningError("max pooling with dilation cannot be followed")
    return _MAX_POOLS[pool](input, kernel_size, stride, padding, ceil_mode)


def surrogate_tensors(
    net: nn.Module, weights: Mapping[str, Tensor], dtype: torch.dtype, power: int = 1
) -> dict[str, Tensor]:
    """Every parameter and buffer of `net`: those in `weights` as given, the other parameters as abs(p)^power."""
    others = {n: p.detach().to(dtype).abs() ** power for n, p in net.named_parameters() if n not in weights}
    buffers = {n: b.to(dtype, copy=True) if b.is_floating_point() else b.clone() for n, b in net.named_buffers()}
    return {**others, **buffers, **weights}


def surrogate_output(net: nn.Module, tensors: Mapping[str, Tensor], inputs: Tensor, **options: Any) -> Tensor:
    """Output of the positive linear network; options are those of `PositiveLinear`. Raises: as `output_under`."""
    return output_under(PositiveLinear(**options), lambda given: call_with(net, tensors, given), inputs)


def output_under(mode: PositiveLinear, run: Callable[[Tensor], Any], inputs: Tensor) -> Tensor:
    """What `run(inputs)` gives while `mode` is active.

    Raises: PruningError if it is not one tensor, or if the network cannot be run in the precision of the inputs.
    """
    try:
        with mode:
            output = run(inputs)
    except RuntimeError as error:  # a forward that casts, or makes constants of a precision of its own
        raise PruningError(f"the network cannot be run in {inputs.dtype}: {str(error).splitlines()[0]}") from error
    if not isinstance(output, Tensor):
        raise PruningError(f"the network returns a {type(output).__name__}, one tensor is needed")
    return output


@torch.no_grad()
def check_linear(net: nn.Module, inputs: Tensor) -> None:
    """Whether the positive linear network exists: doubling its input doubles its output, bit for bit.

    Tested in float64, with every weight replaced by an average over its inputs and norms by the identity, so that no
    depth overflows, on inputs that differ from place to place: attention over equal tokens would look linear.
    Raises: PruningError naming the innermost modules at fault (attention, squeeze-excitation, additive embeddings).
    """
    inputs = torch.linspace(0.5, 1, inputs.numel(), dtype=torch.float64, device=inputs.device).view_as(inputs)
    averages = {}
    for name, parameter in net.named_parameters():
        value = parameter.shape[0] / parameter.numel() if parameter.dim() > 1 else 1.0
        # one number each, whatever the size of the network
        averages[name] = torch.full((), value, dtype=inputs.dtype, device=parameter.device).expand(parameter.shape)
    tensors = surrogate_tensors(net, averages, inputs.dtype)
    result, of_doubled = (surrogate_output(net, tensors, given, power=0) for given in (inputs, 2 * inputs))
    if torch.equal(2 * result, of_doubled):
        return
    once, twice = _signals(net, tensors, inputs), _signals(net, tensors, 2 * inputs)  # copies of all signals
    faulty: list[str] = []
    for path, (entering, leaving) in once.items():
        contains_faulty = any(not path or inner.startswith(f"{path}.") for inner in faulty)
        doubled_in = torch.equal(2 * entering, twice[path][0])
        if doubled_in and not torch.equal(2 * leaving, twice[path][1]) and not contains_faulty:
            faulty.append(path)
    if faulty:
        modules = dict(net.named_modules())
        names = ", ".join(f"{path or 'the network itself'} ({type(modules[path]).__name__})" for path in faulty[:5])
        raise PruningError(f"SynFlow means nothing on this network: {names} is not linear in a positive signal")


def _signals(net: nn.Module, tensors: Mapping[str, Tensor], inputs: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """path -> (input, output) of each module that takes and gives a tensor, innermost modules first."""
    signals: dict[str, tuple[Tensor, Tensor]] = {}
    paths = {module: path for path, module in net.named_modules()}

    def record(module: nn.Module, entering: tuple[Any, ...], leaving: Any) -> None:
        first = leaving[0] if isinstance(leaving, tuple) else leaving
        if entering and isinstance(entering[0], Tensor) and isinstance(first, Tensor):
            signals.setdefault(paths[module], (entering[0].clone(), first.clone()))

    handles = [module.register_forward_hook(record) for module in paths]
    try:
        surrogate_output(net, tensors, inputs, power=0)
    finally:
        for handle in handles:
            handle.remove()
    return signals
