from __future__ import annotations

import io
import re

import pytest
from pytorch_lightning import Callback
from rich.console import Console

from prunelab.report.progress import EpochLines, PruningProgress


def test_without_a_terminal_there_is_a_line_at_the_start_and_one_at_the_end(fit, prune_at_start):
    output = io.StringIO()
    fit([prune_at_start(density=0.2, rounds=5), PruningProgress(Console(file=output))])
    # 36 + 216 + 72 = 324 weights, of which 64.8 are to stay
    assert output.getvalue() == "pruning: 5 rounds\npruned: 65 of 324 weights kept, density 0.200617\n"


def test_on_a_terminal_a_bar_counts_the_rounds_and_leaves(fit, prune_at_start):
    output = io.StringIO()
    fit([prune_at_start(rounds=5), PruningProgress(Console(file=output, force_terminal=True, width=100))])
    assert "5/5" in output.getvalue()
    assert "\x1b[?25h" in output.getvalue(), "the cursor is shown again"
    assert output.getvalue().rstrip().endswith("density 0.200617")


def test_a_failing_round_gives_the_terminal_back(fit, prune_at_start):
    class Fails(Callback):
        def on_pruning_round(self, trainer, pl_module, index, *args):
            if index == 2:
                raise ValueError("no")

    output = io.StringIO()
    progress = PruningProgress(Console(file=output, force_terminal=True))
    with pytest.raises(ValueError, match="no"):
        fit([prune_at_start(), progress, Fails()])
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
