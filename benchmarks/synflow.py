"""SynFlow's seconds against those of its bare passes, side by side in one process.

    python benchmarks/synflow.py [--rounds 20] [--density 0.01]

A round cannot take less than one forward and one backward pass of the network at batch 1 in the same precision. Bare
passes and whole prunings take turns; the ratio is the median over the turns.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from prunelab.models import resnet20, vgg16_bn
from prunelab.pruning import prune
from prunelab.pruning.criteria import SynFlow


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def bare_passes(net: nn.Module, example: torch.Tensor, num: int) -> None:
    weights = [parameter for parameter in net.parameters() if parameter.dim() > 1]
    for _ in range(num):
        torch.autograd.grad(net(example).sum(), weights)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--density", type=float, default=0.01)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    example = torch.ones(1, 3, 32, 32)
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("| network | precision | s per round | ratio to bare passes: median (min - max) |\n|---|---|---|---|")
    for name, build in (("ResNet-20", resnet20), ("VGG-16-BN", vgg16_bn)):
        for precision, dtype in (("float64", torch.float64), ("float32", torch.float32)):
            net = build()
            bare = build().to(dtype).eval()
            criterion = SynFlow(rounds=options.rounds, precision=precision)
            pairs = [
                (
                    seconds(partial(prune, net, criterion, density=options.density, example_input=example)),
                    seconds(partial(bare_passes, bare, example.to(dtype), options.rounds)),
                )
                for _ in range(options.turns)
            ]
            ratios = [whole / passes for whole, passes in pairs]
            per_round = statistics.median(whole for whole, _ in pairs) / options.rounds
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})"
            print(f"| {name} | {precision} | {per_round:.3f} | {spread} |", flush=True)


if __name__ == "__main__":
    main()
