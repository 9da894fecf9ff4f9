"""Trainings of small networks on 1, 2 and 4 processes (gloo), for test_ranks.py to compare.

    python on_ranks.py DIRECTORY

What a process costs is its imports. This program imports once and then forks: all trainings of 2 ranks happen in one
pair of processes, those of 4 in one quartet. Rank R of W leaves what it found in DIRECTORY/W-R.pt.
"""

from __future__ import annotations

import os
import socket
import sys
import warnings
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import EMAWeightAveraging
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn

from prunelab.data import ImageArrays, ImageDataModule
from prunelab.models import mlp
from prunelab.pruning import Scoring, criteria
from prunelab.pruning.diagnostics import count_leaked
from prunelab.training import Classifier, KeepPruned, PruningAtInit

NAMES = [name for name in criteria.__all__ if name[0].islower()]
NUM_TEST = 101
Found = dict[str, Any]


class Ranks:
    """This process's part of the trainings: rank `rank` of `world_size`."""

    def __init__(self, rank: int, world_size: int, directory: Path) -> None:
        self.rank, self.world_size, self.directory = rank, world_size, directory

    def trainer(self, callbacks: list[Callback], **options: Any) -> Trainer:
        defaults: Found = {
            **{"accelerator": "cpu", "devices": self.world_size, "max_epochs": 1, "num_sanity_val_steps": 0},
            **{"logger": False, "enable_progress_bar": False, "enable_model_summary": False},
            **{"enable_checkpointing": False, "default_root_dir": self.directory},
        }
        if self.world_size > 1:
            defaults["strategy"] = DDPStrategy(process_group_backend="gloo")
            defaults["plugins"] = Placed(self.rank, self.world_size)
        return Trainer(callbacks=callbacks, **defaults | options)

    def fit(
        self,
        net: nn.Module,
        criterion: Any = criteria.magnitude,
        *more: Callback,
        pruning: Found | None = None,
        data: Found | None = None,
        model: Found | None = None,
        **options: Any,
    ) -> tuple[Trainer, Classifier, PruningAtInit, ImageDataModule]:
        prune = PruningAtInit(criterion, **{"density": 0.2} | (pruning or {}))
        module = Classifier(net, sgd, **(model or {}))
        pictures = random_pictures(**(data or {}))
        trainer = self.trainer([prune, KeepPruned(), *more], **options)
        trainer.fit(module, datamodule=pictures)
        return trainer, module, prune, pictures


class Placed(LightningEnvironment):
    """Where this process is among those that `main` has started."""

    def __init__(self, rank: int, world_size: int) -> None:
        super().__init__()
        self.set_global_rank(rank)
        self.set_world_size(world_size)

    @property
    def creates_processes_externally(self) -> bool:
        return True

    def local_rank(self) -> int:
        return self.global_rank()


def random_pictures(num_train: int = 101, batch_size: int = 16, num_val: int = 33) -> ImageDataModule:
    def read() -> ImageArrays:
        generator = torch.Generator().manual_seed(0)
        num = num_train + num_val
        labels = torch.arange(num + NUM_TEST) % 3
        noise = torch.randint(200, (len(labels), 1, 6, 6), generator=generator)
        pictures = (noise + 18 * labels[:, None, None, None]).to(torch.uint8)
        return ImageArrays(pictures[:num], labels[:num], pictures[num:], labels[num:], ("a", "b", "c"))

    return ImageDataModule(read, batch_size, num_val, augment="crop_flip", padding=1)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3)


def plain_net() -> nn.Sequential:
    """Without batch norm."""
    convolutions = (nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(32, 3))


def norm_net() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)),
    )


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


# --- the trainings: each is made by all ranks, and returns what this one found


def masks_and_start(ranks: Ranks, name: str) -> Found:
    """Masks of a criterion, and the weights that training starts with; every rank is seeded otherwise."""

    class Start(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            found["start"] = state(pl_module)

    found: Found = {}
    torch.manual_seed(ranks.rank)  # rank 0 as a single process
    criterion, options = getattr(criteria, name), {"max_steps": 1, "limit_val_batches": 0}
    _, _, pruning, data = ranks.fit(
        norm_net(), criterion, Start(), pruning={"rounds": min(criterion.rounds, 5)}, **options
    )
    return found | {"masks": dict(pruning.masks or {}), "seed": data.run_seed}


def exact(ranks: Ranks, make: Callable[[], nn.Module], num_train: int, batch_size: int, **options: Any) -> Found:
    """Three epochs in float64, of a network whose result should not depend on the number of ranks."""
    torch.manual_seed(ranks.rank)
    data = {"num_train": num_train, "batch_size": batch_size}
    options = {"precision": "64-true", "max_epochs": 3} | options
    trainer, module, _, pictures = ranks.fit(make(), criteria.snip, data=data, **options)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    tested = trainer.test(module, datamodule=pictures, verbose=False)[0]
    return {"weights": state(module), "steps": trainer.global_step, "metrics": metrics | tested}


def kept(ranks: Ranks, *more: Callback, compact: bool, model: Found | None = None, **options: Any) -> Found:
    """What is left of the zeros after three epochs of a network with batch norm, and of the weights' equality."""
    torch.manual_seed(ranks.rank)
    trainer, module, pruning, data = ranks.fit(
        norm_net(),
        criteria.synflow,
        *more,
        pruning={"density": 0.05, "compact": compact},
        model=model,
        max_epochs=3,
        **options,
    )
    assert pruning.held_masks is not None
    return {
        "leaked": count_leaked(module.net, pruning.held_masks),
        "pruned": pruning.held_masks.num_weights - pruning.held_masks.num_kept,
        "compacted": pruning.index is not None,
        "parameters": {name: weight.detach().clone() for name, weight in module.named_parameters()},
        "tested": trainer.test(module, datamodule=data, verbose=False)[0],
        "state": state(module),  # buffers too, which are shared for the test
    }


def stopped(ranks: Ranks, *more: Callback, criterion: Any = criteria.magnitude, **pruning: Any) -> Found:
    """The message that this rank stops with."""
    torch.manual_seed(0)
    try:
        ranks.fit(norm_net(), criterion, *more, pruning=pruning)
    except Exception as error:
        return {"error": type(error).__name__, "message": str(error)}
    return {"error": None, "message": ""}


class OwnOpinion:
    """A criterion that ranks differ about."""

    rounds, needs_batches, revives, allocation = 1, False, False, None

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def __call__(self, scoring: Scoring) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(self.rank)
        return {name: torch.rand(weight.shape, generator=generator) for name, weight in scoring.weights().items()}


class Meddler(Callback):
    """Rank 1 writes to its weights: to a pruned one at the end of the epoch, or to all of them after the last step."""

    def __init__(self, what: str, rank: int) -> None:
        self.what, self.rank = what, rank

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.is_last_batch and self.rank == 1:
            weight = pl_module.net[0].weight
            if self.what == "pruned":
                weight[weight == 0] = 1.0
            else:
                weight.mul_(1.5)


def averages_start(ranks: Ranks) -> Found:
    """The average that is validated before the first update: a copy from before the ranks had one network."""

    class Look(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            found.update(state(averaging._average_model.module))  # type: ignore[union-attr]

    found: Found = {}
    averaging = EMAWeightAveraging(decay=0.9, update_starting_at_step=10**6)
    torch.manual_seed(ranks.rank)
    ranks.fit(norm_net(), criteria.magnitude, averaging, Look(), max_steps=1, limit_val_batches=0)
    return found


def trainings(ranks: Ranks) -> dict[str, Callable[[], Found]]:
    """Name -> training, in the same order on all ranks."""
    found: dict[str, Callable[[], Found]] = {f"masks {name}": partial(masks_and_start, ranks, name) for name in NAMES}
    for net, num_train, batch_size, options in EXACT:
        name = exact_name(net, num_train, batch_size, options)
        found[name] = partial(exact, ranks, NETS[net], num_train, batch_size, **options)
    if ranks.world_size == 2:
        for what, compact in product(KEPT, (False, True)):
            found[f"kept {what} {compact}"] = partial(KEPT[what], ranks, compact)
        found["average"] = partial(averages_start, ranks)
        found["other masks"] = partial(stopped, ranks, criterion=OwnOpinion(ranks.rank))
        found["other masks compact"] = partial(stopped, ranks, criterion=OwnOpinion(ranks.rank), compact=True)
        found["leak"] = partial(stopped, ranks, Meddler("pruned", ranks.rank))
        found["other weights"] = partial(stopped, ranks, Meddler("all", ranks.rank))
        found["none of this"] = partial(stopped, ranks)
    return found


NETS: dict[str, Callable[[], nn.Module]] = {
    "plain": plain_net,
    "mlp": partial(mlp, num_classes=3, in_channels=1, image_size=6, depth=2, width=8),
}

# network, training pictures, batch size, Trainer arguments: with 101 = 6 * 16 + 5 the ranks have unequally many of the
# last batch, with 97 = 6 * 16 + 1 all ranks but one have none
EXACT: list[tuple[str, int, int, Found]] = [
    ("plain", 101, 16, {}),
    ("mlp", 101, 16, {}),
    ("plain", 97, 16, {}),
    ("plain", 101, 16, {"accumulate_grad_batches": 3}),
    ("plain", 101, 16, {"gradient_clip_val": 0.1}),
    ("plain", 99, 128, {}),
]


def exact_name(net: str, num_train: int, batch_size: int, options: Found) -> str:
    return " ".join(
        ["exact", net, str(num_train), str(batch_size), *(f"{key}={value}" for key, value in options.items())]
    )


def _kept(*make: Callable[[], Callback], **options: Any) -> Callable[[Ranks, bool], Found]:
    return lambda ranks, compact: kept(ranks, *(one() for one in make), compact=compact, **options)


KEPT: dict[str, Callable[[Ranks, bool], Found]] = {
    "as it is": _kept(),
    "accumulate_grad_batches": _kept(accumulate_grad_batches=2),
    "bf16-mixed": _kept(precision="bf16-mixed"),
    "gradient_clip_val": _kept(gradient_clip_val=0.05),
    "EMAWeightAveraging": _kept(lambda: EMAWeightAveraging(decay=0.9)),
    "compile": _kept(model={"compile": True}),
}


def work(rank: int, world_size: int, port: int, directory: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    warnings.simplefilter("ignore")
    compile_in_place = nn.Module.compile
    nn.Module.compile = lambda net: compile_in_place(net, backend="eager")  # type: ignore  # the default takes minutes
    ranks = Ranks(rank, world_size, directory)
    found = {}
    for name, train in trainings(ranks).items():
        print(f"{world_size} {rank}: {name}", flush=True)
        found[name] = train()
    torch.save(found, directory / f"{world_size}-{rank}.pt")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main(directory: Path) -> None:
    for world_size in (1, 2, 4):
        torch.multiprocessing.start_processes(
            work, (world_size, free_port(), directory), nprocs=world_size, start_method="fork"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
