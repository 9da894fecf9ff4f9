"""What a criterion scores with, from whatever the user's script has: a data module of ours, another, or a loader."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn

from prunelab.pruning import PruningError
from prunelab.pruning.scoring import Batch, call_with, evaluation_mode

# classes that draw at random when they are called, in torchvision's and most other transforms
_AUGMENTS = ("Rand", "AutoAugment", "TrivialAugment", "AugMix", "ColorJitter")


def example_input(trainer: Trainer, pl_module: LightningModule, batches: Sequence[Batch] | None) -> Tensor:
    """One input, first dimension 1: of given batches, data module, `example_input_array`, or training loader."""
    if batches is not None:
        return _pair(next(iter(batches), None), "batches")[0][:1]
    datamodule: Any = getattr(trainer, "datamodule", None)
    if hasattr(datamodule, "example_input"):
        return datamodule.example_input()
    if isinstance(pl_module.example_input_array, Tensor):
        return pl_module.example_input_array[:1]
    loader = _train_loader(trainer)
    with _order_kept(loader):
        return _pair(next(iter(loader), None), "the training loader")[0][:1]


def scoring_batches(
    trainer: Trainer, batches: Sequence[Batch] | None, samples_per_class: int, net: nn.Module, example: Tensor
) -> Sequence[Batch]:
    """Given batches; else the data module's `scoring_batches`; else each class's first samples in the train loader.

    The classes are then the outputs of `net` for `example`.
    Raises: PruningError if the training loader has too few samples of some class.
    """
    if batches is not None:
        return batches
    datamodule: Any = getattr(trainer, "datamodule", None)
    if hasattr(datamodule, "scoring_batches"):
        return list(datamodule.scoring_batches(samples_per_class=samples_per_class))
    with evaluation_mode(net), torch.no_grad():
        num_classes = call_with(net, {}, example).shape[-1]
    loader = _train_loader(trainer)
    augmentations = _augmentations(loader)
    warnings.warn(
        "scoring batches come from the training loader"
        + (f", which augments ({', '.join(augmentations)}): the mask depends on those draws" if augmentations else ""),
        stacklevel=2,
    )
    with _order_kept(loader):
        return [_first_of_each_class(loader, samples_per_class, num_classes)]


def _first_of_each_class(loader: Any, samples_per_class: int, num_classes: int) -> Batch:
    wanted = dict.fromkeys(range(num_classes), samples_per_class)
    images, labels = [], []
    for batch in loader:
        inputs, targets = _pair(batch, "the training loader")
        for image, label in zip(inputs, targets.tolist(), strict=True):
            if wanted.get(label, 0) > 0:
                wanted[label] -= 1
                images.append(image)
                labels.append(label)
        if not any(wanted.values()):
            return torch.stack(images), torch.tensor(labels)
    short = [label for label, missing in wanted.items() if missing]
    raise PruningError(f"the training loader has fewer than {samples_per_class} samples of the classes {short}")


def _train_loader(trainer: Trainer) -> Any:
    # where Lightning keeps the loader, data module or module that fit() was given; not public, no public way exists
    return trainer.fit_loop._data_source.dataloader()


@contextmanager
def _order_kept(loader: Any) -> Iterator[None]:
    """Reading it here does not change the order in which training will: it may have a generator of its own."""
    generator = getattr(loader, "generator", None)
    before = None if generator is None else generator.get_state()
    yield
    if generator is not None:
        generator.set_state(before)


def _pair(batch: Any, source: str) -> tuple[Tensor, Tensor]:
    if isinstance(batch, tuple | list) and len(batch) >= 2 and all(isinstance(part, Tensor) for part in batch[:2]):
        return batch[0], batch[1]
    found = "nothing" if batch is None else f"a {type(batch).__name__}"
    raise PruningError(f"{source}: (inputs, labels) are needed, found {found}; give PruningAtInit(batches=[...])")


def _augmentations(loader: Any) -> list[str]:
    dataset: Any = getattr(loader, "dataset", None)
    while hasattr(dataset, "dataset"):  # a subset of another
        dataset = dataset.dataset
    transform = getattr(dataset, "transform", None)
    parts = getattr(transform, "transforms", None) or [transform]
    return [type(part).__name__ for part in parts if type(part).__name__.startswith(_AUGMENTS)]
