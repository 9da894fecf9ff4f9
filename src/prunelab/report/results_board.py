"""The same in TensorBoard: accuracy over compression, a run for each method, and the pictures."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pytorch_lightning.utilities import rank_zero_only
from torch.utils.tensorboard import SummaryWriter

from prunelab.report.groups import Group
from prunelab.report.levels import replace_events
from prunelab.report.results_table import MEASURES

STEPS = 100  # of a factor 10 of compression: TensorBoard's axis counts in whole steps
ABSCISSAS = ("compression", "effective_compression")
AXIS = (
    f"The axis of the scalars is {STEPS} log10 of the compression ratio 1 / density, or of the effective one, because "
    f"TensorBoard's axis counts in whole steps: 0 is the dense network, {STEPS} a tenth of its weights. The values are "
    "means over the seeds, as fractions. Of two that round to the same step it shows that of the higher compression. "
    "Networks without a path left have no effective compression."
)


@rank_zero_only
def write_board(directory: Path, found: Sequence[Group], pictures: Mapping[str, Figure]) -> None:
    """Write `directory` for `tensorboard --logdir`: a run for each method, so that a chart has a line for each, and the
    run `pictures`, which also says what the axis means.

    Scalars: `over_100_log10_compression/<measure>` and `over_100_log10_effective_compression/<measure>`; of several
    settings with the setting behind. All is written anew at each call.
    """
    several = len({group.setting for group in found}) > 1
    for method in dict.fromkeys(group.method for group in found if group.rows):
        points: dict[str, dict[int, float]] = {}
        for group in sorted(found, key=lambda group: group.compression or 0):
            if group.method == method:
                for tag, step, value in _points(group):
                    points.setdefault(f"{tag}/{group.setting}" if several else tag, {})[step] = value
        replace_events(directory / "_".join(re.findall(r"[\w.]+", method)), partial(_write_scalars, points=points))
    replace_events(directory / "pictures", partial(_write_pictures, pictures=pictures))


def _points(group: Group) -> Iterator[tuple[str, int, float]]:
    for abscissa in ABSCISSAS:
        for measure in MEASURES:
            compression, spread = getattr(group, abscissa), group.spread(measure)
            if compression is not None and spread is not None and compression != math.inf:
                yield f"over_{STEPS}_log10_{abscissa}/{measure}", round(STEPS * math.log10(compression)), spread.mean


def _write_scalars(directory: str, points: Mapping[str, Mapping[int, float]]) -> None:
    with SummaryWriter(directory, purge_step=0) as writer:
        for tag, values in points.items():
            for step, value in sorted(values.items()):
                writer.add_scalar(tag, value, step)


def _write_pictures(directory: str, pictures: Mapping[str, Figure]) -> None:
    with SummaryWriter(directory, purge_step=0) as writer:
        writer.add_text("axis", AXIS, 0)
        for name, figure in pictures.items():
            canvas = FigureCanvasAgg(figure)  # SummaryWriter.add_figure would keep it in pyplot's list
            canvas.draw()
            writer.add_image(name, np.asarray(canvas.buffer_rgba())[..., :3], 0, dataformats="HWC")
