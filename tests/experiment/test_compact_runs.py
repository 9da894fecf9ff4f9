"""Whole runs with pruning.compact: the results of the masked run, in levels too; small files that know the full."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import EMAWeightAveraging
from torch import nn

from prunelab.compaction import shrink
from prunelab.experiment.errors import RunError
from prunelab.experiment.run import evaluate
from prunelab.experiment.run_dir import LevelDir, RunDir
from prunelab.experiment.tickets import index_of, load_ticket, masks_of, start_weights, trained_weights
from prunelab.models import resnet20
from prunelab.pruning import Masks, PruningError
from prunelab.training.resume import read_checkpoint

MAGNITUDE = {"class_path": "prunelab.pruning.criteria.Magnitude", "init_args": {}}
# batch norm, whose shifts are no longer 0 at the rewind point, and a residual stream
RESNET: dict[str, Any] = {
    "model.net": {
        "class_path": "prunelab.models.resnet20",
        "init_args": {"num_classes": 3, "in_channels": 1, "image_size": 6, "width": 0.25},
    },
    "trainer.max_epochs": 2,
    # in float64 rounding stays small enough to tell one training from another
    "trainer.precision": "64-true",
    "pruning.density": 0.05,
}
COMPACT = {"pruning.compact": True, "pruning.compact_multiple": 1}  # few layers here have 8 channels
TICKET: dict[str, Any] = {
    "pruning.criterion": MAGNITUDE,
    "pruning.density": None,
    "tickets.levels": 2,
    "tickets.density_per_level": 0.2,
    "tickets.rewind_step": 3,
}
SNIP_LEVELS: dict[str, Any] = {"tickets.levels": 2, "tickets.rewind_step": 3}


def record_of(level: LevelDir) -> dict[str, Any]:
    return json.loads(level.record.read_text())


def run_of(level: LevelDir) -> RunDir:
    return RunDir(level.path.parent)


def tensors_in(content: Any) -> list[torch.Tensor]:
    """All tensors of a checkpoint, wherever they are."""
    if isinstance(content, torch.Tensor):
        return [content]
    inner = content.values() if isinstance(content, dict) else content if isinstance(content, list | tuple) else ()
    return [tensor for value in inner for tensor in tensors_in(value)]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        TICKET,
        TICKET | {"tickets.rewind": "learning_rate"},
        TICKET | {"tickets.rewind": "finetune"},
        SNIP_LEVELS,
    ],
    ids=["snip", "weights", "learning_rate", "finetune", "snip with levels"],
)
def test_is_the_masked_run(experiment: Any, changes: dict[str, Any]) -> None:
    masked, compact = (experiment.levels(**RESNET | changes | extra) for extra in ({}, COMPACT))
    assert len(masked) == len(compact) == (3 if "pruning.criterion" in changes else 2 if changes else 1)
    for one, other in zip(masked, compact, strict=True):
        records = record_of(one), record_of(other)
        for key in ("masks_digest", "density", "num_kept", "macs_dense", "macs_masked", "steps", "leaked_weights"):
            assert records[0][key] == records[1][key]
        for key in ("test_accuracy", "val_accuracy", "train_loss", "test_loss"):
            assert records[1][key] == pytest.approx(records[0][key], rel=1e-6)
        index = index_of(other)
        assert index is not None
        weights = trained_weights(run_of(one), one), trained_weights(run_of(other), other)
        assert weights[0].keys() == weights[1].keys()
        for name, values in index.take(weights[0]).items():
            torch.testing.assert_close(index.take(weights[1])[name], values, rtol=1e-6, atol=1e-9)


def test_what_a_compact_run_leaves(experiment: Any) -> None:
    masked, level = (experiment(**RESNET | extra) for extra in ({}, COMPACT))
    index, record = index_of(level), record_of(level)
    assert index is not None
    assert index_of(masked) is None
    # start weights and masks are those of the full network: a plain network takes them
    net = net_of()
    masks = load_ticket(run_of(level).path, net)
    assert masks == masks_of(level) == masks_of(masked)
    for name, values in start_weights(masked).items():
        assert torch.equal(values, start_weights(level)[name])
    # the trained ones too, and they compute what the small network computes
    content = read_checkpoint(level.last_checkpoint)
    assert content is not None
    small, full = net_of(), net_of()
    shrink(small, index)
    small.load_state_dict({name.removeprefix("net."): values for name, values in content["state_dict"].items()})
    full.load_state_dict(trained_weights(run_of(level), level), strict=True)
    pictures = torch.rand(5, 1, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(small.eval()(pictures), full.eval()(pictures), rtol=1e-12, atol=1e-13)
    assert all(bool((full.get_parameter(name)[~mask] == 0).all()) for name, mask in masks.items())
    # and the record says it all
    assert record["compacted"] is True
    assert record["not_compacted"] is None
    assert record["num_parameters_compact"] == sum(p.numel() for p in small.parameters())
    assert record["compact_weights"] == sum(small.get_parameter(name).numel() for name in masks)
    assert record["num_channels_compact"] < record["num_channels"] == 4 * 7 + 8 * 7 + 16 * 7 + 3
    assert record["macs_masked"] < record["macs_compact"] < record["macs_dense"]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors_in(content)}
    assert record["checkpoint_bytes"] == sum(storage.nbytes() for storage in storages.values())
    assert record["checkpoint_bytes"] < level.last_checkpoint.stat().st_size
    assert record["checkpoint_bytes"] < record_of(masked)["checkpoint_bytes"]
    assert record_of(masked)["compacted"] is False


@pytest.mark.parametrize(
    ("optimizer", "settings"),
    [
        ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-3}),
        ("AdamW", {"lr": 1e-2, "weight_decay": 0.1}),
        ("Adam", {"lr": 1e-2}),
    ],
)
def test_later_levels_rank_the_weights_of_removed_channels_as_the_masked_run_does(
    experiment: Any, optimizer: str, settings: dict[str, Any]
) -> None:
    """No output depends on them, but decay and momentum from the rewind point move them."""
    changes = {
        **RESNET,
        **TICKET,
        "tickets.levels": 3,
        "tickets.density_per_level": 0.3,
        "tickets.rewind_step": 3,
        "pruning.scope": "layerwise",
        "model.net.class_path": "prunelab.models.mlp",
        "model.net.init_args": {"num_classes": 3, "in_channels": 1, "image_size": 6, "depth": 3, "width": 48},
        "model.optimizer": {"class_path": f"torch.optim.{optimizer}", "init_args": settings},
    }
    masked, compact = (experiment.levels(**changes | extra) for extra in ({}, COMPACT))
    for one, other in zip(masked, compact, strict=True):
        assert record_of(one)["masks_digest"] == record_of(other)["masks_digest"]
    # there were such weights, and in the end they are what they are in the masked run, bit for bit or nearly
    index = index_of(compact[2])
    assert index is not None
    masks, full = masks_of(compact[2]), trained_weights(run_of(compact[2]), compact[2])
    start, expected = start_weights(compact[2]), trained_weights(run_of(masked[2]), masked[2])
    num_dead = 0
    for name in index.kept.keys() & masks.keys():
        left = index.put({name: torch.ones(index.small_shape(name))}, {name: torch.zeros(index.shapes[name])})[name]
        dead = masks[name] & (left == 0)
        num_dead += int((full[name] != start[name])[dead].sum())
        torch.testing.assert_close(full[name][dead], expected[name][dead], rtol=1e-9, atol=1e-12)
    assert num_dead > 10


def net_of() -> nn.Module:
    return resnet20(num_classes=3, in_channels=1, image_size=6, width=0.25).double()


class Stop(Callback):
    """As if the process had died after `step` optimizer steps: nothing is saved any more."""

    def __init__(self, step: int, level: int) -> None:
        self.step = step
        self.level = level
        self.seen = 0

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.seen += 1

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step and self.seen == self.level + 1:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("level", "step"), [(0, 8), (1, 9)])
def test_the_same_command_goes_on_bit_for_bit(experiment: Any, tmp_path: Path, level: int, step: int) -> None:
    changes = {**RESNET, **SNIP_LEVELS, **COMPACT, "trainer.precision": "32-true"}
    whole = experiment.levels(**changes)
    kept = run_of(whole[0]).path.rename(tmp_path / "whole")
    experiment.callbacks = [Stop(step, level)]
    with pytest.raises(BaseException):  # noqa: B017, PT011  Lightning makes a SystemExit of it
        experiment.levels(**changes)
    experiment.callbacks = []
    for one, other in zip(RunDir(kept).levels(), experiment.levels(**changes), strict=True):
        states = [read_checkpoint(directory.last_checkpoint) for directory in (one, other)]
        for name, values in states[0]["state_dict"].items():
            assert torch.equal(values, states[1]["state_dict"][name])
        assert record_of(one)["masks_digest"] == record_of(other)["masks_digest"]
        assert record_of(one)["test_loss"] == record_of(other)["test_loss"]


def test_more_epochs_on_a_finished_run(experiment: Any) -> None:
    plain = {**RESNET, **COMPACT, "trainer.precision": "32-true"}
    level = experiment(**plain)
    digest = record_of(level)["masks_digest"]
    experiment(**plain | {"trainer.max_epochs": 3})
    assert record_of(level)["masks_digest"] == digest
    assert record_of(level)["steps"] == 18
    assert record_of(level)["compacted"] is True


def test_evaluate_reads_a_compact_run(experiment: Any) -> None:
    changes = {**RESNET, **COMPACT}
    level = experiment(**changes)
    record = record_of(level)
    arguments = experiment.parts(experiment.config(**changes))
    arguments[1].double()
    found = evaluate(run_of(level).path, lambda: arguments)
    assert found["test_accuracy"] == pytest.approx(record["test_accuracy"])
    assert found["test_loss"] == pytest.approx(record["test_loss"], rel=1e-9)


def test_levels_are_nested_and_shrink(experiment: Any) -> None:
    changes = RESNET | TICKET | COMPACT
    levels = experiment.levels(**changes)
    channels = [record_of(level)["num_channels_compact"] for level in levels]
    assert channels == sorted(channels, reverse=True)
    assert channels[0] == record_of(levels[0])["num_channels"]
    assert channels[-1] < channels[0]
    assert all(masks_of(after).is_subset_of(masks_of(before)) for before, after in pairwise(levels))


@pytest.mark.parametrize("what", [{"tickets.mask_0": "init"}, {"tickets.mask_1": "shuffle"}])
def test_other_weights_than_rewound_ones_and_zeros_are_refused(experiment: Any, what: dict[str, Any]) -> None:
    with pytest.raises(RunError, match=r"pruning\.compact goes with tickets\.mask_1 rewind"):
        experiment(**RESNET | TICKET | COMPACT | what | {"tickets.rewind_step": 0})


def test_weight_averaging_is_refused_before_the_first_level(experiment: Any) -> None:
    experiment.callbacks = [EMAWeightAveraging(decay=0.9)]
    with pytest.raises(RunError, match=r"pruning\.compact: weight averaging"):
        experiment(**RESNET | TICKET | COMPACT)
    assert list(experiment.directory.iterdir()) == []
    level = experiment(**RESNET | COMPACT)  # of one level nothing is taken over
    assert trained_weights(run_of(level), level).keys() == net_of().state_dict().keys()


def test_weights_from_a_compact_run(experiment: Any) -> None:
    source = experiment(**RESNET | COMPACT)
    start = {**RESNET, "pruning.density": 0.04, "pruning.weights_from": str(source.path.parent)}
    level = experiment(**start)
    for name, values in start_weights(source).items():
        kept = masks_of(level).get(name, torch.ones(values.shape, dtype=torch.bool))
        assert torch.equal(start_weights(level)[name][kept], values[kept])
    with pytest.raises(PruningError, match="holds a compact network"):
        experiment(**start | {"pruning.weights_from": str(source.last_checkpoint)})


def test_a_network_that_cannot_be_traced_trains_masked_and_says_so(experiment: Any) -> None:
    net = {"class_path": "supermask", "init_args": {}}
    level = experiment(**{"model.net": net, "pruning.density": 0.5, **COMPACT})
    record = record_of(level)
    assert record["compacted"] is False
    assert record["not_compacted"]
    assert not level.channel_index.exists()


def test_a_damaged_index_is_refused_by_name(experiment: Any) -> None:
    level = experiment(**RESNET | COMPACT)
    level.channel_index.write_bytes(b"noise")
    with pytest.raises(RunError, match=str(level.channel_index)):
        index_of(level)


def test_a_control_builds_on_a_compact_ticket(experiment: Any) -> None:
    changes = RESNET | TICKET | COMPACT
    ticket = experiment.levels(**changes)
    control = experiment.level(1, **changes | {"control": "reinit"})
    experiment(**changes | {"control": "reinit"})
    assert Masks.load(control.masks) == masks_of(ticket[1])
    assert record_of(control)["compacted"] is True
