from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from prunelab.report.plots import (
    COLLAPSED,
    EFFECTIVE,
    KEPT,
    PRUNED,
    accuracy_over_density_figure,
    conservation_figure,
    density_rounds_figure,
    kernel_masks_picture,
    layer_densities_figure,
    layer_name,
)


def pixels(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def share_of(colour: str, image: np.ndarray) -> float:
    return float((image == np.round(np.array(to_rgb(colour)) * 255)).all(-1).mean())


def test_layers_lose_only_their_weight_suffix():
    assert layer_name("layer1.0.conv1.weight") == "layer1.0.conv1"
    assert layer_name("attention.in_proj_weight") == "attention.in_proj_weight"


def kernels(mask: torch.Tensor) -> np.ndarray:
    """The colours of a mask picture's inside."""
    picture = np.asarray(kernel_masks_picture("conv.weight", mask).convert("RGB"))
    rows, columns = np.nonzero((picture != 255).any(-1) & (picture != 0).any(-1))
    return picture[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def is_colour(colour: str, picture: np.ndarray) -> np.ndarray:
    return (picture == np.round(np.array(to_rgb(colour)) * 255)).all(-1)


@pytest.mark.parametrize(("shape", "scale"), [((16, 3, 3, 3), 10), ((32, 16, 3, 3), 5), ((8, 4, 1, 1), 64)])
def test_a_kernel_picture_has_one_even_tile_per_weight(shape, scale):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.3
    picture = kernels(mask)
    assert picture.shape == (shape[0] * (shape[2] * scale + 1), shape[1] * (shape[3] * scale + 1), 3)
    assert is_colour(KEPT, picture).sum() == int(mask.sum()) * scale**2
    assert is_colour(PRUNED, picture).sum() == int((~mask).sum()) * scale**2


def test_a_kernel_picture_has_its_text_inside_and_above():
    mask = torch.zeros(1, 1, 1, 1, dtype=torch.bool)
    picture = np.asarray(kernel_masks_picture(f"{'a_long_name.' * 9}conv.weight", mask).convert("RGB"))
    rows, columns = np.nonzero((picture == 0).all(-1))
    assert len(rows) > 100
    assert columns.max() < picture.shape[1] - 1
    assert rows.max() < np.nonzero(is_colour(PRUNED, picture))[0].min()


def test_rows_are_output_channels_and_columns_input_channels():
    mask = torch.zeros(4, 6, 1, 1, dtype=torch.bool)
    mask[3, 1] = True
    picture = kernels(mask)
    rows, columns = np.nonzero(is_colour(KEPT, picture))
    height, width = picture.shape[0] / 4, picture.shape[1] / 6
    assert set(rows // height) == {3}
    assert set(columns // width) == {1}


def test_large_layers_show_kept_counts():
    mask = torch.zeros(256, 300, 3, 3, dtype=torch.bool)
    mask[7, 8, 0, :2] = True
    mask[20, 30] = True
    picture = kernels(mask)
    assert picture.shape == (256, 300, 3)
    assert picture[20, 30].tolist() == [0x12, 0x43, 0x6D]
    assert picture[7, 8].tolist() == [0xC1, 0xCC, 0xD5], "2 of 9 on the way from white to blue"
    assert is_colour(PRUNED, picture).sum() == 256 * 300 - 2


def test_a_lone_weight_of_a_large_kernel_is_seen():
    mask = torch.zeros(40, 40, 31, 31, dtype=torch.bool)
    mask[3, 4, 5, 6] = True
    picture = kernels(mask)
    assert (~is_colour(PRUNED, picture)).sum() == 13**2


@pytest.mark.parametrize("num_layers", [1, 20, 300])
def test_bars_and_heat_map_are_drawn_for_any_number_of_layers(num_layers):
    layers = [f"layer{index}.weight" for index in range(num_layers)]
    rounds = np.linspace(1, 0.01, 7)[:, None] * np.ones(num_layers)
    for figure in (
        layer_densities_figure({"a": dict.fromkeys(layers, 0.2), "b": dict.fromkeys(layers, 0.001)}),
        density_rounds_figure(layers, rounds),
    ):
        assert pixels(figure).std() > 0
        assert max(figure.get_size_inches()) <= 20


def test_collapsed_layers_are_red():
    dead, alive = {"a.weight": 0.0, "b.weight": 0.5}, {"a.weight": 0.5, "b.weight": 0.5}
    assert share_of(COLLAPSED, pixels(layer_densities_figure({"run": dead}))) > 0
    assert share_of(COLLAPSED, pixels(layer_densities_figure({"run": alive}))) == 0
    assert share_of(COLLAPSED, pixels(density_rounds_figure(list(dead), np.array([[0.5, 0.5], [0, 0.5]])))) > 0.1
    assert share_of(COLLAPSED, pixels(density_rounds_figure(list(dead), np.array([[0.5, 0.5], [0.1, 0.5]])))) == 0


def test_everything_dead_can_still_be_drawn():
    pixels(layer_densities_figure({"run": {"a.weight": 0.0}}))
    pixels(density_rounds_figure(["a.weight"], np.zeros((3, 1))))


def test_conserved_scores_have_slope_minus_one_whatever_the_shortcuts_carry():
    sizes = {f"layer{size}": size for size in (27, 432, 2304, 9216, 36864, 512)}
    means = {name: 9.5e22 / size for name, size in sizes.items()}
    assert conservation_figure(means, sizes, "title")[1] == pytest.approx(-1)
    means["layer512"] /= 1000
    assert conservation_figure(means, sizes, "title")[1] == pytest.approx(-1)
    equal = dict.fromkeys(sizes, 3.0)
    assert conservation_figure(equal, sizes, "title")[1] == pytest.approx(0)


def test_means_without_a_logarithm_are_left_out_or_hollow():
    sizes = {"a": 10, "b": 100, "c": 1000}
    figure, slope = conservation_figure({"a": 1.0, "b": -0.1, "c": 0.0}, sizes, "title")
    assert slope == pytest.approx(-1)
    assert sum(len(points.get_offsets()) for points in figure.axes[0].collections) == 2
    figure, slope = conservation_figure({"a": 0.0, "b": 0.0, "c": 0.0}, sizes, "title")
    pixels(figure)
    assert np.isnan(slope)


def test_levels_are_drawn_over_their_density_and_dense_is_a_line():
    figure = accuracy_over_density_figure([1, 0.5, 0.25], [0.9, 0.875, 0.5], [1, 0.5, 0.2], "title")
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert lines.keys() == {"dense, 90.00 %", "at its effective density", "level"}
    assert lines["level"].get_xydata().tolist() == [[1, 90], [0.5, 87.5], [0.25, 50]]
    assert set(lines["dense, 90.00 %"].get_ydata()) == {90}
    assert lines["at its effective density"].get_xydata().tolist() == [[0.2, 50]]
    assert share_of(EFFECTIVE, pixels(figure)) > 0


def test_the_compression_ratio_stands_where_its_density_does():
    below, above = accuracy_over_density_figure([1, 0.2, 0.04], [0.9, 0.8, 0.5], [1, 0.2, 0.04], "title").axes
    assert below.get_xlim()[0] > below.get_xlim()[1], "dense is on the left"
    for density in (1, 0.2, 0.04):
        x, _ = below.transData.transform((density, below.get_ylim()[0]))
        assert above.transData.transform((1 / density, 0))[0] == pytest.approx(x)
    assert [label.get_text() for label in visible_ticks(below)] == ["1", "0.5", "0.2", "0.1", "0.05"]
    assert [label.get_text() for label in visible_ticks(above)] == ["1", "2", "5", "10", "20"]


def visible_ticks(axes):
    axes.figure.draw_without_rendering()
    low, high = sorted(axes.get_xlim())
    ticks = [tick for tick in axes.xaxis.get_major_ticks() if low <= tick.get_loc() <= high]
    ordered = sorted(ticks, key=lambda tick: axes.transData.transform((tick.get_loc(), 0))[0])
    return [tick.label1 if axes.xaxis.get_ticks_position() == "bottom" else tick.label2 for tick in ordered]


@pytest.mark.parametrize(
    ("densities", "accuracies", "effective", "labels"),
    [
        ([1.0], [0.9], [1.0], {"dense, 90.00 %", "level"}),
        ([0.1], [0.9], [None], {"level"}),
        ([1.0, 0.1], [None, 0.5], [None, 0.0], {"level"}),
        ([1, 1e-2, 1e-6], [0.9, 0.5, 0.1], [1, 0, 1e-7], {"dense, 90.00 %", "level", "at its effective density"}),
        ([1.0], [None], [None], set()),
    ],
)
def test_any_levels_can_be_drawn(densities, accuracies, effective, labels):
    figure = accuracy_over_density_figure(densities, accuracies, effective, "title")
    assert pixels(figure).std() > 0
    assert {line.get_label() for line in figure.axes[0].lines} == labels


def test_no_figure_stays_in_pyplot():
    accuracy_over_density_figure([1.0, 0.5], [0.9, 0.8], [1.0, 0.5], "title")
    layer_densities_figure({"run": {"a.weight": 0.5}})
    assert pyplot.get_fignums() == []
