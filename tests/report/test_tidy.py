from __future__ import annotations

import csv
import math

import pytest
from pyarrow import parquet

from prunelab.report import tidy
from prunelab.report.tidy import FinishedCell, Results, axis_value, csv_text, write_parquet

AXES = ("pruning.criterion", "pruning.density", "seed_everything")


def test_a_row_has_the_axes_and_every_scalar_of_the_record(make_cell):
    cell = make_cell("snip", 0.1, 3, 0.75, collapsed_layers=["a.weight", "b.weight"], rewind=None, train_loss=0.25)
    (row,) = Results.of([cell], AXES).rows
    assert row == {
        "pruning.criterion": "snip",
        "pruning.density": 0.1,
        "seed_everything": 3,
        "run_dir": "snip-0.1-3",
        "missing": None,
        "level": 0,
        "dead_layers": 2,
        "criterion": "snip",
        "num_levels": 1,
        "density": 0.1,
        "density_requested": 0.1,
        "effective_density": 0.05,
        "collapsed_layers": "a.weight + b.weight",
        "test_accuracy": 0.75,
        "test_accuracy_best": 0.75,
        "val_accuracy": 0.5,
        "macs_masked": 7,
        "masks_digest": "12e4f",
        "versions.torch": "2.15.0",
        "rewind": None,
        "train_loss": 0.25,
    }


def test_the_layers_are_rows_of_their_own(make_cell):
    results = Results.of([make_cell("snip", 0.1, 3, 0.75)], AXES)
    run = {"pruning.criterion": "snip", "pruning.density": 0.1, "seed_everything": 3, "run_dir": "snip-0.1-3"}
    assert results.layers == [
        run | {"level": 0, "layer": "a.weight", "density": 1.5 * 0.1},
        run | {"level": 0, "layer": "b.weight", "density": 0.05},
    ]


def test_a_run_without_records_is_a_row_that_says_why(make_cell):
    absent = FinishedCell("elsewhere", {"pruning.criterion": "snip", "seed_everything": 0}, [], "failed: no disk")
    rows = Results.of([make_cell("snip", 0.1, 0, 0.5), absent], AXES).rows
    assert [row["missing"] for row in rows] == [None, "failed: no disk"]
    assert rows[1].keys() == rows[0].keys()
    assert rows[1]["test_accuracy"] is None
    assert rows[1]["pruning.density"] is None, "an axis that it has no value of"


def test_what_a_record_calls_like_an_axis_keeps_both(make_cell):
    cell = make_cell("snip", 0.1, 0, 0.5, axes={"density": "low"})
    (row,) = Results.of([cell], (*AXES, "density")).rows
    assert (row["density"], row["record.density"]) == ("low", 0.1)


def test_the_seed_is_always_an_axis(make_cell):
    results = Results.of([make_cell("snip", 0.1, 5, 0.5)], ("pruning.criterion",))
    assert results.axes == ("pruning.criterion", "seed_everything")
    assert results.rows[0]["seed_everything"] == 5


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("", None),
        ([], None),
        (0.1, 0.1),
        (True, True),
        ("a", "a"),
        (["a.yaml", "b.yaml"], "a.yaml + b.yaml"),
        ({"model.net": "vgg16", "milestones": [1, 2]}, "model.net=vgg16, milestones=1 + 2"),
    ],
)
def test_a_value_is_one_cell(value, expected):
    assert axis_value(value) == expected


def test_csv_read_back_is_what_was_written(tmp_path, make_cell):
    cells = [
        make_cell("snip", 0.1, 0, 0.1 + 0.2, axes={"lr": 0.1, "note": 'a "b", c\nd', "wide": True}),
        make_cell("synflow", 1, 1, None, axes={"lr": 1, "note": "7", "wide": None}, train_loss=math.inf),
        FinishedCell("absent", {"seed_everything": 2}, [], "not finished"),
    ]
    written = Results.of(cells, (*AXES, "lr", "note", "wide"))
    assert [path.name for path in written.write(tmp_path)] == ["results.csv", "layers.csv"]
    read = Results.read(tmp_path)
    assert read.axes == ("pruning.criterion", "pruning.density", "lr", "note", "wide", "seed_everything")
    assert read == written
    assert read.rows[1]["note"] == "7", "text, as another cell of the column is"


def test_other_programs_read_the_csv(tmp_path, make_cell):
    Results.of([make_cell("snip", 0.1, 0, 0.75)], AXES).write(tmp_path)
    with (tmp_path / "results.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["pruning.criterion"], float(row["test_accuracy"]), row["missing"]) == ("snip", 0.75, "")


def test_nothing_is_written_and_read_too(tmp_path):
    Results.of([], ()).write(tmp_path)
    assert Results.read(tmp_path) == Results(("seed_everything",), [], [])


def test_another_table_is_refused(tmp_path):
    for name in ("results.csv", "layers.csv"):
        (tmp_path / name).write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="no column run_dir"):
        Results.read(tmp_path)


def test_columns_come_first_and_numbers_are_those_of_json():
    assert csv_text([{"a": 1e-7, "b": False}, {"b": None, "c": "x"}], ["b"]) == "b,a,c\nfalse,1e-07,\n,,x\n"


def test_parquet_holds_the_same(tmp_path, make_cell):
    cells = [make_cell("snip", 0.1, 0, 0.75), make_cell("synflow", 1, 1, None)]
    results = Results.of(cells, AXES)
    assert write_parquet(tmp_path, results)
    assert parquet.read_table(tmp_path / "results.parquet").to_pylist() == results.rows
    assert parquet.read_table(tmp_path / "layers.parquet").to_pylist() == results.layers


def test_parquet_columns_of_several_types_are_text(tmp_path, make_cell):
    cells = [make_cell("snip", 0.1, seed, 0.5, axes={"a": value}) for seed, value in enumerate((1, "x", True, None))]
    write_parquet(tmp_path, Results.of(cells, (*AXES, "a")))
    assert parquet.read_table(tmp_path / "results.parquet")["a"].to_pylist() == ["1", "x", "true", None]


def test_without_pyarrow_there_is_no_parquet_not_even_an_old_one(tmp_path, make_cell, monkeypatch):
    (tmp_path / "results.parquet").write_text("of before")
    monkeypatch.setattr(tidy.importlib.util, "find_spec", lambda name: None)
    assert not write_parquet(tmp_path, Results.of([make_cell("snip", 0.1, 0, 0.75)], AXES))
    assert not list(tmp_path.iterdir())
