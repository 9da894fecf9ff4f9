from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from prunelab.report import tidy
from prunelab.report.groups import groups
from prunelab.report.results import FinishedCell, Results, write_results

AXES = ("pruning.criterion", "pruning.density", "seed_everything")
SWEEP = Path(__file__).parent / "data" / "sweep"


@pytest.fixture
def cells() -> list[FinishedCell]:
    """Runs that ship: scikit-learn's digits, ResNet-20 of half width, three epochs; SynFlow and SNIP at two densities,
    and dense, with two seeds."""
    found = []
    for path in sorted((SWEEP / "runs").glob("*/level_00/record.json")):
        record = json.loads(path.read_text())
        values = dict(zip(AXES, (record["criterion"], record["density_requested"], record["seed"]), strict=True))
        found.append(FinishedCell(path.parents[1].name, values, [record]))
    assert len(found) == 10
    return found


def test_everything_is_written(tmp_path, cells):
    expected = [{"pruning.criterion": "synflow", "pruning.density": 0.1, "test_accuracy": 0.5, "source": "a guess"}]
    absent = FinishedCell("gone", cells[0].values | {"seed_everything": 2}, [], "failed: no disk_space & time")
    text = write_results(tmp_path / "sweep", "Digits & more", [*cells, absent], AXES, expected)
    files = {path.name for path in (tmp_path / "sweep").iterdir()} - {"results.parquet", "layers.parquet"}
    pictures = {f"{name}.{suffix}" for name in ("accuracy", "layer_densities") for suffix in ("png", "pdf")}
    tables = {"results.csv", "layers.csv", "summary.csv", "results.md", "results.tex"}
    assert files == {*tables, *pictures, "tensorboard"}
    accuracies = [cell.records[0]["test_accuracy"] for cell in cells if "synflow-d0.1-" in cell.run_dir]
    mean = sum(accuracies) / 2
    std = abs(accuracies[0] - accuracies[1]) / 2**0.5
    measured = f"{100 * mean:.2f} ± {100 * std:.2f}"
    markdown, latex = ((tmp_path / "sweep" / name).read_text() for name in ("results.md", "results.tex"))
    assert f"{measured} *" in text
    assert f"**{measured}**" in markdown
    assert rf"\textbf{{{measured.replace('±', '$' + chr(92) + 'pm$')}}}" in latex
    difference = f"{100 * (mean - 0.5):+.2f}"
    for written in (text, markdown, latex):
        assert difference in written
        assert "a guess" in written
        assert "2 of 3" in written, "n of the seeds of the run that is missing"
    for written in (text, markdown):
        assert "missing: 1 of 11 runs, failed: no disk_space & time" in written
    assert r"missing: 1 of 11 runs, failed: no disk\_space \& time" in latex
    assert "![accuracy](accuracy.png)" in markdown
    assert text.startswith("Digits & more\n")
    assert text.endswith(f"tables and pictures in {tmp_path / 'sweep'}")


def test_latex_is_of_one_piece(tmp_path, cells):
    write_results(tmp_path, "Digits", cells, AXES, plots=False)
    latex = (tmp_path / "results.tex").read_text()
    begun, ended = (re.findall(rf"\\{word}\{{(\w+)\}}", latex) for word in ("begin", "end"))
    assert begun == ended == ["longtable"] * 3
    assert latex.count(r"\begingroup") == latex.count(r"\endgroup") == 3
    assert len(re.findall(r"(?<!\\)\{", latex)) == len(re.findall(r"(?<!\\)\}", latex))
    body = latex.split("\n", 1)[1]
    assert not re.search(r"(?<!\\)[%#_~^]", body)
    assert body.isascii()
    for table in re.findall(r"\\begin\{longtable\}\[l\]\{(\w+)\}(.*?)\\end\{", latex, re.DOTALL):
        columns = len(table[0])
        assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in table[1].splitlines() if line.endswith(r"\\")} == {
            columns
        }
    of_booktabs = {"toprule", "midrule", "bottomrule"}
    of_longtable = {"endhead", "LTpre", "LTpost"}
    of_latex = {"begin", "end", "begingroup", "endgroup", "footnotesize", "setlength", "tabcolsep", "noindent", "par"}
    of_latex |= {"smallskip", "smallskipamount", "shortstack", "textbf", "underline", "pm", "textsuperscript"}
    of_latex |= {"nopagebreak", "addtocounter"}
    assert set(re.findall(r"(?<!\\)\\([A-Za-z]+)", body)) <= of_booktabs | of_longtable | of_latex


def test_the_sweep_that_ships_is_what_its_records_say(tmp_path, cells):
    """The files that the notebook reads."""
    write_results(tmp_path, "Digits", cells, AXES, plots=False)
    for name in ("results.csv", "layers.csv"):
        assert (SWEEP / name).read_text() == (tmp_path / name).read_text()
    assert Results.read(SWEEP) == Results.of(cells, AXES)


def test_without_plots_the_pictures_of_before_stay(tmp_path, cells):
    for name in ("accuracy.png", "of_somebody.png"):
        (tmp_path / name).write_text("of before")
    write_results(tmp_path, "Digits", cells, AXES, plots=False)
    assert (tmp_path / "accuracy.png").read_text() == "of before"
    assert linked(tmp_path) == ["accuracy.png"]
    assert not (tmp_path / "tensorboard").exists()


def test_pictures_of_what_is_no_more_go_and_others_stay(tmp_path, cells):
    before = ("layer_densities-vgg.png", "layer_densities-vgg.pdf", "layer_densities_of_somebody.png", "accuracies.pdf")
    for name in before:
        (tmp_path / name).write_text("of before")
    write_results(tmp_path, "Digits", cells, AXES)
    assert [name for name in before if (tmp_path / name).exists()] == [*before[2:]]
    assert linked(tmp_path) == ["accuracy.png", "layer_densities.png"]


def linked(folder: Path) -> list[str]:
    return re.findall(r"!\[\w+\]\(([^)]+)\)", (folder / "results.md").read_text())


def test_that_there_is_no_parquet_is_said(tmp_path, cells, monkeypatch):
    monkeypatch.setattr(tidy.importlib.util, "find_spec", lambda name: None)
    assert "pyarrow is not installed" in write_results(tmp_path, "Digits", cells, AXES, plots=False)


def test_a_sweep_that_has_just_begun(tmp_path, cells):
    absent = [FinishedCell(cell.run_dir, cell.values, [], f"reason {i % 7}") for i, cell in enumerate(cells)]
    text = write_results(tmp_path, "Digits", absent, AXES)
    assert text.count("0 of 2") == 5
    assert text.count("missing: ") == 6, "the five most common reasons and the others"
    assert write_results(tmp_path / "nothing", "Digits", [], AXES)


def test_a_level_that_is_missing_is_said(tmp_path, make_cell):
    cell = make_cell("magnitude", 1.0, 0, 0.5, num_levels=2)
    assert "missing: 1 of 1 runs, not finished" in write_results(tmp_path, "IMP", [cell], AXES, plots=False)


def test_why_a_later_level_is_missing_is_in_the_csv(tmp_path, make_cell):
    cell = make_cell("magnitude", 1.0, 0, 0.5, num_levels=2)
    cell = replace(cell, missing="failed: no path leads")
    write_results(tmp_path, "IMP", [cell], AXES, plots=False)
    rows = Results.read(tmp_path).rows
    assert [(row["run_dir"], row["level"], row["missing"]) for row in rows] == [
        (cell.run_dir, 0, None),
        (cell.run_dir, None, "failed: no path leads"),
    ]
    assert rows[1]["test_accuracy"] is None
    (group,) = groups(Results.read(tmp_path))
    assert (group.level, group.of, len(group.rows)) == (0, 1, 1)


def test_pictures_of_several_settings_have_their_names(tmp_path, make_cell):
    cells = [make_cell("snip", 0.1, 0, 0.5, axes={"pair": pair}) for pair in ("vgg/cifar", "resnet")]
    write_results(tmp_path, "Pairs", cells, ("pair", *AXES))
    names = {path.name for path in tmp_path.glob("*.png")}
    assert names == {"accuracy.png", "layer_densities-vgg-cifar.png", "layer_densities-resnet.png"}
