"""SynFlow on networks that fill a machine: time and peak memory of pruning a stack of linear layers.

    python benchmarks/large.py [--weights 1e8 1e9] [--layers 10] [--rounds 3] [--density 0.1] [--output DIR]

The lean path at these sizes; the fast one at the largest that is fast by itself, in as many rounds as make its lists
shrink as they do in practice.

Each size and precision runs in a process of its own. Peak memory is the process's largest resident set, weights of the
network included, above what it held after importing; "times the weights" is that over the bytes of the float32 weights.
One reading each: sizes like these leave no room for turns. Writes large.md and large.json.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def measure(num_weights: float, layers: int, rounds: int, density: float, path: str, precision: str) -> dict[str, Any]:
    """In this process, which should have done nothing else."""
    import torch
    from torch import nn

    from prunelab.pruning import prune
    from prunelab.pruning.criteria import SynFlow

    width = round(math.sqrt(num_weights / layers))
    before = _resident()
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.utils.skip_init(nn.Linear, width, width, bias=False) for _ in range(layers)))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0, width**-0.5)
    total = sum(parameter.numel() for parameter in net.parameters())
    started = time.perf_counter()
    criterion = SynFlow(rounds=rounds, precision=precision, path=path)  # type: ignore[arg-type]
    masks = prune(net, criterion, density=density, example_input=torch.ones(1, width))
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    wanted = math.floor(density * total + 0.5)
    row = {"weights": total, "path": path, "precision": precision, "rounds": rounds, "density": density}
    threads = torch.get_num_threads()
    return {**row, "kept": masks.num_kept, "wanted": wanted, "seconds": seconds, "peak": peak, "threads": threads}


def _resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def table(rows: list[dict[str, Any]]) -> str:
    titles = ("weights", "path", "precision", "rounds", "kept (asked)", "s per round", "peak, GB", "times the weights")
    head = f"| {' | '.join(titles)} |\n{'|---' * len(titles)}|"
    lines = [
        f"| {row['weights']:,} | {row['path']} | {row['precision']} | {row['rounds']} "
        f"| {row['kept']:,} ({row['wanted']:,}) "
        f"| {row['seconds'] / row['rounds']:.1f} | {row['peak'] / 1e9:.1f} | {row['peak'] / 4 / row['weights']:.2f} |"
        for row in rows
    ]
    return "\n".join([head, *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=float, nargs="+", default=[1e8, 1e9])
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--fast", type=float, default=5e7, help="the size for the fast path")
    parser.add_argument("--fast_rounds", type=int, default=30)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        size, path, precision = options.one
        row = measure(float(size), options.layers, options.rounds, options.density, path, precision)
        print(json.dumps(row))
        return
    from compact import machine

    where, rows = machine("cpu"), []
    print(where, flush=True)
    sizes = [("fast", options.fast, options.fast_rounds)] + [("lean", n, options.rounds) for n in options.weights]
    for path, size, rounds in sizes:
        for precision in ("float64", "float32"):
            program = [sys.executable, __file__, "--one", str(size), path, precision]
            program += ["--layers", str(options.layers), "--rounds", str(rounds), "--density", str(options.density)]
            found = subprocess.run(program, check=True, stdout=subprocess.PIPE, text=True).stdout
            rows.append(json.loads(found.splitlines()[-1]))
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "large.json").write_text(json.dumps({"machine": where, "rows": rows}, indent=1) + "\n")
    text = f"# Pruning a stack of {options.layers} linear layers with SynFlow\n\n{where}\n"
    (options.output / "large.md").write_text(f"{text}\n{table(rows)}\n")


if __name__ == "__main__":
    main()
