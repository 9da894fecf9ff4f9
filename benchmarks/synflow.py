"""SynFlow's seconds against its bare passes and against a textbook version, side by side in one run.

    python benchmarks/synflow.py [--quick] [--networks resnet20 vgg16_bn] [--rounds 100] [--turns 5] [--output DIR]

A round needs one forward and one backward pass of the network at batch 1: `rounds` of them, in the same precision, are
the bare passes. The textbook version is the algorithm as papers print it, in float32: in each round the signs of the
state dict are set aside, weights are multiplied by float masks, all scores are concatenated and `torch.kthvalue` gives
the threshold. All take turns; a ratio is the median over the turns of seconds over the other's in the same turn.
On a GPU, if there is one. Writes synflow.md and synflow.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from compact import machine
from torch import Tensor, nn
from torch.func import functional_call

from prunelab.models import resnet20, vgg16_bn
from prunelab.pruning import prunable_names, prune
from prunelab.pruning.criteria import SynFlow

RESULTS = Path(__file__).parent / "results"
NETWORKS = {"resnet20": ("ResNet-20", resnet20), "vgg16_bn": ("VGG-16-BN", vgg16_bn)}


def bare_passes(net: nn.Module, example: Tensor, rounds: int) -> None:
    weights = [parameter for parameter in net.parameters() if parameter.dim() > 1]
    for _ in range(rounds):
        torch.autograd.grad(net(example).sum(), weights)


def textbook(net: nn.Module, example: Tensor, rounds: int, density: float) -> dict[str, Tensor]:
    """Float masks of the weights, found with a threshold per round."""
    parameters, names = dict(net.named_parameters()), prunable_names(net)
    masks = {name: torch.ones_like(parameters[name]) for name in names}
    for index in range(1, rounds + 1):
        signs = {name: tensor.sign() for name, tensor in net.state_dict().items()}
        for tensor in net.state_dict().values():
            tensor.abs_()
        masked = {name: (parameters[name].detach() * masks[name]).requires_grad_() for name in names}
        total = functional_call(net, masked, (torch.ones_like(example),)).sum()
        total.backward()
        scores = {name: (masked[name].grad * masked[name]).detach().abs() for name in names}
        for name, tensor in net.state_dict().items():
            tensor.mul_(signs[name])
        flat = torch.cat([values.flatten() for values in scores.values()])
        num_pruned = int((1 - density ** (index / rounds)) * flat.numel())
        threshold = flat.kthvalue(num_pruned).values
        masks = {name: torch.where(values <= threshold, 0.0, 1.0) for name, values in scores.items()}
    return masks


def works(name: str, options: argparse.Namespace, device: str) -> dict[str, Callable[[], object]]:
    """What is timed, by its title."""
    torch.manual_seed(0)
    net = NETWORKS[name][1]().to(device).eval()
    example = torch.ones(1, 3, 32, 32, device=device)
    found: dict[str, Callable[[], object]] = {"textbook, float32": partial(textbook, net, example, options.rounds,
                                                                           options.density)}  # fmt: skip
    for precision, dtype in (("float32", torch.float32), ("float64", torch.float64)):
        bare = copy.deepcopy(net).to(dtype)
        found[f"bare passes, {precision}"] = partial(bare_passes, bare, example.to(dtype), options.rounds)
        for path in ("fast", "plain", "lean") if options.all else ("fast", "plain"):
            if path == "lean" and device != "cpu":
                continue
            criterion = SynFlow(rounds=options.rounds, precision=precision, path=path)  # type: ignore[arg-type]
            work = partial(prune, net, criterion, density=options.density, example_input=example)
            found[f"{path}, {precision}"] = work
    return found


def measure(name: str, options: argparse.Namespace, device: str) -> list[dict[str, Any]]:
    timed = works(name, options, device)
    seconds: dict[str, list[float]] = {title: [] for title in timed}
    for turn in range(options.turns + 1):
        for title, work in timed.items():
            if turn == 0 and title.startswith(("textbook", "plain", "lean")) and device == "cpu":
                continue  # the first turn warms up: the libraries and the allocator
            seconds[title].append(_seconds(work, device))
    rows = []
    for title, own in seconds.items():
        own = own[-options.turns :]
        bare = seconds[f"bare passes, {title.rpartition(' ')[2]}"][-options.turns :]
        book = seconds["textbook, float32"][-options.turns :]
        rows.append(
            {
                "network": name,
                "version": title,
                "seconds": statistics.median(own),
                "to_bare": _spread([one / other for one, other in zip(own, bare, strict=True)]),
                "faster_than_textbook": _spread([other / one for one, other in zip(own, book, strict=True)]),
            }
        )
    return rows


def _spread(ratios: list[float]) -> tuple[float, float, float]:
    return statistics.median(ratios), min(ratios), max(ratios)


def _seconds(work: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def table(rows: list[dict[str, Any]]) -> str:
    head = "| network | version | seconds | to bare passes: median (min - max) | faster than the textbook version |"
    lines = [head, "|" + "---|" * 5]
    for row in rows:
        spreads = ["{:.2f} ({:.2f} - {:.2f})".format(*row[key]) for key in ("to_bare", "faster_than_textbook")]
        title = NETWORKS[row["network"]][0]
        lines.append(f"| {title} | {row['version']} | {row['seconds']:.2f} | {spreads[0]} | {spreads[1]} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--density", type=float, default=0.01)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--all", action="store_true", help="the lean path, too")
    parser.add_argument("--quick", action="store_true", help="10 rounds, one turn, nothing written")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.turns = 10, 1
    device = "cuda" if torch.cuda.is_available() else "cpu"
    where, rows = machine(device), []
    print(where, flush=True)
    for name in options.networks:
        rows += measure(name, options, device)
        print(table([row for row in rows if row["network"] == name]), flush=True)
    if options.quick:
        return
    options.output.mkdir(parents=True, exist_ok=True)
    told = f"{options.rounds} rounds to density {options.density:g}, {options.turns} turns"
    (options.output / "synflow.json").write_text(json.dumps({"machine": where, "told": told, "rows": rows}, indent=1))
    (options.output / "synflow.md").write_text(f"# SynFlow, {told}\n\n{where}\n\n{table(rows)}\n")


if __name__ == "__main__":
    main()
