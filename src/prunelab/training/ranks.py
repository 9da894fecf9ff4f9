"""What the processes of one training have to agree on, and how they stop together when they do not.

Everything here is a collective: all ranks call it, whatever they hold; with one process it costs nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TypeVar

import torch.distributed as dist
from pytorch_lightning import Trainer
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn, uint8

from prunelab.pruning import PruningError

Own = TypeVar("Own")


class RanksDiffer(PruningError):
    """Processes of one training hold different things. Raised on all of them, with the same message."""


def of_ranks(trainer: Trainer, own: Own) -> list[Own]:
    """What each rank has, on every rank."""
    if trainer.world_size == 1:
        return [own]
    found: list[Own] = [own] * trainer.world_size
    dist.all_gather_object(found, own)
    return found


def check_alike(trainer: Trainer, when: str, own: Mapping[str, str]) -> None:
    """Compare `own`, what it is -> its digest, with that of rank 0.

    Raises: RanksDiffer on all ranks, if any differs; says what, on which ranks.
    """
    first, *others = of_ranks(trainer, dict(own))
    differing = {what: [rank for rank, its in enumerate(others, 1) if its[what] != first[what]] for what in first}
    if wrong := [f"other {what} on {_named(ranks)}" for what, ranks in differing.items() if ranks]:
        raise RanksDiffer(f"{when}: {', '.join(wrong)} than on rank 0; all {trainer.world_size} processes stop")


def load_from_first(trainer: Trainer, module: nn.Module) -> None:
    """Give `module` the state dict that it has on rank 0."""
    if trainer.world_size > 1:
        # by way of main memory: the device of rank 0 is not that of the others
        own = {name: tensor.cpu() for name, tensor in module.state_dict().items()}
        module.load_state_dict(trainer.strategy.broadcast(own))


def weights_digest(trainer: Trainer, net: nn.Module) -> str:
    """SHA-256 over names and bits of the parameters, as hex; "" where each rank holds a part of them, or is alone."""
    if trainer.world_size == 1 or not isinstance(trainer.strategy, DDPStrategy):
        return ""
    digest = hashlib.sha256()
    for name, weight in net.named_parameters():
        digest.update(name.encode())
        digest.update(_bytes(weight))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    # numpy lacks bfloat16
    return tensor.detach().cpu().contiguous().reshape(-1).view(uint8).numpy().tobytes()


def _named(ranks: list[int]) -> str:
    numbers = ", ".join(map(str, ranks))
    return f"rank {numbers}" if len(ranks) == 1 else f"ranks {numbers}"
