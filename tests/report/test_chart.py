from __future__ import annotations

import numpy as np
import pytest

from prunelab.report.chart import Axis, Chart, below, spanning


def ticks(axis: Axis) -> list[str]:
    return [label for _, label in axis.marks()]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1.08, 0.04 / 1.08, ["0.05", "0.1", "0.2", "0.5", "1"]),
        (1 / 1.08, 27, ["1", "2", "5", "10", "20"]),
        (1e-6, 1, ["1e-06", "1e-05", "0.0001", "0.001", "0.01", "0.1", "1"]),
        (1e-30, 1, ["1e-30", "1e-26", "1e-22", "1e-18", "1e-14", "1e-10", "1e-06", "0.01"]),
        (0.74, 1.08, ["0.75", "0.8", "0.85", "0.9", "0.95", "1", "1.05"]),
    ],
)
def test_ticks_of_a_log_axis_are_few_and_round(low, high, expected):
    assert ticks(Axis(low, high, log=True)) == expected


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (27, 94, ["30", "40", "50", "60", "70", "80", "90"]),
        (0, 1, ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        (-0.5, 0.5, ["-0.4", "-0.2", "0", "0.2", "0.4"]),
        (89.5, 90.5, ["89.6", "89.8", "90", "90.2", "90.4"]),
    ],
)
def test_ticks_of_a_linear_axis_are_few_and_round(low, high, expected):
    assert ticks(Axis(low, high)) == expected


def test_points_have_their_places_also_on_axes_that_run_backwards():
    chart = Chart(Axis(1, 0.01, log=True), Axis(10, 0), size=(300, 200), left=50, right=50, top=40, bottom=60)
    assert chart.place((1, 10)) == pytest.approx((50, 140))
    assert chart.place((0.1, 5)) == pytest.approx((150, 90))
    assert chart.place((0.01, 0)) == pytest.approx((250, 40))


def test_a_point_is_drawn_at_its_place():
    chart = Chart(Axis(0, 10, ticks=()), Axis(0, 10, ticks=()), size=(300, 200))
    chart.points([(5, 2.5)], "#ff0000")
    rows, columns = np.nonzero((np.asarray(chart.picture()) == (255, 0, 0)).all(-1))
    assert (columns.mean() + 0.5, rows.mean() + 0.5) == pytest.approx(chart.place((5, 2.5)), abs=0.5)


def test_cells_fill_the_frame():
    colours = np.zeros((2, 3, 3), dtype=np.uint8)
    colours[1, 2] = (255, 0, 0)
    chart = Chart(Axis(0, 3, ticks=()), Axis(2, 0, ticks=()), size=(300, 200))
    chart.cells(colours)
    picture = np.asarray(chart.picture())
    x, y = chart.place((2.5, 1.5))
    assert picture[int(y), int(x)].tolist() == [255, 0, 0]
    x, y = chart.place((1.5, 1.5))
    assert picture[int(y), int(x)].tolist() == [0, 0, 0]


def test_an_axis_spans_its_values():
    assert (spanning([3], "x").low, spanning([3], "x").high) == (2.5, 3.5)
    axis = spanning([10, 1000], "x", log=True)
    assert 5 < axis.low < 10
    assert 1000 < axis.high < 2000


def test_pictures_stand_below_each_other():
    upper, lower = (Chart(Axis(0, 1), Axis(0, 1), size=(300, height)).picture() for height in (200, 120))
    both = below(upper, lower)
    assert both.size == (300, 320)
    assert np.array_equal(np.asarray(both)[:200], np.asarray(upper))
    assert np.array_equal(np.asarray(both)[200:], np.asarray(lower))
