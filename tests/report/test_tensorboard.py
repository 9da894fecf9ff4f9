from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from prunelab.pruning import Masks
from prunelab.pruning.preflight import preflight
from prunelab.report.hparams import run_hparams
from prunelab.report.tensorboard import PruningSummary, cost_markdown, preflight_markdown, write_hparams

LAYERS = {"0": "0.weight", "2": "2.weight", "5": "5.weight"}


def logger_in(directory: Path, **kwargs: Any) -> TensorBoardLogger:
    return TensorBoardLogger(directory, name="", version="", default_hp_metric=False, **kwargs)


def events(directory: Path) -> EventAccumulator:
    return EventAccumulator(str(directory), {"scalars": 0, "histograms": 0, "images": 0, "tensors": 0}).Reload()


@pytest.fixture(params=["on_fit_start", "setup"])
def logged(request, fit, prune_at_start, tmp_path):
    pruning = prune_at_start(density=0.2, rounds=7, hook=request.param)
    fit([pruning, PruningSummary()], logger=logger_in(tmp_path))
    return pruning, events(tmp_path)


def test_the_density_of_every_layer_stands_at_its_round(logged):
    pruning, log = logged
    for layer, name in LAYERS.items():
        points = log.Scalars(f"density/{layer}")
        assert [point.step for point in points] == list(range(7))
        expected = [masks.layer_densities()[name] for _, masks in pruning.history]
        assert [point.value for point in points] == pytest.approx(expected)


def test_training_keeps_the_optimizer_step(logged):
    _, log = logged
    assert [point.step for point in log.Scalars("train_loss")] == [2, 5]


def test_histograms_hold_the_logarithms_of_the_positive_scores_of_some_rounds(logged):
    pruning, log = logged
    for layer, name in LAYERS.items():
        points = log.Histograms(f"log10_score/{layer}")
        assert [point.step for point in points] == [0, 2, 3, 4, 6]
        for point in points:
            scores = pruning.history[point.step][0][name].double()
            logs = scores[scores > 0].log10()
            value = point.histogram_value
            assert value.num == sum(value.bucket) == len(logs)
            assert [value.min, value.max, value.sum] == pytest.approx(
                [float(logs.min()), float(logs.max()), float(logs.sum())]
            )


def test_pictures_show_rounds_densities_conservation_and_kernels(logged):
    _, log = logged
    assert set(log.Tags()["images"]) == {
        "pruning/density_over_rounds",
        "pruning/density_of_layers",
        "pruning/score_and_layer_size",
        "pruning_masks/0",
        "pruning_masks/2",
    }
    for tag in log.Tags()["images"]:
        (image,) = log.Images(tag)
        picture = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
        assert picture.std() > 0
        assert image.step == 0


def test_the_preflight_report_is_text(logged):
    _, log = logged
    text = log.Tensors("preflight/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| density requested | 0.2 |" in text
    assert "| density | 0.200617 (65 of 324 weights) |" in text
    assert "| 2 | 216 | " in text
    assert "### Not pruned" in text


def test_a_report_without_paths_scores_or_shortcuts_says_so():
    net = torch.nn.Linear(3, 2, bias=False)
    text = preflight_markdown(preflight(net, Masks.dense(net, ["weight"]), torch.ones(1, 3), density_requested=1.0))
    assert "| density of the shortcuts | not defined |" in text
    assert "| dead layers | none |" in text
    assert "| loss while scoring | no data used |" in text
    assert "Not pruned" not in text


def test_one_round_has_no_picture_over_rounds(fit, prune_at_start, tmp_path):
    fit([prune_at_start(rounds=1), PruningSummary()], logger=logger_in(tmp_path))
    assert "pruning/density_over_rounds" not in events(tmp_path).Tags()["images"]


def test_negative_and_zero_scores_are_survived(fit, tmp_path):
    trainer = fit([], max_epochs=1, logger=logger_in(tmp_path))
    masks = Masks({"a.weight": torch.ones(4, dtype=torch.bool), "b.weight": torch.ones(3, dtype=torch.bool)})
    scores = {"a.weight": torch.tensor([-1.0, 0.0, 0.1, 0.1]), "b.weight": -torch.ones(3)}
    PruningSummary().on_pruning_round(trainer, trainer.lightning_module, 0, 1, 1.0, scores, masks)
    trainer.logger.experiment.close()
    log = events(tmp_path)
    assert log.Tags()["histograms"] == ["log10_score/a"]
    assert log.Histograms("log10_score/a")[0].histogram_value.num == 2


def test_networks_of_very_many_layers_show_evenly_spread_ones(fit, tmp_path):
    trainer = fit([], max_epochs=1, logger=logger_in(tmp_path))
    masks = Masks({f"layer{index}.weight": torch.ones(2, dtype=torch.bool) for index in range(300)})
    scores = {name: torch.ones(2) for name in masks}
    PruningSummary().on_pruning_round(trainer, trainer.lightning_module, 0, 1, 1.0, scores, masks)
    trainer.logger.experiment.close()
    log = events(tmp_path)
    densities = [tag for tag in log.Tags()["scalars"] if tag.startswith("density/")]
    assert len(densities) == 128
    assert {"density/layer0", "density/layer299"} <= set(densities)
    assert len(log.Tags()["histograms"]) == 32


@pytest.mark.parametrize("hook", ["on_fit_start", "setup"])
@pytest.mark.parametrize("purge_step", [3, None])
def test_a_resumed_run_has_all_its_rounds(fit, prune_at_start, tmp_path, purge_step, hook):
    save = ModelCheckpoint(tmp_path, filename="last", save_on_train_epoch_end=True)
    first = [prune_at_start(rounds=7, hook=hook), PruningSummary(), save]
    fit(first, max_epochs=1, logger=logger_in(tmp_path), enable_checkpointing=True)
    before = events(tmp_path)
    fit(
        [PruningSummary()],
        max_epochs=2,
        logger=logger_in(tmp_path, purge_step=purge_step),
        ckpt_path=tmp_path / "last.ckpt",
    )
    after = events(tmp_path)
    for layer in LAYERS:
        points = {point.step: point.value for point in after.Scalars(f"density/{layer}")}
        assert points == {point.step: point.value for point in before.Scalars(f"density/{layer}")}
        rounds = {point.step for point in after.Histograms(f"log10_score/{layer}")}
        assert rounds == {point.step for point in before.Histograms(f"log10_score/{layer}")}
    assert after.Tags()["images"] == before.Tags()["images"]
    assert [point.step for point in after.Scalars("train_loss")] == [2, 5]


@pytest.mark.parametrize("hook", ["on_fit_start", "setup"])
def test_rounds_of_this_training_are_not_those_of_the_checkpoint_that_it_starts_from(
    fit, prune_at_start, tmp_path, hook
):
    save = ModelCheckpoint(tmp_path, filename="last", save_on_train_epoch_end=True)
    fit(
        [prune_at_start(rounds=7), PruningSummary(), save],
        max_epochs=1,
        logger=logger_in(tmp_path / "first"),
        enable_checkpointing=True,
    )
    summary, checkpoint = PruningSummary(), tmp_path / "last.ckpt"
    pruning, logger = prune_at_start(density=0.1, rounds=5, hook=hook), logger_in(tmp_path / "second", purge_step=3)
    fit([pruning, summary], max_epochs=2, logger=logger, ckpt_path=checkpoint)
    expected = [masks.layer_densities() for _, masks in pruning.history]
    assert [kept["densities"] for kept in summary.state_dict()["rounds"]] == expected
    log = events(tmp_path / "second")
    for layer, name in LAYERS.items():
        points = {point.step: point.value for point in log.Scalars(f"density/{layer}")}
        assert points == {index: pytest.approx(densities[name]) for index, densities in enumerate(expected)}

    # the next training of this callback is a resumed one again, also after one that failed before its first step
    summary.load_state_dict({"rounds": []})
    assert summary.state_dict() == {"rounds": []}
    with pytest.raises(FileNotFoundError):
        fit([prune_at_start(hook="setup"), summary], logger=logger, ckpt_path=tmp_path / "none.ckpt")
    summary.load_state_dict({"rounds": []})
    assert summary.state_dict() == {"rounds": []}


def test_no_logger_is_silent_and_another_one_says_once_that_pictures_are_skipped(fit, prune_at_start, tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        fit([prune_at_start(), PruningSummary()], max_epochs=1)
        assert not [warning for warning in caught if "TensorBoardLogger" in str(warning.message)]
        fit([prune_at_start(), PruningSummary()], max_epochs=1, logger=CSVLogger(tmp_path))
    assert len([warning for warning in caught if "TensorBoardLogger" in str(warning.message)]) == 1


def test_the_hparams_tab_is_filled_after_the_test(fit, prune_at_start, tmp_path, record, config):
    logger = logger_in(tmp_path)
    fit([prune_at_start(), PruningSummary()], max_epochs=1, logger=logger)  # closes the log
    write_hparams(logger, config, record)

    log = events(tmp_path)
    assert {tag: log.Scalars(tag)[-1].value for tag in log.Tags()["scalars"] if tag.startswith("final/")} == {
        "final/test_accuracy": 0.5,
        "final/val_accuracy": 0.75,
        "final/density": pytest.approx(0.1),
        "final/effective_density": pytest.approx(0.09),
        "final/macs_dense": 40_000,
        "final/macs_masked": 3_000,
        "final/leaked_weights": 0,
        "final/epochs": 3,
        "final/dead_layers": 1,
    }
    start = metadata.parse_session_start_info_plugin_data(plugin_data(log, metadata.SESSION_START_INFO_TAG))
    shown = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}
    assert shown == {"density_requested": 0.1, **run_hparams(config)}
    experiment = metadata.parse_experiment_plugin_data(plugin_data(log, metadata.EXPERIMENT_TAG))
    assert {info.name.tag for info in experiment.metric_infos} == {
        tag for tag in log.Tags()["scalars"] if tag.startswith("final/")
    }
    assert {info.name for info in experiment.hparam_infos} == set(shown)
    first = {info.name for info in experiment.hparam_infos if info.differs}
    assert first == {"criterion", "data", "density_requested", "net", "seed"}
    assert log.Scalars("density/0"), "what was there before is still there"


def test_what_the_network_costs_is_text_and_a_number_of_the_tab(tmp_path, compact_record, config):
    logger = logger_in(tmp_path)
    write_hparams(logger, config, compact_record)
    log = events(tmp_path)
    assert [point.value for point in log.Scalars("final/macs_compact")] == [540]
    text = log.Tensors("cost/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text == cost_markdown(compact_record)
    assert text.startswith("| cost | dense | masked | compact |\n")
    assert "| MACs per example | 1,512 | 308 | 540 |\n" in text
    assert text.endswith("x 1.50 for one example, x 4.00 for 128.")


def test_a_masked_network_costs_what_was_measured_of_it(record):
    text = cost_markdown(record)
    assert "| ms for 1 example | - | 1.26 |\n" in text
    assert "compact |" not in text
    assert "Masking is a simulation" in text


def test_every_level_has_a_line_in_the_hparams_tab(tmp_path, levels, config):
    shown = []
    for record in levels:
        logger = logger_in(tmp_path / f"level_{record['level']:02d}")
        write_hparams(logger, config, record)
        data = plugin_data(events(Path(logger.log_dir)), metadata.SESSION_START_INFO_TAG)
        hparams = metadata.parse_session_start_info_plugin_data(data).hparams
        shown.append((hparams["level"].number_value, hparams["density_requested"].number_value))
    assert shown == [(0, 1.0), (1, 0.5), (2, 0.25)]


def plugin_data(log: EventAccumulator, tag: str) -> bytes:
    return log.SummaryMetadata(tag).plugin_data.content


def test_what_the_record_lacks_is_left_out_of_the_tab(tmp_path, record, config):
    logger = logger_in(tmp_path)
    write_hparams(logger, config, record | {"test_accuracy": None, "effective_density": None})
    tags = events(tmp_path).Tags()["scalars"]
    assert "final/val_accuracy" in tags
    assert "final/test_accuracy" not in tags


def test_other_loggers_are_left_alone(tmp_path, record, config):
    write_hparams(None, config, record)
    write_hparams(CSVLogger(tmp_path), config, record)
    assert not list(tmp_path.rglob("*"))
