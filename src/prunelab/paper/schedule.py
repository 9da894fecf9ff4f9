"""SynFlow's rounds: exponential against linear (Tanaka et al. 2020, figure 7 and theorem 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from prunelab.paper.figures import schedule_figure
from prunelab.paper.measured import Measured
from prunelab.paper.result import Result, Say
from prunelab.paper.subject import CRITERIA, Subject
from prunelab.pruning import Masks, prune
from prunelab.pruning.diagnostics import collapsed_layers
from prunelab.pruning.schedules import Schedule
from prunelab.report.plots import layer_name
from prunelab.report.repeats import aligned_table


@dataclass
class LargestCut:
    """`on_round` of `prune`: keeps the largest share of the network's flow that a round dropped.

    The scores of every layer sum to the flow R, so a round that drops less than R in all cannot empty a layer: shares
    below 1 are safe (theorem 3). Rounds after the flow has gone, which only a collapse does, count nothing.
    """

    share: float = 0.0

    def __call__(self, index: int, density: float, scores: Mapping[str, Tensor], masks: Masks) -> None:
        dropped, flow = 0.0, 0.0
        for name, mask in masks.items():
            values = scores[name]
            dropped += float(values.masked_fill(mask, 0).sum())
            flow = flow or float(values.sum())
        if flow > 0:
            self.share = max(self.share, dropped / flow)


def schedule(
    subject: Subject,
    schedules: Sequence[Schedule],
    rounds: Sequence[int],
    exponents: Sequence[float],
    measured: Measured,
    say: Say,
) -> Result:
    """Largest share of the flow that a round drops, and the layers that collapse, for SynFlow."""
    num_weights = subject.dense.num_weights
    rows: list[dict[str, Any]] = []
    for kind in schedules:
        for num_rounds in rounds:
            for exponent in exponents:
                num_kept = subject.num_kept(exponent)

                def measure(kind: Schedule = kind, num_rounds: int = num_rounds, num_kept: int = num_kept) -> Any:
                    say(f"{subject.network}: {kind}, {num_rounds} rounds, {num_kept:,} weights kept")
                    cut = LargestCut()
                    masks = prune(
                        subject.net,
                        CRITERIA["synflow"],
                        density=num_kept / num_weights,
                        rounds=num_rounds,
                        schedule=kind,
                        on_round=cut,
                        **subject.options(CRITERIA["synflow"]),
                    )
                    return {"share": cut.share, "collapsed": collapsed_layers(masks)}

                key = {"measured": "schedule", "schedule": kind, "rounds": num_rounds, "num_kept": num_kept}
                found = measured.get({**key, **subject.key(CRITERIA["synflow"])}, measure)
                rows.append(
                    {
                        **{"schedule": kind, "rounds": num_rounds, "exponent": exponent, "num_kept": num_kept},
                        **{"largest_share_dropped": found["share"], "num_collapsed": len(found["collapsed"])},
                        "collapsed_layers": " ".join(map(layer_name, found["collapsed"])),
                    }
                )
    lines = []
    for kind in schedules:
        for num_rounds in rounds:
            of_line = [row for row in rows if (row["schedule"], row["rounds"]) == (kind, num_rounds)]
            cells = [
                f"{row['largest_share_dropped']:.3g}" + (f" ({row['num_collapsed']})" if row["num_collapsed"] else "")
                for row in of_line
            ]
            lines.append([kind, str(num_rounds), *cells])
    table = aligned_table([["schedule", "rounds", *(f"10^{exponent:g}" for exponent in exponents)], *lines])
    return Result(rows, table, schedule_figure(rows, subject.network))
