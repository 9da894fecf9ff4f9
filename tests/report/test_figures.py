from __future__ import annotations

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from prunelab.report.figures import accuracy_figure, layer_profiles_figure
from prunelab.report.groups import groups
from prunelab.report.tidy import FinishedCell, Results

AXES = ("pruning.criterion", "pruning.density", "seed_everything")
SNIP, SYNFLOW = "#009e73", "#0072b2"


@pytest.fixture
def results(make_cell) -> Results:
    """Two criteria at compressions 10 and 100, two seeds, SNIP collapsed at 100; a dense run; one that is missing."""
    cells = [
        make_cell("snip", 0.1, 0, 0.75),
        make_cell("snip", 0.1, 1, 0.5),
        make_cell(
            "snip", 0.01, 0, 0.25, collapsed_layers=["b.weight"], layer_densities={"a.weight": 0.02, "b.weight": 0.0}
        ),
        make_cell("snip", 0.01, 1, 0.25),
        make_cell("synflow", 0.01, 0, 0.5),
        make_cell("synflow", 0.01, 1, None),
        make_cell("random", 1.0, 0, 0.875),
    ]
    absent = make_cell("synflow", 0.001, 0, 0.5)
    return Results.of([*cells, FinishedCell(absent.run_dir, absent.values, [])], AXES)


def lines(axes: Axes, colour: str, style: str = "-") -> list[tuple[list[float], list[float]]]:
    """x and y of the lines of a colour and a style."""
    return [
        (pytest.approx(list(line.get_xdata())), pytest.approx(list(line.get_ydata())))
        for line in axes.lines
        if to_hex(line.get_color()) == colour and line.get_linestyle() == style
    ]


def markers(axes: Axes, colour: str, fill: str | None = None) -> list[tuple[float, float]]:
    return [
        (round(float(x), 6), round(float(y), 6))
        for line in axes.lines
        if to_hex(line.get_color()) == colour
        and line.get_marker() not in ("", "None", "x")
        and to_hex(line.get_markerfacecolor()) == (fill or colour)
        for x, y in line.get_xydata()
    ]


def crosses(axes: Axes, colour: str) -> list[float]:
    found = [line for line in axes.lines if to_hex(line.get_color()) == colour and line.get_marker() == "x"]
    return [float(x) for line in found for x in line.get_xdata()]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_lines_are_the_means_over_compression_and_over_effective_compression(results):
    figure = accuracy_figure(groups(results))
    over, effective = figure.axes
    assert (over.get_xlabel(), effective.get_xlabel()) == ("compression ratio", "effective compression ratio")
    assert over.get_xscale() == effective.get_xscale() == "log"
    # .75 and .5 at density .1; .25 twice at .01. The effective densities are half of these
    assert lines(over, SNIP) == [([10, 100], [62.5, 25])]
    assert lines(effective, SNIP) == [([20, 200], [62.5, 25])]
    assert lines(over, SYNFLOW) == [([100], [50])], "one of two seeds has no accuracy"
    assert lines(over, "#000000", "--")[0][1] == [87.5, 87.5]


def test_the_band_goes_from_the_lowest_to_the_highest_seed(results):
    axes = accuracy_figure(groups(results)).axes[0]
    band = next(band for band in axes.collections if to_hex(band.get_facecolor()[0]) == SNIP)
    corners = {(round(x), float(y)) for x, y in band.get_paths()[0].vertices}
    assert corners == {(10, 75), (10, 50), (100, 25)}


def test_collapsed_networks_are_hollow(results):
    axes = accuracy_figure(groups(results)).axes[0]
    assert markers(axes, SNIP) == [(10, 62.5)]
    assert markers(axes, SNIP, "#ffffff") == [(100, 25)]


def test_a_compression_without_a_result_is_a_cross_where_its_density_is_known(results):
    over, effective = accuracy_figure(groups(results)).axes
    assert crosses(over, SYNFLOW) == [pytest.approx(1000)]
    assert crosses(effective, SYNFLOW) == []


def test_a_compression_where_some_runs_have_no_result_is_a_point_and_a_cross(make_cell):
    cells = [make_cell("snip", 0.1, seed, 0.5) for seed in range(3)]
    cells[1:] = [FinishedCell(cell.run_dir, cell.values, []) for cell in cells[1:]]
    dense = make_cell("random", 1.0, 0, 0.75)
    cells += [make_cell("random", 0.1, 0, 0.5), FinishedCell(dense.run_dir, dense.values, [])]
    figure = accuracy_figure(groups(Results.of(cells, AXES)))
    over, effective = figure.axes
    assert markers(over, SNIP) == [(10, 50)]
    assert crosses(over, SNIP) == [pytest.approx(10)]
    assert crosses(over, "#7f7f7f") == []
    assert crosses(over, "#000000") == [1], "the dense network, which is no criterion's"
    assert crosses(effective, SNIP) == crosses(effective, "#000000") == []
    assert legend(figure) == ["snip", "random", "some or all runs without a result"]
    (cross,) = [line for line in over.lines if line.get_marker() == "x" and to_hex(line.get_color()) == SNIP]
    assert over.transLimits.transform((0, 50))[1] > cross.get_ydata()[0] + 0.05, "nothing else is down there"


def test_dense_networks_are_no_part_of_the_line_of_a_criterion(make_cell):
    cells = [make_cell("random", density, 0, density) for density in (1.0, 0.5, 0.25)]
    axes = accuracy_figure(groups(Results.of(cells, AXES))).axes[0]
    assert lines(axes, "#7f7f7f") == [([2, 4], [50, 25])]
    assert lines(axes, "#000000", "--")[0][1] == [100, 100]


def test_the_legend_says_what_there_is_to_see(results, make_cell):
    found = groups(results)
    collapsed, absent = "collapsed: dead layer or no path", "some or all runs without a result"
    marks = ["lowest to highest seed", "dense", collapsed, absent]
    assert legend(accuracy_figure(found)) == ["snip", "synflow", *marks]
    assert legend(accuracy_figure(found, chance=0.1)) == ["snip", "synflow", *marks[:2], "chance", *marks[2:]]
    assert legend(accuracy_figure(groups(Results.of([make_cell("snip", 0.1, 0, 0.5)], AXES)))) == ["snip"]


def test_chance_is_a_dotted_line(results):
    axes = accuracy_figure(groups(results), chance=0.125).axes[0]
    assert lines(axes, "#000000", ":")[0][1] == [12.5, 12.5]


def test_every_setting_has_two_panels(make_cell):
    def panels(count: int) -> list[Axes]:
        cells = [make_cell("snip", 0.1, 0, k / 8, axes={"pair": f"net{k}"}) for k in range(count)]
        return accuracy_figure(groups(Results.of(cells, ("pair", *AXES)))).axes

    for count in (1, 3, 5):
        found = panels(count)
        assert [axes.get_title() for axes in found] == [f"net{k}" for k in range(count) for _ in range(2)]
        assert [lines(axes, SNIP)[0][1] for axes in found] == [[100 * k / 8] for k in range(count) for _ in range(2)]


def test_levels_of_a_ticket_are_points_of_one_line(make_cell):
    levels = [make_cell("magnitude", 0.5**k, 0, 0.75 - k / 8, level=k, num_levels=3).records[0] for k in range(3)]
    cell = FinishedCell("x", {"pruning.criterion": "magnitude", "seed_everything": 0}, levels)
    axes = accuracy_figure(groups(Results.of([cell], ("pruning.criterion",)))).axes[0]
    assert lines(axes, "#e69f00") == [([1, 2, 4], [75, 62.5, 50])]


def test_only_dense_or_unfinished_runs_can_be_drawn(make_cell):
    assert legend(accuracy_figure(groups(Results.of([make_cell("random", 1.0, 0, 0.5)], AXES)))) == ["dense"]
    absent = FinishedCell("x", make_cell("snip", 0.1, 0, 0.5).values, [])
    figure = accuracy_figure(groups(Results.of([absent], AXES)))
    assert crosses(figure.axes[0], SNIP) == [pytest.approx(10)]


def test_layer_profiles_have_a_panel_for_each_compression(results):
    figure = layer_profiles_figure(groups(results), results.layers)
    ten, hundred = figure.axes
    assert [axes.get_title(loc="left") for axes in (ten, hundred)] == ["compression 10", "compression 100"]
    assert [text.get_text() for text in hundred.get_xticklabels()] == ["a", "b"]
    assert lines(ten, SNIP) == [([0, 1], [0.15, 0.05])]
    assert lines(hundred, SYNFLOW) == [([0, 1], [0.015, 0.005])]
    # seed 0: .02 and 0, seed 1: .015 and .005
    assert lines(hundred, SNIP) == [([0, 1], [0.0175, 0.0025])]
    assert markers(hundred, SNIP) == [(0, 0.0175)]
    assert markers(hundred, SNIP, "#ffffff") == [(1, 0.0025)]
    assert lines(ten, "#000000", "--")[0][1] == [0.1, 0.1]


def test_a_layer_that_keeps_nothing_in_any_seed_is_a_cross(make_cell):
    record = {"layer_densities": {"a.weight": 0.2, "b.weight": 0.0}, "collapsed_layers": ["b.weight"]}
    results = Results.of([make_cell("snip", 0.1, seed, 0.5, **record) for seed in (0, 1)], AXES)
    (axes,) = layer_profiles_figure(groups(results), results.layers).axes
    assert crosses(axes, SNIP) == [1]
    ((x, y),) = [(line.get_xdata(), line.get_ydata()) for line in axes.lines if line.get_linestyle() == "-"]
    assert list(x) == [0, 1]
    np.testing.assert_array_equal(y, [0.2, np.nan])


def test_of_many_compressions_some_are_drawn_from_the_lowest_to_the_highest(make_cell):
    results = Results.of([make_cell("snip", 1 / 2**k, 0, 0.5) for k in range(1, 10)], AXES)
    figure = layer_profiles_figure(groups(results), results.layers, num_panels=3)
    assert [axes.get_title(loc="left") for axes in figure.axes] == [f"compression {2**k}" for k in (1, 5, 9)]


def test_networks_without_a_path_stand_at_the_right_edge_of_effective_compression(make_cell):
    cells = [make_cell("snip", 0.1, 0, 0.75), make_cell("snip", 0.01, 0, 0.125, effective_density=0.0)]
    over, effective = accuracy_figure(groups(Results.of(cells, AXES))).axes
    assert lines(over, SNIP) == [([10, 100], [75, 12.5])]
    assert markers(over, SNIP, "#ffffff") == [(100, 12.5)], "collapsed, though every layer keeps something"
    assert lines(effective, SNIP) == [([20], [75])]
    assert markers(effective, SNIP, "#ffffff") == [(1, 12.5)]
    (line,) = [line for line in effective.lines if list(line.get_ydata()) == [12.5]]
    assert line.get_transform().transform((1, 12.5))[0] == pytest.approx(effective.bbox.x1)
    assert "no path left" in effective.get_xlabel()
    assert "no path left" not in over.get_xlabel()
