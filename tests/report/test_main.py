from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from prunelab import cli
from prunelab.report import results
from prunelab.report.__main__ import main
from prunelab.report.table import levels_table, run_table
from prunelab.report.tidy import Results


@pytest.fixture
def run_dir(tmp_path, record):
    level = tmp_path / "digits-synflow" / "level_00"
    level.mkdir(parents=True)
    (level / "record.json").write_text(json.dumps(record))
    return level.parent


def test_the_table_is_printed_again_and_ends_with_the_directory(run_dir, capsys):
    assert main([str(run_dir)]) == 0
    output = capsys.readouterr().out
    assert "density requested    0.1" in output
    assert output.split()[-1] == str(run_dir)


def test_several_runs_are_compared(run_dir, capsys):
    assert main([str(run_dir), str(run_dir)]) == 0
    output = capsys.readouterr().out
    assert output.count("| synflow |") == 2
    assert output.count("MACs per example") == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "the run is not finished"),
        ("{", "is damaged"),
        ("[]", "is no record of a run"),
        ('{"criterion": "snip"}', "is no record of a run"),
        ("\x00\x01", "is damaged"),
    ],
)
def test_an_unreadable_record_is_one_line_and_exit_code_2(run_dir, capsys, content, message):
    path = run_dir / "level_00" / "record.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    assert main([str(run_dir)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("python -m prunelab.report: error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_no_directory_is_one_line_and_exit_code_2(tmp_path):
    command = [sys.executable, "-m", "prunelab.report", str(tmp_path / "nothing")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"python -m prunelab.report: error: no run in {tmp_path / 'nothing'}\n"


@pytest.fixture
def ticket_dir(tmp_path, levels):
    run_dir = tmp_path / "digits-magnitude"
    for record in levels:
        level = run_dir / f"level_{record['level']:02d}"
        level.mkdir(parents=True)
        (level / "record.json").write_text(json.dumps(record))
    return run_dir


def test_a_run_with_levels_is_one_table(ticket_dir, levels, capsys):
    assert main([str(ticket_dir)]) == 0
    assert capsys.readouterr().out == levels_table(levels, str(ticket_dir)) + "\n"


def test_of_an_unfinished_run_the_finished_levels_are_shown(ticket_dir, levels, capsys):
    (ticket_dir / "level_01" / "record.json").unlink()  # what comes after it was trained on other masks
    assert main([str(ticket_dir)]) == 0
    output = capsys.readouterr().out
    assert output == levels_table(levels[:1], str(ticket_dir)) + "\n"
    assert "level 1 of 0 to 2 is missing" in output


def test_a_control_without_a_dense_level_is_finished_too(ticket_dir, levels, capsys):
    shutil.rmtree(ticket_dir / "level_00")
    assert main([str(ticket_dir)]) == 0
    assert capsys.readouterr().out == levels_table(levels[1:], str(ticket_dir)) + "\n"


def test_what_comes_after_a_gap_is_not_shown(ticket_dir, levels, capsys):
    shutil.rmtree(ticket_dir / "level_01")
    assert main([str(ticket_dir)]) == 0
    assert capsys.readouterr().out == levels_table(levels[:1], str(ticket_dir)) + "\n"


def test_without_any_finished_level_the_run_is_not_finished(ticket_dir, capsys):
    for record in ticket_dir.glob("*/record.json"):
        record.unlink()
    assert main([str(ticket_dir)]) == 2
    assert "the run is not finished" in capsys.readouterr().err


def test_a_level_can_be_shown_by_itself(ticket_dir, levels, capsys, monkeypatch):
    assert main([str(ticket_dir / "level_01")]) == 0
    assert capsys.readouterr().out == run_table(levels[1], str(ticket_dir / "level_01")) + "\n"
    monkeypatch.chdir(ticket_dir / "level_02")
    assert main(["."]) == 0
    assert "level 2 of 0 to 2" in capsys.readouterr().out


def test_runs_with_levels_are_compared_by_their_last_finished_one(run_dir, ticket_dir, capsys):
    assert main([str(run_dir), str(ticket_dir)]) == 0
    header, _, *rows = capsys.readouterr().out.splitlines()[:4]
    column = header.split(" | ").index("levels")
    assert [row.split(" | ")[column] for row in rows] == ["1", "3"]


def test_a_damaged_record_of_a_level_is_named(ticket_dir, levels, capsys):
    path = ticket_dir / "level_02" / "record.json"
    path.write_text(json.dumps({key: value for key, value in levels[2].items() if key != "steps"}))
    assert main([str(ticket_dir)]) == 2
    assert f"error: {path} is damaged, it is no record of a run (KeyError: 'steps')" in capsys.readouterr().err


@pytest.mark.parametrize(("where", "message"), [("level_00", "give it"), ("", "is not finished")])
def test_only_the_last_level_of_a_finished_run_is_evaluated(ticket_dir, capsys, where, message):
    (ticket_dir / "level_02" / "record.json").unlink()
    assert main([str(ticket_dir / where), "--evaluate"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "--evaluate measures the last level of a run" in captured.err
    assert message in captured.err


def test_a_reader_that_has_seen_enough_is_no_error(run_dir, capsys, monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as nobody_reads:
        monkeypatch.setattr(sys, "stdout", nobody_reads)
        assert main([str(run_dir)]) == 0
        nobody_reads.write("what Python still has when it closes the output")
    assert capsys.readouterr().err == ""


def test_a_run_without_its_config_cannot_be_evaluated(run_dir, capsys):
    assert main([str(run_dir), "--evaluate"]) == 2
    assert "it has no config.yaml" in capsys.readouterr().err


def test_the_last_checkpoint_is_evaluated_anew(tmp_path, capsys):
    options = {"output_dir": tmp_path, "model.net": "lenet_300_100", "pruning.rounds": 2, "trainer.max_epochs": 1}
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    assert cli.main(["--config", "quickstart.yaml", *words, "--trainer.accelerator", "cpu"]) == 0
    run_dir = capsys.readouterr().out.split()[-1]
    assert main([run_dir, "--evaluate"]) == 0
    rows = dict(line.rsplit("  ", 1) for line in capsys.readouterr().out.splitlines() if "accuracy" in line)
    rows = {label.strip(): value for label, value in rows.items()}
    assert rows["test_accuracy anew"] == rows["test accuracy"]
    assert rows["val_accuracy anew"] == rows["validation accuracy"]


SWEEP = Path(__file__).parent / "data" / "sweep" / "runs"


@pytest.fixture
def sweep(tmp_path):
    """Copies of some of the runs that ship, by the beginning of their names."""

    def copy(*names, **changed):
        copies = []
        for name in names:
            (source,) = SWEEP.glob(f"{name}-*")
            copies.append(tmp_path / "runs" / f"{source.name}{len(changed)}")
            shutil.copytree(source, copies[-1])
            config = yaml.safe_load((copies[-1] / "config.yaml").read_text())
            for key, value in changed.items():
                *path, last = key.split("__")
                inner = config
                for part in path:
                    inner = inner[part]
                inner[last] = value
            (copies[-1] / "config.yaml").write_text(yaml.safe_dump(config))
        return [str(path) for path in copies]

    return copy


def axes_of(folder):
    return Results.read(folder).axes


def test_the_results_of_any_runs(sweep, tmp_path, capsys):
    runs = sweep("quickstart-snip-d0.1-s0", "quickstart-snip-d0.1-s1", "quickstart-synflow-d0.1-s0")
    assert main([*runs, "--results", str(tmp_path / "found")]) == 0
    assert capsys.readouterr().out.endswith(f"tables and pictures in {tmp_path / 'found'}\n")
    found = Results.read(tmp_path / "found")
    assert found.axes == ("pruning.criterion", "seed_everything")
    assert [row["pruning.criterion"] for row in found.rows] == ["snip", "snip", "synflow"]
    assert [row["test_accuracy"] for row in found.rows] == [
        json.loads((Path(run) / "level_00" / "record.json").read_text())["test_accuracy"] for run in runs
    ]
    assert (tmp_path / "found" / "accuracy.png").exists()


def test_the_axes_are_the_keys_that_differ(sweep, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(results, "_draw", lambda *arguments: None)
    one, two = "quickstart-snip-d0.1-s0", "quickstart-synflow-d0.1-s0"
    runs = sweep(one, two)
    runs += sweep(one, model__optimizer__init_args__lr=0.5, trainer__max_epochs=7)
    runs += sweep(one, pruning__criterion__init_args__batch_norm="batch", a=1, b=2)
    assert main([*runs, "--results", str(tmp_path / "found")]) == 0
    assert set(axes_of(tmp_path / "found")) - {"a", "b"} == {
        *("pruning.criterion", "pruning.criterion.batch_norm", "model.optimizer.lr", "trainer.max_epochs"),
        "seed_everything",
    }


def test_an_unfinished_run_is_shown_as_missing(sweep, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(results, "_draw", lambda *arguments: None)
    runs = sweep("quickstart-snip-d0.1-s0", "quickstart-synflow-d0.1-s0")
    (Path(runs[1]) / "level_00" / "record.json").unlink()
    assert main([*runs, "--results", str(tmp_path / "found")]) == 0
    output = capsys.readouterr().out
    assert "0 of 1" in output
    assert "missing: 1 of 2 runs, not finished" in output


def test_what_cannot_be_results_is_an_error_of_one_line(sweep, tmp_path, capsys):
    (run,) = sweep("quickstart-snip-d0.1-s0")
    (again,) = sweep("quickstart-snip-d0.1-s0", extra=1)
    shutil.copy(Path(run) / "config.yaml", Path(again) / "config.yaml")
    for arguments, message in (
        ([run, again, "--results", str(tmp_path / "found")], "have seed 0 and do not differ"),
        ([str(tmp_path / "none"), "--results", "found"], "is no run directory"),
        ([run, "--evaluate", "--results", "found"], "do not go together"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "found").exists()
