from __future__ import annotations

import pytest

from prunelab.report.groups import groups
from prunelab.report.results_table import (
    collapse_lines,
    curves_lines,
    expectations,
    expected_lines,
    marks,
    results_lines,
    summary_rows,
)
from prunelab.report.tidy import FinishedCell, Results

AXES = ("pruning.criterion", "pruning.density", "seed_everything")


@pytest.fixture
def runs(make_cell):
    """runs(snip=(0.5, 0.75), ...): groups of a density, of the seeds' accuracies."""

    def make(density: float = 0.1, **accuracies: tuple[float, ...]):
        cells = [
            make_cell(criterion, density, seed, accuracy)
            for criterion, of_seeds in accuracies.items()
            for seed, accuracy in enumerate(of_seeds)
        ]
        return cells

    return make


def found(cells, axes=AXES):
    return groups(Results.of(cells, axes))


def texts(lines) -> list[list[str]]:
    return [[text for text, _ in line] for line in lines]


# 5/8, 6/8, 7/8: mean 6/8, squared distances 1/64 + 0 + 1/64, so sqrt(1/64) = 1/8
BEST = (0.625, 0.75, 0.875)


def test_the_highest_mean_is_marked_and_what_is_within_its_standard_deviation(runs):
    cells = runs(snip=BEST, grasp=(0.625,) * 3, synflow=(0.62, 0.62), magnitude=(0.7,), random=())
    assert marks(found(cells), "test_accuracy") == {0: "best", 1: "near", 3: "near"}


def test_equal_means_are_all_the_best_and_one_seed_has_no_deviation(runs):
    assert marks(found(runs(snip=(0.5,), grasp=(0.5,), random=(0.49,))), "test_accuracy") == {0: "best", 1: "best"}
    assert marks(found(runs(snip=(0.75,), grasp=BEST, random=(0.7,))), "test_accuracy") == {
        0: "best",
        1: "best",
        2: "near",
    }


def test_only_one_density_and_setting_is_compared(make_cell):
    cells = [
        make_cell("snip", 0.1, 0, 0.9, axes={"pair": "vgg"}),
        make_cell("snip", 0.01, 0, 0.8, axes={"pair": "vgg"}),
        make_cell("grasp", 0.1 + 1e-12, 0, 0.7, axes={"pair": "vgg"}),
        make_cell("grasp", 0.1, 0, 0.6, axes={"pair": "resnet"}),
    ]
    assert marks(found(cells, ("pair", *AXES)), "test_accuracy") == {0: "best"}


def test_both_epochs_are_marked_by_themselves(make_cell):
    cells = [
        make_cell("snip", 0.1, 0, 0.5, test_accuracy_best=0.75),
        make_cell("grasp", 0.1, 0, 0.625, test_accuracy_best=0.7),
    ]
    assert marks(found(cells), "test_accuracy") == {1: "best"}
    assert marks(found(cells), "test_accuracy_best") == {0: "best"}


def test_the_table(make_cell, runs):
    cells = runs(0.01, snip=BEST)
    cells += [make_cell("grasp", 0.01, 0, 0.5, test_accuracy_best=0.625, collapsed_layers=["b.weight"])]
    absent = make_cell("grasp", 0.01, 1, 0.5)
    cells += [FinishedCell(absent.run_dir, absent.values, [])]
    cells += [make_cell("random", 1.0, 0, 0.9)]
    never = make_cell("synflow", 0.01, 0, 0.5)
    cells += [FinishedCell(never.run_dir, never.values, [])]
    lines = results_lines(found(cells))
    assert texts(lines) == [
        [
            *("criterion", "density", "compression", "effective density", "dead layers", "n"),
            *("test accuracy (%)", "at chosen epoch (%)"),
        ],
        ["dense", "1", "1", "1", "0", "1", "90.00", "90.00"],
        ["snip", "0.01", "100", "0.005", "0", "3", "75.00 ± 12.50", "75.00 ± 12.50"],
        ["grasp", "0.01", "100", "0.005", "1", "1 of 2", "50.00", "62.50"],
        ["synflow", "0.01", "100", "-", "-", "0 of 1", "missing", "missing"],
    ]
    assert [[mark for _, mark in line[-2:]] for line in lines[1:]] == [
        ["", ""],
        ["best", "best"],
        ["", "near"],
        ["", ""],
    ]


def test_the_table_has_settings_and_levels_if_there_are_several(make_cell):
    cells = [make_cell("snip", 0.1, 0, 0.5, axes={"pair": pair}, level=level) for pair in "ab" for level in (0, 1)]
    lines = texts(results_lines(found(cells, ("pair", *AXES))))
    assert [line[:3] for line in lines] == [
        ["setting", "criterion", "level"],
        ["a", "snip", "0"],
        ["a", "snip", "1"],
        ["b", "snip", "0"],
        ["b", "snip", "1"],
    ]


def test_what_some_runs_did_not_measure_is_said(make_cell):
    cells = [make_cell("snip", 0.1, seed, accuracy) for seed, accuracy in enumerate((0.5, None))]
    cells += [make_cell("grasp", 0.1, 0, None)]
    lines = texts(results_lines(found(cells)))
    assert [line[-3:-1] for line in lines[1:]] == [["2", "50.00 (n = 1)"], ["1", "not measured"]]


def test_several_dense_networks_keep_their_names(make_cell):
    lines = texts(results_lines(found([make_cell("random", 1.0, 0, 0.5), make_cell("snip", 1.0, 0, 0.5)])))
    assert [line[0] for line in lines[1:]] == ["dense (random)", "dense (snip)"]


def test_the_accuracies_over_compression_side_by_side(make_cell, runs):
    cells = runs(0.1, snip=BEST, grasp=(0.625,)) + runs(1.0, random=(0.9,))
    absent = make_cell("grasp", 0.1, 1, 0.5)
    never = make_cell("snip", 0.01, 0, 0.5)
    cells += [FinishedCell(cell.run_dir, cell.values, []) for cell in (absent, never)]
    lines = curves_lines(found(cells))
    assert texts(lines) == [
        ["compression", "snip", "grasp", "random"],
        ["1", "-", "-", "90.00"],
        ["10", "75.00 ± 12.50", "62.50 (1 of 2)", "-"],
        ["100", "missing", "-", "-"],
    ]
    assert [mark for _, mark in lines[2]] == ["", "best", "near", ""]


def test_settings_are_lines_of_their_own_side_by_side(make_cell):
    cells = [
        make_cell(criterion, density, 0, density, axes={"pair": pair})
        for pair in ("vgg", "resnet")
        for density in (0.1, 0.5)
        for criterion in ("snip", "grasp")
    ]
    assert texts(curves_lines(found(cells, ("pair", *AXES)))) == [
        ["setting", "compression", "snip", "grasp"],
        ["vgg", "2", "50.00", "50.00"],
        ["vgg", "10", "10.00", "10.00"],
        ["resnet", "2", "50.00", "50.00"],
        ["resnet", "10", "10.00", "10.00"],
    ]


def test_nothing_stands_side_by_side_if_two_groups_share_a_place_or_there_is_one_method(make_cell, runs):
    assert curves_lines(found(runs(0.1, snip=BEST) + runs(0.01, snip=BEST))) is None
    levels = [make_cell("snip", 0.1, 0, 0.5, level=level) for level in (0, 1)]
    assert curves_lines(found([*levels, make_cell("grasp", 0.1, 0, 0.5)])) is None


def test_where_layers_collapse(make_cell):
    dead = {"collapsed_layers": ["a.weight", "b.weight", "c.weight", "d.weight"]}
    cells = [make_cell("snip", density, 0, 0.5) for density in (0.1, 0.5)]
    cells += [make_cell("snip", 0.05, 0, 0.5), make_cell("snip", 0.05, 1, 0.5, **dead)]
    cells += [make_cell("snip", 0.01, 0, 0.5, **dead), make_cell("synflow", 0.01, 0, 0.5), make_cell("snip", 1.0, 0, 1)]
    absent = make_cell("synflow", 0.001, 0, 0.5)
    cells += [FinishedCell(absent.run_dir, absent.values, [])]
    assert texts(collapse_lines(found(cells)))[1:] == [
        ["snip", "10", "20", "a, b, c, 1 more", "-"],
        ["synflow", "100", "-", "-", "1000"],
    ]


def test_no_criterion_is_alive_beyond_a_run_that_was_refused(make_cell):
    cells = [make_cell("snip", density, seed, 0.5) for density in (0.5, 0.1, 0.01) for seed in range(3)]
    refused = cells[5]  # of density .1, the last seed
    cells[5] = FinishedCell(refused.run_dir, refused.values, [], "failed: no path leads")
    never = make_cell("grasp", 0.5, 0, 0.5)
    cells += [FinishedCell(never.run_dir, never.values, []), make_cell("grasp", 0.1, 0, 0.5)]
    cells += [make_cell("grasp", 0.01, 0, 0.5, collapsed_layers=["a.weight"])]
    assert texts(collapse_lines(found(cells)))[1:] == [
        ["snip", "2", "-", "-", "10"],
        ["grasp", "-", "100", "a", "2"],
    ]


def test_expected_values_stand_beside_the_measured_ones(runs):
    groups_found = found(runs(0.1, snip=BEST, grasp=(0.5,)) + runs(0.01, snip=(0.25,)))
    expected = [
        {"pruning.criterion": "snip", "pruning.density": 0.1, "test_accuracy": 0.7, "source": "Lee et al. & co"},
        {"pruning.criterion": "grasp", "test_accuracy_best": 0.53125},
        {"pruning.criterion": "snip", "pruning.density": 0.01, "test_accuracy": 0.25, "test_accuracy_best": 0.5},
        {"pruning.criterion": "snip", "pruning.density": 0.1, "seed_everything": 2, "test_accuracy": 0.875},
        {"pruning.criterion": "force", "test_accuracy": 0.5},
    ]
    compared = expectations(groups_found, expected)
    differences = [one.difference for one in compared]
    assert differences == [pytest.approx(0.05), -0.03125, 0, -0.25, 0, None]
    assert texts(expected_lines(compared)) == [
        ["runs", "of", "expected (%)", "measured (%)", "difference", "n", "source"],
        ["snip, density 0.1", "test accuracy", "70.00", "75.00 ± 12.50", "+5.00", "3", "Lee et al. & co"],
        ["grasp, density 0.1", "at chosen epoch", "53.12", "50.00", "-3.12", "1", "not given"],
        ["snip, density 0.01", "test accuracy", "25.00", "25.00", "+0.00", "1", "not given"],
        ["snip, density 0.01", "at chosen epoch", "50.00", "25.00", "-25.00", "1", "not given"],
        ["snip, density 0.1, seed 2", "test accuracy", "87.50", "87.50", "+0.00", "1", "not given"],
        ["pruning.criterion force", "test accuracy", "50.00", "missing", "-", "0", "not given"],
    ]


def test_expected_values_are_of_the_last_level_unless_they_say_which(make_cell):
    levels = [make_cell("magnitude", 0.5**k, 0, 0.5 + k / 8, level=k, num_levels=3).records[0] for k in range(3)]
    cell = FinishedCell("x", {"pruning.criterion": "magnitude", "seed_everything": 0}, levels)
    expected = [{"test_accuracy": 0.5}, {"level": 1, "test_accuracy": 0.5}]
    compared = expectations(found([cell], ("pruning.criterion",)), expected)
    assert [(one.runs, one.difference) for one in compared] == [
        ("magnitude, density 0.25, level 2", 0.25),
        ("magnitude, density 0.5, level 1", 0.125),
    ]


def test_an_expectation_without_a_value_is_an_error(runs):
    with pytest.raises(ValueError, match="gives no test_accuracy or test_accuracy_best"):
        expectations(found(runs(snip=BEST)), [{"pruning.criterion": "snip", "accuracy": 0.5}])


def test_the_summary_is_tidy(runs):
    (row,) = summary_rows(found(runs(snip=BEST)))
    assert row["pruning.criterion"] == "snip"
    assert (row["level"], row["of"]) == (0, 3)
    assert [row[f"test_accuracy.{of}"] for of in ("mean", "std", "n")] == [0.75, 0.125, 3]
    assert [row[f"macs_masked.{of}"] for of in ("mean", "std", "n")] == [7, 0, 3]


def test_dense_levels_that_differ_in_what_is_kept_later_are_one_line(make_cell):
    """As long as they are equal: another accuracy is another line."""

    def ticket(density: float, of_dense: float) -> FinishedCell:
        levels = [(1.0, 0, of_dense), (density, 1, 0.5)]
        records = [
            make_cell("magnitude", d, 0, accuracy, level=k, num_levels=2).records[0] for d, k, accuracy in levels
        ]
        values = {"pruning.criterion": "magnitude", "pruning.density": density, "seed_everything": 0}
        return FinishedCell(f"run {density}", values, records)

    equal = texts(results_lines(found([ticket(0.5, 0.75), ticket(0.25, 0.75)])))
    assert [line[1:3] for line in equal[1:]] == [["0", "1"], ["1", "0.5"], ["1", "0.25"]]
    differing = texts(results_lines(found([ticket(0.5, 0.75), ticket(0.25, 0.625)])))
    assert [line[1:3] for line in differing[1:]] == [["0", "1"], ["0", "1"], ["1", "0.5"], ["1", "0.25"]]
