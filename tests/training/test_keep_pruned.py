from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import EMAWeightAveraging, StochasticWeightAveraging, WeightAveraging
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from prunelab.pruning import Masks, PruningError, prune
from prunelab.pruning.criteria import magnitude
from prunelab.training import KeepPruned

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=1e-1),
}
STEPS = 51  # 17 epochs of 3 batches


def pruned_part(values: Tensor, mask: Tensor) -> Tensor:
    return values[~mask]


class Watch(Callback):
    """After every optimizer step: largest pruned weight, gradient and slot; and that kept ones do move."""

    def __init__(self, masks: Masks) -> None:
        self.masks = masks
        self.largest = dict.fromkeys(["weight", "gradient", "slot"], 0.0)
        self.steps = 0
        self.num_slots = 0
        self.first_weights: dict[str, Tensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.first_weights = {name: w.detach().clone() for name, w in pl_module.net.named_parameters()}
        self._look(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step > self.steps:
            self.steps = trainer.global_step
            self._look(trainer, pl_module)

    def _look(self, trainer: Trainer, pl_module: LightningModule) -> None:
        parameters = dict(pl_module.net.named_parameters())
        for name, mask in self.masks.items():
            weight = parameters[name]
            found = {"weight": [weight.detach()], "gradient": [] if weight.grad is None else [weight.grad]}
            slots = trainer.optimizers[0].state.get(weight, {}).values()
            found["slot"] = [slot for slot in slots if slot.shape == weight.shape]
            self.num_slots += len(found["slot"])
            for kind, tensors in found.items():
                self.largest[kind] = max(
                    [self.largest[kind], *(float(pruned_part(t, mask).abs().max()) for t in tensors)]
                )

    def check(self, net: nn.Module, steps: int) -> None:
        assert self.largest == {"weight": 0.0, "gradient": 0.0, "slot": 0.0}
        assert self.steps == steps
        assert self.num_slots > 0
        for name, weight in net.named_parameters():
            moved = weight.detach() != self.first_weights[name]
            assert moved[self.masks[name]].all() if name in self.masks else moved.any()


def masks_of(net: nn.Module, density: float = 0.2) -> Masks:
    return prune(net, magnitude, density=density, example_input=torch.zeros(1, 1, 6, 6))


@pytest.mark.parametrize("options", [{}, {"gradient_clip_val": 0.05}, {"precision": "bf16-mixed"}], ids=str)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_pruned_weights_gradients_and_slots_are_exactly_0_after_every_step(
    optimizer: str, options: dict[str, Any], fit: Any, make_net: Any, make_module: Any, make_pruning: Any
) -> None:
    module = make_module(optimizer=OPTIMIZERS[optimizer])
    masks = masks_of(make_net())
    watch = Watch(masks)
    callbacks = make_pruning()
    fit(module, [*callbacks, watch], max_epochs=STEPS // 3, **options)
    assert callbacks[0].masks == masks
    watch.check(module.net, STEPS)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_no_leak_with_gradient_accumulation(
    optimizer: str, fit: Any, make_net: Any, make_module: Any, make_pruning: Any, images: Any
) -> None:
    module = make_module(optimizer=OPTIMIZERS[optimizer])
    watch = Watch(masks_of(make_net()))
    loader = torch.utils.data.DataLoader(images, batch_size=4)  # 12 batches: 3 steps
    callbacks = make_pruning(batches=[images[:8]])
    fit(module, [*callbacks, watch], data=loader, max_epochs=STEPS // 3, accumulate_grad_batches=4)
    watch.check(module.net, STEPS)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_no_leak_with_warm_slots_of_a_dense_checkpoint(
    optimizer: str, fit: Any, make_module: Any, tmp_path: Path
) -> None:
    dense = make_module(optimizer=OPTIMIZERS[optimizer])
    fit(dense, [], max_epochs=2).save_checkpoint(tmp_path / "dense.ckpt")
    state = torch.load(tmp_path / "dense.ckpt", weights_only=True)["optimizer_states"][0]["state"]
    assert all(slot.abs().min() > 0 for slot in state[0].values() if slot.dim() > 0)  # warm: nothing is 0

    module = make_module(optimizer=OPTIMIZERS[optimizer])
    masks = masks_of(dense.net)
    watch = Watch(masks)
    fit(module, [KeepPruned(masks), watch], max_epochs=4, ckpt_path=tmp_path / "dense.ckpt")
    watch.check(module.net, 12)


def test_clipping_sees_the_norm_over_kept_weights_only(fit: Any, make_module: Any, make_net: Any) -> None:
    masks = masks_of(make_net(), 0.05)
    norms: dict[str, list[float]] = {"all": [], "kept": [], "seen": []}

    class Spy(Callback):
        def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
            gradients = {name: p.grad.clone() for name, p in pl_module.net.named_parameters()}
            norms["all"].append(float(get_total_norm(gradients.values())))
            kept = {name: g * masks[name] if name in masks else g for name, g in gradients.items()}
            norms["kept"].append(float(get_total_norm(kept.values())))

    module = make_module()

    def spy_on_clipping(optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None) -> None:
        norms["seen"].append(float(get_total_norm([p.grad for p in module.net.parameters()])))
        module.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    module.configure_gradient_clipping = spy_on_clipping
    fit(module, [KeepPruned(masks), Spy()], gradient_clip_val=0.01)
    assert norms["seen"] == pytest.approx(norms["kept"], rel=1e-6)
    assert all(kept < 0.99 * all_ for kept, all_ in zip(norms["kept"], norms["all"], strict=True))


class AveragesSeen(Callback):
    """Largest pruned weight of the average model, and of the module while it is validated (on the average)."""

    def __init__(self, masks: Masks, average: WeightAveraging) -> None:
        self.masks, self.average, self.largest = masks, average, 0.0

    def _look(self, module: LightningModule) -> None:
        parameters = dict(module.net.named_parameters())
        largest = (float(pruned_part(parameters[name].detach(), mask).abs().max()) for name, mask in self.masks.items())
        self.largest = max(self.largest, *largest)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._look(self.average._average_model.module)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._look(pl_module)


@pytest.mark.parametrize("options", [{}, {"update_starting_at_step": 5}, {"update_every_n_steps": 4}], ids=str)
def test_the_averaged_copy_is_0_too_and_so_are_checkpoints(
    options: dict[str, Any], fit: Any, make_net: Any, make_module: Any, make_pruning: Any, tmp_path: Path
) -> None:
    masks = masks_of(make_net())
    average = EMAWeightAveraging(decay=0.9, **options)
    seen = AveragesSeen(masks, average)
    module = make_module()

    class SaveEveryEpoch(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}.ckpt")

    fit(module, [*make_pruning(), average, seen, SaveEveryEpoch()], max_epochs=4)
    assert seen.largest == 0
    for epoch in range(4):
        checkpoint = torch.load(tmp_path / f"{epoch}.ckpt", weights_only=True)
        for name, mask in masks.items():
            assert not pruned_part(checkpoint["state_dict"][f"net.{name}"], mask).any()
            assert not pruned_part(checkpoint["current_model_state"][f"net.{name}"], mask).any()
    weights = dict(module.net.named_parameters())
    assert not any(pruned_part(weights[name], mask).any() for name, mask in masks.items())


def test_stochastic_weight_averaging_keeps_the_zeros(
    fit: Any, make_net: Any, make_module: Any, make_pruning: Any
) -> None:
    masks, module = masks_of(make_net()), make_module()
    fit(module, [*make_pruning(), StochasticWeightAveraging(0.05, swa_epoch_start=1)], max_epochs=4)
    weights = dict(module.net.named_parameters())
    assert not any(pruned_part(weights[name], mask).any() for name, mask in masks.items())


def test_a_leak_made_on_purpose_raises(fit: Any, make_module: Any, make_pruning: Any) -> None:
    class Leak(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == 1:
                with torch.no_grad():
                    pl_module.net[0].weight.fill_(0.5)

    pruning, keep = make_pruning()
    num_pruned = int((~masks_of(make_module().net)["0.weight"]).sum())
    with pytest.raises(RuntimeError, match=f"^{num_pruned} pruned weights are not 0"):
        fit(make_module(), [pruning, Leak(), keep], max_epochs=5)


def test_without_masks_it_refuses(fit: Any, make_module: Any) -> None:
    with pytest.raises(PruningError, match="KeepPruned has no masks"):
        fit(make_module(), [KeepPruned()])


def test_masks_of_another_network_are_refused_by_name(fit: Any, make_module: Any) -> None:
    masks = Masks({"0.weight": torch.ones(3, 1, 3, 3, dtype=torch.bool)})
    with pytest.raises(PruningError, match=r"0\.weight"):
        fit(make_module(), [KeepPruned(masks)])


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_it_stays_in_the_optimizer(fails: bool, fit: Any, make_module: Any, make_pruning: Any) -> None:
    class Fail(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            if fails:
                raise KeyError("on purpose")

    optimizers = []

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        optimizers.append(OPTIMIZERS["sgd"](parameters))
        return optimizers[0]

    pruning, keep = make_pruning()
    try:
        fit(make_module(optimizer=optimizer), [pruning, keep, Fail()])
    except KeyError:
        assert fails
    assert not optimizers[0]._optimizer_step_post_hooks
    assert not keep._weights
    assert not keep._handles


def test_the_module_keeps_plain_names_parameters_and_buffers(
    fit: Any, make_net: Any, make_module: Any, make_pruning: Any
) -> None:
    module = make_module()
    before = {name: id(parameter) for name, parameter in module.net.named_parameters()}
    fit(module, make_pruning(), max_epochs=2)
    plain = make_net(seed=7)
    assert list(module.net.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in module.named_buffers()] == [f"net.{name}" for name, _ in plain.named_buffers()]
    assert {name: id(parameter) for name, parameter in module.net.named_parameters()} == before
    plain.load_state_dict(module.net.state_dict(), strict=True)
    inputs = torch.randn(5, 1, 6, 6)
    assert torch.equal(plain.eval()(inputs), module.net.eval()(inputs))


def test_a_pruned_network_can_be_copied_and_pickled(fit: Any, make_module: Any, make_pruning: Any) -> None:
    module = make_module()
    fit(module, make_pruning())
    inputs = torch.randn(5, 1, 6, 6)
    outputs = module.net.eval()(inputs)
    for copied in (copy.deepcopy(module.net), pickle.loads(pickle.dumps(module.net)), copy.deepcopy(module).net):
        assert torch.equal(copied(inputs), outputs)


def test_channels_last_weights_keep_their_memory_format(fit: Any, make_module: Any, make_pruning: Any) -> None:
    module = make_module(channels_last=True)
    pruning, keep = make_pruning()
    fit(module, [pruning, keep])
    weight = module.net[3].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not pruned_part(weight, pruning.masks["3.weight"]).any()


def test_a_network_that_diverged_is_not_called_a_leak(fit: Any, make_module: Any, make_pruning: Any) -> None:
    module = make_module(optimizer=lambda p: torch.optim.SGD(p, lr=1e30))
    fit(module, make_pruning(), max_epochs=2)
    assert not all(weight.isfinite().all() for weight in module.net.parameters())
