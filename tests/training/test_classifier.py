from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from prunelab.training import Classifier


@pytest.fixture
def samples() -> TensorDataset:
    """101 samples: six batches of 16 and one of 5."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(101, 1, 6, 6, generator=generator)
    return TensorDataset(images, torch.randint(3, (101,), generator=generator))


def frozen(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.0)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_logged_values_are_means_over_samples(
    smoothing: float, samples: TensorDataset, make_net: Any, fit: Any
) -> None:
    net = make_net()
    del net[1]  # batch norm would differ between training and evaluation
    module = Classifier(net, frozen, label_smoothing=smoothing)
    loader = DataLoader(samples, batch_size=16)
    trainer = fit(module, [], data=loader)
    trained = dict(trainer.callback_metrics)
    validated = trainer.validate(module, loader, verbose=False)[0]
    tested = trainer.test(module, loader, verbose=False)[0]

    images, labels = samples[:]
    with torch.no_grad():
        logits = net(images)
    loss = cross_entropy(logits, labels)
    accuracy = (logits.argmax(1) == labels).float().mean()
    smoothed = cross_entropy(logits, labels, label_smoothing=smoothing)
    assert float(accuracy) not in (0, 1)
    for values, stage, expected in ((trained, "train", smoothed), (validated, "val", loss), (tested, "test", loss)):
        assert float(values[f"{stage}_loss"]) == pytest.approx(float(expected), rel=1e-5)
        assert float(values[f"{stage}_accuracy"]) == pytest.approx(float(accuracy), rel=1e-6)


class Rates(Callback):
    """The learning rate in each step, and what was logged for each epoch."""

    def __init__(self) -> None:
        self.used: list[float] = []
        self.logged: list[float] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.used.append(optimizer.param_groups[0]["lr"])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.logged.append(float(trainer.callback_metrics["lr"]))


def step_decay(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[2, 3], gamma=0.1)


@pytest.mark.parametrize(
    ("interval", "accumulate", "used", "logged"),
    [
        ("epoch", 1, [0.1] * 6 + [0.01] * 3 + [0.001] * 3, [0.1, 0.1, 0.01, 0.001]),
        ("epoch", 3, [0.1, 0.1, 0.01, 0.001], [0.1, 0.1, 0.01, 0.001]),
        ("step", 1, [0.1, 0.1, 0.01] + [0.001] * 9, [0.1, 0.001, 0.001, 0.001]),
        ("step", 3, [0.1, 0.1, 0.01, 0.001], [0.1, 0.1, 0.01, 0.001]),
    ],
)
def test_the_schedule_counts_epochs_or_optimizer_steps(
    interval: Any, accumulate: int, used: list[float], logged: list[float], fit: Any, make_module: Any
) -> None:
    """3 batches an epoch, 4 epochs; logged is the rate of the epoch's first step."""
    rates = Rates()
    module = make_module(lr_scheduler=step_decay, lr_interval=interval)
    trainer = fit(module, [rates], max_epochs=4, accumulate_grad_batches=accumulate)
    assert trainer.global_step == len(used)
    assert rates.used == pytest.approx(used, rel=1e-12)
    assert rates.logged == pytest.approx(logged, rel=1e-6)


def test_accumulated_batches_are_one_large_batch(make_net: Any, make_module: Any, fit: Any, images: Any) -> None:
    net = make_net()
    del net[1]
    modules = [make_module(copy.deepcopy(net)) for _ in range(2)]
    fit(modules[0], [], data=DataLoader(images, batch_size=4), accumulate_grad_batches=4, max_epochs=2)
    fit(modules[1], [], data=DataLoader(images, batch_size=16), max_epochs=2)
    for one, other in zip(*(module.parameters() for module in modules), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_channels_last_changes_the_layout_and_not_the_numbers(make_net: Any, make_module: Any, fit: Any) -> None:
    plain, last = make_module(make_net()), make_module(make_net(), channels_last=True)
    seen = []
    last.net[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for module in (plain, last):
        fit(module, [], max_epochs=3)
    assert all(
        weight.is_contiguous(memory_format=torch.channels_last) for weight in last.parameters() if weight.dim() == 4
    )
    assert all(images.is_contiguous(memory_format=torch.channels_last) for images in seen)
    for one, other in zip(plain.parameters(), last.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_inputs_that_are_no_pictures_pass_too() -> None:
    module = Classifier(nn.Linear(4, 2), frozen, channels_last=True)
    assert module(torch.ones(3, 4)).shape == (3, 2)


def test_compiling_keeps_the_names_and_the_pruned_training(
    make_net: Any, make_module: Any, make_pruning: Any, fit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[int] = []
    compile_in_place = nn.Module.compile

    def quick(net: nn.Module, *_: Any, **__: Any) -> None:
        compiled.append(sum(int((weight == 0).sum()) for weight in net.parameters()))
        compile_in_place(net, backend="eager")  # the default one takes a minute on a CPU

    monkeypatch.setattr(nn.Module, "compile", quick)
    plain, module = make_module(make_net()), make_module(make_net(), compile=True)
    pruning, keep = make_pruning()
    fit(plain, make_pruning(), max_epochs=2)
    fit(module, [pruning, keep], max_epochs=2)
    num_pruned = pruning.masks.num_weights - pruning.masks.num_kept
    assert len(compiled) == 1
    assert compiled[0] >= num_pruned  # pruned first, compiled then
    assert list(module.state_dict()) == list(plain.state_dict())
    for one, other in zip(plain.parameters(), module.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    copied = copy.deepcopy(module.net)
    assert torch.equal(copied.eval()(torch.ones(1, 1, 6, 6)), module.net.eval()(torch.ones(1, 1, 6, 6)))


def test_the_network_is_not_compiled_unless_asked(make_module: Any, fit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("compiled")

    monkeypatch.setattr(nn.Module, "compile", fail)
    fit(make_module(), [])


def test_without_a_schedule_the_rate_stays(make_module: Any, fit: Any) -> None:
    rates = Rates()
    fit(make_module(), [rates], max_epochs=2)
    assert set(rates.used) == {0.1}


def test_the_training_batches_are_used_as_they_are(make_net: Any, fit: Any, samples: TensorDataset) -> None:
    """One step of plain SGD against the same step by hand."""
    net = make_net()
    by_hand = copy.deepcopy(net)
    module = Classifier(net, lambda p: torch.optim.SGD(p, lr=0.5))
    fit(module, [], data=DataLoader(samples, batch_size=101))
    images, labels = samples[:]
    gradients: tuple[Tensor, ...] = torch.autograd.grad(
        cross_entropy(by_hand(images), labels), list(by_hand.parameters())
    )
    for weight, start, gradient in zip(net.parameters(), by_hand.parameters(), gradients, strict=True):
        torch.testing.assert_close(weight, start - 0.5 * gradient)


class Uneven(DataLoader):
    """A loader that says what a rank's mean loss counts."""

    def loss_factor(self, index: int) -> float:
        return 1.5 if index == 2 else 1.0


def test_the_loss_counts_as_the_loader_says_and_is_logged_as_it_is(make_net: Any, fit: Any) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    class Look(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
            seen.append(
                (outputs["loss"], trainer.fit_loop.epoch_loop._results["training_step.train_loss"].value.clone())
            )

    net = make_net()
    data = TensorDataset(torch.randn(48, 1, 6, 6), torch.arange(48) % 3)
    fit(Classifier(net, frozen), [Look()], data=Uneven(data, batch_size=16))
    sums = [0.0, *(float(total) for _, total in seen)]
    means = [(after - before) / 16 for before, after in itertools.pairwise(sums)]
    assert [float(loss) for loss, _ in seen] == pytest.approx([means[0], means[1], 1.5 * means[2]], rel=1e-5)


def test_a_batch_without_samples_has_a_gradient_of_0_and_counts_as_none(
    make_net: Any, fit: Any, images: TensorDataset
) -> None:
    class Batches:
        def __len__(self) -> int:
            return 2

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            pictures, labels = images[:16]
            yield from ((pictures, labels), (pictures[:0], labels[:0]))

    gradients: list[float] = []

    class Look(Callback):
        def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
            gradients.append(max(float(weight.grad.abs().max()) for weight in pl_module.parameters()))

    alone, both = (
        fit(Classifier(make_net(), frozen), [Look()], data=Batches(), limit_train_batches=number) for number in (1, 2)
    )
    assert both.callback_metrics["train_loss"] == alone.callback_metrics["train_loss"]
    assert gradients[2] == 0 < gradients[1]
