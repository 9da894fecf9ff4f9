from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from prunelab.report.chart import Chart
from prunelab.report.plots import (
    COLLAPSED,
    DENSE,
    EFFECTIVE,
    KEPT,
    PRUNED,
    RUNS,
    accuracy_over_density_figure,
    conservation_figure,
    density_rounds_figure,
    kernel_masks_picture,
    layer_densities_figure,
    layer_name,
)


def share_of(colour: str, picture: Image.Image) -> float:
    return float(is_colour(colour, np.asarray(picture)).mean())


def drawn(picture: Image.Image) -> bool:
    return picture.mode == "RGB" and np.asarray(picture).std() > 0


def test_layers_lose_only_their_weight_suffix():
    assert layer_name("layer1.0.conv1.weight") == "layer1.0.conv1"
    assert layer_name("attention.in_proj_weight") == "attention.in_proj_weight"


def kernels(mask: torch.Tensor) -> np.ndarray:
    """The colours of a mask picture's inside."""
    picture = np.asarray(kernel_masks_picture("conv.weight", mask).convert("RGB"))
    inside = (picture != 255).any(-1)
    inside[: text_height(picture)] = False
    rows, columns = np.nonzero(inside)
    return picture[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def text_height(picture: np.ndarray) -> int:
    """Rows above the first one that has a long run of other than white."""
    return int(np.nonzero((picture != 255).any(-1)[:, 10:40].all(1))[0][0])


def is_colour(colour: str, picture: np.ndarray) -> np.ndarray:
    return (picture == list(bytes.fromhex(colour[1:]))).all(-1)


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
    rows, columns = np.nonzero(is_colour(KEPT, picture))
    assert len(rows) > 100
    assert columns.max() < picture.shape[1] - 1
    assert rows.max() < text_height(picture)


def test_names_that_the_font_has_not_are_no_obstacle():
    kernel_masks_picture("\u03b1.weight", torch.ones(1, 1, 1, 1, dtype=torch.bool))
    layer_densities_figure({"\u03b2": {"\u03b1.weight": 0.5}})


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
    for picture in (
        layer_densities_figure({"a": dict.fromkeys(layers, 0.2), "b": dict.fromkeys(layers, 0.001)}),
        density_rounds_figure(layers, rounds),
    ):
        assert drawn(picture)
        assert max(picture.size) <= 2000


def test_a_bar_is_as_long_as_the_logarithm_of_its_density():
    densities = {"a.weight": 1.0, "b.weight": 0.1, "c.weight": 0.01}
    bars = is_colour(KEPT, np.asarray(layer_densities_figure({"run": densities})))
    starts = np.flatnonzero(np.diff(bars.any(1).astype(int)) == 1) + 2
    lengths = [int(bars[start].sum()) for start in starts]
    assert len(lengths) == 3
    # the axis begins at 0.001, the power of ten below
    assert [length / lengths[0] for length in lengths] == pytest.approx([1, 2 / 3, 1 / 3], abs=0.01)


def test_collapsed_layers_are_red():
    dead, alive = {"a.weight": 0.0, "b.weight": 0.5}, {"a.weight": 0.5, "b.weight": 0.5}
    assert share_of(COLLAPSED, layer_densities_figure({"run": dead})) > 0
    assert share_of(COLLAPSED, layer_densities_figure({"run": alive})) == 0
    assert share_of(COLLAPSED, density_rounds_figure(list(dead), np.array([[0.5, 0.5], [0, 0.5]]))) > 0.1
    assert share_of(COLLAPSED, density_rounds_figure(list(dead), np.array([[0.5, 0.5], [0.1, 0.5]]))) == 0


def test_everything_dead_can_still_be_drawn():
    assert drawn(layer_densities_figure({"run": {"a.weight": 0.0}}))
    assert drawn(density_rounds_figure(["a.weight"], np.zeros((3, 1))))


def test_a_layer_that_a_run_has_not_has_no_bar():
    both = layer_densities_figure({"a": {"x": 0.5}, "b": {"x": 0.5, "y": 0.5}})
    assert share_of(RUNS[0], both) < share_of(RUNS[1], both)


def test_conserved_scores_have_slope_minus_one_whatever_the_shortcuts_carry():
    sizes = {f"layer{size}": size for size in (27, 432, 2304, 9216, 36864, 512)}
    means = {name: 9.5e22 / size for name, size in sizes.items()}
    assert conservation_figure(means, sizes, "title")[1] == pytest.approx(-1)
    means["layer512"] /= 1000
    assert conservation_figure(means, sizes, "title")[1] == pytest.approx(-1)
    equal = dict.fromkeys(sizes, 3.0)
    assert conservation_figure(equal, sizes, "title")[1] == pytest.approx(0)


def test_means_without_a_logarithm_are_left_out_or_hollow(monkeypatch):
    marks = []
    monkeypatch.setattr(Chart, "points", lambda self, points, colour, shape="circle": marks.append((*points[0], shape)))
    sizes = {"a": 10, "b": 100, "c": 1000}
    picture, slope = conservation_figure({"a": 1.0, "b": -0.1, "c": 0.0}, sizes, "title")
    assert drawn(picture)
    assert slope == pytest.approx(-1)
    assert marks == [(10, 1.0, "circle"), (100, 0.1, "ring")]
    picture, slope = conservation_figure({"a": 0.0, "b": 0.0, "c": 0.0}, sizes, "title")
    assert drawn(picture)
    assert np.isnan(slope)


@pytest.mark.parametrize("means", [(1e-320, 1e300, 1e-300), (1e308, 1e307, 1e308), (5e-324, 5e-324, 5e-324)])
def test_scores_at_the_ends_of_what_a_float_holds_are_drawn(means):
    picture, _ = conservation_figure(dict(zip("abc", means, strict=True)), {"a": 10, "b": 11, "c": 10**9}, "title")
    assert drawn(picture)


def test_levels_are_drawn_over_their_density_and_dense_is_a_line():
    picture = accuracy_over_density_figure([1, 0.5, 0.25], [0.9, 0.875, 0.5], [1, 0.5, 0.2], "title")
    assert share_of(EFFECTIVE, picture) > 0
    dashes = is_colour(DENSE, np.asarray(picture))
    levels = is_colour(KEPT, np.asarray(picture))
    row = np.median(np.nonzero(dashes[:200])[0])  # the legend's dashes are below
    # the level of density 1 stands on the line, at its left
    assert abs(np.nonzero(levels[:200, :100])[0].mean() - row) < 3


@pytest.mark.parametrize(
    ("densities", "accuracies", "effective", "has_dense", "has_effective"),
    [
        ([1.0], [0.9], [1.0], True, False),
        ([0.1], [0.9], [None], False, False),
        ([1.0, 0.1], [None, 0.5], [None, 0.0], False, False),
        ([1, 1e-2, 1e-6], [0.9, 0.5, 0.1], [1, 0, 1e-7], True, True),
        ([1.0, 0.5], [0.9, 0.9], [1.0, 0.5], True, False),
        ([1.0], [None], [None], False, False),
    ],
)
def test_any_levels_can_be_drawn(densities, accuracies, effective, has_dense, has_effective):
    picture = accuracy_over_density_figure(densities, accuracies, effective, "title")
    assert drawn(picture)
    assert (share_of(DENSE, picture) > 0, share_of(EFFECTIVE, picture) > 0) == (has_dense, has_effective)
