from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback
from torch import nn

from prunelab.experiment import footprint as module
from prunelab.experiment import level_record
from prunelab.experiment.footprint import footprint, interleaved_ms

from .run_results import record_of

EXAMPLE = torch.zeros(1, 1, 4, 4)


class Clock:
    """Stands still but for what `Work` takes."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Work:
    """Takes some seconds a pass, those of its first passes at first; remembers what it was given."""

    def __init__(self, clock: Clock, seconds: float, first: tuple[float, ...] = (), order: list | None = None) -> None:
        self.clock, self.seconds, self.first = clock, seconds, list(first)
        self.batches: list[torch.Tensor] = []
        self.order = [] if order is None else order

    def __call__(self, batch: torch.Tensor) -> None:
        self.batches.append(batch)
        self.order.append(self)
        self.clock.now += self.first.pop(0) if self.first else self.seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=clock.perf_counter))
    return clock


def small_net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


def test_bytes_are_those_of_the_state_dict_and_latency_is_a_time():
    net = small_net().train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    measured = footprint(net, EXAMPLE)
    # float32: conv 18 + 2, batch norm 4 * 2, linear 24 + 3; one int64 counter
    assert measured["weight_bytes"] == 4 * (20 + 8 + 27) + 8
    assert measured["latency_ms"] > 0
    assert measured["latency_128_ms"] > 0
    assert measured["latency_threads"] == torch.get_num_threads()
    assert measured["latency_device"] == "cpu"
    assert not [key for key in measured if "dense" in key]
    assert net.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_a_compacted_network_is_measured_beside_the_dense_one():
    small = nn.Sequential(nn.Conv2d(1, 1, 3), nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(4, 3))
    measured = footprint(small, EXAMPLE, small_net())
    assert measured["weight_bytes_dense"] == 4 * (20 + 8 + 27) + 8
    assert measured["weight_bytes"] == 4 * (10 + 4 + 15) + 8
    assert measured["latency_dense_ms"] > 0
    assert measured["latency_dense_128_ms"] > 0


def test_networks_on_different_devices_are_not_compared():
    with pytest.raises(ValueError, match="cpu and meta"):
        footprint(small_net(), EXAMPLE, small_net().to("meta"))


def test_the_median_of_the_passes_after_the_first_ones(clock):
    # a hundredth of a second a pass: the first one, which is slow, does not count, two of the thirty are slow too
    work = Work(clock, 0.01, first=(5, 0.01, 0.1, 0.2))
    assert interleaved_ms([work], EXAMPLE, 1) == pytest.approx([10])
    assert 30 < len(work.batches) < 40


def test_networks_take_turns(clock):
    order: list[Work] = []
    small, dense = Work(clock, 0.1, order=order), Work(clock, 0.25, order=order)
    assert interleaved_ms([small, dense], EXAMPLE, 1) == pytest.approx([100, 250])
    # one that does not count, and one second of 0.35 each
    assert order == [small, dense] * (1 + 3)


def test_short_passes_come_in_turns_of_five(clock):
    order: list[Work] = []
    small, dense = Work(clock, 0.001, order=order), Work(clock, 0.002, order=order)
    assert interleaved_ms([small, dense], EXAMPLE, 1) == pytest.approx([1, 2])
    assert order == ([small] * 5 + [dense] * 5) * (1 + 6)


@pytest.mark.parametrize(("seconds", "passes"), [(0.4, 3), (1.0, 3), (4.0, 2), (60.0, 1)])
def test_slow_networks_do_not_delay_the_end_for_long(clock, seconds, passes):
    work = Work(clock, seconds)
    assert interleaved_ms([work], EXAMPLE, 1) == pytest.approx([1e3 * seconds])
    assert len(work.batches) == 1 + passes


@pytest.mark.parametrize("size", [1, 3])
def test_any_function_of_a_tensor_is_measured(size, clock):
    work = Work(clock, 0.25)
    assert interleaved_ms([work], EXAMPLE, size) == [pytest.approx(250)]
    assert {tuple(batch.shape) for batch in work.batches} == {(size, 1, 4, 4)}


class Listening(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.heard: list[torch.Tensor] = []
        self.modes: set[tuple[bool, bool]] = set()

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        self.heard.append(batch)
        self.modes.add((self.training, torch.is_grad_enabled()))
        return self.conv(batch)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_network_is_given_what_its_weights_are_like_and_left_as_it_was(memory_format):
    net = Listening().double().to(memory_format=memory_format).train()
    torch.manual_seed(3)
    expected = torch.rand(())
    torch.manual_seed(3)
    interleaved_ms([net], torch.zeros(1, 2, 5, 5), 2)
    assert {(batch.dtype, batch.shape) for batch in net.heard} == {(torch.float64, torch.Size([2, 2, 5, 5]))}
    assert all(batch.is_contiguous(memory_format=memory_format) for batch in net.heard)
    assert net.heard[0].unique().numel() == 100, "zeros might be multiplied faster"
    assert net.modes == {(False, False)}
    assert net.training
    assert torch.rand(()) == expected


def test_whole_numbers_are_indices_and_stay_what_they_are(clock):
    work = Work(clock, 0.5)
    interleaved_ms([work], torch.tensor([[4, 7]]), 3)
    assert work.batches[0].tolist() == [[4, 7]] * 3


def test_what_cannot_be_measured_is_warned_about_and_loses_nothing():
    class OneByOne(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            if len(inputs) > 1:
                raise RuntimeError("no memory\nfor that")
            return super().forward(inputs)

    with pytest.warns(UserWarning, match="no latency for 128 examples: no memory$"):
        measured = footprint(OneByOne(2, 2), torch.zeros(1, 2))
    assert measured["latency_ms"] > 0
    assert measured["latency_128_ms"] is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert footprint(nn.Linear(2, 2), torch.zeros(1, 2))["latency_128_ms"] > 0


class Training(Callback):
    """Writes down that a training begins and ends."""

    def __init__(self, events: list[str]) -> None:
        self.events = events

    def on_train_start(self, *_: Any) -> None:
        self.events.append("begin")

    def on_train_end(self, *_: Any) -> None:
        self.events.append("end")


LEVELS = {"tickets.levels": 2, "trainer.max_epochs": 1}
TWO = ["begin", "end"] * 2


@pytest.mark.parametrize(
    ("changes", "events"),
    [
        pytest.param(LEVELS, ["float32", *TWO], id="before the first of several levels"),
        pytest.param(
            LEVELS | {"trainer.precision": "64-true"}, ["begin", "end", "float64", *TWO[2:]], id="once converted"
        ),
        pytest.param({"trainer.max_epochs": 1}, ["begin", "end", "float32"], id="one level"),
    ],
)
def test_the_full_network_is_measured_once_where_nothing_waits(changes, events, experiment, monkeypatch):
    happened: list[str] = []

    def noted(net: nn.Module, *arguments: Any) -> dict[str, Any]:
        happened.append(str(next(net.parameters()).dtype).removeprefix("torch."))
        return footprint(net, *arguments)

    monkeypatch.setattr(level_record, "footprint", noted)
    experiment.callbacks = [Training(happened)]
    levels = experiment.levels(**changes)
    assert happened == events
    assert len({record_of(level)["latency_ms"] for level in levels}) == 1


class Counting(nn.Module):
    """Counts its passes, in evaluation too."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
        self.num_passes = 0

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        self.num_passes += 1
        return self.net(batch)


def test_the_network_that_trains_is_not_the_one_that_is_measured(experiment, monkeypatch):
    measured: list[Any] = []

    def noted(net: nn.Module, *arguments: Any) -> dict[str, Any]:
        measured.append(net)
        return footprint(net, *arguments)

    before: list[int] = []

    class Passes(Callback):
        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            before.append(pl_module.net.num_passes)

    monkeypatch.setattr(level_record, "footprint", noted)
    experiment.callbacks = [Passes()]
    experiment.levels(**LEVELS, **{"model.net": {"class_path": f"{__name__}.Counting", "init_args": {}}})
    assert measured[0].num_passes > 1
    assert before[0] == 1, "one example, to see whether it fits"
