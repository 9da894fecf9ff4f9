from __future__ import annotations

import pytest
from matplotlib import pyplot, rcParams
from matplotlib.figure import Figure

from prunelab.report.figure_style import WIDTH, add_legend, handle, looks, method_handles, save_figure
from prunelab.report.figures import accuracy_figure
from prunelab.report.groups import groups
from prunelab.report.tidy import Results


def test_a_criterion_looks_the_same_everywhere_and_its_variants_differ_in_line_and_marker():
    one, other = looks(["snip", "synflow"]), looks(["synflow", "synflow, rounds 1", "mine", "another"])
    assert one["synflow"] == other["synflow"]
    assert other["synflow"].colour == other["synflow, rounds 1"].colour
    assert other["synflow"].line != other["synflow, rounds 1"].line
    assert [line.get_fillstyle() for line in method_handles(other)] == ["full", "left", "full", "full"]
    assert len({look.colour for look in (*one.values(), *other.values())}) == 4
    assert len({look.marker for look in (*one.values(), *other.values())}) == 4


def test_pictures_are_saved_whole_and_nothing_global_holds_on_to_them(make_cell, tmp_path):
    results = Results.of([make_cell("snip", 0.1, 0, 0.5)], ("pruning.criterion", "pruning.density"))
    figures, settings = pyplot.get_fignums(), dict(rcParams)
    figure = accuracy_figure(groups(results), title="a_title & more")
    save_figure(figure, tmp_path / "accuracy")
    assert {path.name for path in tmp_path.iterdir()} == {"accuracy.png", "accuracy.pdf"}
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "accuracy.pdf").read_bytes().startswith(b"%PDF")
    assert figure.legends[0].get_title().get_text() == "a_title & more"
    assert (pyplot.get_fignums(), dict(rcParams)) == (figures, settings)


def test_a_long_title_is_broken_and_not_cut_off():
    figure = Figure(figsize=(WIDTH, 3), layout="constrained")
    add_legend(figure, "What all of these many runs together are meant to show. " * 4, [handle("snip", "black")])
    figure.draw_without_rendering()
    box = figure.legends[0].get_title().get_window_extent()
    assert figure.bbox.x0 < box.x0 < box.x1 < figure.bbox.x1


@pytest.mark.parametrize("count", [1, 4, 7, 11])
@pytest.mark.parametrize(
    "label", ["snip", "collapsed: dead layer or no path", "a method that is said in many words, " * 2]
)
def test_a_legend_is_not_cut_off_where_its_labels_have_room(label, count):
    figure = Figure(figsize=(WIDTH, 3), layout="constrained")
    add_legend(figure, "", [handle(f"{label} {place}", "black", "o", "-") for place in range(count)])
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
    if label == "snip":
        assert len({round(text.get_window_extent().y0) for text in legend.get_texts()}) == -(-count // 5)
