"""The TensorBoard run that sums up a run with several levels: how accuracy falls as the network gets sparser."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities import rank_zero_only
from torch.utils.tensorboard import SummaryWriter

from prunelab.report.plots import accuracy_over_density_figure
from prunelab.report.table import levels_markdown
from prunelab.report.tensorboard import add_picture

EVENT_FILES = "events.out.tfevents.*"
DENSITY_UNITS = 10_000  # TensorBoard's axis counts in whole steps
OVER_LEVELS = (
    *("test_accuracy", "test_accuracy_best", "val_accuracy", "supermask_test_accuracy"),
    *("density", "effective_density", "dead_layers", "macs_masked", "macs_compact", "leaked_weights"),
    *("num_channels_compact", "latency_ms", "latency_128_ms", "weight_bytes"),
)
OVER_DENSITY = ("test_accuracy", "test_accuracy_best", "val_accuracy", "supermask_test_accuracy", "effective_density")
AXES = (
    f"The axis of `levels/` is the level. The axis of `over_density_per_{DENSITY_UNITS}/` is the density, as kept "
    f"weights per {DENSITY_UNITS:,}, because TensorBoard's axis counts in whole steps: {DENSITY_UNITS:,} is the dense "
    "network. Of levels that round to the same number it shows the last."
)


@rank_zero_only
def write_summary(directory: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write the summary of a run's finished levels as the one event file in `directory`.

    records: in the order of their levels. Scalars over the level (`levels/<name>`) and over the density
    (`over_density_per_10000/<name>`), the picture `levels/accuracy_over_density`, and the table of the levels and
    what the axes mean as text. What no level has measured is left out.

    Call it whenever a level has ended: all is written anew.
    """
    replace_events(directory, partial(_write, records=records))


def replace_events(directory: Path, write: Callable[[str], None]) -> None:
    """Make the event file that `write` leaves in the directory it is given the only one in `directory`.

    The file is moved into its place as a whole, only then do older ones go; if the process dies between the two, the
    newer file makes TensorBoard forget the older one, as long as `write` has purge_step=0.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:  # TensorBoard would show half a file beside the target as a run
        write(temporary)
        (written,) = Path(temporary).glob(EVENT_FILES)
        beside = directory / "summary.tmp"
        shutil.copyfile(written, beside)
    target = directory / written.name
    os.replace(beside, target)
    for path in directory.glob(EVENT_FILES):
        if path != target:
            path.unlink()


def _write(directory: str, records: Sequence[Mapping[str, Any]]) -> None:
    # purge_step: what an older file said, at whatever step, is void
    with SummaryWriter(directory, purge_step=0) as writer:
        for record in records:
            for name, value in _measured(record, OVER_LEVELS).items():
                writer.add_scalar(f"levels/{name}", value, record["level"])
        # upwards: TensorBoard takes a step below the last one for a restart and forgets what came before
        for step, record in sorted({_density_step(record): record for record in records}.items()):
            for name, value in _measured(record, OVER_DENSITY).items():
                writer.add_scalar(f"over_density_per_{DENSITY_UNITS}/{name}", value, step)
        accuracies = [record.get("test_accuracy") for record in records]
        if any(accuracy is not None for accuracy in accuracies):
            figure = accuracy_over_density_figure(
                [record["density"] for record in records],
                accuracies,
                [record["effective_density"] for record in records],
                _title(records[-1]),
            )
            add_picture(writer, "levels/accuracy_over_density", figure)
        writer.add_text("levels", f"{levels_markdown(records)}\n\n{AXES}", 0)


def _title(record: Mapping[str, Any]) -> str:
    control = f", control {record['control']}" if record.get("control") else ""
    return f"{record['name']}: {record['criterion']}{control}, seed {record['seed']}, test accuracy"


def _measured(record: Mapping[str, Any], names: Sequence[str]) -> dict[str, float]:
    values = {**record, "dead_layers": len(record["collapsed_layers"])}
    return {name: float(values[name]) for name in names if values.get(name) is not None}


def _density_step(record: Mapping[str, Any]) -> int:
    return round(DENSITY_UNITS * record["density"])
