"""What the experiments look at: a network at initialisation, the criteria, and pictures for those that need them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from prunelab.data import DataError, ImageDataModule
from prunelab.names import import_path
from prunelab.pruning import Masks, PruningError, prunable_names, score
from prunelab.pruning.allocation import round_half_up
from prunelab.pruning.criteria import Grasp, Magnitude, Random, Snip, SynFlow
from prunelab.pruning.scoring import Criterion

# as in the paper: batch norm on running statistics, one round, but for SynFlow's 100
CRITERIA: dict[str, Criterion] = {
    "random": Random(),
    "magnitude": Magnitude(),
    "snip": Snip(batch_norm="running"),
    "grasp": Grasp(batch_norm="running"),
    "synflow": SynFlow(),
}


@dataclass(frozen=True)
class Subject:
    """A network of ours by its short name, drawn with `seed`, and pictures of a data set by its short name.

    Pictures are scaled to image_size and, grey ones, repeated to three channels, so that the digits that ship serve
    networks for colour pictures; classes beyond those of the data get no picture. samples_per_class: of the scoring
    batches (Tanaka et al.: 10). data_root: where the data are, if not at their usual place.
    """

    network: str = "vgg16_bn"
    num_classes: int = 100
    image_size: int = 32
    seed: int = 0
    data: str = "digits"
    data_root: str | None = None
    samples_per_class: int = 10

    @cached_property
    def net(self) -> nn.Module:
        """Raises: ModelError for pictures or classes that it cannot have."""
        build = _named(import_path("model.net", self.network))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            net: nn.Module = build(num_classes=self.num_classes, in_channels=3, image_size=self.image_size)
        return net

    @property
    def example_input(self) -> Tensor:
        return torch.zeros(1, 3, self.image_size, self.image_size)

    @cached_property
    def dense(self) -> Masks:
        """Masks that keep all prunable weights."""
        return Masks.dense(self.net, prunable_names(self.net))

    def num_kept(self, exponent: float) -> int:
        """Weights that a compression ratio of 10^exponent keeps. Raises: PruningError if it keeps none."""
        num_kept = round_half_up(10**-exponent, self.dense.num_weights)
        if num_kept == 0:
            raise PruningError(f"compression 10^{exponent:g} keeps none of {self.dense.num_weights:,} weights")
        return num_kept

    @cached_property
    def module(self) -> ImageDataModule:
        """The data, read. Raises: DataError, also for more classes than the network has."""
        path = import_path("data", self.data)
        options: dict[str, Any] = {"seed": self.seed}
        if path.endswith(".image_folder") or self.data_root is not None:
            options["root" if path.endswith(".image_folder") else "data_dir"] = self.data_root
        if "data_dir" in options and path.endswith(".digits"):
            raise DataError("the digits ship with scikit-learn: they take no --data_root")
        if options.get("root", "") is None:
            raise DataError("image_folder needs --data_root, the folder with train/<class>/* and test/<class>/*")
        module: ImageDataModule = _named(path)(**options)
        module.setup("fit")
        if module.num_classes > self.num_classes:
            raise DataError(
                f"{self.data} has {module.num_classes} classes, the network {self.num_classes}: give --num_classes"
            )
        return module

    @cached_property
    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """Class-balanced, un-augmented, the same at every call."""
        batches = self.module.scoring_batches(samples_per_class=self.samples_per_class)
        return [(self.fit(images), labels) for images, labels in batches]

    def fit(self, images: Tensor) -> Tensor:
        """Normalised pictures (B, C, H, W) in the shape that the network takes."""
        if images.shape[-1] != self.image_size:
            images = interpolate(images, size=(self.image_size, self.image_size), mode="bilinear")
        return images.expand(-1, 3, -1, -1).contiguous()

    def options(self, criterion: Criterion) -> dict[str, Any]:
        """The keywords of `score` and `prune` for one of CRITERIA: it gets what it needs and nothing else."""
        return {
            "example_input": self.example_input,
            "batches": self.batches if criterion.needs_batches else (),
            "generator": torch.Generator().manual_seed(self.seed),
        }

    def scores(self, criterion: Criterion) -> Mapping[str, Tensor]:
        """Of the dense network."""
        return score(self.net, criterion, **self.options(criterion))

    def key(self, criterion: Criterion) -> dict[str, Any]:
        """All that decides a measurement on this network with this criterion."""
        values = {name: getattr(self, name) for name in ("network", "num_classes", "image_size", "seed")}
        values["criterion"] = repr(criterion)
        if criterion.needs_batches:
            values |= {name: getattr(self, name) for name in ("data", "data_root", "samples_per_class")}
        return values

    def about(self) -> str:
        return (
            f"{self.network}, {self.num_classes} classes, pictures of {self.image_size} pixels, "
            f"{self.dense.num_weights:,} prunable weights in {len(self.dense)} layers."
        )

    def about_scoring(self) -> str:
        pictures = f"{self.samples_per_class} pictures a class of {self.data}"
        return f"SNIP and GraSP score on {pictures}, batch norm on running statistics."


def _named(path: str) -> Callable[..., Any]:
    module, _, name = path.rpartition(".")
    found: Callable[..., Any] = getattr(import_module(module), name)
    return found
