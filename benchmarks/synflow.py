"""SynFlow's seconds against its bare passes and against a textbook version, side by side in one run.

    python benchmarks/synflow.py [--quick] [--all] [--networks resnet20 vgg16_bn resnet18_64] [--turns 7] [--output DIR]

A round needs one forward and one backward pass of the network at batch 1: `rounds` of them, in the same precision, are
the bare passes. The textbook version is the algorithm as papers print it, in float32: in each round the signs of the
state dict are set aside, forward multiplies weights by float masks, scores of all layers are concatenated and divided
by their sum, and `torch.kthvalue` gives the threshold. "whole passes" is the fast path without the blocks that it goes
through in float64 once most weights are dropped (on the CPU); the masks have to be the same.
Threads are those of OMP_NUM_THREADS; train.py scores on one.
All take turns, in another order each time; a ratio is the median over the turns of seconds over the other's in the same
turn.
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
from unittest import mock

import torch
from measuring import RESULTS, finish, machine, spread
from torch import Tensor, nn
from torch.func import functional_call

from prunelab.memory import keep_freed_memory
from prunelab.models import resnet18_64, resnet20, vgg16_bn
from prunelab.pruning import Masks, flow_rounds, prunable_names, prune
from prunelab.pruning.criteria import SynFlow

WARM_UP = 5  # rounds of each version before anything is timed
# title, pixels, and how many times the turns: those of a second scatter more than longer ones
NETWORKS: dict[str, tuple[str, Callable[[], nn.Module], int, int]] = {
    "resnet20": ("ResNet-20", resnet20, 32, 3),
    "vgg16_bn": ("VGG-16-BN", vgg16_bn, 32, 1),
    "resnet18_64": ("ResNet-18, 64 pixels", resnet18_64, 64, 1),
}


def bare_passes(net: nn.Module, example: Tensor, rounds: int) -> None:
    weights = [parameter for parameter in net.parameters() if parameter.dim() > 1]
    for _ in range(rounds):
        torch.autograd.grad(net(example).sum(), weights)


def textbook(net: nn.Module, example: Tensor, rounds: int, density: float) -> dict[str, Tensor]:
    """Float masks of the weights, found with a threshold per round."""
    net.eval()
    parameters, names = dict(net.named_parameters()), prunable_names(net)
    masks = {name: torch.ones_like(parameters[name]) for name in names}
    for index in range(1, rounds + 1):
        with torch.no_grad():
            signs = {name: tensor.sign() for name, tensor in net.state_dict().items()}
            for tensor in net.state_dict().values():
                tensor.abs_()
        masked = {name: parameters[name] * masks[name] for name in names}
        functional_call(net, masked, (torch.ones_like(example),)).sum().backward()
        scores = {}
        for name in names:
            scores[name] = (parameters[name].grad * parameters[name]).clone().detach().abs_()
        net.zero_grad()
        with torch.no_grad():
            for name, tensor in net.state_dict().items():
                tensor.mul_(signs[name])
        norm = torch.cat([values.flatten() for values in scores.values()]).sum()
        for values in scores.values():
            values.div_(norm)
        flat = torch.cat([values.flatten() for values in scores.values()])
        num_pruned = int((1 - density ** (index / rounds)) * flat.numel())
        threshold = flat.kthvalue(num_pruned).values
        zero, one = torch.zeros((), device=flat.device), torch.ones((), device=flat.device)
        masks = {name: torch.where(values <= threshold, zero, one) for name, values in scores.items()}
    return masks


def whole_passes(**options: Any) -> Masks:
    with mock.patch.object(flow_rounds.FlowRounds, "_look_for_blocks", return_value=None):
        return prune(**options)


def works(name: str, options: argparse.Namespace, device: str) -> dict[str, Callable[[], object]]:
    """What is timed, by its title."""
    torch.manual_seed(0)
    _, build, size, _ = NETWORKS[name]
    net = build().to(device).eval()
    example = torch.ones(1, 3, size, size, device=device)
    found: dict[str, Callable[[], object]] = {"textbook, float32": partial(textbook, net, example, options.rounds,
                                                                           options.density)}  # fmt: skip
    for precision, dtype in (("float32", torch.float32), ("float64", torch.float64)):
        bare = copy.deepcopy(net).to(dtype)
        found[f"bare passes, {precision}"] = partial(bare_passes, bare, example.to(dtype), options.rounds)
        for path in ("fast", "plain", "lean") if options.all else ("fast",):
            if path == "lean" and device != "cpu":
                continue
            criterion = SynFlow(rounds=options.rounds, precision=precision, path=path)  # type: ignore[arg-type]
            work = partial(prune, net=net, criterion=criterion, density=options.density, example_input=example)
            found[f"{path}, {precision}"] = work
        if precision == "float64" and device == "cpu":
            criterion = SynFlow(rounds=options.rounds, path="fast")
            work = partial(whole_passes, net=net, criterion=criterion, density=options.density, example_input=example)
            found["whole passes, float64"] = work
    return found


def measure(name: str, options: argparse.Namespace, device: str) -> list[dict[str, Any]]:
    timed = works(name, options, device)
    seconds: dict[str, list[float]] = {title: [] for title in timed}
    masks: dict[str, object] = {}
    for work in works(name, argparse.Namespace(**vars(options) | {"rounds": WARM_UP}), device).values():
        work()
    titles = list(timed)
    for turn in range(options.turns * NETWORKS[name][3]):
        begin = turn % len(titles)
        for title in titles[begin:] + titles[:begin]:
            finish(device)
            started = time.perf_counter()
            masks[title] = timed[title]()
            finish(device)
            seconds[title].append(time.perf_counter() - started)
    if len({masks[title].digest() for title in timed if isinstance(masks[title], Masks) and "float64" in title}) > 1:
        raise RuntimeError(f"{name}: masks of float64 differ between paths")
    rows = []
    for title, own in seconds.items():
        bare, book = seconds[f"bare passes, {title.rpartition(' ')[2]}"], seconds["textbook, float32"]
        rows.append(
            {
                "network": name,
                "version": title,
                "seconds": statistics.median(own),
                "to_bare": spread(own, bare),
                "faster_than_textbook": spread(book, own),
            }
        )
    return rows


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
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["resnet20", "vgg16_bn"])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--density", type=float, default=0.01)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--all", action="store_true", help="the plain and the lean path, too")
    parser.add_argument("--quick", action="store_true", help="10 rounds, one turn, nothing written")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.turns = 10, 1
    keep_freed_memory()  # as train.py does
    device = "cuda" if torch.cuda.is_available() else "cpu"
    where, rows = machine(device), []
    print(where, flush=True)
    for name in options.networks:
        rows += measure(name, options, device)
        print(table([row for row in rows if row["network"] == name]), flush=True)
    if options.quick:
        return
    options.output.mkdir(parents=True, exist_ok=True)
    more = [f"{title} {times} times as many" for title, _, _, times in NETWORKS.values() if times > 1]
    told = ", ".join([f"{options.rounds} rounds to density {options.density:g}, {options.turns} turns", *more])
    (options.output / "synflow.json").write_text(json.dumps({"machine": where, "told": told, "rows": rows}, indent=1))
    (options.output / "synflow.md").write_text(f"# SynFlow, {told}\n\n{where}\n\n{table(rows)}\n")


if __name__ == "__main__":
    main()
