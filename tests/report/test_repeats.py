from __future__ import annotations

import pytest

from prunelab.report.repeats import repeats_table

# 81, 84 and 87 %: mean 84, squared distances 9 + 0 + 9, so sqrt(18 / 2) = 3
ROWS = [
    {"control": None, "lr": 0.1, "seed": 0, "test_accuracy": 0.81},
    {"control": "reinit", "lr": 0.1, "seed": 0, "test_accuracy": 0.5},
    {"control": None, "lr": 0.1, "seed": 1, "test_accuracy": 0.87},
    {"control": None, "lr": 0.01, "seed": 0, "test_accuracy": 0.25},
    {"control": None, "lr": 0.1, "seed": 2, "test_accuracy": 0.84},
    {"control": "reinit", "lr": 0.1, "seed": 1, "test_accuracy": 0.52},
]

EXPECTED = """\
| control | lr   | n   | mean test_accuracy (%) | std  | min   | max   |
| ------- | ---- | --- | ---------------------- | ---- | ----- | ----- |
| -       | 0.1  | 3   | 84.00                  | 3.00 | 81.00 | 87.00 |
| reinit  | 0.1  | 2   | 51.00                  | 1.41 | 50.00 | 52.00 |
| -       | 0.01 | 1   | 25.00                  | -    | 25.00 | 25.00 |"""


def test_mean_and_sample_standard_deviation_of_each_group():
    assert repeats_table(iter(ROWS), ("control", "lr"), "test_accuracy") == EXPECTED


def test_without_keys_everything_is_one_group():
    # mean (81 + 87) / 2, deviation sqrt((9 + 9) / 1) = 4.24
    table = repeats_table([ROWS[0], ROWS[2]], (), "test_accuracy")
    assert cells(table.splitlines()[2]) == ["2", "84.00", "4.24", "81.00", "87.00"]


def test_several_values_have_columns_of_their_own():
    rows = [{"last": 0.5, "best": 0.6}, {"last": 0.7, "best": 0.6}]  # sqrt((10^2 + 10^2) / 1) = 14.14
    header, _, row = repeats_table(rows, (), "last", "best").splitlines()
    assert cells(header) == ["n", "mean last (%)", "std", "mean best (%)", "std"]
    assert cells(row) == ["2", "60.00", "14.14", "60.00", "0.00"]
    assert cells(repeats_table(rows, ()).splitlines()[2]) == ["2"]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_what_was_not_measured_is_no_repeat():
    with pytest.raises(ValueError, match="test_accuracy was not measured"):
        repeats_table([*ROWS, ROWS[0] | {"test_accuracy": None}], ("lr",), "test_accuracy")
    with pytest.raises(ValueError, match="best was not measured"):
        repeats_table([{"last": 0.5, "best": None}], (), "last", "best")
    with pytest.raises(KeyError, match="density"):
        repeats_table(ROWS, ("density",), "test_accuracy")
