"""The learning rate of every step: what a level goes back to, a resumed one too, is the closed form of its schedule."""

from __future__ import annotations

import importlib.util
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from prunelab.compat.bolts import load_bolts
from prunelab.names import SHORT_NAMES

RATE, EPOCHS, STEPS_PER_EPOCH = 0.05, 4, 3
STEPS = EPOCHS * STEPS_PER_EPOCH
HAS_BOLTS = importlib.util.find_spec("pl_bolts") is not None
TICKET: dict[str, Any] = {
    "trainer.max_epochs": EPOCHS,
    "trainer.logger": False,
    "trainer.limit_test_batches": 0,
    "data.init_args": {"batch_size": 40, "val_size": 0},
    "model.optimizer.init_args": {"lr": RATE, "momentum": 0.9},
    "pruning.criterion": {"class_path": "prunelab.pruning.criteria.Magnitude", "init_args": {}},
    "pruning.density": None,
    "tickets.levels": 1,
    "tickets.density_per_level": 0.5,
}
MODES = ("weights", "learning_rate", "finetune")
REWIND_STEPS = {0: 0, "4it": 4, "2ep": 6}  # 4 is inside the second epoch
# Of a schedule that takes n steps: its arguments, and the learning rate after t of them
Schedule = tuple[Callable[[int], dict[str, Any]], Callable[[int, int], float]]


def half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def one_cycle(t: int, n: int) -> float:
    """Up to .2 during the first .4 of it, down to a thousandth of the .02 that it began with."""
    peak = 0.4 * n - 1
    return half_cosine(0.02, 0.2, t / peak) if t <= peak else half_cosine(0.2, 0.02e-3, (t - peak) / (n - 1 - peak))


def warmup_cosine(t: int, n: int) -> float:
    """Up from .01 in the first half, down to .001 in the second."""
    warm_up = n // 2
    return 0.01 + (RATE - 0.01) * t / (warm_up - 1) if t < warm_up else half_cosine(RATE, 1e-3, t / warm_up - 1)


SCHEDULES: dict[str, Schedule] = {
    "multistep": (
        lambda n: {"milestones": [n // 4, n // 2], "gamma": 0.1},
        lambda t, n: RATE * (1 if t < n // 4 else 0.1 if t < n // 2 else 0.01),
    ),
    "step": (lambda n: {"step_size": n // 2, "gamma": 0.3}, lambda t, n: RATE * (1 if t < n // 2 else 0.3)),
    "cosine": (lambda n: {"T_max": n, "eta_min": 1e-3}, lambda t, n: half_cosine(RATE, 1e-3, t / n)),
    "exponential": (lambda n: {"gamma": 0.9}, lambda t, n: RATE * 0.9**t),
    "linear": (
        lambda n: {"start_factor": 0.2, "end_factor": 0.8, "total_iters": n // 2},
        lambda t, n: RATE * (0.2 + 0.6 * min(t / (n // 2), 1)),
    ),
    "onecycle": (
        lambda n: {"max_lr": 0.2, "total_steps": n, "pct_start": 0.4, "div_factor": 10, "final_div_factor": 1e3},
        one_cycle,
    ),
    "warmup_cosine": (
        lambda n: {"warmup_epochs": n // 2, "max_epochs": n, "warmup_start_lr": 0.01, "eta_min": 1e-3},
        warmup_cosine,
    ),
}


class Trace(Callback):
    """The learning rate of each optimizer step of each level; what is done twice has to be the same twice."""

    def __init__(self) -> None:
        self.rates: dict[str, dict[int, float]] = {}

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        (rate,) = (group["lr"] for group in optimizer.param_groups)
        rates = self.rates.setdefault(Path(trainer.default_root_dir).name, {})
        assert rates.setdefault(trainer.global_step, rate) == rate


class EndAt(Callback):
    """End the process that trains level 1, in the batch that begins with that optimizer step."""

    def __init__(self, step: int, end: Callable[[], None]) -> None:
        self.step, self.end = step, end

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if (Path(trainer.default_root_dir).name, trainer.global_step) == ("level_01", self.step):
            self.end()


class Died(Exception):
    pass


def die() -> None:
    raise Died


def stop() -> None:
    signal.raise_signal(signal.SIGTERM)


@pytest.fixture
def rates(experiment: Any) -> Callable[..., dict[str, dict[int, float]]]:
    """The learning rates of a run by level and step, ended by the callbacks `ends` one after the other."""

    def trace(name: str, interval: str, *ends: EndAt, **changes: Any) -> dict[str, dict[int, float]]:
        path = SHORT_NAMES["model.lr_scheduler"][name]
        if path.startswith("pl_bolts."):
            load_bolts()
        init_args = SCHEDULES[name][0](STEPS if interval == "step" else EPOCHS)
        schedule = {
            "model.lr_scheduler": {"class_path": path, "init_args": init_args},
            "model.lr_interval": interval,
        }
        found = Trace()
        for end in ends:
            experiment.callbacks = [found, end]
            with pytest.raises((Died, SystemExit)):
                experiment(**{**TICKET, **schedule, **changes})
        experiment.callbacks = [found]
        experiment(**{**TICKET, **schedule, **changes})
        return found.rates

    return trace


def closed_form(name: str, interval: str, step: int) -> float:
    if interval == "step":
        return SCHEDULES[name][1](step, STEPS)
    return SCHEDULES[name][1](step // STEPS_PER_EPOCH, EPOCHS)


def check(found: dict[str, dict[int, float]], name: str, interval: str, mode: str, rewind_step: int | str) -> None:
    """Level 0: eta(0), ..., eta(T - 1). Later ones: eta(k), ..., eta(T - 1), or eta(T - 1) throughout."""
    rates = {step: closed_form(name, interval, step) for step in range(STEPS)}
    assert found.pop("level_00") == pytest.approx(rates, rel=1e-9)
    again = range(REWIND_STEPS[rewind_step], STEPS)
    expected = {step: rates[STEPS - 1 if mode == "finetune" else step] for step in again}
    assert found
    for level in found.values():
        assert level == pytest.approx(expected, rel=1e-9)


NAMES = [
    pytest.param(name, marks=pytest.mark.skipif(not HAS_BOLTS, reason="lightning-bolts is not installed"))
    if path.startswith("pl_bolts.")
    else name
    for name, path in SHORT_NAMES["model.lr_scheduler"].items()
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NAMES)
def test_by_step_and_saved_inside_an_epoch(name: str, mode: str, rates: Any) -> None:
    changes = {"tickets.rewind": mode, "tickets.rewind_step": "4it"}
    check(rates(name, "step", EndAt(7, stop), **changes), name, "step", mode, "4it")


@pytest.mark.parametrize(("mode", "rewind_step"), [("weights", "4it"), ("finetune", "2ep")])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "onecycle"])  # which counts steps
def test_by_epoch(name: str, mode: str, rewind_step: int | str, rates: Any) -> None:
    changes = {"tickets.rewind": mode, "tickets.rewind_step": rewind_step}
    check(rates(name, "epoch", **changes), name, "epoch", mode, rewind_step)


@pytest.mark.parametrize(
    ("rewind_step", "interval"), [(0, "epoch"), ("4it", "step"), ("4it", "epoch"), ("2ep", "step")]
)
@pytest.mark.parametrize("mode", MODES)
def test_from_every_rewind_point_and_after_resumes(
    mode: str, rewind_step: int | str, interval: str, rates: Any
) -> None:
    """It dies in the third epoch, goes on after the second or from its start, and is stopped inside the last one."""
    changes = {"tickets.rewind": mode, "tickets.rewind_step": rewind_step}
    found = rates("cosine", interval, EndAt(7, die), EndAt(10, stop), **changes)
    check(found, "cosine", interval, mode, rewind_step)


@pytest.mark.parametrize("mode", MODES)
def test_every_level_is_the_same(mode: str, rates: Any) -> None:
    changes = {"tickets.rewind": mode, "tickets.rewind_step": "4it", "tickets.levels": 2}
    found = rates("exponential", "step", **changes)
    assert found.keys() == {"level_00", "level_01", "level_02"}
    check(found, "exponential", "step", mode, "4it")
