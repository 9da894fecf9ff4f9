"""The same in TensorBoard: accuracy over compression, a run for each method, and the pictures."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pytorch_lightning.utilities import rank_zero_only
from torch.utils.tensorboard import SummaryWriter

from prunelab.report.groups import Group
from prunelab.report.levels import EVENT_FILES, replace_events
from prunelab.report.repeats import Spread
from prunelab.report.results_table import MEASURES

Points = dict[str, dict[int, float]]  # tag -> step -> value

DENSE, PICTURES = "dense", "pictures"
STEPS = 100  # of a factor 10 of compression: TensorBoard's axis counts in whole steps
ABSCISSAS = ("compression", "effective_compression")
AXIS = (
    f"The axis of the scalars is {STEPS} log10 of the compression ratio 1 / density, or of the effective one, because "
    f"TensorBoard's axis counts in whole steps: 0 is the dense network, {STEPS} a tenth of its weights. The values are "
    "means over the seeds that have a result, as fractions; a cross in the picture accuracy says where some have none. "
    "Of two that round to the same step it shows that of the higher compression. Networks without a path left have no "
    "effective compression. The run dense is a level line: the mean of the dense networks, at the first and last step."
)
_OURS = ".results"  # how the names of the event files end that are written here


@rank_zero_only
def write_board(directory: Path, found: Sequence[Group], pictures: Mapping[str, Figure]) -> None:
    """Write `directory` for `tensorboard --logdir`: a run for each method, so that a chart has a line for each, the run
    `dense`, which is a level line, and the run `pictures`, which also says what the axis means.

    Scalars: `over_100_log10_compression/<measure>` and `over_100_log10_effective_compression/<measure>`; of several
    settings with the setting behind. All is written anew at each call; runs of methods that are no more are removed.
    """
    runs = _runs(found)
    for name, points in runs.items():
        replace_events(directory / name, partial(_write_scalars, points=points))
    replace_events(directory / PICTURES, partial(_write_pictures, pictures=pictures))
    for path in directory.glob(f"*/{EVENT_FILES}{_OURS}"):
        if path.parent.name not in (*runs, PICTURES):
            path.unlink()
            if not any(path.parent.iterdir()):
                path.parent.rmdir()


def _runs(found: Sequence[Group]) -> dict[str, Points]:
    runs: dict[str, Points] = {}
    settings = dict.fromkeys(group.setting for group in found)
    for setting, abscissa, measure in product(settings, ABSCISSAS, MEASURES):
        tag = f"over_{STEPS}_log10_{abscissa}/{measure}" + (f"/{setting}" if len(settings) > 1 else "")
        of_setting = [group for group in found if group.setting == setting]
        last = 0
        for group in sorted(of_setting, key=lambda group: group.compression or 0):
            compression, spread = getattr(group, abscissa), group.spread(measure)
            if not group.is_baseline and compression not in (None, math.inf) and spread:
                step = round(STEPS * math.log10(compression))
                name = "_".join(re.findall(r"[\w.]+", group.method))
                runs.setdefault(name, {}).setdefault(tag, {})[step] = spread.mean
                last = max(last, step)
        if dense := Spread.of(row[measure] for group in of_setting if group.is_dense for row in group.rows):
            runs.setdefault(DENSE, {})[tag] = dict.fromkeys((0, last), dense.mean)
    return runs


def _write_scalars(directory: str, points: Points) -> None:
    with SummaryWriter(directory, purge_step=0, filename_suffix=_OURS) as writer:
        for tag, values in points.items():
            for step, value in sorted(values.items()):
                writer.add_scalar(tag, value, step)


def _write_pictures(directory: str, pictures: Mapping[str, Figure]) -> None:
    with SummaryWriter(directory, purge_step=0, filename_suffix=_OURS) as writer:
        writer.add_text("axis", AXIS, 0)
        for name, figure in pictures.items():
            canvas = FigureCanvasAgg(figure)  # SummaryWriter.add_figure would keep it in pyplot's list
            canvas.draw()
            writer.add_image(name, np.asarray(canvas.buffer_rgba())[..., :3], 0, dataformats="HWC")
