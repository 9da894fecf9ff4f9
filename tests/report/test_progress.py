from __future__ import annotations

import io
import itertools
import re
from types import SimpleNamespace

import pytest
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import ModelCheckpoint
from rich.console import Console

from prunelab.report import progress as module
from prunelab.report.progress import EpochLines, PruningProgress


def test_without_a_terminal_there_is_a_line_at_the_start_and_one_at_the_end(fit, prune_at_start):
    output = io.StringIO()
    fit([prune_at_start(density=0.2, rounds=5), PruningProgress(Console(file=output))])
    # 36 + 216 + 72 = 324 weights, of which 64.8 are to stay
    assert output.getvalue() == "pruning: 5 rounds\npruned: 65 of 324 weights kept, density 0.200617\n"


@pytest.mark.parametrize("terminal", [False, True])
def test_rounds_before_the_fit_starts_are_shown_as_well(fit, prune_at_start, terminal):
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=100)
    fit([prune_at_start(density=0.2, rounds=5, hook="setup"), PruningProgress(console)])
    assert ("5/5" in output.getvalue()) == terminal
    assert output.getvalue().count("\x1b[?25l") == output.getvalue().count("\x1b[?25h") == terminal
    assert output.getvalue().rstrip().endswith("pruned: 65 of 324 weights kept, density 0.200617")


def test_on_a_terminal_a_bar_counts_the_rounds_and_leaves(fit, prune_at_start):
    output = io.StringIO()
    fit([prune_at_start(rounds=5), PruningProgress(Console(file=output, force_terminal=True, width=100))])
    assert "5/5" in output.getvalue()
    assert "\x1b[?25h" in output.getvalue(), "the cursor is shown again"
    assert output.getvalue().rstrip().endswith("density 0.200617")


@pytest.mark.parametrize("hook", ["on_fit_start", "setup"])
def test_a_failing_round_gives_the_terminal_back(fit, prune_at_start, hook):
    class Fails(Callback):
        def on_pruning_round(self, trainer, pl_module, index, *args):
            if index == 2:
                raise ValueError("no")

    output = io.StringIO()
    progress = PruningProgress(Console(file=output, force_terminal=True))
    with pytest.raises(ValueError, match="no"):
        fit([prune_at_start(hook=hook), progress, Fails()])
    assert progress._bar is None
    assert output.getvalue().count("\x1b[?25l") == output.getvalue().count("\x1b[?25h")


def test_one_line_per_epoch_with_what_was_measured_in_it(fit, capsys):
    fit([EpochLines()], max_epochs=4, check_val_every_n_epoch=2)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert [line.split()[1] for line in lines] == ["1/4", "2/4", "3/4", "4/4"]
    assert ["val_accuracy" in line for line in lines] == [False, True, False, True]
    assert all(re.search(r"^epoch ./4  lr 0\.\d+  train_loss \d\S+  .*\d+\.\d s$", line) for line in lines)
    assert [re.search(r"lr (\S+)", line)[1] for line in lines] == ["0.1", "0.05", "0.025", "0.0125"]


def test_without_a_last_epoch_the_line_has_none(fit, capsys):
    fit([EpochLines()], max_epochs=-1, max_steps=3)
    assert re.search(r"^epoch 1  lr 0.1  train_loss", capsys.readouterr().out, re.MULTILINE)


def test_the_level_stands_before_every_line(fit, prune_at_start, capsys):
    output = io.StringIO()
    fit([prune_at_start(rounds=5), PruningProgress(Console(file=output), prefix="level 2  "), EpochLines("level 2  ")])
    assert output.getvalue().splitlines() == [
        "level 2  pruning: 5 rounds",
        "level 2  pruned: 65 of 324 weights kept, density 0.200617",
    ]
    lines = [line for line in capsys.readouterr().out.splitlines() if "epoch" in line]
    assert [line.split("  lr")[0] for line in lines] == ["level 2  epoch 1/2", "level 2  epoch 2/2"]


def test_the_level_stands_before_the_bar(fit, prune_at_start):
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=100)
    fit([prune_at_start(rounds=5), PruningProgress(console, prefix="level 2  ")])
    assert "level 2  pruning" in output.getvalue()


def test_an_epoch_taken_up_in_its_middle_counts_from_there(fit, tmp_path, capsys, monkeypatch):
    save = ModelCheckpoint(tmp_path, filename="middle", every_n_train_steps=4, save_top_k=-1)
    fit([save], enable_checkpointing=True)
    ticks = itertools.count(1000, 10)
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    trainer = fit([EpochLines()], max_epochs=3, ckpt_path=tmp_path / "middle.ckpt")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert [line.split()[1] for line in lines] == ["2/3", "3/3"]
    assert [line.split("  ")[-1] for line in lines] == ["10.0 s", "10.0 s"]
    assert trainer.current_epoch == 3
