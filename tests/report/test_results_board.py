from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from prunelab.report.groups import groups
from prunelab.report.results_board import write_board
from prunelab.report.tidy import FinishedCell, Results

AXES = ("pruning.criterion", "pruning.density", "seed_everything")


def events(directory: Path) -> EventAccumulator:
    return EventAccumulator(str(directory), {"scalars": 0, "images": 0, "tensors": 0}).Reload()


def scalars(log: EventAccumulator) -> dict[str, dict[int, float]]:
    tags = log.Tags()["scalars"]
    return {tag: {point.step: pytest.approx(point.value) for point in log.Scalars(tag)} for tag in tags}


def test_every_method_is_a_run_with_its_accuracy_over_compression(tmp_path, make_cell):
    cells = [
        make_cell("snip", 0.1, seed, accuracy, test_accuracy_best=None) for seed, accuracy in enumerate((0.5, 0.75))
    ]
    cells += [make_cell("synflow", 0.01, 0, 0.25)]
    write_board(tmp_path, groups(Results.of(cells, AXES)), {})
    assert {path.name for path in tmp_path.iterdir()} == {"snip", "synflow", "pictures"}
    # 100 log10 of 10 and of 1; the effective density is half of the density .1
    assert scalars(events(tmp_path / "snip")) == {
        "over_100_log10_compression/test_accuracy": {100: 0.625},
        "over_100_log10_effective_compression/test_accuracy": {130: 0.625},
    }
    assert scalars(events(tmp_path / "synflow")) == {
        "over_100_log10_compression/test_accuracy": {200: 0.25},
        "over_100_log10_compression/test_accuracy_best": {200: 0.25},
        "over_100_log10_effective_compression/test_accuracy": {230: 0.25},
        "over_100_log10_effective_compression/test_accuracy_best": {230: 0.25},
    }


def test_the_dense_networks_are_a_level_line_and_no_part_of_a_method(tmp_path, make_cell):
    cells = [make_cell("snip", 1.0, seed, accuracy, test_accuracy_best=None) for seed, accuracy in enumerate((1, 0.75))]
    cells += [make_cell(name, 0.1, 0, 0.5, test_accuracy_best=None) for name in ("snip", "synflow")]
    cells += [make_cell("synflow", 0.01, 0, 0.25, test_accuracy_best=None)]
    write_board(tmp_path, groups(Results.of(cells, AXES)), {})
    assert scalars(events(tmp_path / "dense")) == {
        "over_100_log10_compression/test_accuracy": {0: 0.875, 200: 0.875},
        "over_100_log10_effective_compression/test_accuracy": {0: 0.875, 230: 0.875},
    }
    assert scalars(events(tmp_path / "snip"))["over_100_log10_compression/test_accuracy"] == {100: 0.5}


def test_the_dense_level_of_a_ticket_begins_its_line(tmp_path, make_cell):
    levels = [make_cell("magnitude", 0.1**k, 0, 0.75 - k / 8, level=k, num_levels=2).records[0] for k in range(2)]
    cell = FinishedCell("x", {"pruning.criterion": "magnitude", "seed_everything": 0}, levels)
    write_board(tmp_path, groups(Results.of([cell], ("pruning.criterion",))), {})
    tag = "over_100_log10_compression/test_accuracy"
    assert scalars(events(tmp_path / "magnitude"))[tag] == {0: 0.75, 100: 0.625}
    assert scalars(events(tmp_path / "dense"))[tag] == {0: 0.75, 100: 0.75}


def test_methods_that_are_no_more_are_removed_and_other_files_stay(tmp_path, make_cell):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "events.out.tfevents.1.somewhere").write_text("of somebody")
    for criterion in ("snip", "synflow"):
        write_board(tmp_path, groups(Results.of([make_cell(criterion, 0.1, 0, 0.5)], AXES)), {})
    assert {path.name for path in tmp_path.iterdir()} == {"synflow", "pictures", "mine"}
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["events.out.tfevents.1.somewhere"]


def test_settings_are_charts_of_their_own(tmp_path, make_cell):
    cells = [make_cell("snip", 0.1, 0, 0.5, axes={"pair": pair}, test_accuracy_best=None) for pair in ("vgg", "resnet")]
    write_board(tmp_path, groups(Results.of(cells, ("pair", *AXES))), {})
    tags = scalars(events(tmp_path / "snip"))
    assert tags["over_100_log10_compression/test_accuracy/vgg"] == {100: 0.5}
    assert tags["over_100_log10_compression/test_accuracy/resnet"] == {100: 0.5}


def test_the_pictures_and_what_the_axis_means(tmp_path, make_cell):
    figure = Figure(figsize=(1, 0.5), dpi=100, facecolor="#ff0000")
    write_board(tmp_path, groups(Results.of([make_cell("snip", 0.1, 0, 0.5)], AXES)), {"accuracy": figure})
    log = events(tmp_path / "pictures")
    (image,) = log.Images("accuracy")
    pixels = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
    assert pixels.shape == (50, 100, 3)
    assert (pixels == (255, 0, 0)).all()
    assert b"100 log10 of the compression ratio" in log.Tensors("axis/text_summary")[0].tensor_proto.string_val[0]


def test_all_is_written_anew(tmp_path, make_cell):
    for accuracy in (0.25, 0.5):
        write_board(tmp_path, groups(Results.of([make_cell("snip, x y", 0.1, 0, accuracy)], AXES)), {})
    (file,) = (tmp_path / "snip_x_y").iterdir()
    assert scalars(events(file.parent))["over_100_log10_compression/test_accuracy"] == {100: 0.5}
