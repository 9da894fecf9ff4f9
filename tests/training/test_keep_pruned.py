from __future__ import annotations

import copy
import itertools
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
from torch.utils.data import DataLoader

from prunelab.pruning import Masks, PruningError, prune
from prunelab.pruning.criteria import magnitude
from prunelab.training import KeepPruned

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=1e-1),
    "fused sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2, fused=True),
    "fused adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=1e-1, fused=True),
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
    loader = DataLoader(images, batch_size=4)  # 12 batches: 3 steps
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


class Rude(torch.optim.SGD):
    """Puts a value where a weight is 0, as 0/0 does in Adam without eps."""

    value = 0.0

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        for weight in self.param_groups[0]["params"]:
            if weight.dim() > 1:
                weight.masked_fill_(weight == 0, self.value)
        return loss


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), -1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_whatever_the_optimizer_writes_pruned_weights_are_plus_0(
    value: float, dtype: torch.dtype, fit: Any, make_net: Any, make_module: Any, images: Any
) -> None:
    """Bit for bit: -0.0 and NaN, which a multiplication by 0 leaves, are neither."""

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        rude = Rude(parameters, lr=0.1, momentum=0.9)
        rude.value = value
        return rude

    masks, module = masks_of(make_net()), make_module(net=make_net().to(dtype), optimizer=optimizer)
    watch = Watch(masks)
    loader = DataLoader([(inputs.to(dtype), label) for inputs, label in images], batch_size=16)
    fit(module, [KeepPruned(masks), watch], data=loader)
    assert watch.largest == {"weight": 0.0, "gradient": 0.0, "slot": 0.0}
    assert watch.steps == 3
    for name, mask in masks.items():
        bits = pruned_part(module.net.get_parameter(name).detach(), mask).view(torch.int8)
        assert torch.count_nonzero(bits) == 0
        assert module.net.get_parameter(name).isfinite().all()


def test_what_a_pruned_gradient_held_reaches_neither_clipping_nor_slots(
    fit: Any, make_net: Any, make_module: Any
) -> None:
    """Gradients of pruned weights are made NaN or infinite: the training is that in which nobody does so."""
    masks, trained = masks_of(make_net()), []
    for spoil in (None, float("nan"), float("inf")):

        class Spoil(Callback):
            def on_after_backward(self, trainer: Trainer, pl_module: LightningModule, value: Any = spoil) -> None:
                for name, mask in masks.items():
                    if value is not None:
                        pl_module.net.get_parameter(name).grad.masked_fill_(~mask, value)

        watch = Watch(masks)
        trained.append(make_net())
        module = make_module(net=trained[-1], optimizer=OPTIMIZERS["adamw"])
        fit(module, [Spoil(), KeepPruned(masks), watch], gradient_clip_val=0.05, max_epochs=2)
        watch.check(module.net, 6)
    for net in trained[1:]:
        assert all(torch.equal(a, b) for a, b in zip(net.parameters(), trained[0].parameters(), strict=True))


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


# --- pruned weights that hold other values than 0 ---


class Frozen(Callback):
    """Stands for PruningAtInit: its masks, and what pruned weights hold."""

    net = "net"

    def __init__(self, masks: Masks, frozen: dict[str, Tensor]) -> None:
        self.masks, self.frozen = masks, frozen


class Departures(Callback):
    """Pruned weights that are not bit for bit what they are frozen at, after every step, and how many steps."""

    def __init__(self, masks: Masks, frozen: dict[str, Tensor], average: Any = None) -> None:
        self.masks, self.frozen, self.average = masks, frozen, average
        self.found = self.steps = 0

    def _look(self, module: Any) -> None:
        parameters = dict(module.net.named_parameters())
        for name, mask in self.masks.items():
            self.found += int((pruned_part(parameters[name].detach() != self.frozen[name], mask)).sum())

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._look(pl_module)
        if self.average is not None:
            self._look(self.average._average_model.module)
        self.steps = trainer.global_step

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._look(pl_module)


def frozen_values(net: nn.Module, masks: Masks) -> dict[str, Tensor]:
    """Initial weights, 0 at kept ones and at every third pruned one."""
    parameters = dict(net.named_parameters())
    values = {name: parameters[name].detach().masked_fill(mask, 0) for name, mask in masks.items()}
    for value in values.values():
        value.view(-1)[::3] = 0
    return values


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_frozen_weights_stay_exactly_and_kept_ones_train_as_if_they_were_all(
    optimizer: str, fit: Any, make_net: Any, make_module: Any, images: Any
) -> None:
    """51 steps against a loop whose parameters are the kept weights alone: the pruned ones are constants in it."""
    masks, net = masks_of(make_net()), make_net().double()
    frozen = frozen_values(make_net(seed=1), masks)
    departures = Departures(masks, {name: value.double() for name, value in frozen.items()})
    loader = DataLoader([(inputs.double(), label) for inputs, label in images], batch_size=16)

    module = make_module(net=make_net().double(), optimizer=OPTIMIZERS[optimizer])
    fit(module, [Frozen(masks, frozen), KeepPruned(), departures], data=loader, max_epochs=STEPS // 3)
    assert (departures.steps, departures.found) == (STEPS, 0)

    start = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    kept = {name: nn.Parameter(start[name][mask]) for name, mask in masks.items()}
    others = {name: parameter for name, parameter in net.named_parameters() if name not in masks}
    alone = OPTIMIZERS[optimizer]([*kept.values(), *others.values()])
    for inputs, labels in itertools.chain.from_iterable([loader] * (STEPS // 3)):
        weights = {n: departures.frozen[n].masked_scatter(mask, kept[n]) for n, mask in masks.items()}
        outputs = torch.func.functional_call(net, {**others, **weights}, (inputs,))
        alone.zero_grad()
        nn.functional.cross_entropy(outputs, labels).backward()
        alone.step()
    for name, expected in {**others, **kept}.items():
        trained, began = module.net.get_parameter(name).detach(), start[name]
        if name in masks:
            trained, began = trained[masks[name]], began[masks[name]]
        assert (trained != began).all()
        torch.testing.assert_close(trained, expected.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("keep_is_first", [True, False])
def test_averages_of_frozen_weights_are_exact_and_so_are_checkpoints(
    keep_is_first: bool, fit: Any, make_net: Any, make_module: Any, tmp_path: Path
) -> None:
    """.9 w + .1 w is not w: the average has to notice that there is nothing to average."""
    masks = masks_of(make_net())
    frozen = frozen_values(make_net(), masks)
    average = EMAWeightAveraging(decay=0.9)
    departures, module = Departures(masks, frozen, average), make_module()
    pair = [KeepPruned(), average] if keep_is_first else [average, KeepPruned()]
    trainer = fit(module, [Frozen(masks, frozen), *pair, departures], max_epochs=6)
    assert (departures.steps, departures.found) == (18, 0)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    for name, mask in masks.items():
        assert torch.equal(pruned_part(state[f"net.{name}"], mask), pruned_part(frozen[name], mask))


def test_averages_of_kept_weights_are_those_without_frozen_ones(fit: Any, make_net: Any, make_module: Any) -> None:
    """Frozen at 0 is pruned: the same training, the same average."""
    masks = masks_of(make_net())
    zeros = {name: torch.zeros(mask.shape) for name, mask in masks.items()}
    modules = []
    for source in (KeepPruned(masks), Frozen(masks, zeros)):
        modules.append(make_module())
        others = [] if isinstance(source, KeepPruned) else [KeepPruned()]
        fit(modules[-1], [source, *others, EMAWeightAveraging(decay=0.9)], max_epochs=3)
    plain, frozen = (module.net.state_dict() for module in modules)
    assert all(torch.equal(plain[name], frozen[name]) for name in plain)


def test_stochastic_weight_averaging_keeps_frozen_values(fit: Any, make_net: Any, make_module: Any) -> None:
    masks, module = masks_of(make_net()), make_module()
    frozen = frozen_values(make_net(seed=1), masks)
    averaging = StochasticWeightAveraging(0.05, swa_epoch_start=1)
    fit(module, [Frozen(masks, frozen), KeepPruned(), averaging], max_epochs=4)
    weights = dict(module.net.named_parameters())
    for name, mask in masks.items():
        assert torch.equal(pruned_part(weights[name], mask), pruned_part(frozen[name], mask))


def test_a_frozen_weight_that_something_wrote_to_raises(fit: Any, make_net: Any, make_module: Any) -> None:
    masks = masks_of(make_net())
    frozen = frozen_values(make_net(), masks)

    class Leak(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            with torch.no_grad():
                pl_module.net[7].weight[~masks["7.weight"]] += 1

    count = int((~masks["7.weight"]).sum())
    with pytest.raises(RuntimeError, match=f"^{count} pruned weights are not what they were frozen at"):
        fit(make_module(), [Frozen(masks, frozen), Leak(), KeepPruned()])


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
