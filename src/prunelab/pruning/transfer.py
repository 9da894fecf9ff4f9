"""What was found on one network for another that differs from it in its head: masks, and whether weights fit.

Reference: Morcos, Yu, Paganini, Tian 2019, "One ticket to win them all", arXiv 1906.02773.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prunelab.pruning.errors import PruningError
from prunelab.pruning.masks import Masks
from prunelab.pruning.prunable import PRUNABLE_MODULES


def transferred(masks: Masks, net: nn.Module, names: Iterable[str]) -> Masks:
    """`masks`, found on another network, for the prunable parameters `names` of `net`.

    A head that differs in its number of outputs alone (`differs_in_outputs`) is new: all of it is kept.
    Raises: PruningError that names the layers which `masks` lack, have too many, or have in another shape.
    """
    parameters = dict(net.named_parameters())
    wanted = {name: parameters[name] for name in names}
    given = dict(masks)
    head = head_weight(net)
    if head in given and head in wanted and differs_in_outputs(given[head], wanted[head]):
        given[head] = torch.ones(wanted[head].shape, dtype=torch.bool)
    if wrong := misfits(given, wanted):
        raise PruningError(f"masks_from: the masks do not fit the network: {wrong}")
    return Masks({name: given[name].to(parameter.device) for name, parameter in wanted.items()})


def head_weight(net: nn.Module) -> str:
    """Name of the head's weight: of the last convolution or linear layer, as the network lists them; "" if none."""
    paths = [path for path, module in net.named_modules() if isinstance(module, PRUNABLE_MODULES)]
    return f"{paths[-1]}.weight".removeprefix(".") if paths else ""


def differs_in_outputs(one: Tensor, other: Tensor) -> bool:
    """Whether two weights (outputs, ...) have another number of outputs, and are otherwise of one shape."""
    return one.shape != other.shape and one.shape[1:] == other.shape[1:]


def misfits(given: Mapping[str, Any], wanted: Mapping[str, Tensor]) -> str:
    """Why `given` cannot take the place of the tensors `wanted`, by name: missing, other shape, unknown; "" if it can.

    Three are named, further ones counted.
    """
    wrong = [
        f"{name} ({_shape(given[name])} instead of {_shape(tensor)})" if name in given else f"{name} (missing)"
        for name, tensor in wanted.items()
        if getattr(given.get(name), "shape", None) != tensor.shape
    ]
    wrong += [f"{name} (unknown)" for name in given if name not in wanted]
    return ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")


def _shape(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return "x".join(map(str, value.shape)) or "a scalar"
