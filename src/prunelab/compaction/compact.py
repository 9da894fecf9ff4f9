"""compact and expand: a masked network to a smaller one with the same function, and back."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunelab.compaction.analysis import find_channels
from prunelab.compaction.errors import CompactionError
from prunelab.compaction.index import ChannelIndex, shrink
from prunelab.compaction.trace import first_line
from prunelab.pruning import Masks
from prunelab.pruning.scoring import evaluation_mode

TOLERANCE = 1e-6  # of outputs computed in float64: rounding is 1e-14, a wrong channel 1e-2
OWN_TOLERANCE = 1e-3  # in another precision


@dataclass(frozen=True)
class Compacted:
    """net: the smaller network; masks: which of its weights are kept; index: the map back to the full network."""

    net: nn.Module
    masks: Masks
    index: ChannelIndex


def compact(net: nn.Module, masks: Masks, example_input: Tensor, *, multiple: int = 1) -> Compacted:
    """Remove the dead channels of `net` under `masks`: a network of the same class and parameter names, and smaller.

    Exact: in training and evaluation mode outputs, gradients of what is left and the steps of SGD, with momentum and
    weight decay, are those of the masked network up to the order of additions. Steps that look at a whole tensor (the
    trust ratios of LARS and LAMB) see fewer weights, and dropout draws for fewer channels.
    net: is not changed; its pruned weights count as 0 whatever they hold. example_input: any input, first dimension 1.
    multiple: of which widths are made, with channels that stay although they are dead (`find_channels`).
    Kept weights of removed channels have no part in the function: the compact masks keep as many or fewer.
    Raises: CompactionError with the reason if the network cannot be traced, or the smaller one gives another output.
    """
    if multiple < 1:
        raise CompactionError(f"widths cannot be made multiples of {multiple}")
    try:
        full, small = copy.deepcopy(net), copy.deepcopy(net)
    except Exception as error:  # tensors that were computed, locks, open files, ...
        raise CompactionError(f"the network cannot be copied: {first_line(error)}") from error
    masks.apply_to(full)
    masks.apply_to(small)
    # a network that stores what its forward computes holds what tracing left in it: the small one is never traced
    index = find_channels(full, masks, example_input, multiple)
    shrink(small, index)
    _check_equal(full, small, example_input)
    return Compacted(small, Masks(index.take(dict(masks))), index)


def expand(small: nn.Module, index: ChannelIndex, full: nn.Module) -> nn.Module:
    """The full network that computes what `small` does: a copy of `full` with the values of `small` in their places.

    full: the masked network that was compacted, at any time of its training. Its weights of removed channels stay as
    they are there, so that a network that was compacted and expanded at once is the same bit for bit. After training
    they are not what they would have become (decayed, with other running statistics), which no output depends on.
    Raises: CompactionError if the networks are not those of the index.
    """
    expanded = copy.deepcopy(full)
    expanded.load_state_dict(index.put(small.state_dict(), full.state_dict()))
    return expanded


@torch.no_grad()
def _check_equal(full: nn.Module, small: nn.Module, example_input: Tensor) -> None:
    """What the analysis says is tried: both networks on noise, in float64, or where their forward casts to another
    precision, in that one."""
    inputs, networks, tolerance = example_input.cpu(), [full, small], TOLERANCE
    if inputs.is_floating_point():
        noise = torch.randn(2, *inputs.shape[1:], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        inputs = noise.to(inputs.dtype).double()  # the same numbers in both precisions
    try:
        outputs = [_output(network, inputs, torch.float64) for network in networks]
    except Exception:  # whatever the forward of a user's network raises
        tolerance = OWN_TOLERANCE
        try:
            own = next((tensor.dtype for tensor in full.parameters()), torch.float32)
            outputs = [_output(network, inputs, own) for network in networks]
        except Exception as error:
            raise CompactionError(f"the compact network cannot be run: {first_line(error)}") from error
    if not all(isinstance(output, Tensor) for output in outputs):
        raise CompactionError(f"the network returns a {type(outputs[0]).__name__}, one tensor is needed")
    one, other = outputs
    if one.shape != other.shape:
        raise CompactionError(f"the compact network gives {tuple(other.shape)} instead of {tuple(one.shape)}")
    scale = one[one.isfinite()].abs().max() if one.isfinite().any() else torch.zeros(())
    if not torch.allclose(one, other, rtol=0, atol=tolerance * float(scale), equal_nan=True):
        largest = float((one - other).abs().max() / scale)
        raise CompactionError(f"the compact network gives other outputs, by {largest:.2g} of the largest")


def _output(network: nn.Module, inputs: Tensor, dtype: torch.dtype) -> Any:
    """Of a copy on the CPU, which has every precision."""
    copied = copy.deepcopy(network).cpu()
    with evaluation_mode(copied.to(dtype)), torch.no_grad():
        return copied(inputs.to(dtype) if inputs.is_floating_point() else inputs)
