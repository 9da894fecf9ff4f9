"""What every benchmark says and asks: on which machine, how much memory, how far a ratio spreads."""

from __future__ import annotations

import math
import os
import platform
import statistics
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"


def machine(device: str) -> str:
    """Hardware, versions, and how busy the machine was."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    place = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads"
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{model or platform.machine()}, {os.cpu_count()} CPUs, {place}; torch {torch.__version__}, "
        f"Python {platform.python_version()}; load at the start {load}"
    )


def spread(own: Sequence[float], other: Sequence[float]) -> tuple[float, float, float]:
    """Median, minimum and maximum of own / other, turn by turn."""
    ratios = [one / two for one, two in zip(own, other, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """What the true median of independent values lies between with 95 %, whatever their distribution: the values of
    this rank from both ends, the highest at which fewer heads come in at most 2.5 % of as many tosses of a coin. All of
    them if they are fewer than six, which is less sure."""
    ordered, num_values = sorted(values), len(values)
    chances = accumulate(math.comb(num_values, heads) / 2**num_values for heads in range(num_values))
    outside = max(sum(chance <= 0.025 for chance in chances), 1)
    return ordered[outside - 1], ordered[-outside]


def seconds_of_others() -> float:
    """Processor seconds of all other processes, from some time on: what two calls differ by went to them in between.
    Children count as this process once they have ended. NaN where the system does not say (only Linux does)."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return math.nan
    return busy_seconds(stat.read_text(), os.sysconf("SC_CLK_TCK")) - sum(os.times()[:4])


def busy_seconds(stat: str, ticks: int) -> float:
    """Of all processors together, from the text of /proc/stat: neither idle nor waiting for disks."""
    user, nice, system, _, _, *interrupts = map(int, stat.splitlines()[0].split()[1:8])
    return (user + nice + system + sum(interrupts)) / ticks


def finish(device: torch.device | str) -> None:
    """Wait for what a GPU still computes."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def resident(key: str) -> int:
    """Bytes of this process alone, VmRSS or VmHWM: getrusage's maximum is inherited from whoever started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
