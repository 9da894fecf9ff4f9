"""What one of two processes does for test_fsdp.py: many small trainings of sharded networks, and what came out.

python sharded_fits.py RANK DIRECTORY writes DIRECTORY/RANK.pt: name of the training -> plain values and whole tensors.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from pytorch_lightning.callbacks import EMAWeightAveraging
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, TensorDataset

from prunelab.pruning import PruningError, Scoring, criteria
from prunelab.training import Classifier, KeepPruned, PruningAtInit
from prunelab.training.sharded import whole_copy

NUM_PROCESSES = 2
BATCH_SIZE = 16  # of all processes together
CRITERIA: dict[str, Callable[[], Any]] = {
    "random": criteria.Random,
    "erk": criteria.Erk,
    "magnitude": criteria.Magnitude,
    "lamp": criteria.Lamp,
    "synflow": partial(criteria.SynFlow, rounds=5),
    "snip": criteria.Snip,
    "iterative_snip": partial(criteria.IterativeSnip, rounds=3),
    "force": partial(criteria.Force, rounds=3),
    "grasp": criteria.Grasp,
}
ADAM = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1)
# name: keywords of `train`
TRAININGS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "adamw": {"optimizer": ADAM},
    "clipped": {"gradient_clip_val": 0.1},
    "accumulated": {"accumulate_grad_batches": 2, "max_steps": 3},
    "validated first": {"num_sanity_val_steps": 1},
    "bf16": {"precision": "bf16-mixed"},
}


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2)


def tiny_net(seed: int = 0) -> nn.Sequential:
    """273 prunable weights, in layers of 5 and 3 outputs, which 2 processes cannot share evenly."""
    torch.manual_seed(seed)
    features = (nn.Conv2d(1, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.ReLU())
    return nn.Sequential(*features, nn.Flatten(), nn.Linear(16, 3))


def without_norm(seed: int = 0) -> nn.Sequential:
    """Batch statistics would be those of each process's part of the batch."""
    net = tiny_net(seed)
    net[1] = nn.Identity()
    return net


def random_images() -> TensorDataset:
    images = torch.randn(48, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    return TensorDataset(images, torch.arange(48) % 3)


class Data(LightningDataModule):
    """Batches of 16 in a fixed order, which the processes share; 3 of them are an epoch."""

    def __init__(self, num_processes: int) -> None:
        super().__init__()
        self.num_processes = num_processes

    def example_input(self) -> Tensor:
        return torch.zeros(1, 1, 6, 6)

    def scoring_batches(self, samples_per_class: int = 10) -> list[tuple[Tensor, ...]]:
        return [random_images()[:30]]

    def train_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        own = range(self.trainer.global_rank, 48, self.num_processes) if self.num_processes > 1 else range(48)
        return DataLoader(random_images(), sampler=own, batch_size=BATCH_SIZE // self.num_processes)

    def val_dataloader(self) -> DataLoader:
        return self.train_dataloader()


def documented() -> type[Classifier]:
    """The module that docs/sharding.md shows."""
    text = (Path(__file__).parents[2] / "docs" / "sharding.md").read_text()
    found: dict[str, Any] = {}
    exec(text.split("```python\n")[1].split("```")[0], found)
    return found["Sharded"]


class MadeLate(LightningModule):
    """The network is made without memory, and its weights only once each process knows its part."""

    def configure_model(self) -> None:
        if hasattr(self, "net"):
            return
        with torch.device("meta"):
            self.net = tiny_net()
        fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return sgd(self.parameters())


class PartlySharded(Classifier):
    def configure_model(self) -> None:
        fully_shard(self.net[0], mesh=self.device_mesh["data_parallel"])


class AnotherScore(AssertionError):
    pass


class ScoresNever:
    """A criterion for resumed runs."""

    rounds, needs_batches, revives, allocation = 1, False, False, None

    def __call__(self, scoring: Scoring) -> dict[str, Tensor]:
        raise AnotherScore


class SaveAtEpochEnd(Callback):
    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(self.path)


class Watch(Callback):
    """After each step: what of the pruned weights, their gradients and slots is not 0, on this process."""

    def __init__(self, pruning: PruningAtInit) -> None:
        self._pruning = pruning
        self.num_not_zero = 0
        self.num_sharded = 0
        self.num_looked_at = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        masks = self._pruning.masks
        assert masks is not None
        parameters = dict(pl_module.net.named_parameters())
        held = {parameters[name]: mask for name, mask in masks.items()}
        self.num_sharded = sum(isinstance(weight, DTensor) for weight in held)
        # after that of KeepPruned
        trainer.optimizers[0].register_step_post_hook(lambda optimizer, *_: self._look(optimizer, held))

    def _look(self, optimizer: torch.optim.Optimizer, held: dict[Tensor, Tensor]) -> None:
        for weight, mask in held.items():
            slots = [slot for slot in optimizer.state[weight].values() if slot.shape == weight.shape]
            for values in (weight, weight.grad, *slots):
                self.num_not_zero += int((whole(values)[~mask] != 0).sum())
                self.num_looked_at += 1


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def whole_state(net: nn.Module) -> dict[str, Tensor]:
    return {name: whole(tensor).clone() for name, tensor in net.state_dict().items()}


def train(
    directory: Path,
    module: LightningModule,
    *,
    criterion: Any = None,
    num_processes: int = 1,
    strategy: Any = "auto",
    ckpt_path: Path | None = None,
    more: Iterable[Callback] = (),
    keep_first: bool = False,
    pruning: dict[str, Any] | None = None,
    **trainer: Any,
) -> tuple[Trainer, PruningAtInit, Watch]:
    """Of 5 steps, on one process or on all of them."""
    pruning_callback = PruningAtInit(criterion or criteria.Snip(), density=0.2, **(pruning or {}))
    watch = Watch(pruning_callback)
    two = [KeepPruned(), pruning_callback] if keep_first else [pruning_callback, KeepPruned()]
    options: dict[str, Any] = {"max_steps": 5, "num_sanity_val_steps": 0, "limit_val_batches": 1} | trainer
    runner = Trainer(
        accelerator="cpu",
        devices=num_processes,
        strategy=strategy,
        callbacks=[*two, watch, *more],
        default_root_dir=directory,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,  # it shuffles
        **options,
    )
    runner.fit(module, datamodule=Data(num_processes), ckpt_path=ckpt_path)
    return runner, pruning_callback, watch


def outcome(module: LightningModule, pruning: PruningAtInit, watch: Watch) -> dict[str, Any]:
    assert pruning.masks is not None
    assert pruning.preflight is not None
    return {
        "masks": dict(pruning.masks),
        "weights": whole_state(module.net),
        "not_zero": watch.num_not_zero,
        "looked_at": watch.num_looked_at,
        "sharded": watch.num_sharded,
        "scoring_loss": pruning.preflight.scoring_loss,
    }


def refusal(**arguments: Any) -> str:
    try:
        train(**arguments)
    except PruningError as error:
        return str(error)
    return "not refused"


def main(rank: int, directory: Path) -> None:
    torch.set_num_threads(1)
    store = f"file://{directory / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=NUM_PROCESSES)
    results: dict[str, Any] = {}
    sharded = documented()

    def fit(module: LightningModule, full: bool = False, **options: Any) -> tuple[Trainer, PruningAtInit, Watch]:
        strategy = ModelParallelStrategy(NUM_PROCESSES, 1, save_distributed_checkpoint=not full)
        return train(directory, module, **({"num_processes": NUM_PROCESSES, "strategy": strategy} | options))

    def made(make_net: Callable[[], nn.Module] = without_norm, optimizer: Any = sgd) -> Classifier:
        return sharded(make_net(), optimizer)

    for name, make in CRITERIA.items():
        module = made(tiny_net)
        results[name] = outcome(module, *fit(module, criterion=make(), max_steps=1)[1:])
    for name, options in TRAININGS.items():
        module = made(optimizer=options.get("optimizer", sgd))
        others = {key: value for key, value in options.items() if key != "optimizer"}
        results[name] = outcome(module, *fit(module, **others)[1:])
    module = made(lambda: tiny_net(seed=rank))
    results["seeded apart"] = outcome(module, *fit(module, criterion=criteria.Magnitude(), max_steps=1)[1:])
    module = MadeLate()
    results["made late"] = outcome(module, *fit(module, max_steps=1)[1:])

    for kind, full in (("directory", False), ("file", True)):
        path = directory / f"saved_{kind}"
        fit(made(optimizer=ADAM), full, more=[SaveAtEpochEnd(path)], max_steps=4)
        module = made(optimizer=ADAM)
        resumed = fit(module, full, criterion=ScoresNever(), ckpt_path=path)
        results[f"resumed from a {kind}"] = outcome(module, *resumed[1:])
    module = Classifier(without_norm(), ADAM)
    results["DDP"] = outcome(module, *fit(module, strategy="ddp")[1:])

    source = made()
    fit(source, max_steps=1)
    hooked = source.net[4]
    hooked.register_forward_hook(lambda *_: None)
    copy = whole_copy(source.net)
    inputs = random_images()[:4][0]
    results["copy"] = {
        "same": torch.equal(copy(inputs), source.net(inputs)),
        "sharded": [str(type(part)) for part in copy.modules() if isinstance(part, FSDPModule)],
        "kinds": [type(part).__name__ for part in copy.modules()],
        "plain": all(type(weight) is nn.Parameter for weight in copy.parameters()),
        "hooks": sum(len(part._forward_hooks) for part in copy.modules()),
    }

    mp = partial(ModelParallelStrategy, NUM_PROCESSES, 1)
    refused: dict[str, dict[str, Any]] = {
        "tensor parallel": {"module": made(), "strategy": ModelParallelStrategy(1, NUM_PROCESSES)},
        "no configure_model": {"module": Classifier(without_norm(), sgd), "strategy": mp()},
        "compact": {"module": made(), "strategy": mp(), "pruning": {"compact": True}},
        "averaging": {"module": made(), "strategy": mp(), "more": [EMAWeightAveraging()]},
        "partly sharded": {"module": PartlySharded(without_norm(), sgd), "strategy": mp()},
        "order": {"module": made(), "strategy": mp(), "keep_first": True},
    }
    for name, options in refused.items():
        results[name] = refusal(directory=directory, num_processes=NUM_PROCESSES, **options)
    torch.save(results, directory / f"{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    rank = int(sys.argv[1])
    # as torchrun says it: Lightning then starts no processes itself
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(NUM_PROCESSES)}
    main(rank, Path(sys.argv[2]))
