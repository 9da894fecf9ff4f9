"""Networks whose weights are spread over processes (FSDP2: `fully_shard`, Lightning's ModelParallelStrategy).

Masks are found on a whole copy, on every process, and then spread like the weights: `Masks.apply_to`, `KeepPruned`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import StochasticWeightAveraging, WeightAveraging
from pytorch_lightning.strategies import ModelParallelStrategy
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from prunelab.pruning import PruningError


def restores_late(trainer: Trainer) -> bool:
    """Whether Lightning reads a checkpoint only after on_fit_start, as its strategies do that spread weights."""
    return trainer.strategy.restore_checkpoint_after_setup


def check_strategy(trainer: Trainer, pl_module: LightningModule, *, compact: bool) -> None:
    """Whether pruning goes with how the Trainer spreads weights, in `setup`.

    Raises: PruningError for other strategies than FSDP2's, tensor parallelism, a module that shards nothing, and what
    copies or replaces the network (compact, weight averaging).
    """
    if not restores_late(trainer):
        return
    strategy = trainer.strategy
    if not isinstance(strategy, ModelParallelStrategy):
        raise PruningError(
            f"{type(strategy).__name__}: masks go with one device, ddp, or FSDP2 (ModelParallelStrategy)"
        )
    if (size := strategy.device_mesh["tensor_parallel"].size()) > 1:
        raise PruningError(
            f"ModelParallelStrategy(tensor_parallel_size={size}): masks go with data parallelism alone, "
            f"ModelParallelStrategy(data_parallel_size={trainer.world_size}, tensor_parallel_size=1)"
        )
    if not is_overridden("configure_model", pl_module):
        raise PruningError(
            f"ModelParallelStrategy: {type(pl_module).__name__} has no configure_model that calls fully_shard on its "
            "network; ddp needs none"
        )
    if compact:
        raise PruningError("compact: goes with one device or ddp, not with ModelParallelStrategy")
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WeightAveraging | StochasticWeightAveraging):
            raise PruningError(
                f"{type(callback).__name__} copies the network, which ModelParallelStrategy does not allow"
            )


def reshard(pl_module: nn.Module) -> None:
    """Put the processes' own parts in the place of whole weights, which stay after a pass without a backward pass
    (sanity validation): the optimizer steps on the parts.
    """
    for module in pl_module.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def check_sharded(net: nn.Module) -> None:
    """Raises: PruningError if a weight that trains is not spread: each process would train one of its own."""
    whole = [
        name for name, weight in net.named_parameters() if weight.requires_grad and not isinstance(weight, DTensor)
    ]
    if whole:
        shown = ", ".join(whole[:3]) + (f" and {len(whole) - 3} more" if len(whole) > 3 else "")
        raise PruningError(f"configure_model leaves {shown} out of fully_shard: each process would train its own")


@torch.no_grad()
def whole_copy(net: nn.Module) -> nn.Module:
    """A copy of `net` with whole weights on every process, which knows nothing of its being sharded; all processes
    have to ask. Memory: all weights of the network, on each process, for as long as the copy is held.
    """
    # deepcopy alone refuses sharded modules: it is given what takes their place
    known: dict[int, Any] = {}
    for weight in net.parameters():
        values = weight.full_tensor() if isinstance(weight, DTensor) else weight
        known[id(weight)] = nn.Parameter(values.detach().clone(), weight.requires_grad)
    for module in net.modules():
        own = _own_class(module)
        known[id(module)] = own.__new__(own)
    for module in net.modules():
        known[id(module)].__dict__.update(deepcopy(_unsharded_state(module), known))
    return known[id(net)]


def _own_class(module: nn.Module) -> type[nn.Module]:
    """`fully_shard` gives a module a class that inherits from its own."""
    classes = type(module).__mro__
    return next(c for c in classes[1:] if issubclass(c, nn.Module)) if isinstance(module, FSDPModule) else classes[0]


def _unsharded_state(module: nn.Module) -> dict[str, Any]:
    state: dict[str, Any] = {}
    for name, value in module.__dict__.items():
        if name.endswith("_hooks") and isinstance(value, Mapping):
            value = type(value)({key: hook for key, hook in value.items() if not _is_of_sharding(hook)})  # type: ignore[call-arg]
        if not name.startswith("__composable_api") and name != "_compiled_call_impl":
            state[name] = value
    return state


def _is_of_sharding(hook: Any) -> bool:
    return (getattr(inspect.unwrap(hook), "__module__", None) or "").startswith("torch.distributed.")


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of the tensor: all of it where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
