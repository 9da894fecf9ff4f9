from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from prunelab.report import levels as module
from prunelab.report.levels import write_summary
from prunelab.report.table import levels_markdown


def events(directory: Path) -> EventAccumulator:
    return EventAccumulator(str(directory), {"scalars": 0, "images": 0, "tensors": 0}).Reload()


def scalars(log: EventAccumulator, tag: str) -> dict[int, float]:
    points = log.Scalars(tag)
    assert len({point.step for point in points}) == len(points), f"{tag} has a step twice"
    return {point.step: pytest.approx(point.value) for point in points}


def test_scalars_over_the_levels_and_over_the_density(tmp_path, levels):
    levels[2]["collapsed_layers"] = ["a.weight", "b.weight"]
    write_summary(tmp_path / "summary", levels)
    log = events(tmp_path / "summary")
    assert scalars(log, "levels/test_accuracy") == {0: 0.5, 1: 0.625, 2: 0.25}
    assert scalars(log, "levels/val_accuracy") == {0: 0.75, 1: 0.8125, 2: 0.75}
    assert scalars(log, "levels/effective_density") == {0: 1, 1: 0.5, 2: 0.24}
    assert scalars(log, "levels/dead_layers") == {0: 0, 1: 0, 2: 2}
    assert scalars(log, "over_density_per_10000/test_accuracy") == {10_000: 0.5, 5_000: 0.625, 2_500: 0.25}
    assert scalars(log, "over_density_per_10000/test_accuracy_best") == {10_000: 0.5625, 2_500: 0.3}
    # a server takes a step below the one before for a restart, and drops what it had
    steps = [point.step for point in log.Scalars("over_density_per_10000/test_accuracy")]
    assert steps == [2_500, 5_000, 10_000]
    assert not [tag for tag in log.Tags()["scalars"] if "supermask" in tag]


def test_what_the_networks_cost_stands_over_the_levels(tmp_path, levels, compact_record):
    keys = ("macs_compact", "num_channels_compact", "latency_128_ms", "compacted")
    write_summary(tmp_path, [levels[0], *(level | {key: compact_record[key] for key in keys} for level in levels[1:])])
    log = events(tmp_path)
    assert scalars(log, "levels/macs_compact") == {1: 540, 2: 540}
    assert scalars(log, "levels/num_channels_compact") == {1: 8, 2: 8}
    assert scalars(log, "levels/latency_128_ms") == {1: 10, 2: 10}


def test_the_last_of_the_levels_of_one_density_is_shown_over_it(tmp_path, levels):
    levels[1] |= {"density": 0.25001, "supermask_test_accuracy": 0.125}
    write_summary(tmp_path, levels)
    log = events(tmp_path)
    assert scalars(log, "over_density_per_10000/test_accuracy") == {10_000: 0.5, 2_500: 0.25}
    assert scalars(log, "levels/supermask_test_accuracy") == {1: 0.125}


def test_a_picture_and_the_table_with_the_meaning_of_the_axes(tmp_path, levels):
    write_summary(tmp_path, levels)
    log = events(tmp_path)
    (image,) = log.Images("levels/accuracy_over_density")
    assert np.asarray(Image.open(io.BytesIO(image.encoded_image_string))).std() > 0
    text = log.Tensors("levels/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text.startswith(levels_markdown(levels))
    assert "kept weights per 10,000" in text


def test_without_accuracies_there_is_no_picture(tmp_path, levels):
    write_summary(tmp_path, [record | {"test_accuracy": None} for record in levels])
    log = events(tmp_path)
    assert log.Tags()["images"] == []
    assert "levels/test_accuracy" not in log.Tags()["scalars"]
    assert scalars(log, "levels/val_accuracy") == {0: 0.75, 1: 0.8125, 2: 0.75}


def test_each_level_writes_all_anew_into_one_file(tmp_path, levels):
    for finished in (1, 2, 3):
        write_summary(tmp_path, levels[:finished])
        (file,) = tmp_path.iterdir()
        assert "tfevents" in file.name
        expected = dict(list({0: 0.5, 1: 0.625, 2: 0.25}.items())[:finished])
        assert scalars(events(tmp_path), "levels/test_accuracy") == expected


def test_a_death_while_writing_leaves_the_old_summary(tmp_path, levels, monkeypatch):
    write_summary(tmp_path, levels[:2])
    (old,) = tmp_path.iterdir()

    def die(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module.os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        write_summary(tmp_path, levels)
    assert list(tmp_path.glob("*tfevents*")) == [old]
    assert scalars(events(tmp_path), "levels/test_accuracy") == {0: 0.5, 1: 0.625}
    monkeypatch.undo()
    write_summary(tmp_path, levels)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_death_before_the_old_file_is_gone_leaves_the_new_summary(tmp_path, levels, monkeypatch):
    write_summary(tmp_path, levels[:2])

    def die(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module.Path, "unlink", die)
    with pytest.raises(KeyboardInterrupt):
        write_summary(tmp_path, levels)
    monkeypatch.undo()
    assert len(list(tmp_path.glob("*tfevents*"))) == 2
    assert scalars(events(tmp_path), "levels/test_accuracy") == {0: 0.5, 1: 0.625, 2: 0.25}
    assert len(events(tmp_path).Images("levels/accuracy_over_density")) == 1
