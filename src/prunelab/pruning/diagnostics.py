"""What a mask does to a network: collapse, effective density, multiply-adds, overlap of masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from prunelab.pruning.masks import Masks, placed_like
from prunelab.pruning.scoring import call_with, evaluation_mode
from prunelab.pruning.surrogate import surrogate_output


def collapsed_layers(masks: Masks) -> list[str]:
    """Names of the layers that keep no weight while others keep some."""
    counts = masks.layer_num_kept()
    return [name for name, count in counts.items() if count == 0] if any(counts.values()) else []


def effective_masks(net: nn.Module, masks: Masks, example_input: Tensor) -> Masks:
    """The kept weights that lie on a path of kept weights from input to output, on inputs of example_input's shape.

    A yes-or-no signal is sent through the network and back (path counts would overflow): a weight counts if a signal
    reaches its input and one from its output reaches the network's output. Layers that may not be pruned pass all.
    Kernel taps that see nothing but padding are on no path.
    Raises: PruningError if the network's signal cannot be followed (attention, recurrent layers), or not in float64.
    Reference: Vysogorets, Kempe 2021, "Connectivity Matters", arXiv 2107.02306.
    """
    device, dtype = next(iter(masks.values())).device, torch.float64  # fast float32 convolutions keep no exact zeros
    weights = {name: mask.to(device, dtype).requires_grad_() for name, mask in masks.items()}
    others = {n: torch.ones_like(p, dtype=dtype) for n, p in net.named_parameters() if n not in weights}
    buffers = {n: b.to(dtype) if b.is_floating_point() else b.clone() for n, b in net.named_buffers()}
    inputs = example_input.to(device)  # of whole numbers: indices, as they are
    if inputs.is_floating_point():
        inputs = torch.ones_like(inputs, dtype=dtype)
    with evaluation_mode(net):
        output = surrogate_output(net, {**others, **buffers, **weights}, inputs, reachability=True)
        gradients = torch.autograd.grad(output.sum(), list(weights.values()), materialize_grads=True)
    return Masks({n: mask & (gradient > 0) for (n, mask), gradient in zip(masks.items(), gradients, strict=True)})


def effective_density(net: nn.Module, masks: Masks, example_input: Tensor) -> float:
    """Kept weights on a kept input-output path / prunable weights. See `effective_masks`."""
    return effective_masks(net, masks, example_input).density


def count_macs(net: nn.Module, example_input: Tensor, masks: Mapping[str, Tensor] | None = None) -> int:
    """Multiply-adds of one example: kept weights times positions, of every convolution, linear layer and attention.

    One multiply-add counts 1; biases, norms, pooling, products of signals (attention's scores) and functional calls
    outside such modules count nothing; padding counts as a position like any other. A module that is called twice
    counts twice. Without masks: all weights. Theory: a masked network still multiplies its zeros until it is compacted.
    """
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    # by module: while it runs, a network may put other tensors in the place of its parameters
    paths = {
        (module, leaf): names[id(parameter)]
        for module in net.modules()
        for leaf, parameter in module.named_parameters(recurse=False)
    }
    total = 0

    def num_kept(module: Any, leaf: str = "weight", part: slice = slice(None)) -> int:
        mask = None if masks is None else masks.get(paths.get((module, leaf), ""))
        return getattr(module, leaf)[part].numel() if mask is None else int(mask[part].sum())

    def count(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += num_kept(module) * _num_positions(module, inputs[0], output)

    def count_attention(module: Any, inputs: tuple[Tensor, ...], keywords: dict[str, Any], output: Any) -> None:
        nonlocal total
        signals = (*inputs, *(keywords[key] for key in ("query", "key", "value") if key in keywords))[:3]
        tokens = [signal.numel() // signal.shape[-1] for signal in signals]
        width = module.embed_dim
        for index, leaf in enumerate(("q_proj_weight", "k_proj_weight", "v_proj_weight")):
            packed = slice(index * width, (index + 1) * width)
            separate = getattr(module, leaf) is not None
            kept = num_kept(module, leaf) if separate else num_kept(module, "in_proj_weight", packed)
            total += kept * tokens[index]
        total += num_kept(module.out_proj) * tokens[0]

    layers = (nn.modules.conv._ConvNd, nn.Linear)
    handles = [module.register_forward_hook(count) for module in net.modules() if isinstance(module, layers)]
    handles += [
        module.register_forward_hook(count_attention, with_kwargs=True)
        for module in net.modules()
        if isinstance(module, nn.MultiheadAttention)
    ]
    try:
        with evaluation_mode(net), torch.no_grad():
            call_with(net, {}, example_input)
    finally:
        for handle in handles:
            handle.remove()
    return total // len(example_input)


def _num_positions(module: Any, inputs: Tensor, output: Tensor) -> int:
    """How often each weight is used in one call; tokens or windows may stand in the batch dimension."""
    if isinstance(module, nn.Linear):
        return output.numel() // module.out_features
    # a transposed convolution uses its kernel once per input position, a convolution once per output position
    return inputs.numel() // module.in_channels if module.transposed else output.numel() // module.out_channels


def zero_score_share(scores: Mapping[str, Tensor], masks: Masks) -> float:
    """Share of the kept weights whose score is exactly 0."""
    num_zero = sum(int(((scores[name] == 0) & mask).sum()) for name, mask in masks.items())
    return num_zero / masks.num_kept


def mask_overlap(a: Masks, b: Masks) -> float:
    """Intersection over union of the kept weights, in [0, 1]. Raises: ValueError for masks of different layers."""
    if a.keys() != b.keys():
        raise ValueError(f"masks of different parameters: {sorted(a.keys() ^ b.keys())}")
    both = sum(int((a[name] & b[name]).sum()) for name in a)
    either = sum(int((a[name] | b[name]).sum()) for name in a)
    return both / either if either else 1.0


def count_leaked(net: nn.Module, masks: Masks, frozen: Mapping[str, Tensor] | None = None) -> int:
    """Number of pruned weights of `net` that are not exactly what they should hold, 0 or `frozen` (NaN counts).

    Of a network that is sharded over processes all of them have to ask.
    """
    parameters = dict(net.named_parameters())
    num_leaked = 0
    for name, mask in masks.items():
        weight = parameters[name].detach()
        held = 0 if frozen is None else placed_like(frozen[name].to(weight.dtype), weight)
        leaked = ((weight != held) & placed_like(~mask, weight)).sum()
        num_leaked += int(leaked.full_tensor() if isinstance(leaked, DTensor) else leaked)
    return num_leaked
