"""Time per step on 1 and 2 processes, what they send each other in a step, and on paper what 8 and 64 GPUs would do.

    OMP_NUM_THREADS=1 python benchmarks/scaling.py [--quick] [--cache DIR]

Two processes of one thread each (gloo, CPU). As in prunelab the batch is global: 2 processes take half of it each. A
step is that of compact.py, under DistributedDataParallel. What is compared takes turns, in the same two processes: one
process alone (the other waits), both, and both without communication (`no_sync`), which shows what the cores cost each
other. Bytes are counted by a communication hook, from the buckets that DDP hands to all-reduce. The paper part is
scaling_paper.py.
Writes scaling.json and scaling.md into `--output`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torchvision
from compact_masks import SETTINGS, Setting, find_masks
from measuring import RESULTS, machine, seconds_of_others
from scaling_paper import GPUS, STEPS, Estimate, estimate, on_paper
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from training_step import Training, Variant, compacted, dense, masked

from prunelab.models import resnet20
from prunelab.pruning import Masks

DENSITY = 0.01
PROCESSES = 2
MOST_OF_OTHERS, BUSY = 0.05, ": the times say nothing of scaling"


def _resnet50(num_classes: int, image_size: int) -> nn.Module:
    return torchvision.models.resnet50(num_classes=num_classes)


# beside those of compact.py; of ResNet-50 only bytes are counted, which images and batch do not change
SETTINGS |= {
    "small": Setting("ResNet-20 of half width", partial(resnet20, width=0.5), 10, 8, 64),
    "resnet50": Setting("ResNet-50", _resnet50, 1000, 64, 4),
}
TIMED = {"small": 20, "resnet20": 1}  # steps in a turn
COUNTED = (
    ("small", "dense"),
    ("resnet20", "dense"),
    ("resnet20", "masked"),
    ("resnet20", "compact"),
    ("resnet50", "dense"),
)
KINDS = ("1 process", "2 processes", "2 processes, no communication")


@dataclass(frozen=True)
class Timing:
    """seconds a step: medians over the turns. speedup: of one process alone over this, in the same turn."""

    network: str
    variant: str
    kind: str
    milliseconds: float
    speedup: float
    speedup_min: float
    speedup_max: float


@dataclass(frozen=True)
class Volume:
    """What a process gives to collectives in a step. buckets: bytes of each all-reduce, in order."""

    network: str
    variant: str
    num_parameters: int
    num_kept: int
    buckets: tuple[int, ...]
    buffer_bytes: int

    @property
    def bytes_per_parameter(self) -> float:
        return sum(self.buckets) / self.num_parameters


class SharedTraining(Training):
    """Training, on this process's share of the batch, with the gradients averaged over all processes.

    synchronises: False leaves communication out. buckets: bytes of each all-reduce of the last step, if counted.
    """

    def __init__(self, variant: Variant, *, synchronises: bool = True, counts: bool = False) -> None:
        super().__init__(variant, "cpu")
        mine = slice(dist.get_rank(), None, dist.get_world_size())
        self._images = self._images[mine].contiguous(memory_format=torch.channels_last)
        self._labels = self._labels[mine]
        self._shared = DistributedDataParallel(self._net)
        self._net = self._shared
        self._synchronises = synchronises
        self.buckets: list[int] = []
        if counts:
            self._shared.register_comm_hook(self.buckets, _count)

    def step(self) -> None:
        self.buckets.clear()
        with nullcontext() if self._synchronises else self._shared.no_sync():
            super().step()


def _count(buckets, bucket):  # type: ignore[no-untyped-def]  # torch compares the types themselves, if there are any
    buckets.append(bucket.buffer().nbytes)
    return allreduce_hook(dist.group.WORLD, bucket)


def build(network: str, variant: str, cache: Path) -> Variant:
    if variant == "dense":
        return dense(network)
    masks = find_masks(network, "synflow", DENSITY, cache)
    return masked(network, masks) if variant == "masked" else compacted(network, masks, 1)


def _work(rank: int, folder: Path, cache: Path, turns: int) -> None:
    """What each of the processes does; the first leaves what was found in `folder`."""
    torch.set_num_threads(1)
    init, patience = f"file://{folder / 'rendezvous'}", timedelta(minutes=5)
    dist.init_process_group("gloo", init_method=init, rank=rank, world_size=PROCESSES, timeout=patience)
    volumes = [_volume(network, variant, cache) for network, variant in COUNTED]
    timings = [
        row for network in TIMED for variant in ("dense", "masked") for row in _timed(network, variant, cache, turns)
    ]
    if rank == 0:
        found = {"timings": [asdict(row) for row in timings], "volumes": [asdict(row) for row in volumes]}
        (folder / "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def _volume(network: str, variant: str, cache: Path) -> Volume:
    made = build(network, variant, cache)
    num_parameters = sum(parameter.numel() for parameter in made.net.parameters())
    num_kept = num_parameters if made.masks is None else num_parameters - _num_pruned(made.masks)
    buffer_bytes = sum(buffer.nbytes for buffer in made.net.buffers())
    training = SharedTraining(made, counts=True)
    for _ in range(2):  # DDP makes its buckets anew after the first step
        training.step()
    return Volume(network, variant, num_parameters, num_kept, tuple(training.buckets), buffer_bytes)


def _num_pruned(masks: Masks) -> int:
    return masks.num_weights - masks.num_kept


def _timed(network: str, variant: str, cache: Path, turns: int) -> list[Timing]:
    alone = Training(build(network, variant, cache), "cpu") if dist.get_rank() == 0 else None
    both = [SharedTraining(build(network, variant, cache), synchronises=synchronises) for synchronises in (True, False)]
    seconds: list[list[float]] = [[], [], []]
    for turn in range(turns + 1):
        for own, training in zip(seconds, (alone, *both), strict=True):
            taken = _seconds(training, TIMED[network])
            if turn:  # the first warms up
                own.append(taken)
    rows = []
    for kind, own in zip(KINDS, seconds, strict=True):
        ratios = [one / this for one, this in zip(seconds[0], own, strict=True)]
        spread = (statistics.median(ratios), min(ratios), max(ratios))
        rows.append(Timing(network, variant, kind, 1e3 * statistics.median(own), *spread))
    return rows


def _seconds(training: Training | None, steps: int) -> float:
    """Seconds per step, of the slowest process."""
    dist.barrier()
    started = time.perf_counter()
    if training is not None:
        for _ in range(steps):
            training.step()
    taken = torch.tensor((time.perf_counter() - started) / steps, dtype=torch.float64)
    dist.all_reduce(taken, dist.ReduceOp.MAX)
    return float(taken)


def _check(volumes: list[Volume]) -> None:
    found = {(volume.network, volume.variant): volume for volume in volumes}
    full, with_masks = found["resnet20", "dense"], found["resnet20", "masked"]
    if (full.buckets, full.buffer_bytes) != (with_masks.buckets, with_masks.buffer_bytes):
        raise RuntimeError(f"masks change what is sent: {full} and {with_masks}")


def report(where: str, timings: list[Timing], volumes: list[Volume], estimates: list[Estimate], turns: int) -> str:
    """Markdown."""
    lines = [
        *("## Time per step", ""),
        f"Median of {turns} turns; faster than one process in the same turn: median (min - max). One thread a process.",
        "",
        "| network | pixels, batch | | processes | step, ms | faster |",
        "|---|---|---|---|---|---|",
        *map(_timing_line, timings),
        *("", where, "", "## Bytes per step", ""),
        "What a process gives to the all-reduces of a step (a ring sends 2 (n - 1) / n of it), and the broadcasts of "
        f"batch norm's statistics from the first process. float32; SynFlow, density {DENSITY:g}.",
        "",
        "| network | | parameters | not pruned | all-reduces | bytes all-reduced | per parameter | bytes broadcast |",
        "|---|---|---|---|---|---|---|---|",
        *map(_volume_line, volumes),
        *("", "Masks add nothing: they are in no buffer and are compared by digest, before training and after.", ""),
        on_paper(estimates),
    ]
    return "\n".join(lines) + "\n"


def _timing_line(row: Timing) -> str:
    setting = SETTINGS[row.network]
    ratio = "1" if row.kind == KINDS[0] else f"{row.speedup:.2f} ({row.speedup_min:.2f} - {row.speedup_max:.2f})"
    size = f"{setting.image_size} x {setting.image_size}, {setting.batch_size}"
    return f"| {setting.title} | {size} | {row.variant} | {row.kind} | {row.milliseconds:.1f} | {ratio} |"


def _volume_line(row: Volume) -> str:
    counts = f"{row.num_parameters:,} | {row.num_kept:,} | {len(row.buckets)} | {sum(row.buckets):,}"
    per = f"{row.bytes_per_parameter:.2f} | {row.buffer_bytes:,}"
    return f"| {SETTINGS[row.network].title} | {row.variant} | {counts} | {per} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 turns, nothing written")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--cache", type=Path, help="folder for masks; default: a temporary one")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    turns = min(options.turns, 2) if options.quick else options.turns
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    where, started, others = machine("cpu"), time.perf_counter(), seconds_of_others()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cache = options.cache or folder
        find_masks("resnet20", "synflow", DENSITY, cache)  # once, before the processes look for them
        find_masks("small", "synflow", DENSITY, cache)
        mp.spawn(_work, (folder, cache, turns), nprocs=PROCESSES)
        share = (seconds_of_others() - others) / (time.perf_counter() - started) / (os.cpu_count() or 1)
        where += f"; other processes took {100 * share:.1f} % of the processors meanwhile"
        if share > MOST_OF_OTHERS:
            where += BUSY
        found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    timings = [Timing(**row) for row in found["timings"]]
    volumes = [Volume(**row | {"buckets": tuple(row["buckets"])}) for row in found["volumes"]]
    _check(volumes)
    dense_volumes = {volume.network: volume for volume in volumes if volume.variant == "dense"}
    estimates = [
        estimate(row.network, row.buckets, row.buffer_bytes, gpus)
        for row in (dense_volumes[name] for name in STEPS)
        for gpus in GPUS
    ]
    text = report(where, timings, volumes, estimates, turns)
    print(text)
    if not options.quick:
        options.output.mkdir(parents=True, exist_ok=True)
        assumed = {
            "gpus": [asdict(gpus) for gpus in GPUS],
            "steps": {name: asdict(step) for name, step in STEPS.items()},
        }
        paper = {"assumed": assumed, "estimates": [asdict(row) for row in estimates]}
        content = {"machine": where, "turns": turns, **found, "paper": paper}
        (options.output / "scaling.json").write_text(json.dumps(content, indent=1) + "\n")
        (options.output / "scaling.md").write_text(text)


if __name__ == "__main__":
    main()
