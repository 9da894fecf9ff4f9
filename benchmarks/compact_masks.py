"""The networks and masks that `compact.py` measures, found once and kept in a folder."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import log
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from prunelab.data import digits
from prunelab.models import resnet18_64, resnet20, vgg16_bn
from prunelab.pruning import Masks, prunable_names, prune
from prunelab.pruning.criteria import Snip, magnitude, synflow

Batch = tuple[Tensor, Tensor]
IMP_STEPS = 30  # a level's training
IMP_LEVELS = 6  # on the way to density 0.01: each keeps 46 %


@dataclass(frozen=True)
class Setting:
    """A network as it is trained: its builder, classes, image side in pixels and batch size."""

    title: str
    builder: Callable[..., nn.Module]
    num_classes: int
    image_size: int
    batch_size: int

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        return self.builder(num_classes=self.num_classes, image_size=self.image_size)

    def example(self) -> Tensor:
        return torch.zeros(1, 3, self.image_size, self.image_size)


SETTINGS = {
    "vgg16_bn": Setting("VGG-16-BN", vgg16_bn, 100, 32, 128),
    "resnet20": Setting("ResNet-20", resnet20, 10, 32, 128),
    "resnet18_64": Setting("ResNet-18", resnet18_64, 200, 64, 32),
}


def find_masks(network: str, criterion: str, density: float, cache: Path) -> Masks:
    """The masks at initialisation (seed 0) of a criterion, or of iterative magnitude pruning; from `cache` if there."""
    path = cache / f"{network}_{criterion}_{density:.3g}.pt"
    if not path.exists():
        print(f"pruning: {network}, {criterion}, density {density:.3g}", flush=True)
        setting = SETTINGS[network]
        if criterion == "imp":
            found = _imp(network, density, cache)
        else:
            # running statistics of fresh residual networks saturate the loss, and gradients then mean little
            scoring = {"snip": Snip(batch_norm="batch"), "synflow": synflow, "magnitude": magnitude}[criterion]
            batches = list(itertools.islice(digit_batches(setting), 1)) if criterion == "snip" else []
            found = prune(setting.build(), scoring, density=density, example_input=setting.example(), batches=batches)
        cache.mkdir(parents=True, exist_ok=True)
        found.save(path)
    return Masks.load(path)


def digit_batches(setting: Setting) -> Iterator[Batch]:
    """Batches of scikit-learn's digits, drawn with seed 0, enlarged to the network's images, in three equal colours."""
    module = digits(batch_size=setting.batch_size, seed=0)
    module.prepare_data()
    module.setup("fit")
    while True:
        for images, labels in module.train_dataloader():
            large = interpolate(images, size=setting.image_size, mode="bilinear")
            yield large.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last), labels


def _imp(network: str, density: float, cache: Path) -> Masks:
    """One level: those of the level before, pruned by the sizes after a few steps from the initial weights."""
    setting, level = SETTINGS[network], round(IMP_LEVELS * log(density) / log(0.01))
    net = setting.build().to(memory_format=torch.channels_last)
    masks = Masks.dense(net, prunable_names(net))
    if level > 1:
        masks = find_masks(network, "imp", 0.01 ** ((level - 1) / IMP_LEVELS), cache)
    _train(net, masks, digit_batches(setting))
    return prune(net, magnitude, density=density, example_input=setting.example(), masks=masks)


def _train(net: nn.Module, masks: Masks, batches: Iterator[Batch]) -> None:
    masks.apply_to(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for images, labels in itertools.islice(batches, IMP_STEPS):
        cross_entropy(net(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        masks.apply_to(net)
