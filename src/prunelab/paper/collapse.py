"""Where layers collapse, and at which compression they begin to (Tanaka et al. 2020, figures 1 and 2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import median_low
from typing import Any

from torch import Tensor

from prunelab.paper.figures import criteria_bars_figure, layer_collapse_figure
from prunelab.paper.measured import Measured
from prunelab.paper.result import Result, Say
from prunelab.paper.subject import CRITERIA, Subject
from prunelab.pruning import keep_highest, prune
from prunelab.report.plots import layer_name
from prunelab.report.repeats import aligned_table


def least_kept(scores: Mapping[str, Tensor]) -> tuple[int, str]:
    """(k, layer): with k weights kept of all `scores`, the highest, no layer is empty; with k - 1 `layer` is.

    k is the rank of the layer's best weight among all weights, for the layer whose best is the worst. Equal scores are
    ranked as `keep_highest` does: the later weight, and the later layer, is kept first.
    """
    names = list(scores)
    best = {name: float(scores[name].max()) for name in names}
    position, worst = min(enumerate(names), key=lambda item: (best[item[1]], item[0]))
    rank = 1
    for other, name in enumerate(names):
        if name != worst:
            before = scores[name] >= best[worst] if other > position else scores[name] > best[worst]
            rank += int(before.sum())
    return rank, worst


def bisect(
    survives: Callable[[int], bool], fewest: int, most: int, tolerance: float = 0.01
) -> tuple[int, int | None, int]:
    """(k, dead, tries): the smallest number of kept weights that was found to survive, between `fewest` and `most`.

    Bisection on log k. `fewest` is tried first (if it survives, dead is None); `most` is taken to survive. `dead` did
    not survive and is less than a share of `tolerance` below k (0: just below), so k is the end of a range of
    survivors; where survival comes and goes, as it may for criteria of several rounds, there may be others.
    """
    if survives(fewest):
        return fewest, None, 1
    dead, alive, tries = fewest, most, 1
    while alive - dead > 1 and alive > dead * (1 + tolerance):
        middle = min(max(round(math.sqrt(dead * alive)), dead + 1), alive - 1)
        tries += 1
        if survives(middle):
            alive = middle
        else:
            dead = middle
    return alive, dead, tries


def counts_after(
    subject: Subject, name: str, nums_kept: Sequence[int], measured: Measured, say: Say
) -> list[dict[str, int]]:
    """Kept weights of each layer (by its name), after pruning to each of `nums_kept` with the criterion `name`."""
    criterion, dense = CRITERIA[name], subject.dense
    ranking: dict[str, Mapping[str, Tensor]] = {}  # of a single round: scored once for all numbers

    def measure(num_kept: int) -> dict[str, int]:
        density = num_kept / dense.num_weights
        say(f"{subject.network}, seed {subject.seed}: {name} keeps {num_kept:,} weights")
        if criterion.rounds > 1:
            masks = prune(subject.net, criterion, density=density, **subject.options(criterion))
        else:
            if not ranking:
                ranking["scores"] = subject.scores(criterion)
            masks = keep_highest(ranking["scores"], density, dense)
        return masks.layer_num_kept()

    def count(num_kept: int) -> dict[str, int]:
        key = {"measured": "layer counts", "num_kept": num_kept, **subject.key(criterion)}
        counts: dict[str, int] = measured.get(key, lambda: measure(num_kept))
        return counts

    return [count(num_kept) for num_kept in nums_kept]


def layer_collapse(
    subject: Subject, criteria: Sequence[str], exponents: Sequence[float], measured: Measured, say: Say
) -> Result:
    """Density of every layer after pruning to the compression ratios 10^exponent (figure 2)."""
    exponents = sorted(set(exponents))
    sizes = {name: mask.numel() for name, mask in subject.dense.items()}
    nums_kept = [subject.num_kept(exponent) for exponent in exponents]
    densities: dict[str, list[list[float]]] = {}
    rows: list[dict[str, Any]] = []
    lines = []
    for name in criteria:
        found = counts_after(subject, name, nums_kept, measured, say)
        densities[name] = [[counts[layer] / size for layer, size in sizes.items()] for counts in found]
        empty = [[layer_name(layer) for layer, count in counts.items() if count == 0] for counts in found]
        for exponent, num_kept, counts in zip(exponents, nums_kept, found, strict=True):
            for layer, size in sizes.items():
                rows.append(
                    {
                        **{"criterion": name, "exponent": exponent, "num_kept": num_kept, "layer": layer_name(layer)},
                        **{"layer_size": size, "layer_num_kept": counts[layer], "density": counts[layer] / size},
                    }
                )
        first = next((index for index, layers in enumerate(empty) if layers), None)
        alive = [exponent for exponent, layers in zip(exponents, empty, strict=True) if not layers]
        lines.append(
            [
                name,
                f"10^{max(alive):g}" if alive else "none",
                "none" if first is None else f"10^{exponents[first]:g}",
                "-" if first is None else ", ".join(empty[first]),
            ]
        )
    table = aligned_table([["criterion", "last ratio without collapse", "first with", "empty layers there"], *lines])
    figure = layer_collapse_figure([layer_name(layer) for layer in sizes], exponents, densities, subject.network)
    return Result(rows, table, figure)


def critical_compression(
    subjects: Sequence[Subject], criteria: Sequence[str], tolerance: float, measured: Measured, say: Say
) -> Result:
    """The last compression ratio before a layer collapses, beside the maximal one, N / layers; `subjects`: seeds.

    Exact for criteria of one round, from their ranking (`least_kept`); else by `bisect` over real prunings.
    """
    rows = [_critical(subject, name, tolerance, measured, say) for name in criteria for subject in subjects]
    maximal = rows[0]["maximal_compression"]
    lines = []
    critical = {name: [r["critical_compression"] for r in rows if r["criterion"] == name] for name in criteria}
    for name, ratios in critical.items():
        of_criterion = [row for row in rows if row["criterion"] == name]
        middle = median_low(ratios)
        lines.append(
            [
                name,
                f"{middle:,.1f}",
                f"{min(ratios):,.1f} - {max(ratios):,.1f}",
                f"{middle / maximal:.3g}",
                ", ".join(dict.fromkeys(row["empty_below"] or "-" for row in of_criterion)),
                ", ".join(dict.fromkeys(row["found_by"] for row in of_criterion)),
            ]
        )
    header = ["median over seeds", "range", "of the maximal", "layers that die next", "found by"]
    table = aligned_table([["criterion", *header], *lines]) + f"\n\nMaximal compression (N / layers): {maximal:,.1f}"
    return Result(rows, table, criteria_bars_figure(critical, maximal, subjects[0].network))


def _critical(subject: Subject, name: str, tolerance: float, measured: Measured, say: Say) -> dict[str, Any]:
    num_weights, num_layers = subject.dense.num_weights, len(subject.dense)

    def counts(num_kept: int) -> dict[str, int]:
        return counts_after(subject, name, [num_kept], measured, say)[0]

    if CRITERIA[name].rounds > 1:
        num_kept, dead, tries = bisect(lambda k: all(counts(k).values()), num_layers, num_weights, tolerance)
        how = "one pruning" if dead is None else f"bisection to {100 * tolerance:g} %, {tries} prunings"
        empty = [] if dead is None else [layer for layer, count in counts(dead).items() if count == 0]
    else:
        num_kept, layer = _ranked(subject, name, measured, say)
        how, empty = "ranking, exact", [layer]
    return {
        **{"criterion": name, "seed": subject.seed, "num_kept": num_kept},
        **{"critical_compression": num_weights / num_kept, "maximal_compression": num_weights / num_layers},
        **{"empty_below": " ".join(map(layer_name, empty)), "found_by": how},
    }


def _ranked(subject: Subject, name: str, measured: Measured, say: Say) -> tuple[int, str]:
    def measure() -> list[Any]:
        say(f"{subject.network}, seed {subject.seed}: {name} ranks {subject.dense.num_weights:,} weights")
        return list(least_kept(subject.scores(CRITERIA[name])))

    num_kept, layer = measured.get({"measured": "least kept", **subject.key(CRITERIA[name])}, measure)
    return num_kept, layer
