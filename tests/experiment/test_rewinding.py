"""Levels go back to the rewind point, all of it: a level at rate 0 is level 0 again, bit for bit."""

from __future__ import annotations

import csv
import gc
import json
import weakref
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningDataModule, Trainer
from torch.utils.data import DataLoader, TensorDataset

from prunelab.experiment import level_record
from prunelab.experiment.footprint import footprint
from prunelab.experiment.run_dir import LevelDir
from prunelab.pruning import Masks, PruningError
from prunelab.training import PruningAtInit
from prunelab.training.resume import read_checkpoint

MAGNITUDE = {"class_path": "prunelab.pruning.criteria.Magnitude", "init_args": {}}
TICKET: dict[str, Any] = {"pruning.criterion": MAGNITUDE, "pruning.density": None}
NOISY = {"model.net": {"class_path": "noisy", "init_args": {}}}
STEPS = 18  # 3 epochs of 6


def state_of(path: Path) -> dict[str, Any]:
    content = read_checkpoint(path)
    assert content is not None
    return content


def assert_equal(one: Any, other: Any) -> None:
    """Nested dicts and lists with the same values, tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert_equal(value, other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for value, counterpart in zip(one, other, strict=True):
            assert_equal(value, counterpart)
    else:
        assert one == other


def rows_of(level: LevelDir) -> list[dict[str, str]]:
    with level.metrics.open(newline="") as file:
        return list(csv.DictReader(file))


def record_of(level: LevelDir) -> dict[str, Any]:
    return json.loads(level.record.read_text())


@pytest.mark.parametrize("step", [0, "4it", "6it", "2ep", "17it"])
def test_rate_0_is_level_0_again(experiment: Any, step: int | str) -> None:
    dense, again = experiment.levels(
        **TICKET, **NOISY, **{"tickets.levels": 1, "tickets.density_per_level": 1.0, "tickets.rewind_step": step}
    )
    first, second = state_of(dense.last_checkpoint), state_of(again.last_checkpoint)
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step"):
        assert_equal(first[part], second[part])
    assert_equal(first["callbacks"]["SaveRandomState"], second["callbacks"]["SaveRandomState"])
    assert first["global_step"] == STEPS
    # whole epochs after the rewind point; an epoch that it lies in has means over other batches
    steps = {"ep": 6}.get(str(step)[-2:], 1) * int(str(step).rstrip("itep"))
    whole = [row for row in rows_of(dense) if int(row["step"]) - 6 >= steps]
    assert rows_of(again)[len(rows_of(again)) - len(whole) :] == whole
    assert {key: record_of(dense)[key] for key in ("test_accuracy", "test_loss", "val_loss")} == {
        key: record_of(again)[key] for key in ("test_accuracy", "test_loss", "val_loss")
    }


class Held(Callback):
    """How many of the tensors that a level builds on are there, and how many still are where its training starts."""

    def __init__(self) -> None:
        self.given: list[weakref.ref[torch.Tensor]] = []
        self.counts: list[tuple[int, int]] = []

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            ticket = next(callback.ticket for callback in trainer.callbacks if isinstance(callback, PruningAtInit))  # type: ignore[attr-defined]
            states = [state for state in (ticket.weights, ticket.initial, ticket.start) if state]
            self.given = [weakref.ref(tensor) for state in states for tensor in state.values()]

    def on_train_start(self, *_: Any) -> None:
        gc.collect()
        self.counts.append((len(self.given), sum(reference() is not None for reference in self.given)))


def test_levels_prune_what_the_level_before_ended_with(experiment: Any) -> None:
    """And let go of it before they train."""
    held = Held()
    experiment.callbacks = [held]
    levels = experiment.levels(**TICKET, **NOISY, **{"tickets.levels": 3, "tickets.density_per_level": 0.5})
    assert held.counts == [(0, 0), *[(3 * 9, 0)] * 3]
    assert [level.path.name for level in levels] == ["level_00", "level_01", "level_02", "level_03"]
    names = ("0.weight", "5.weight")
    masks = [Masks.load(level.masks) for level in levels]
    assert [mask.num_kept for mask in masks] == [468, 234, 117, 59]  # 58.5, rounded half up
    rewind = state_of(levels[0].rewind_checkpoint)["state_dict"]
    for before, level in pairwise(levels):
        final = state_of(before.last_checkpoint)["state_dict"]
        mask, before_mask = Masks.load(level.masks), Masks.load(before.masks)
        assert mask.is_subset_of(before_mask)
        # brute force: the largest of all weights that are left
        left = torch.cat([final[f"net.{name}"].flatten().abs() for name in names])
        chosen = torch.cat([mask[name].flatten() for name in names])
        threshold = left.sort(descending=True).values[mask.num_kept - 1]
        assert torch.equal(chosen, left >= threshold)
        ticket = torch.load(level.ticket, weights_only=True)
        for name, value in ticket.items():
            expected = rewind[f"net.{name}"] * mask[name] if name in mask else rewind[f"net.{name}"]
            assert torch.equal(value, expected)
        record = record_of(level)
        assert record["leaked_weights"] == 0
        assert record["masks_digest"] == mask.digest()
        assert (record["steps"], record["epochs"]) == (STEPS, 3)
    assert [record_of(level)["level"] for level in levels] == [0, 1, 2, 3]


def test_masked_levels_are_one_measurement_of_the_network(experiment: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[dict[str, Any]] = []

    def counted(*given: Any) -> dict[str, Any]:
        measured.append(footprint(*given))
        return measured[-1]

    monkeypatch.setattr(level_record, "footprint", counted)
    levels = experiment.levels(**TICKET, **{"tickets.levels": 2, "tickets.density_per_level": 0.5})
    assert len(measured) == 1
    assert all(measured[0].items() <= record_of(level).items() for level in levels)


def test_masks_are_what_training_kept_zero(experiment: Any) -> None:
    levels = experiment.levels(**TICKET, **NOISY, **{"tickets.levels": 2, "tickets.density_per_level": 0.3})
    last = state_of(levels[2].last_checkpoint)
    for name, mask in Masks.load(levels[2].masks).items():
        assert not last["state_dict"][f"net.{name}"][~mask].any()
        assert last["state_dict"][f"net.{name}"][mask].ne(0).any()
    for slots in last["optimizer_states"][0]["state"].values():
        assert torch.isfinite(slots["momentum_buffer"]).all()


@pytest.mark.parametrize("mode", ["learning_rate", "finetune"])
def test_the_other_modes_go_on_from_trained_weights(experiment: Any, mode: str) -> None:
    dense, pruned = experiment.levels(
        **TICKET,
        **NOISY,
        **{"tickets.levels": 1, "tickets.density_per_level": 0.5, "tickets.rewind": mode, "tickets.rewind_step": "4it"},
    )
    final, ticket = state_of(dense.last_checkpoint)["state_dict"], torch.load(pruned.ticket, weights_only=True)
    for name, value in ticket.items():
        mask = Masks.load(pruned.masks).get(name, torch.ones_like(value, dtype=torch.bool))
        assert torch.equal(value, final[f"net.{name}"] * mask)
    assert state_of(pruned.last_checkpoint)["global_step"] == STEPS
    rates = [float(row["lr"]) for row in rows_of(pruned)]
    assert rates == pytest.approx([0.05, 0.05, 0.005] if mode == "learning_rate" else [0.005] * 3)


def test_a_level_trains_as_many_steps_as_the_first_after_the_rewind_point(experiment: Any) -> None:
    levels = experiment.levels(
        **TICKET, **{"tickets.levels": 1, "tickets.density_per_level": 0.5, "tickets.rewind_step": "1ep"}
    )
    assert [row["step"] for row in rows_of(levels[1])] == ["12", "18"]


def test_criteria_at_initialisation_with_levels(experiment: Any) -> None:
    levels = experiment.levels(**{"tickets.levels": 2})  # SNIP, .1
    assert [Masks.load(level.masks).num_kept for level in levels] == [99, 31]  # .1 ** .5 and .1 of 312
    assert Masks.load(levels[1].masks).is_subset_of(Masks.load(levels[0].masks))


def test_each_level_takes_its_steps_and_no_more(experiment: Any) -> None:
    class Count(Callback):
        steps = 0

        def on_before_optimizer_step(self, *_: Any) -> None:
            self.steps += 1

    count = Count()
    experiment.callbacks = [count]
    experiment(**TICKET, **{"tickets.levels": 2, "tickets.density_per_level": 0.5, "trainer.max_epochs": 2})
    assert count.steps == 3 * 2 * 6
    experiment(**TICKET, **{"tickets.levels": 2, "tickets.density_per_level": 0.5, "trainer.max_epochs": 2})
    assert count.steps == 3 * 2 * 6


# --- whoever brings a loader of torch's


class Loaders(LightningDataModule):
    """A loader that shuffles by torch's generator, which Lightning cannot take up inside an epoch."""

    def __init__(self) -> None:
        super().__init__()
        images, labels = torch.rand(60, 1, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3
        self.samples = TensorDataset(images, labels)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.samples, batch_size=10, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.samples, batch_size=30)

    test_dataloader = val_dataloader


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("step", [0, "1ep", "2ep"])
def test_rate_0_with_torchs_own_shuffling(experiment: Any, step: int | str) -> None:
    experiment.make_data = Loaders
    dense, again = experiment.levels(
        **TICKET, **NOISY, **{"tickets.levels": 1, "tickets.density_per_level": 1.0, "tickets.rewind_step": step}
    )
    first, second = state_of(dense.last_checkpoint), state_of(again.last_checkpoint)
    assert_equal(first["state_dict"], second["state_dict"])
    assert_equal(first["callbacks"]["SaveRandomState"], second["callbacks"]["SaveRandomState"])


@pytest.mark.filterwarnings("ignore")
def test_a_rewind_point_inside_an_epoch_needs_a_loader_that_resumes_there(experiment: Any) -> None:
    experiment.make_data = Loaders
    with pytest.raises(PruningError, match="lies inside an epoch, from where DataLoader cannot go on"):
        experiment(
            **TICKET, **NOISY, **{"tickets.levels": 1, "tickets.density_per_level": 1.0, "tickets.rewind_step": 4}
        )
