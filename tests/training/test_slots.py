from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from prunelab.pruning import prune
from prunelab.pruning.criteria import magnitude
from prunelab.training import KeepPruned

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=1e-1),
}


class Fused(Callback):
    """Chooses how the optimizer steps, whatever the checkpoint says."""

    def __init__(self, fused: bool) -> None:
        self.fused = fused

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for group in trainer.optimizers[0].param_groups:
            group["fused"] = self.fused


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_slots_of_a_checkpoint_in_another_memory_format_are_those_of_their_weights(
    optimizer: str, fit: Any, make_module: Any, tmp_path: Path
) -> None:
    """torch's fused steps on a CPU would take a momentum for that of another weight."""
    contiguous = make_module(optimizer=OPTIMIZERS[optimizer])
    fit(contiguous, [], max_epochs=2).save_checkpoint(tmp_path / "contiguous.ckpt")
    masks = prune(contiguous.net, magnitude, density=0.2, example_input=torch.zeros(1, 1, 6, 6))
    weights = []
    for fused in (False, True):
        module = make_module(optimizer=OPTIMIZERS[optimizer], channels_last=True)
        trainer = fit(module, [KeepPruned(masks), Fused(fused)], max_epochs=4, ckpt_path=tmp_path / "contiguous.ckpt")
        weights.append(module.state_dict())
        of_kernels = [
            (w, s) for w, slots in trainer.optimizers[0].state.items() for s in slots.values() if w.dim() == 4
        ]
        assert all(slot.stride() == weight.stride() for weight, slot in of_kernels if slot.dim() == 4)
        assert any(not weight.is_contiguous() for weight, _ in of_kernels)
    for name, values in weights[0].items():
        torch.testing.assert_close(weights[1][name], values, msg=name)
