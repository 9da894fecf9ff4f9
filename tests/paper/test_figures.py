from __future__ import annotations

from matplotlib.colors import to_hex

from prunelab.paper.figures import criteria_bars_figure, layer_collapse_figure, schedule_figure
from prunelab.report.plots import COLLAPSED


def test_a_ratio_with_an_empty_layer_is_dashed_and_marked():
    densities = {"random": [[1.0, 1.0], [0.5, 0.1]], "snip": [[1.0, 1.0], [0.2, 0.0]]}
    figure = layer_collapse_figure(["a", "b"], [0, 1], densities, "net")
    for axes, dashed in zip(figure.axes[:2], ([], ["--"]), strict=True):
        curves = [line for line in axes.lines if line.get_linestyle() != "None"]
        assert len(curves) == 2
        assert [line.get_linestyle() for line in curves if line.get_linestyle() != "-"] == dashed
        marks = [line for line in axes.lines if line.get_color() == COLLAPSED and len(line.get_xdata())]
        assert [list(line.get_xdata()) for line in marks] == ([[1]] if dashed else [])


def test_bars_end_at_the_median():
    figure = criteria_bars_figure({"random": [10.0, 30, 20], "synflow": [1000.0]}, 1000.0, "net")
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [20, 1000]


def test_collapsed_rounds_are_red():
    rows = [
        {"schedule": kind, "rounds": rounds, "exponent": 1, "largest_share_dropped": share, "num_collapsed": share > 2}
        for kind, rounds, share in (("exponential", 1, 3.0), ("exponential", 10, 0.2), ("linear", 1, 3.0))
    ]
    figure = schedule_figure(rows, "net")
    for axes in figure.axes:
        (red,) = [line for line in axes.lines if to_hex(line.get_color()) == COLLAPSED]
        assert list(red.get_xdata()) == [1]
