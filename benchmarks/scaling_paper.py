"""What `scaling.py` says of 8 and 64 GPUs: arithmetic with counted bytes, and the assumptions that it needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

TITLES = {"resnet20": "ResNet-20", "resnet50": "ResNet-50"}


@dataclass(frozen=True)
class Gpus:
    """An assumption. bandwidth: bytes a second of a ring's slowest link; latency: seconds a hop."""

    num: int
    where: str
    bandwidth: float
    latency: float


@dataclass(frozen=True)
class Step:
    """An assumption: seconds of a GPU's own work for its batch; and how few they get at smaller ones, where
    launching kernels is what takes the time."""

    batch: int
    seconds: float
    least: float


GPUS = (
    Gpus(8, "one node, NVLink", bandwidth=100e9, latency=5e-6),
    Gpus(64, "8 nodes, 100 Gbit/s each", bandwidth=10e9, latency=15e-6),
)
STEPS = {"resnet20": Step(128, 15e-3, 10e-3), "resnet50": Step(64, 30e-3, 20e-3)}
BACKWARD = 2 / 3  # of a step's own work; all-reduces run beside it
SIGNAL_BYTES = 8  # after every step the processes agree whether one has been sent a signal


@dataclass(frozen=True)
class Estimate:
    """efficiency: GPUs that each have the batch of one; speedup: GPUs that share that batch."""

    network: str
    num_gpus: int
    milliseconds_communication: float
    efficiency: float
    efficiency_without_overlap: float
    speedup: float


def all_reduce_seconds(num_bytes: float, gpus: Gpus) -> float:
    """Of a ring: 2 (n - 1) / n * bytes / bandwidth + 2 (n - 1) * latency."""
    return 2 * (gpus.num - 1) / gpus.num * num_bytes / gpus.bandwidth + 2 * (gpus.num - 1) * gpus.latency


def broadcast_seconds(num_bytes: float, gpus: Gpus) -> float:
    """Along a chain, in pieces: bytes / bandwidth + (n - 1) * latency."""
    return num_bytes / gpus.bandwidth + (gpus.num - 1) * gpus.latency


def estimate(network: str, buckets: Sequence[int], buffer_bytes: int, gpus: Gpus) -> Estimate:
    """What the formulas give. buckets: bytes of each all-reduce, in order; buffer_bytes: of batch norm's statistics."""
    step = STEPS[network]
    reduces = [all_reduce_seconds(num_bytes, gpus) for num_bytes in buckets]
    # batch norm's statistics, as floats and as integers; the signal
    others = broadcast_seconds(buffer_bytes, gpus) + broadcast_seconds(0, gpus)
    others += all_reduce_seconds(SIGNAL_BYTES, gpus)

    def visible(seconds: float) -> float:  # the last bucket is ready when backward is over
        return others + reduces[-1] + max(0.0, sum(reduces[:-1]) - BACKWARD * seconds)

    whole, shared = others + sum(reduces), max(step.seconds / gpus.num, step.least)
    return Estimate(
        network,
        gpus.num,
        1e3 * whole,
        step.seconds / (step.seconds + visible(step.seconds)),
        step.seconds / (step.seconds + whole),
        step.seconds / (shared + visible(shared)),
    )


def on_paper(estimates: Sequence[Estimate]) -> str:
    """Markdown: what is assumed, the formulas, the table."""
    lines = [
        *("## On paper: 8 and 64 GPUs", "", "Not measured. Assumed:", ""),
        *(
            f"- {gpus.num} GPUs: {gpus.where}; {gpus.bandwidth / 1e9:g} GB/s on the slowest link of the ring, "
            f"{1e6 * gpus.latency:g} us a hop"
            for gpus in GPUS
        ),
        *(
            f"- {TITLES[name]}: a GPU's own work t for a batch of {step.batch} takes {1e3 * step.seconds:g} ms; for "
            f"smaller ones in proportion, but no less than {1e3 * step.least:g} ms"
            for name, step in STEPS.items()
        ),
        "- all-reduces run beside backward, two thirds of t, but for the last one; nothing else is hidden",
        "",
        "      t_all_reduce(bytes) = 2 (n - 1) / n * bytes / bandwidth + 2 (n - 1) * latency",
        "      t_broadcast(bytes)  = bytes / bandwidth + (n - 1) * latency",
        "      t_others            = t_broadcast(float buffers) + t_broadcast(integer buffers) + t_all_reduce(signal)",
        "      t_visible(t)        = t_others + t_all_reduce(last bucket) + max(0, sum of the other buckets' - 2/3 t)",
        "      efficiency          = t / (t + t_visible(t))",
        "      without overlap     = t / (t + t_others + sum of all buckets')",
        "      t_shared            = max(t / n, least)",
        "      speedup             = t / (t_shared + t_visible(t_shared))",
        "",
        "| network | GPUs | communication, ms | efficiency | without overlap | speedup where they share one batch |",
        "|---|---|---|---|---|---|",
        *map(_line, estimates),
        "",
        "Efficiency is for a batch of that size on each GPU. Rings are pessimistic for few bytes on many GPUs, where",
        "NCCL takes trees: latency is nearly all of ResNet-20's communication.",
    ]
    return "\n".join(lines)


def _line(row: Estimate) -> str:
    shares = f"{row.efficiency:.0%} | {row.efficiency_without_overlap:.0%} | x {row.speedup:.1f}"
    return f"| {TITLES[row.network]} | {row.num_gpus} | {row.milliseconds_communication:.2f} | {shares} |"
