"""Seconds and peak memory of SNIP and GraSP against the bare passes over the same batches, side by side in one run.

    OMP_NUM_THREADS=2 python benchmarks/gradient_scoring.py [--quick] [--turns N] [--output DIR]

`score(net, snip)` against forward and backward per batch; `score(net, grasp)` against those and, per batch, a second
forward and backward with a graph and the Hessian-vector product by a backward through it: autograd alone, no masks, no
checks, the network's own weights. Both take turns; a ratio is of the seconds in one turn. Float32, images of noise; the
bare passes' scores have to be those of `score`. Peak memory: of scoring with 1 and with 8 batches, each in a process of
its own and each batch made when it is read; resident memory beyond what the imports and a first small scoring left,
where freed blocks of 64 KiB and more go back at once (on a GPU, if there is one, what torch allocated there).
Writes gradient_scoring.json and gradient_scoring.md into `--output`; `--quick` writes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from measuring import RESULTS, finish, machine, resident, spread
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from prunelab.models import lenet_300_100, resnet20, vgg16_bn
from prunelab.pruning import prunable_names, score
from prunelab.pruning.criteria import grasp, snip
from prunelab.pruning.scoring import Criterion

BUILDERS = {"resnet20": resnet20, "vgg16_bn": vgg16_bn}
BATCH_SIZES = {"resnet20": 64, "vgg16_bn": 16}
CRITERIA: dict[str, Criterion] = {"snip": snip, "grasp": grasp}
TIMED_BATCHES, FEW, MANY = 2, 1, 8
MAX_DIFFERENCE = 1e-3  # between the scores and the bare passes': |a - b| / |b|, float32


@dataclass(frozen=True)
class Row:
    """ratio: seconds of scoring / seconds of the bare passes. peaks: MB, with `FEW` and with `MANY` batches."""

    network: str
    criterion: str
    batch_size: int
    bare_milliseconds: float
    ratio: float
    ratio_min: float
    ratio_max: float
    peak_few: float
    peak_many: float


class Noise:
    """Batches of noise, the same at every reading; none is held."""

    def __init__(self, network: str, num_batches: int, device: str) -> None:
        self.size, self.num_batches, self.device = BATCH_SIZES[network], num_batches, device

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        for _ in range(self.num_batches):
            images = torch.randn(self.size, 3, 32, 32, generator=generator)
            yield images.to(self.device), torch.randint(10, (self.size,), generator=generator).to(self.device)


def bare_snip(net: nn.Module, weights: Sequence[Tensor], batches: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    net.eval()
    total = [torch.zeros_like(weight) for weight in weights]
    for images, labels in batches:
        torch._foreach_add_(total, torch.autograd.grad(cross_entropy(net(images), labels), weights))
    return [(weight * gradient).detach().abs() for weight, gradient in zip(weights, total, strict=True)]


def bare_grasp(net: nn.Module, weights: Sequence[Tensor], batches: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    net.train()
    total, product = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
    for images, labels in batches:
        loss = cross_entropy(net(images) / grasp.temperature, labels)
        torch._foreach_add_(total, torch.autograd.grad(loss, weights))
    for images, labels in batches:
        loss = cross_entropy(net(images) / grasp.temperature, labels)
        gradients = torch.autograd.grad(loss, weights, create_graph=True)
        torch._foreach_add_(product, torch.autograd.grad(gradients, weights, grad_outputs=total))
    return [(weight * along).detach() for weight, along in zip(weights, product, strict=True)]


BARE = {"snip": bare_snip, "grasp": bare_grasp}


def measure(network: str, criterion: str, turns: int, device: str) -> Row:
    net, batches = build(network, device), list(Noise(network, TIMED_BATCHES, device))
    weights = [net.get_parameter(name) for name in prunable_names(net)]
    bare, seconds = BARE[criterion], []

    def scored() -> list[Tensor]:
        return list(score(net, CRITERIA[criterion], example_input=batches[0][0][:1], batches=batches).values())

    check_equal(scored(), bare(net, weights, batches))
    for _ in range(turns):
        times = []
        for work in (scored, lambda: bare(net, weights, batches)):
            finish(device)
            started = time.perf_counter()
            work()
            finish(device)
            times.append(time.perf_counter() - started)
        seconds.append(times)
    ours, theirs = zip(*seconds, strict=True)
    peaks = [peak_megabytes(network, criterion, number) for number in (FEW, MANY)]
    milliseconds = 1e3 * statistics.median(theirs)
    return Row(network, criterion, BATCH_SIZES[network], milliseconds, *spread(ours, theirs), *peaks)


def build(network: str, device: str) -> nn.Module:
    torch.manual_seed(0)
    return BUILDERS[network](num_classes=10, image_size=32).to(device)


def check_equal(scores: list[Tensor], bare: list[Tensor]) -> None:
    """Up to a factor: scores are of the mean over samples, the bare sums of batches' means are not divided."""
    ours, theirs = (torch.cat([layer.flatten() for layer in layers]).double() for layers in (scores, bare))
    difference = (ours / ours.norm() - theirs / theirs.norm()).norm().item()
    if not difference < MAX_DIFFERENCE:
        raise RuntimeError(f"the bare passes give other scores: relative difference {difference:.2g}")


def peak_megabytes(network: str, criterion: str, num_batches: int) -> float:
    command = [sys.executable, __file__, "--peak", network, criterion, str(num_batches)]
    # glibc raises this threshold as a program runs and then keeps freed blocks: that, too, would be counted
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return int(finished.stdout) / 1e6


def peak_bytes(network: str, criterion: str, num_batches: int, device: str) -> int:
    warm_up(CRITERIA[criterion], device)
    before, net = resident("VmRSS"), build(network, device)
    batches = Noise(network, num_batches, device)
    score(net, CRITERIA[criterion], example_input=torch.zeros(1, 3, 32, 32, device=device), batches=batches)
    return torch.cuda.max_memory_allocated() if device == "cuda" else resident("VmHWM") - before


def warm_up(criterion: Criterion, device: str) -> None:
    """Reads in the libraries' code: convolutions too, of a network small enough not to matter."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), lenet_300_100(10, 4, 6))
    batch = torch.randn(2, 3, 8, 8, device=device), torch.zeros(2, dtype=torch.long, device=device)
    score(net.to(device), criterion, example_input=batch[0][:1], batches=[batch])


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = [
        "| network | criterion | batches | bare passes, ms | scoring / bare: median (min - max) "
        f"| peak MB, {FEW} batch | peak MB, {MANY} batches |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratio = f"{row.ratio:.2f} ({row.ratio_min:.2f} - {row.ratio_max:.2f})"
        where = f"{row.network} | {row.criterion} | {TIMED_BATCHES} of {row.batch_size}"
        peaks = f"{row.peak_few:.0f} | {row.peak_many:.0f}"
        lines.append(f"| {where} | {row.bare_milliseconds:.0f} | {ratio} | {peaks} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="3 turns, ResNet-20 only, nothing written")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--peak", nargs=3, metavar=("NETWORK", "CRITERION", "BATCHES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # fresh ResNets saturate the loss on running statistics, where SNIP's authors score: here only the time counts
    warnings.filterwarnings("ignore", message="the scoring loss has saturated")
    if options.peak:
        network, criterion, num_batches = options.peak
        print(peak_bytes(network, criterion, int(num_batches), device))
        return
    where, turns = machine(device), 3 if options.quick else options.turns
    print(where, flush=True)
    networks = ["resnet20"] if options.quick else list(BUILDERS)
    rows = [measure(network, criterion, turns, device) for network in networks for criterion in CRITERIA]
    print(table(rows))
    if not options.quick:
        options.output.mkdir(parents=True, exist_ok=True)
        found = {"machine": where, "turns": turns, "rows": [asdict(row) for row in rows]}
        (options.output / "gradient_scoring.json").write_text(json.dumps(found, indent=1) + "\n")
        title = f"# SNIP and GraSP: time and memory\n\n{where}; {turns} turns\n\n"
        (options.output / "gradient_scoring.md").write_text(title + table(rows) + "\n")


if __name__ == "__main__":
    main()
