"""Seconds until a command has its answer, until a run scores, and between two levels of a run.

    OMP_NUM_THREADS=2 python benchmarks/startup.py [--quick] [--turns N]

The commands are processes of their own and take turns; the ratio is to `import torch, pytorch_lightning` in the same
turn. Seconds are from the start of the process to its end, processor seconds those of all its threads. A run is ended
by its first scoring round, once it is over; neither it nor the imports clear up at their end.
Seconds between levels are from the end of the last epoch of a level to the first step of the next: test, record,
TensorBoard, rewinding, scoring by magnitude and pruning lie between. The network's latency is measured once a
run, before the first level. The first gap stands alone, as what is new to the process takes longer.
Writes startup.json and startup.md into `--output`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
TRAIN = str(ROOT / "train.py")
IMPORTS = "import torch, pytorch_lightning"
# what -> words after python, the exit code
COMMANDS: dict[str, tuple[list[str], int]] = {
    IMPORTS: (["-c", f"{IMPORTS}, os; os._exit(0)"], 0),
    "--help": ([TRAIN, "--help"], 0),
    "an unknown config": ([TRAIN, "--config", "quikstart.yaml"], 2),
    "an unknown criterion": ([TRAIN, "--config", "quickstart.yaml", "--pruning.criterion", "sniip"], 2),
    "an impossible density": ([TRAIN, "--config", "quickstart.yaml", "--pruning.density", "2"], 2),
    "an unknown key, which needs torch": ([TRAIN, "--config", "quickstart.yaml", "--trainer.max_epoch", "3"], 2),
    "quickstart.yaml to its first scoring round": (
        [TRAIN, "--config", "quickstart.yaml", "--trainer.callbacks+=startup_moments.EndAtFirstRound"],
        0,
    ),
}
LEVELS = [
    *(TRAIN, "--config", "imp_quickstart.yaml", "--tickets.rewind_step", "2it", "--trainer.max_epochs", "1"),
    *("--trainer.limit_train_batches", "4", "--trainer.callbacks+=startup_moments.PrintGaps"),
]
NETWORKS = ("lenet_300_100", "resnet20")


@dataclass(frozen=True)
class Command:
    """Seconds of a command in each turn, and how often they are those of the imports."""

    what: str
    wall: list[float]
    processor: list[float]
    ratio: list[float]
    processor_ratio: list[float]


@dataclass(frozen=True)
class Gaps:
    """Seconds between two levels: the first and the second, and all later ones."""

    network: str
    first: list[float]
    later: list[float]
    first_processor: list[float]
    later_processor: list[float]


def measure_commands(turns: int) -> list[Command]:
    seconds: dict[str, list[tuple[float, float]]] = {what: [] for what in COMMANDS}
    for turn in range(turns + 1):
        for what, (words, code) in COMMANDS.items():
            measured = _seconds(words, code)
            if turn > 0:  # the first brings the files into memory
                seconds[what].append(measured)
    base = seconds[IMPORTS]
    return [
        Command(
            what,
            [wall for wall, _ in own],
            [processor for _, processor in own],
            [wall / of_base for (wall, _), (of_base, _) in zip(own, base, strict=True)],
            [processor / of_base for (_, processor), (_, of_base) in zip(own, base, strict=True)],
        )
        for what, own in seconds.items()
    ]


def measure_gaps(turns: int) -> list[Gaps]:
    found: dict[str, list[list[tuple[float, float]]]] = {network: [] for network in NETWORKS}
    for _ in range(turns):
        for network, of_network in found.items():
            with tempfile.TemporaryDirectory() as folder:
                output = _run([*LEVELS, "--model.net", network, "--output_dir", folder], 0)
            gaps = [(float(wall), float(used)) for wall, used in re.findall(r"^gap (\S+) (\S+)$", output, re.MULTILINE)]
            if len(gaps) != 3:
                raise RuntimeError(f"{len(gaps)} gaps instead of 3:\n{output}")
            of_network.append(gaps)
    return [
        Gaps(
            network,
            first=[gaps[0][0] for gaps in runs],
            later=[wall for gaps in runs for wall, _ in gaps[1:]],
            first_processor=[gaps[0][1] for gaps in runs],
            later_processor=[used for gaps in runs for _, used in gaps[1:]],
        )
        for network, runs in found.items()
    ]


def _seconds(words: Sequence[str], code: int) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as folder:
        words = [*words, "--output_dir", folder] if "quickstart.yaml" in words else words
        before, started = os.times(), time.perf_counter()
        _run(words, code)
        wall, after = time.perf_counter() - started, os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return wall, used


def _run(words: Sequence[str], code: int) -> str:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode != code:
        raise RuntimeError(f"{' '.join(words)} ended with {done.returncode} instead of {code}:\n{done.stdout}")
    return done.stdout


def machine() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "pytorch-lightning"))
    return (
        f"{model or platform.machine()}, {os.cpu_count()} CPUs, OMP_NUM_THREADS "
        f"{os.environ.get('OMP_NUM_THREADS', 'not set')}; {versions}, Python {platform.python_version()}; "
        f"load at the start {load}"
    )


def table(commands: list[Command], gaps: list[Gaps]) -> str:
    """Markdown; each cell the median (min - max) over the turns."""
    lines = [
        "| command | seconds | of the imports | processor seconds | of the imports |",
        "|---|---|---|---|---|",
        *(
            f"| {c.what} | {_cell(c.wall)} | {_cell(c.ratio)} | {_cell(c.processor)} | {_cell(c.processor_ratio)} |"
            for c in commands
        ),
        "",
        "| seconds between levels, digits | first and second | later | processor: first and second | later |",
        "|---|---|---|---|---|",
        *(
            f"| {g.network} | {_cell(g.first)} | {_cell(g.later)} | {_cell(g.first_processor)} "
            f"| {_cell(g.later_processor)} |"
            for g in gaps
        ),
    ]
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} - {max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one turn, nothing written")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    turns = 1 if options.quick else options.turns
    where = machine()
    print(where, flush=True)
    commands, gaps = measure_commands(turns), measure_gaps(-(-turns // 2))
    text = table(commands, gaps)
    print(text)
    if not options.quick:
        options.output.mkdir(parents=True, exist_ok=True)
        found = {
            "machine": where,
            "turns": turns,
            "commands": list(map(asdict, commands)),
            "gaps": list(map(asdict, gaps)),
        }
        (options.output / "startup.json").write_text(json.dumps(found, indent=1) + "\n")
        (options.output / "startup.md").write_text(f"{text}\n\n{where}\n{turns} turns\n")


if __name__ == "__main__":
    main()
