"""What masks cost a training step: prunelab's and other libraries' ways against the dense step, side by side.

    OMP_NUM_THREADS=2 python benchmarks/masked_step.py [--quick] [--networks resnet20 ...] [--turns N] [--output DIR]

A step is whole: forward, loss, backward, masking, optimizer; float32, batch 128 of noise, contiguous (ModelPruning
refuses channels last). In a loop of its own, and inside `Trainer.fit`. The ways: KeepPruned;
`torch.nn.utils.prune.custom_from_mask`, which is Lightning's ModelPruning inside `fit`; `torch.nn.utils.parametrize`
with w * mask. They take turns, each turn begins with another; a ratio is of the seconds in one turn.
Whole steps do not show one per cent here: a second dense network differs from the first by more. So
"masks, in step" times what masks can change, what a step does after its backward pass, in the step: masking and
optimizer of the pruned network less the optimizer of the dense one, over the dense step; its median lies between the
values in brackets with 95 %.
Masks are random: which weights are kept does not matter to the time.
On a GPU, if there is one, with and without `net.compile()`.
Writes masked_step.json and masked_step.md into `--output`; `--quick` writes nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from compact_masks import SETTINGS
from masked_ways import AGAIN, DENSE, FIT_WAYS, KEEP, LOOP_WAYS, OPTIMIZERS, InFit, PlainLoop
from measuring import RESULTS, interval, machine
from torch import nn

from prunelab.memory import keep_freed_memory
from prunelab.pruning import Masks, prune
from prunelab.pruning.criteria import Random

NETWORKS = ("resnet20", "vgg16_bn")
STEPS = {"cpu": {"resnet20": 2, "vgg16_bn": 1}, "cuda": {"resnet20": 50, "vgg16_bn": 50}}  # in a turn


@dataclass(frozen=True)
class Row:
    """ratios: seconds of the way's step / of the dense one, in each turn. in_step: of KeepPruned in a loop, what masks
    add to what follows the backward pass / the dense step, in each turn."""

    network: str
    optimizer: str
    place: str
    way: str
    compiled: bool
    milliseconds: float
    ratios: list[float]
    in_step: list[float] | None = None


def measure(network: str, optimizer: str, in_fit: bool, compiled: bool, masks: Masks, turns: int) -> list[Row]:
    """The rows of the ways of one network, optimizer and place."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ways = FIT_WAYS if in_fit else LOOP_WAYS
    loop: type[InFit] | type[PlainLoop] = InFit if in_fit else PlainLoop
    trainings = {way: loop(network, way, optimizer, masks, device, compiled) for way in ways}
    for way, training in trainings.items():
        for _ in range(2 if in_fit else 1):  # makes the optimizer's slots; in a fit, then the masks of ModelPruning
            training.seconds(1)
        check_density(training.net, masks, 1.0 if way in (DENSE, AGAIN) else masks.density)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    added: list[float] = []
    for turn in range(turns):
        for way in (*ways[turn % len(ways) :], *ways[: turn % len(ways)]):
            seconds[way].append(trainings[way].seconds(STEPS[device][network]))
        update: dict[str, float] = {}
        for way in (DENSE, KEEP) if turn % 2 else (KEEP, DENSE):
            if isinstance(training := trainings[way], PlainLoop):
                update[way] = training.seconds_of_update(STEPS[device][network])
        if update:
            added.append((update[KEEP] - update[DENSE]) / seconds[DENSE][-1])
    rows = []
    for way, own in seconds.items():
        place = "fit" if in_fit else "loop"
        ratios = [one / other for one, other in zip(own, seconds[DENSE], strict=True)]
        in_step = added if way == KEEP and added else None
        rows.append(Row(network, optimizer, place, way, compiled, 1e3 * statistics.median(own), ratios, in_step))
    return rows


def check_density(net: nn.Module, masks: Masks, expected: float) -> None:
    """That the network computes with as few weights as it should."""
    weights = [getattr(net.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in masks]
    density = sum(int(torch.count_nonzero(weight)) for weight in weights) / masks.num_weights
    if abs(density - expected) > 1e-3:
        raise RuntimeError(f"the network computes with {density:.3f} of its weights, not with {expected:.3f}")


def all_steps(rows: list[Row], way: str) -> dict[str, float]:
    """Of a way's steps over the dense ones: the median of all turns of all rows, what it lies between with 95 %, and
    the lowest and highest median of a row."""
    found = [row.ratios for row in rows if row.way == way]
    ratios, medians = [ratio for row in found for ratio in row], list(map(statistics.median, found))
    low, high = interval(ratios)
    return {
        "median": statistics.median(ratios),
        "low": low,
        "high": high,
        "lowest": min(medians),
        "highest": max(medians),
    }


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = [
        "| network | optimizer | where | way | step, ms | step / dense: median (min - max) | 95 % | masks, in step |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        place = f"{row.place}, compiled" if row.compiled else row.place
        ratio = f"{statistics.median(row.ratios):.3f} ({min(row.ratios):.3f} - {max(row.ratios):.3f})"
        sure = "" if row.way == DENSE else "{:.3f} - {:.3f}".format(*interval(row.ratios))
        in_step = ""
        if row.in_step:
            low, high = interval(row.in_step)
            in_step = f"{statistics.median(row.in_step):+.2%} ({low:+.2%} - {high:+.2%})"
        where = f"{SETTINGS[row.network].title} | {row.optimizer} | {place}"
        lines.append(f"| {where} | {row.way} | {row.milliseconds:.1f} | {ratio} | {sure} | {in_step} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--turns", type=int, default=16)
    parser.add_argument("--quick", action="store_true", help="2 turns, ResNet-20 only, nothing written")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.quick:
        options.networks, options.turns = ["resnet20"], 2
    device = "cuda" if torch.cuda.is_available() else "cpu"
    keep_freed_memory()  # as train.py does
    where = machine(device)
    print(where, flush=True)
    rows: list[Row] = []
    for network in options.networks:
        setting = SETTINGS[network]
        masks = prune(setting.build(), Random(), density=options.density, example_input=setting.example())
        for optimizer in OPTIMIZERS:
            for in_fit in (False, True):
                for compiled in (False, True) if device == "cuda" else (False,):
                    found = measure(network, optimizer, in_fit, compiled, masks, options.turns)
                    print(table(found), flush=True)
                    rows += found
    if not options.quick:
        options.output.mkdir(parents=True, exist_ok=True)
        saved = {"machine": where, "turns": options.turns, "density": options.density, "steps": STEPS[device]}
        saved["rows"] = [asdict(row) for row in rows]
        saved["all_steps"] = steps = {way: all_steps(rows, way) for way in (KEEP, AGAIN)}
        (options.output / "masked_step.json").write_text(json.dumps(saved, indent=1) + "\n")
        text = f"# The masked step\n\n{where}; density {options.density}, {options.turns} turns\n\n{table(rows)}\n"
        for way, found in steps.items():
            summary = "x {median:.3f}, 95 %: {low:.3f} - {high:.3f}; medians of the rows: {lowest:.3f} - {highest:.3f}"
            text += f"\n{way!r}, all steps: {summary.format(**found)}\n"
        (options.output / "masked_step.md").write_text(text)


if __name__ == "__main__":
    main()
