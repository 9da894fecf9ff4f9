"""The network inside a LightningModule, and weights for it from a file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from prunelab.pruning import PruningError


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


def load_weights(net: nn.Module, path: str, prefix: str) -> None:
    """Load a state dict file, or the part of a Lightning checkpoint under `prefix`, strictly.

    Raises: PruningError if the file is missing, damaged, or does not fit the network.
    """
    if not Path(path).is_file():
        raise PruningError(f"weights_from: no file {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        state = {str(name): value for name, value in content.get("state_dict", content).items()}
    except Exception as error:  # reading noise fails in any way: OSError, RuntimeError, IndexError, ...
        raise PruningError(f"weights_from: {path} is damaged or no state dict ({type(error).__name__})") from error
    dotted = f"{prefix}." if prefix else ""
    if all(not name.startswith(dotted) for name in state):
        dotted = ""
    weights = {name.removeprefix(dotted): value for name, value in state.items() if name.startswith(dotted)}
    own = net.state_dict()
    wrong = [name for name in own if getattr(weights.get(name), "shape", None) != own[name].shape]
    wrong += [name for name in weights if name not in own]
    if wrong:
        shown = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        raise PruningError(f"weights_from: {path} does not fit the network: {shown} missing, unknown or of other shape")
    net.load_state_dict(weights)
