"""Controls of a finished ticket: what happens to its accuracy when one thing about it is changed.

random           masks drawn anew, each layer as dense as the ticket's
shuffle          the ticket's masks, shuffled inside each layer
reinit           the ticket's masks on weights drawn anew from the same distribution, trained from the first step
invert           the lowest scores instead of the highest, each layer as dense as the ticket's
corrupt_labels   scored with the labels of the scoring batches shuffled
corrupt_pixels   scored with the pixels of each scoring picture shuffled
dense            nothing pruned, trained as often as the ticket was: the learning rate rewinds from level to level
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from prunelab.pruning import Criterion, Masks, PruningError, Scoring
from prunelab.pruning.scoring import Batch

Control = Literal["random", "shuffle", "reinit", "invert", "corrupt_labels", "corrupt_pixels", "dense"]
CONTROLS: tuple[Control, ...] = get_args(Control)


def random_masks(masks: Masks, within: Masks, generator: torch.Generator) -> Masks:
    """Masks that keep as many weights in each layer as `masks`, drawn uniformly from those that `within` keeps."""
    drawn = {}
    for name, num_kept in masks.layer_num_kept().items():
        candidates = within[name].cpu().flatten().nonzero().flatten()
        chosen = candidates[torch.randperm(len(candidates), generator=generator)[:num_kept]]
        mask = torch.zeros(masks[name].numel(), dtype=torch.bool)
        mask[chosen] = True
        drawn[name] = mask.view(masks[name].shape)
    return Masks(drawn)


def shuffled_masks(masks: Masks, within: Masks, generator: torch.Generator) -> Masks:
    """`masks` with the entries of each layer permuted, those at positions that `within` keeps among themselves."""
    shuffled = {}
    for name, mask in masks.items():
        places = within[name].cpu().flatten().nonzero().flatten()
        entries = mask.cpu().flatten()
        entries[places] = entries[places[torch.randperm(len(places), generator=generator)]]
        shuffled[name] = entries.view(mask.shape)
    return Masks(shuffled)


@dataclass(frozen=True)
class Inverted:
    """The scores of another criterion with the other sign: what it would keep goes first."""

    criterion: Criterion

    def __getattr__(self, name: str) -> Any:
        return getattr(self.criterion, name)

    def __call__(self, scoring: Scoring) -> dict[str, Tensor]:
        return {name: -scores for name, scores in self.criterion(scoring).items()}


@dataclass(frozen=True)
class Corrupted:
    """Another criterion on scoring batches whose labels, or whose pictures' pixels, are shuffled.

    Labels are permuted over all batches, so that each class keeps its number. Pixels are permuted inside each picture,
    each picture by a permutation of its own, its channels together. The same at every round: draws come from `seed`.
    """

    criterion: Criterion
    what: Literal["labels", "pixels"]
    seed: int

    def __post_init__(self) -> None:
        if not self.criterion.needs_batches:
            raise PruningError(f"control corrupt_{self.what}: {type(self.criterion).__name__} scores without data")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.criterion, name)

    def __call__(self, scoring: Scoring) -> dict[str, Tensor]:
        corrupt = shuffled_labels if self.what == "labels" else shuffled_pixels
        batches = corrupt(list(scoring.batches), torch.Generator().manual_seed(self.seed))
        return self.criterion(replace(scoring, batches=batches))


def shuffled_labels(batches: list[Batch], generator: torch.Generator) -> list[Batch]:
    """The labels of all batches, permuted among all samples."""
    labels = torch.cat([batch[1] for batch in batches])
    order = torch.randperm(len(labels), generator=generator).to(labels.device)
    parts = labels[order].split([len(batch[1]) for batch in batches])
    return [(batch[0], part) for batch, part in zip(batches, parts, strict=True)]


def shuffled_pixels(batches: list[Batch], generator: torch.Generator) -> list[Batch]:
    """The pixels of each image (B, C, H, W) permuted, each image's by its own permutation, channels together."""
    return [(_shuffled_pixels(batch[0], generator), batch[1]) for batch in batches]


def _shuffled_pixels(images: Tensor, generator: torch.Generator) -> Tensor:
    flat = images.flatten(2)  # (B, C, H * W)
    orders = [torch.randperm(flat.shape[-1], generator=generator) for _ in range(len(flat))]
    index = torch.stack(orders).to(images.device)[:, None].expand_as(flat)
    return flat.gather(2, index).view_as(images)
