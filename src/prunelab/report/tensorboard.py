"""TensorBoard made for pruning: what the rounds did, what the masks look like, and how the run ended.

Everything goes through the trainer's TensorBoardLogger into the run's own event files. Rounds have their own
step axis, the round counted from 0; training keeps the optimizer step; pictures and text stand at step 0.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData  # type: ignore[import-untyped]
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams as hparams_summaries

from prunelab.pruning import Masks
from prunelab.pruning.preflight import Preflight
from prunelab.report.cost import COLUMNS, cost_rows, cost_statement, measured_text
from prunelab.report.hparams import run_hparams
from prunelab.report.plots import (
    conservation_figure,
    density_rounds_figure,
    kernel_masks_picture,
    layer_densities_figure,
    layer_name,
)
from prunelab.report.table import markdown_table

MAX_LAYERS = 128  # with density scalars
MAX_HISTOGRAMS = 32  # layers with score histograms
MAX_MASKS = 24  # convolutions with a picture of their mask
HISTOGRAM_ROUNDS = 5
HISTOGRAM_BINS = 40
HEADLINES = ("criterion", "data", "density_requested", "net", "seed")
FINAL_METRICS = (  # in this order in the tab, which shows the first five at once
    "test_accuracy",
    "density",
    "effective_density",
    "macs_masked",
    "dead_layers",
    "val_accuracy",
    "macs_dense",
    "macs_compact",
    "leaked_weights",
    "epochs",
)


class PruningSummary(Callback):
    """Write what pruning did into the trainer's TensorBoard log; nothing where the trainer has no logger.

    After each round: the density of every layer (`density/<layer>`), and in the first, the last and a few
    rounds between them the histogram of log10 of the layer's positive scores (`log10_score/<layer>`). After
    the last: the heat map layers x rounds, the densities as bars, the mean score against the layer's size
    (the conservation picture, of the first round), the kernels of the convolutions, and the preflight report
    as text. Networks with very many layers show evenly spread ones.

    The rounds are part of the callback's state: the log of a resumed run is cleared from the resumed step on,
    which would take the later rounds with it, so they are written again. Rounds may come in `setup` already, before
    the checkpoint that training starts from is read (a network that is compacted); then what it remembers does not
    count.
    """

    def __init__(self) -> None:
        self._rounds: list[dict[str, Any]] = []  # plain values and tensors: it travels in the checkpoint
        self._resumed = False
        self._pruned_now = False  # since the last training, so that no checkpoint knows better

    def state_dict(self) -> dict[str, Any]:
        return {"rounds": self._rounds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if not self._pruned_now:
            self._rounds = state_dict["rounds"]
            self._resumed = True

    def on_pruning_round(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        index: int,
        num_rounds: int,
        density: float,
        scores: dict[str, Tensor],
        masks: Masks,
    ) -> None:
        self._pruned_now = True
        writer = _writer(trainer)
        if writer is None:
            return
        if index == 0:
            self._rounds = []
            self._write_conservation(writer, scores)
        drawn = {round(share * (num_rounds - 1)) for share in np.linspace(0, 1, HISTOGRAM_ROUNDS)}
        layers = _spread(list(scores), MAX_HISTOGRAMS) if index in drawn else []
        summary = {
            "index": index,
            "densities": masks.layer_densities(),
            "histograms": {name: _log10_histogram(scores[name]) for name in layers if (scores[name] > 0).any()},
        }
        self._rounds.append(summary)
        _write_round(writer, summary)

    def on_pruned(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        preflight: Preflight,
        scores: dict[str, Tensor],
        masks: Masks,
    ) -> None:
        writer = _writer(trainer)
        if writer is None:
            return
        writer.add_text("preflight", preflight_markdown(preflight), 0)
        if len(self._rounds) > 1:
            densities = np.array([list(summary["densities"].values()) for summary in self._rounds])
            add_picture(writer, "pruning/density_over_rounds", density_rounds_figure(list(masks), densities))
        bars = layer_densities_figure({f"density of each layer, {masks.density:.4g} overall": masks.layer_densities()})
        add_picture(writer, "pruning/density_of_layers", bars)
        for name in _spread([name for name in masks if masks[name].ndim == 4], MAX_MASKS):
            add_picture(writer, f"pruning_masks/{layer_name(name)}", kernel_masks_picture(name, masks[name]))
        writer.flush()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._pruned_now = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pruned_now = False
        writer = _writer(trainer)
        if writer is None or not self._resumed:
            return
        for summary in self._rounds:
            if summary["index"] >= trainer.global_step:
                _write_round(writer, summary)
        writer.flush()

    def _write_conservation(self, writer: SummaryWriter, scores: dict[str, Tensor]) -> None:
        means = {name: float(score.double().mean()) for name, score in scores.items()}
        sizes = {name: score.numel() for name, score in scores.items()}
        figure, _ = conservation_figure(means, sizes, "mean score of each layer in the first round")
        add_picture(writer, "pruning/score_and_layer_size", figure)


@rank_zero_only
def write_hparams(logger: Logger | None, config: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Fill TensorBoard's hparams tab: what a level was asked to do, from the resolved `config`, and how it ended.
    What its network costs, dense, masked and compact, is the text `cost`.

    Call it after the test; every level of a run has a line of its own there. The end is the scalars `final/<name>`
    of the level itself (FINAL_METRICS; what is None in the record is left out), so the tab and the event files cannot
    disagree.
    TensorBoard keeps only the first hyperparameters that a run declares: give the TensorBoardLogger
    `default_hp_metric=False`, or Lightning declares its own when training starts and these are ignored. For the same
    reason all runs have the same columns (`run_hparams`). Loggers other than TensorBoard's are left alone.
    """
    if not isinstance(logger, TensorBoardLogger):
        return
    ends = {**record, "dead_layers": len(record["collapsed_layers"])}
    values = {f"final/{name}": float(ends[name]) for name in FINAL_METRICS if ends.get(name) is not None}
    hparams = {"density_requested": record["density_requested"], **run_hparams(config, level=record.get("level", 0))}
    writer = logger.experiment
    for tag, value in values.items():
        writer.add_scalar(tag, value, record["epochs"])
    experiment, start, end = hparams_summaries(hparams, values)
    for summary in (_headlines_first(experiment), start, end):
        writer.file_writer.add_summary(summary)
    writer.add_text("cost", cost_markdown(record), 0)
    writer.close()


def cost_markdown(record: Mapping[str, Any]) -> str:
    """Return what the network of a finished level costs as a markdown table, and in sentences what was measured."""
    rows = cost_rows(record)
    sentences = [*measured_text(record).splitlines(), *cost_statement(record).splitlines()]
    return "\n\n".join([markdown_table(["cost", *COLUMNS[: len(rows[0]) - 1]], rows), *sentences])


def preflight_markdown(preflight: Preflight) -> str:
    """Return the report as markdown tables: the whole network, its layers, what is not pruned."""
    rows = {
        "density requested": f"{preflight.density_requested:.6g}",
        "density": f"{preflight.density:.6g} ({preflight.num_kept:,} of {preflight.num_prunable:,} weights)",
        "parameters, prunable or not": f"{preflight.num_parameters:,}",
        "effective density": _optional(preflight.effective_density),
        "dead layers": ", ".join(map(layer_name, preflight.collapsed_layers)) or "none",
        "density of the shortcuts": _optional(preflight.shortcut_density),
        "zero scores among the weights that the last round scored": _optional(preflight.zero_score_share),
        "loss while scoring": _optional(preflight.scoring_loss, "no data used"),
        "MACs, dense": f"{preflight.macs_dense:,}",
        "MACs, masked (in theory)": f"{preflight.macs_masked:,}",
    }
    sizes = preflight.layer_sizes
    layers = [
        [layer_name(name), f"{sizes[name]:,}", f"{round(density * sizes[name]):,}", f"{density:.4g}"]
        for name, density in preflight.layer_densities.items()
    ]
    parts = [
        markdown_table(["preflight", ""], [[label, text] for label, text in rows.items()]),
        "### Layers",
        markdown_table(["layer", "weights", "kept", "density"], layers),
    ]
    if preflight.unpruned:
        unpruned = [[name, f"{size:,}", reason] for name, size, reason in preflight.unpruned]
        parts += ["### Not pruned", markdown_table(["parameter", "size", "reason"], unpruned)]
    return "\n\n".join(parts)


def _writer(trainer: Trainer) -> SummaryWriter | None:
    if not trainer.is_global_zero or not trainer.loggers:
        return None
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            return logger.experiment
    # One text for all calls: Python's warning filter shows it once.
    warnings.warn("the trainer has no TensorBoardLogger: pruning's pictures and histograms are skipped", stacklevel=1)
    return None


def _write_round(writer: SummaryWriter, summary: dict[str, Any]) -> None:
    index, densities = summary["index"], summary["densities"]
    for name in _spread(list(densities), MAX_LAYERS):
        writer.add_scalar(f"density/{layer_name(name)}", densities[name], index)
    for name, histogram in summary["histograms"].items():
        writer.add_histogram_raw(f"log10_score/{layer_name(name)}", **histogram, global_step=index)


def _log10_histogram(scores: Tensor) -> dict[str, Any]:
    """Histogram of log10 of the positive scores, which span many decades (a 0 cannot be drawn)."""
    logs = scores[scores > 0].double().log10()
    lowest, highest = float(logs.min()), float(logs.max())
    counts, edges = np.histogram(logs.cpu().numpy(), HISTOGRAM_BINS, (lowest, max(highest, lowest + 1e-6)))
    return {
        "min": lowest,
        "max": highest,
        "num": logs.numel(),
        "sum": float(logs.sum()),
        "sum_squares": float(logs.square().sum()),
        "bucket_limits": edges[1:].tolist(),
        "bucket_counts": counts.tolist(),
    }


def _headlines_first(experiment: Summary) -> Summary:
    """The declaration of the hparams, with HEADLINES marked as those that differ: the tab shows five, these first."""
    plugin_data = experiment.value[0].metadata.plugin_data
    content = HParamsPluginData.FromString(plugin_data.content)
    for info in content.experiment.hparam_infos:
        info.differs = info.name in HEADLINES
    plugin_data.content = content.SerializeToString()
    return experiment


def add_picture(writer: SummaryWriter, tag: str, picture: Image.Image) -> None:
    """Write `picture` at step 0, as a PNG of little effort: SummaryWriter.add_image packs tightly, ten times slower."""
    png = BytesIO()
    picture.save(png, format="PNG", compress_level=1)
    image = Summary.Image(height=picture.height, width=picture.width, colorspace=3, encoded_image_string=png.getvalue())
    # as the writer's own methods do: it opens another file if it was closed
    writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), 0)


def _spread(names: list[str], at_most: int) -> list[str]:
    """Return at most that many of the names, evenly spread, the first and the last among them."""
    if len(names) <= at_most:
        return names
    return [names[int(place)] for place in np.linspace(0, len(names) - 1, at_most)]


def _optional(value: float | None, missing: str = "not defined") -> str:
    return missing if value is None else f"{value:.4g}"
