"""One whole training step as prunelab does it; as a program, the peak memory of a few steps in a process of its own.

    python benchmarks/training_step.py VARIANT_FILE

The file is what `Variant.save` wrote; the answer is one line, bytes.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from compact_masks import SETTINGS
from measuring import resident
from torch import nn
from torch.nn.functional import cross_entropy

from prunelab.compaction import ChannelIndex, compact, shrink
from prunelab.memory import keep_freed_memory
from prunelab.pruning import Masks
from prunelab.training.keep_pruned import KeepPruned

MEMORY_STEPS = 2  # the first makes the optimizer's slots


@dataclass(frozen=True)
class Variant:
    """A network that trains: dense (no masks), masked, or compact (masks and index)."""

    network: str
    net: nn.Module
    masks: Masks | None = None
    index: ChannelIndex | None = None

    def save(self, path: Path, device: str, compiled: bool) -> None:
        index = None if self.index is None else self.index.state_dict()
        masks = None if self.masks is None else dict(self.masks)
        state = {name: tensor.cpu() for name, tensor in self.net.state_dict().items()}
        saved = {"network": self.network, "state": state, "masks": masks, "index": index}
        torch.save({**saved, "device": device, "compiled": compiled}, path)

    @classmethod
    def from_saved(cls, saved: dict[str, Any]) -> Variant:
        """Built without data and given the saved weights: the full network of a compact one never is in memory."""
        with torch.device("meta"):
            net = SETTINGS[saved["network"]].build()
        index = None if saved["index"] is None else ChannelIndex.from_state(saved["index"])
        if index is not None:
            shrink(net, index)
        net.load_state_dict(saved["state"], assign=True)
        return cls(saved["network"], net, None if saved["masks"] is None else Masks(saved["masks"]), index)


def dense(network: str) -> Variant:
    return Variant(network, SETTINGS[network].build())


def masked(network: str, masks: Masks) -> Variant:
    net = SETTINGS[network].build()
    masks.apply_to(net)
    return Variant(network, net, masks)


def compacted(network: str, masks: Masks, multiple: int) -> Variant:
    small = compact(SETTINGS[network].build(), masks, SETTINGS[network].example(), multiple=multiple)
    return Variant(network, small.net, small.masks, small.index)


class Training:
    """SGD steps on one batch of noise: forward, loss, backward, masked gradients, update, masked weights.

    compiled: `net.compile()`, as the Classifier does.
    """

    def __init__(self, variant: Variant, device: str, compiled: bool = False) -> None:
        setting = SETTINGS[variant.network]
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(setting.batch_size, 3, setting.image_size, setting.image_size, generator=generator)
        self._images = images.to(device).contiguous(memory_format=torch.channels_last)
        self._labels = torch.randint(setting.num_classes, (setting.batch_size,), generator=generator).to(device)
        self._net = variant.net.to(device).to(memory_format=torch.channels_last).train()
        if compiled:
            self._net.compile()
        self._optimizer = torch.optim.SGD(self._net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        self._keeper: KeepPruned | None = None
        if variant.masks is not None:
            self._keeper = KeepPruned(variant.masks.to(device), net="")
            # all that the callback asks of Lightning
            self._trainer: Any = SimpleNamespace(callbacks=[self._keeper], optimizers=[self._optimizer], world_size=1)
            self._module: Any = self._net
            self._keeper.on_train_start(self._trainer, self._module)

    def step(self) -> None:
        self._optimizer.zero_grad()
        cross_entropy(self._net(self._images), self._labels).backward()
        if self._keeper is not None:
            self._keeper.on_before_optimizer_step(self._trainer, self._module, self._optimizer)
        self._optimizer.step()


def peak_bytes(path: Path) -> int:
    """What the steps of a saved variant need at most, network included, beyond what the process held after imports and
    a step of a tiny network, which reads in the libraries' code.

    On a GPU what torch allocated there; else resident memory, as Linux counts it for this process alone (getrusage's
    maximum is inherited from the process that started this one).
    """
    _load_libraries()
    before = resident("VmRSS")
    saved = torch.load(path, weights_only=True)
    training = Training(Variant.from_saved(saved), saved["device"], saved["compiled"])
    for _ in range(MEMORY_STEPS):
        training.step()
    on_gpu = torch.device(saved["device"]).type == "cuda"
    return torch.cuda.max_memory_allocated() if on_gpu else resident("VmHWM") - before


def _load_libraries() -> None:
    layers = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 2)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    images = torch.zeros(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    cross_entropy(net(images), torch.zeros(2, dtype=torch.long)).backward()
    optimizer.step()


if __name__ == "__main__":
    keep_freed_memory()  # as train.py does
    print(peak_bytes(Path(sys.argv[1])))
