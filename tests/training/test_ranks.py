"""1, 2 and 4 processes: one mask, one result up to the order of additions, one end. on_ranks.py makes the trainings."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from torch import Tensor

from prunelab.training.ranks import check_alike, of_ranks, weights_digest

from .on_ranks import EXACT, KEPT, NAMES, NUM_TEST, exact_name

ALL = [(name, world_size) for world_size in (2, 4) for name in NAMES]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """Number of ranks -> for each of them, name of training -> what it found."""
    directory = tmp_path_factory.mktemp("ranks")
    process = subprocess.Popen(
        [sys.executable, "-u", str(Path(__file__).with_name("on_ranks.py")), str(directory)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that all of them can be killed
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        output, _ = process.communicate(timeout=240)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert process.returncode == 0, output[-5000:]
    return {
        world_size: [torch.load(directory / f"{world_size}-{rank}.pt") for rank in range(world_size)]
        for world_size in (1, 2, 4)
    }


def assert_equal(some: dict[str, Tensor], others: dict[str, Tensor]) -> None:
    assert some.keys() == others.keys()
    for name, values in some.items():
        assert torch.equal(values, others[name]), name


@pytest.mark.parametrize(("name", "world_size"), ALL)
def test_differently_seeded_ranks_find_the_masks_of_one_process(found: Any, name: str, world_size: int) -> None:
    one, *_ = found[1]
    for of_rank in found[world_size]:
        training = of_rank[f"masks {name}"]
        assert_equal(training["masks"], one[f"masks {name}"]["masks"])
        assert_equal(training["start"], one[f"masks {name}"]["start"])
        assert training["seed"] == one[f"masks {name}"]["seed"]


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("training", [exact_name(*case) for case in EXACT])
def test_the_result_is_that_of_one_process(found: Any, training: str, world_size: int) -> None:
    one, of_ranks = found[1][0][training], [of_rank[training] for of_rank in found[world_size]]
    for own in of_ranks:
        assert own["steps"] == one["steps"]
        assert_equal(own["weights"], of_ranks[0]["weights"])
        assert own["metrics"] == of_ranks[0]["metrics"]
    for name, values in one["weights"].items():
        torch.testing.assert_close(of_ranks[0]["weights"][name], values, rtol=1e-12, atol=1e-15)
    assert of_ranks[0]["metrics"].keys() == one["metrics"].keys()
    assert {"train_loss", "train_accuracy", "val_loss", "val_accuracy", "test_loss"} < one["metrics"].keys()
    for name, value in one["metrics"].items():
        assert of_ranks[0]["metrics"][name] == pytest.approx(value, rel=1e-6), name
    # 101 on 2 or on 4 ranks: each counted once
    num_right = of_ranks[0]["metrics"]["test_accuracy"] * NUM_TEST
    assert num_right == pytest.approx(round(num_right), abs=1e-4)


@pytest.mark.parametrize("compact", [False, True], ids=["masked", "compact"])
@pytest.mark.parametrize("what", KEPT)
def test_zeros_and_equality_last(found: Any, what: str, compact: bool) -> None:
    first, second = (of_rank[f"kept {what} {compact}"] for of_rank in found[2])
    assert first["compacted"] == compact
    for own in (first, second):
        assert own["leaked"] == 0
        assert own["pruned"] > 0
    assert_equal(first["parameters"], second["parameters"])
    assert_equal(first["state"], second["state"])  # running statistics too, once they were tested
    assert first["tested"] == second["tested"]


def test_weight_averages_start_together(found: Any) -> None:
    first, second = (of_rank["average"] for of_rank in found[2])
    assert_equal(first, second)


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ("other masks", "RanksDiffer", "scoring: other masks on rank 1 than on rank 0; all 2 processes stop"),
        ("other masks compact", "RanksDiffer", "scoring: other masks on rank 1 than on rank 0; all 2 processes stop"),
        (
            "other weights",
            "RanksDiffer",
            "after training: other weights on rank 1 than on rank 0; all 2 processes stop",
        ),
        ("leak", "RuntimeError", "pruned weights are not 0: something outside the optimizer wrote to them"),
        ("none of this", None, ""),
    ],
)
def test_a_rank_that_differs_stops_all_with_one_message(found: Any, what: str, error: str, message: str) -> None:
    first, second = (of_rank[what] for of_rank in found[2])
    assert first == second
    assert first["error"] == error
    assert first["message"].endswith(message)


# --- on one process


class Two:
    """As much of a Trainer as is asked for the number of ranks."""

    world_size = 4


def test_says_what_differs_and_where(monkeypatch: pytest.MonkeyPatch) -> None:
    held = [{"masks": "a", "weights": "b"}] * 4

    def check() -> None:
        monkeypatch.setattr("prunelab.training.ranks.of_ranks", lambda *_: held)
        check_alike(Two(), "before training", held[0])  # type: ignore[arg-type]

    check()
    held = [held[0], held[0] | {"masks": "c"}, held[0], {"masks": "d", "weights": "e"}]
    message = "before training: other masks on ranks 1, 3, other weights on rank 3 than on rank 0; all 4 processes stop"
    with pytest.raises(Exception, match=message):
        check()


def test_alone_nothing_is_compared() -> None:
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, barebones=True)
    assert of_ranks(trainer, 3) == [3]
    assert weights_digest(trainer, torch.nn.Linear(2, 2)) == ""
    check_alike(trainer, "setup", {"masks": "a"})
