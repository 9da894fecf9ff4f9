"""What becomes of kept and pruned weights, criteria that compare with the initialisation, and supermasks, in runs."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from prunelab.experiment.errors import RunError
from prunelab.experiment.run_dir import LevelDir
from prunelab.pruning import Masks, PruningError
from prunelab.training.resume import read_checkpoint

NAMES = ("0.weight", "5.weight")
TICKET: dict[str, Any] = {
    "pruning.criterion": {"class_path": "prunelab.pruning.criteria.Magnitude", "init_args": {}},
    "pruning.density": None,
    "model.net": {"class_path": "noisy", "init_args": {}},
    "tickets.levels": 2,
    "tickets.density_per_level": 0.5,
    "trainer.max_epochs": 2,
}


def weights_of(level: LevelDir, file: str) -> dict[str, torch.Tensor]:
    if file == "ticket":
        return torch.load(level.ticket, weights_only=True)
    content = read_checkpoint(getattr(level, f"{file}_checkpoint"))
    assert content is not None
    return {name.removeprefix("net."): value for name, value in content["state_dict"].items()}


def record_of(level: LevelDir) -> dict[str, Any]:
    return json.loads(level.record.read_text())


@pytest.mark.parametrize("mask_1", ["rewind", "reinit", "reshuffle", "constant"])
@pytest.mark.parametrize("keep_sign", [False, True])
def test_mask_1_actions(experiment: Any, mask_1: str, keep_sign: bool) -> None:
    if keep_sign and mask_1 == "rewind":
        with pytest.raises(PruningError, match="keep_sign needs mask_1 reinit, reshuffle or constant"):
            experiment(**TICKET, **{"tickets.keep_sign": True})
        return
    levels = experiment.levels(**TICKET, **{"tickets.mask_1": mask_1, "tickets.keep_sign": keep_sign})
    start = weights_of(levels[0], "rewind")
    for level in levels[1:]:
        ticket, masks = weights_of(level, "ticket"), Masks.load(level.masks)
        for name in NAMES:
            mask, before, after = masks[name], start[name], ticket[name]
            assert not after[~mask].any()
            if keep_sign or mask_1 == "rewind":
                assert torch.equal(after[mask].sign(), before[mask].sign())
            if mask_1 == "rewind":
                assert torch.equal(after[mask], before[mask])
            elif mask_1 == "constant":
                assert after[mask].abs().unique().tolist() == pytest.approx([float(before.std(correction=0))])
            elif mask_1 == "reshuffle":
                assert torch.equal(after[mask].abs().sort().values, before[mask].abs().sort().values)
            else:
                assert (after[mask].abs() != before[mask].abs()).all()
        assert torch.equal(ticket["5.bias"], start["5.bias"])
        assert record_of(level)["leaked_weights"] == 0


@pytest.mark.parametrize("mask_0", ["init", "init_if_grew"])
def test_mask_0_actions_hold_through_training(experiment: Any, mask_0: str) -> None:
    levels = experiment.levels(**TICKET, **{"tickets.mask_0": mask_0})
    start, final = weights_of(levels[0], "rewind"), weights_of(levels[0], "last")
    masks = Masks.load(levels[1].masks)
    for name in NAMES:
        pruned = ~masks[name]
        held = start[name][pruned]
        if mask_0 == "init_if_grew":
            held = torch.where(final[name][pruned].abs() >= held.abs(), held, 0)
        for file in ("ticket", "last", "best"):
            assert torch.equal(weights_of(levels[1], file)[name][pruned], held)
        assert held.any()
    assert [record_of(level)["leaked_weights"] for level in levels] == [0, 0, 0]
    record, dense = record_of(levels[1]), record_of(levels[0])["macs_dense"]
    assert record["mask_0"] == mask_0
    assert (record["macs_masked"] == dense) is (mask_0 == "init")  # what is frozen has to be computed


@pytest.mark.parametrize("score", ["magnitude_increase", "movement", "large_init", "small_final"])
def test_criteria_that_compare_see_the_rewind_point_and_the_end(experiment: Any, score: str) -> None:
    criterion = {"class_path": "prunelab.pruning.criteria.MaskCriterion", "init_args": {"score": score}}
    levels = experiment.levels(**(TICKET | {"pruning.criterion": criterion, "tickets.levels": 1}))
    start, final = weights_of(levels[0], "rewind"), weights_of(levels[0], "last")
    scores = {
        "magnitude_increase": lambda i, f: f.abs() - i.abs(),
        "movement": lambda i, f: (f - i).abs(),
        "large_init": lambda i, f: i.abs(),
        "small_final": lambda i, f: -f.abs(),
    }[score]
    everything = torch.cat([scores(start[name].double(), final[name].double()).flatten() for name in NAMES])
    chosen = torch.cat([Masks.load(levels[1].masks)[name].flatten() for name in NAMES])
    assert chosen.sum() == 234
    assert everything[chosen].min() >= everything[~chosen].max() - 1e-7


def test_a_supermask_is_tested_before_training(experiment: Any) -> None:
    levels = experiment.levels(**TICKET, **{"tickets.supermask": True})
    records = [record_of(level) for level in levels]
    assert records[0]["supermask_test_accuracy"] is None
    plain = experiment.levels(**TICKET)
    for level, other, record in zip(levels[1:], plain[1:], records[1:], strict=True):
        assert 0 <= record["supermask_test_accuracy"] <= 1
        assert round(record["supermask_test_accuracy"] * 33, 3) % 1 == pytest.approx(0, abs=1e-3)
        assert record["test_accuracy"] == record_of(other)["test_accuracy"]
        assert level.metrics.read_bytes() == other.metrics.read_bytes()


def test_levels_are_not_ended_by_the_clock(experiment: Any) -> None:
    with pytest.raises(RunError, match=r"trainer\.max_time would end levels by the clock"):
        experiment(**TICKET, **{"trainer.max_time": "00:00:01:00"})
