"""SynFlow on networks that fill a machine: time and peak memory of pruning a stack of linear layers.

    OMP_NUM_THREADS=2 python benchmarks/large.py [--quick] [--turns N] [--output DIR]

Each case runs in a process of its own. Peak memory is the process's largest resident set, the network's own weights
included, above what it held after its imports; "times the weights" is that over the bytes of the float32 weights. Some
50 MB of it are the libraries' and buffers of a fixed size, which shows in the smallest network only. Seconds are those
of `prune`: all rounds, and the checks before them; the cases take turns. A case that does not keep exactly the number
of weights it was asked for is an error.
Needs 7 GB of free memory for the largest. Writes large.md and large.json.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Case:
    weights: float
    path: str = "lean"
    layers: int = 10
    rounds: int = 3
    precision: str = "float64"
    density: float = 0.1


CASES = (
    Case(1e7, "fast", rounds=100, density=0.01),
    Case(1e7, rounds=100, density=0.01),
    Case(1e8, rounds=100, density=0.01),
    Case(1e8),
    Case(1e8, layers=1),
    Case(1e8, precision="float32"),
    Case(1e9),
    Case(1e9, precision="float32"),
)
QUICK = (Case(1e7, "fast"), Case(1e7), Case(1e7, precision="float32"))


def measure(case: Case) -> dict[str, Any]:
    """In this process, which should have done nothing else."""
    import torch
    from measuring import resident
    from torch import nn

    from prunelab.pruning import prune
    from prunelab.pruning.criteria import SynFlow

    width = round(math.sqrt(case.weights / case.layers))
    before = resident("VmRSS")
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.utils.skip_init(nn.Linear, width, width, bias=False) for _ in range(case.layers)))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0, width**-0.5)
    num_weights = sum(parameter.numel() for parameter in net.parameters())
    criterion = SynFlow(rounds=case.rounds, precision=case.precision, path=case.path)  # type: ignore[arg-type]
    started = time.perf_counter()
    masks = prune(net, criterion, density=case.density, example_input=torch.ones(1, width))
    seconds = time.perf_counter() - started
    peak = resident("VmHWM") - before
    asked = math.floor(case.density * num_weights + 0.5)
    if masks.num_kept != asked:
        raise RuntimeError(f"{masks.num_kept} weights were kept, {asked} were asked for")
    found = {"kept": masks.num_kept, "asked": asked, "seconds": seconds, "peak_bytes": peak}
    return {**asdict(case), "weights": num_weights, **found, "times_the_weights": peak / (4 * num_weights)}


def together(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of the turns of a case: the median of the seconds, the most memory."""
    seconds = [turn["seconds"] for turn in turns]
    most = max(turns, key=lambda turn: turn["peak_bytes"])
    return {**most, "seconds": statistics.median(seconds), "all_seconds": seconds}


def table(rows: list[dict[str, Any]]) -> str:
    titles = "weights | layers | path | precision | rounds | density | kept = asked | seconds (min - max) | peak, MB"
    lines = [f"| {titles} | times the weights |", "|" + "---|" * 10]
    for row in rows:
        what = f"{row['weights']:,} | {row['layers']} | {row['path']} | {row['precision']} | {row['rounds']}"
        seconds = f"{row['seconds']:.1f} ({min(row['all_seconds']):.1f} - {max(row['all_seconds']):.1f})"
        found = f"{row['density']:g} | {row['kept']:,} | {seconds} | {row['peak_bytes'] / 1e6:,.0f}"
        lines.append(f"| {what} | {found} | {row['times_the_weights']:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smallest network in few rounds, nothing written")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a case, as JSON
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(Case(**json.loads(options.one)))))
        return
    from measuring import machine

    where = machine("cpu")
    print(where, flush=True)
    cases, turns = (QUICK, 1) if options.quick else (CASES, options.turns)
    found: list[list[dict[str, Any]]] = [[] for _ in cases]
    for _ in range(turns):
        for case, of_case in zip(cases, found, strict=True):
            program = [sys.executable, __file__, "--one", json.dumps(asdict(case))]
            output = subprocess.run(program, check=True, stdout=subprocess.PIPE, text=True).stdout
            of_case.append(json.loads(output.splitlines()[-1]))
            print(table([together(of_case[-1:])]).splitlines()[-1], flush=True)
    rows = [together(of_case) for of_case in found]
    if options.quick:
        return
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "large.json").write_text(
        json.dumps({"machine": where, "turns": turns, "rows": rows}, indent=1) + "\n"
    )
    title = "# Pruning a stack of linear layers with SynFlow"
    told = "Peak: largest resident set above that after the imports, the network's own weights included; times the\n"
    told += (
        "weights: over the bytes of the float32 weights. Each reading is a process of its own; seconds: the median\n"
    )
    told += f"of {turns} turns; memory: the most of them."
    (options.output / "large.md").write_text(f"{title}\n\n{where}\n\n{told}\n\n{table(rows)}\n")


if __name__ == "__main__":
    main()
