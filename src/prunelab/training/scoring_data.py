"""What a criterion scores with, from whatever the user's script has: a data module of ours, another, or a loader."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from prunelab.pruning import PruningError
from prunelab.pruning.scoring import Batch

# classes that draw at random when they are called, in torchvision's and most other transforms
_AUGMENTS = ("Random", "AutoAugment", "TrivialAugment", "AugMix", "ColorJitter")


def example_input(trainer: Trainer, pl_module: LightningModule, batches: Iterable[Batch] | None) -> Tensor:
    """One input, first dimension 1: of given batches, data module, `example_input_array`, or training loader."""
    if batches is not None:
        return next(iter(batches))[0][:1]
    datamodule: Any = getattr(trainer, "datamodule", None)
    if hasattr(datamodule, "example_input"):
        return datamodule.example_input()
    if isinstance(pl_module.example_input_array, Tensor):
        return pl_module.example_input_array[:1]
    return next(_loader_batches(trainer))[0][:1]


def scoring_batches(
    trainer: Trainer, batches: Iterable[Batch] | None, samples_per_class: int, num_classes: int
) -> list[Batch]:
    """Given batches; else the data module's `scoring_batches`; else each class's first samples in the train loader.

    Raises: PruningError if the training loader has no sample of some class.
    """
    if batches is not None:
        return list(batches)
    datamodule: Any = getattr(trainer, "datamodule", None)
    if hasattr(datamodule, "scoring_batches"):
        return list(datamodule.scoring_batches(samples_per_class=samples_per_class))
    return [_first_of_each_class(trainer, samples_per_class, num_classes)]


def _first_of_each_class(trainer: Trainer, samples_per_class: int, num_classes: int) -> Batch:
    wanted = dict.fromkeys(range(num_classes), samples_per_class)
    images, labels = [], []
    for batch in _loader_batches(trainer):
        for image, label in zip(batch[0], batch[1].tolist(), strict=True):
            if wanted.get(label, 0) > 0:
                wanted[label] -= 1
                images.append(image)
                labels.append(label)
        if not any(wanted.values()):
            return torch.stack(images), torch.tensor(labels)
    short = [label for label, missing in wanted.items() if missing]
    raise PruningError(f"the training loader has fewer than {samples_per_class} samples of the classes {short}")


def _loader_batches(trainer: Trainer) -> Iterator[Batch]:
    # where Lightning keeps the loader, data module or module that fit() was given; not public, no public way exists
    loader = trainer.fit_loop._data_source.dataloader()
    augmentations = _augmentations(getattr(getattr(loader, "dataset", None), "transform", None))
    warnings.warn(
        "scoring batches come from the training loader"
        + (f", which augments ({', '.join(augmentations)}): the mask depends on those draws" if augmentations else ""),
        stacklevel=2,
    )
    for images, labels, *_ in loader:
        yield images, labels


def _augmentations(transform: Any) -> list[str]:
    parts = getattr(transform, "transforms", None) or ([] if transform is None else [transform])
    return [type(part).__name__ for part in parts if type(part).__name__.startswith(_AUGMENTS)]
