"""Every sweep that ships says what it claims, and its cells are commands that train.py understands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from prunelab import cli
from prunelab.command_line import read_command
from prunelab.sweep.file import SWEEPS, read_sweep
from prunelab.sweep.plan import plan

FILES = sorted(SWEEPS.glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_header(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if line.startswith("# ")]
    assert 20 < len(lines[0]) < 130
    fields = dict(line.removeprefix("# ").split(":", 1) for line in lines[1:] if re.match(r"# \w+:", line))
    assert {"command", "hardware", "minutes", "expected"} <= fields.keys()
    assert fields["command"].strip().startswith("python -m prunelab.sweep --config ")
    assert path.name in fields["command"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_its_first_and_last_cell_are_valid(path: Path) -> None:
    parser, sweep = cli.build_parser(), read_sweep(path)
    for cell in (sweep.cells[0], sweep.cells[-1]):
        command = read_command(list(cell.words))
        assert not command.grid
        cli.resolve(parser, command.config)


def test_the_quick_figure_has_five_criteria_six_exponents_and_three_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cells = plan(read_sweep(SWEEPS / "synflow_figure6_quick.yaml"), "runs")
    points = {(cell.cell.values["pruning.criterion"], cell.cell.values.get("compression_exponent")) for cell in cells}
    assert len(cells) == 3 * len(points) == 3 * (5 * 6 + 1)
    assert {cell.cell.values["seed_everything"] for cell in cells} == {0, 1, 2}
    assert len({cell.kind for cell in cells}) == 1
