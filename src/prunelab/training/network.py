"""The network inside a LightningModule, and weights for it from a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunelab.pruning import PruningError
from prunelab.pruning.transfer import differs_in_outputs, head_weight, misfits

COMPACTION = "compaction"  # under this key a checkpoint says how its network was compacted


def find_network(pl_module: nn.Module, path: str) -> nn.Module:
    """The submodule of a LightningModule at the dotted `path`; "" is the LightningModule itself.

    Raises: PruningError that names the module's children if there is none.
    """
    try:
        return pl_module.get_submodule(path)
    except AttributeError:
        children = ", ".join(name for name, _ in pl_module.named_children()) or "none"
        raise PruningError(
            f'{type(pl_module).__name__} has no network {path!r}; its modules: {children} (net="" for the whole of it)'
        ) from None


def like_weights(tensor: Tensor, net: nn.Module) -> Tensor:
    """On the device of the network's weights, and in their dtype unless it holds integers."""
    weight = next(net.parameters())
    return tensor.to(weight.device, weight.dtype if tensor.is_floating_point() else tensor.dtype)


def load_weights(net: nn.Module, path: str, prefix: str, new_head: bool = False) -> str | None:
    """Load a state dict file, or the part of a Lightning checkpoint under `prefix`, strictly.

    new_head: a head that has another number of outputs in the file stays as it is, weight and bias; returns its path,
    None if there is no such head.
    Raises: PruningError if the file is missing, damaged, or does not fit the network; nothing is changed then.
    """
    weights, own = under_prefix(_read_state(path), prefix), net.state_dict()
    if any(tensor.is_meta for tensor in own.values()):
        raise PruningError("weights_from: the network is on the meta device, it has no weights yet that could be set")
    head = head_weight(net).removesuffix("weight")
    is_new = new_head and _differs_in_outputs(f"{head}weight", weights, own)
    if is_new:
        weights = {name: value for name, value in weights.items() if not name.startswith(head)}
        weights |= {name: value for name, value in own.items() if name.startswith(head)}
    if wrong := misfits(weights, own):
        raise PruningError(f"weights_from: {path} does not fit the network: {wrong}")
    net.load_state_dict(weights)
    return head.removesuffix(".") if is_new else None


def under_prefix(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The part of a state dict under the dotted `prefix`, by the names that the network itself has for it.

    All of it if the prefix is "", or no name has it.
    """
    dotted = f"{prefix}." if prefix else ""
    if all(not name.startswith(dotted) for name in state):
        dotted = ""
    return {name.removeprefix(dotted): value for name, value in state.items() if name.startswith(dotted)}


def _read_state(path: str) -> dict[str, Any]:
    if not Path(path).is_file():
        raise PruningError(f"weights_from: no file {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        state = {str(name): value for name, value in content.get("state_dict", content).items()}
    except Exception as error:  # reading noise fails in any way: OSError, RuntimeError, IndexError, ...
        raise PruningError(f"weights_from: {path} is damaged or no state dict ({type(error).__name__})") from error
    if COMPACTION in content:
        raise PruningError(
            f"weights_from: {path} holds a compact network; the full one's weights: python -m prunelab.export RUN_DIR "
            "--format ticket --weights trained"
        )
    return state


def _differs_in_outputs(name: str, weights: Mapping[str, Any], own: Mapping[str, Tensor]) -> bool:
    given = weights.get(name)
    return isinstance(given, Tensor) and name in own and differs_in_outputs(given, own[name])
