"""What options of a whole training step bring: channels_last, bf16-mixed, compile, CUDA graphs; and what they do to the
accuracy.

    OMP_NUM_THREADS=2 python benchmarks/training_options.py [--quick] [--no_compile]

A step is forward, loss, backward and SGD with momentum and weight decay, batch 128 of 32 x 32 pixels, as train.py does
it: `model.channels_last` for weights and pictures, `trainer.precision bf16-mixed` as autocast around the forward pass
and the loss, `model.compile` as `net.compile()`, which needs a C++ compiler on a CPU. CUDA graphs, on a GPU only, are
`net.compile(mode="reduce-overhead")`. The options take turns; a ratio is the default's seconds over the option's in the
same turn.
Accuracies are of quickstart.yaml, shortened to 8 epochs: a half-width ResNet-20 that SynFlow prunes to a tenth, on
scikit-learn's digits, by train.py's own way. The difference is to float32 with the same seed, so to the same weights,
masks and order.
Writes training_options.json and training_options.md into `--output`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from measuring import RESULTS, finish, machine, spread
from torch import nn
from torch.nn.functional import cross_entropy

from prunelab.cli import main as train
from prunelab.memory import keep_freed_memory
from prunelab.models import resnet20, vgg16_bn

BATCH = 128
NETWORKS: dict[str, Callable[[], nn.Module]] = {"ResNet-20": resnet20, "VGG-16": vgg16_bn}
SEEDS = (0, 1, 2)
SHORT = ["--config", "quickstart.yaml", "--trainer.max_epochs", "8", "--model.lr_scheduler.milestones", "[5,7]"]
IN_CONFIG = {  # what train.py is told
    "default (float32)": [],
    "channels_last": ["--model.channels_last", "true"],
    "bf16-mixed": ["--trainer.precision", "bf16-mixed"],
    "channels_last, bf16-mixed": ["--config", "fast_cpu.yaml"],
}


@dataclass(frozen=True)
class Option:
    """mode: of torch's compile; None: not compiled."""

    name: str
    channels_last: bool = False
    bf16: bool = False
    mode: str | None = None


OPTIONS = (
    Option("default (float32)"),
    Option("channels_last", channels_last=True),
    Option("bf16-mixed", bf16=True),
    Option("channels_last, bf16-mixed", channels_last=True, bf16=True),
)
COMPILED = (
    Option("compile", mode="default"),
    Option("channels_last, bf16-mixed, compile", channels_last=True, bf16=True, mode="default"),
)
GRAPHS = (
    Option("CUDA graphs", mode="reduce-overhead"),
    Option("channels_last, bf16-mixed, CUDA graphs", channels_last=True, bf16=True, mode="reduce-overhead"),
)


class Step:
    """Training steps of one network with one option, on one batch of noise."""

    def __init__(self, build: Callable[[], nn.Module], option: Option, device: str) -> None:
        torch.manual_seed(0)
        memory_format = torch.channels_last if option.channels_last else torch.contiguous_format
        self._net = build().to(device, memory_format=memory_format).train()
        if option.mode is not None:
            self._net.compile(mode=option.mode)
        self._images = torch.randn(BATCH, 3, 32, 32).to(device, memory_format=memory_format)
        self._labels = torch.randint(10, (BATCH,)).to(device)
        self._optimizer = torch.optim.SGD(self._net.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
        self._bf16, self._device = option.bf16, device

    def seconds(self, steps: int = 1) -> float:
        """Of each of `steps`."""
        finish(self._device)
        started = time.perf_counter()
        for _ in range(steps):
            self._optimizer.zero_grad()
            with torch.autocast(self._device, dtype=torch.bfloat16, enabled=self._bf16):
                loss = cross_entropy(self._net(self._images), self._labels)
            loss.backward()
            self._optimizer.step()
        finish(self._device)
        return (time.perf_counter() - started) / steps


def measure_steps(network: str, options: list[Option], turns: int, device: str) -> list[dict[str, Any]]:
    """Milliseconds of a step, how much faster than the default, and the seconds of the first one, compilation in it."""
    steps = [Step(NETWORKS[network], option, device) for option in options]
    first = [step.seconds() for step in steps]
    for step in steps:
        step.seconds(2)
    many = 20 if device == "cuda" else 1
    seconds = [[step.seconds(many) for step in steps] for _ in range(turns)]
    rows = []
    for index, option in enumerate(options):
        base, own = ([of_turn[place] for of_turn in seconds] for place in (0, index))
        ratios = dict(zip(("median", "min", "max"), spread(base, own), strict=True))
        times = {"milliseconds": 1e3 * statistics.median(own), "first_seconds": first[index]}
        rows.append({"option": asdict(option), **times, **ratios})
    return rows


def measure_accuracies(seeds: tuple[int, ...]) -> list[dict[str, Any]]:
    """Test accuracies at the last epoch, in percent, of each option and seed."""
    found: dict[str, list[float]] = {name: [] for name in IN_CONFIG}
    masks: set[tuple[int, str]] = set()
    for seed in seeds:
        for name, words in IN_CONFIG.items():
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()) as printed:
                code = train([*SHORT, *words, "--seed_everything", str(seed), "--output_dir", folder])
                if code != 0:
                    raise RuntimeError(f"{name}, seed {seed} ended with {code}:\n{printed.getvalue()}")
                run_dir = Path(printed.getvalue().split()[-1])
                record = json.loads((run_dir / "level_00" / "record.json").read_text())
            found[name].append(100 * record["test_accuracy"])
            masks.add((seed, record["masks_digest"]))
    if len(masks) != len(seeds):
        raise RuntimeError("the options pruned differently")
    base = found["default (float32)"]
    return [
        {"name": name, "accuracies": own, "differences": [a - b for a, b in zip(own, base, strict=True)]}
        for name, own in found.items()
    ]


def text(results: dict[str, Any]) -> str:
    """Markdown."""
    lines = ["# Options of the training step", "", f"{results['machine']}; {results['turns']} turns"]
    lines += [f"Not measured: {missing}" for missing in results["not_measured"]]
    for network, rows in results["steps"].items():
        lines += ["", f"**{network}**, batch {BATCH}, 32 x 32 pixels", ""]
        lines += ["| option | step, ms | faster: median (min - max) | first step, s |", "|---|---|---|---|"]
        for row in rows:
            ratio = f"{row['median']:.2f} ({row['min']:.2f} - {row['max']:.2f})"
            lines.append(
                f"| {row['option']['name']} | {row['milliseconds']:.1f} | x {ratio} | {row['first_seconds']:.1f} |"
            )
    seeds = len(results["accuracies"][0]["accuracies"])
    lines += [
        "",
        f"**Test accuracy in percent, digits, {seeds} seeds**; the masks are those of float32, bit for bit",
        "",
    ]
    lines += ["| option | mean | standard deviation | difference to float32, by seed |", "|---|---|---|---|"]
    for row in results["accuracies"]:
        own = row["accuracies"]
        deviation = statistics.stdev(own) if len(own) > 1 else float("nan")
        differences = ", ".join(f"{difference:+.2f}" for difference in row["differences"])
        lines.append(f"| {row['name']} | {statistics.mean(own):.2f} | {deviation:.2f} | {differences} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few turns, one seed, no compile, nothing written")
    parser.add_argument("--no_compile", action="store_true", help="compiling takes most of the time")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    turns = 2 if options.quick else options.turns
    keep_freed_memory()  # as train.py does
    device = "cuda" if torch.cuda.is_available() else "cpu"
    where = machine(device)
    print(where, flush=True)
    measured, missing = list(OPTIONS), []
    if options.quick or options.no_compile:
        missing.append("compile")
    elif device == "cpu" and shutil.which("g++") is None and shutil.which("clang++") is None:
        missing.append("compile: there is no C++ compiler here")
    else:
        measured += COMPILED
    if device == "cuda" and not options.quick and not options.no_compile:
        measured += GRAPHS
    else:
        missing.append("CUDA graphs" + ("" if device == "cuda" else ": there is no GPU here"))
    results: dict[str, Any] = {"machine": where, "turns": turns, "not_measured": missing, "steps": {}}
    for network in NETWORKS:
        results["steps"][network] = measure_steps(network, measured, turns, device)
    results["accuracies"] = measure_accuracies(SEEDS[:1] if options.quick else SEEDS)
    print(text(results))
    if not options.quick:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "training_options.json").write_text(json.dumps(results, indent=1) + "\n")
        (options.output / "training_options.md").write_text(text(results))


if __name__ == "__main__":
    main()
