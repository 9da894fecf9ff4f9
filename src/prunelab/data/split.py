"""Which training pictures validate and which ones score. Both choices depend on labels and a seed alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prunelab.data.errors import DataError
from prunelab.data.seeds import derive_seed


def stratified_split(labels: Tensor, val_size: int, class_names: Sequence[str], seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the training split and of the validation split, each in ascending order.

    Class c gives val_size * n_c / N pictures, rounded by largest remainder, so that the total is `val_size`.
    Raises DataError if a class would be left without training pictures.
    """
    counts = torch.bincount(labels, minlength=len(class_names))
    quotas = val_size * counts // len(labels)
    remainders = val_size * counts % len(labels)
    short = val_size - int(quotas.sum())
    quotas[remainders.argsort(descending=True, stable=True)[:short]] += 1
    if val_size > 0 and (quotas >= counts).any():
        name = class_names[int((quotas >= counts).nonzero()[0])]
        raise DataError(
            f"val_size {val_size} of {len(labels)} pictures leaves none of class {name!r} to train on: "
            "lower val_size (0 trains on all)"
        )
    generator = torch.Generator().manual_seed(derive_seed(seed, "split"))
    order = torch.randperm(len(labels), generator=generator)
    is_val = _occurrence(labels[order]) < quotas[labels[order]]
    return order[~is_val].sort().values, order[is_val].sort().values


def class_balanced(labels: Tensor, samples_per_class: int, class_names: Sequence[str], seed: int) -> Tensor:
    """Indices of `samples_per_class` pictures of every class, drawn without replacement, classes mixed.

    Classes are mixed because batch statistics of a batch with few classes would say little about the data.
    Raises DataError if a class has fewer pictures than that.
    """
    counts = torch.bincount(labels, minlength=len(class_names))
    if samples_per_class > int(counts.min()):
        name, count = class_names[int(counts.argmin())], int(counts.min())
        raise DataError(
            f"samples_per_class is {samples_per_class}, but class {name!r} has {count} training pictures: "
            f"use at most {count}"
        )
    generator = torch.Generator().manual_seed(derive_seed(seed, "scoring"))
    order = torch.randperm(len(labels), generator=generator)
    return order[_occurrence(labels[order]) < samples_per_class]


def _occurrence(labels: Tensor) -> Tensor:
    """How many equal labels stand before each one: [a, b, a, a] -> [0, 0, 1, 2]."""
    by_class = labels.argsort(stable=True)
    counts = torch.bincount(labels)
    first = (counts.cumsum(0) - counts)[labels[by_class]]
    occurrence = torch.empty_like(labels)
    occurrence[by_class] = torch.arange(len(labels)) - first
    return occurrence
