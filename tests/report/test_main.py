from __future__ import annotations

import json
import subprocess
import sys

import pytest

from prunelab import cli
from prunelab.report.__main__ import main


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
