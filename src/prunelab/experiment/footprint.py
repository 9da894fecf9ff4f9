"""What a network really costs, measured, beside what its mask says in theory."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from prunelab.pruning.scoring import evaluation_mode

Network = Callable[[Tensor], Any]

MANY = 128  # examples in the large batch
FEWEST_PASSES, MOST_PASSES, SECONDS = 3, 30, 1.0
FEWEST_WARM_UPS, MOST_WARM_UPS, WARM_UP_SECONDS = 1, 5, 0.2
PATIENCE = 5.0  # seconds after which fewer passes have to do, or the end of a run would wait for minutes
# passes of one network in a row, where they are short: the other one has emptied the processor's caches
TURN_PASSES, TURN_SECONDS = 5, 0.02


def footprint(net: nn.Module, example_input: Tensor, dense: nn.Module | None = None) -> dict[str, Any]:
    """What `net` costs as it stands, where it stands, for the record of a level.

    latency_ms, latency_128_ms: median milliseconds of a forward pass of 1 and of 128 examples (`interleaved_ms`);
    the second is None, with a warning, where a pass of 128 fails, for want of memory for example. latency_device: the
    CPU, where Lightning has a network before and after a fit, wherever it trains; latency_threads: torch's on the CPU.
    weight_bytes: of the state dict, zeros included.
    dense: the full network that `net` was made from, on the same device. With it latency_dense_ms,
    latency_dense_128_ms and weight_bytes_dense say the same of it, from passes that alternate with those of `net`.
    Raises: ValueError if the two are on different devices.
    """
    nets = [net] if dense is None else [net, dense]
    devices = [_home(each, example_input)[0] for each in nets]
    if devices[0] != devices[-1]:
        raise ValueError(f"latencies on different devices cannot be compared: {devices[0]} and {devices[-1]}")
    single = interleaved_ms(nets, example_input, 1)
    many: Sequence[float | None] = [None] * len(nets)
    try:
        many = interleaved_ms(nets, example_input, MANY)
    except RuntimeError as error:  # a training or its record must not fail because of a number beside it
        warnings.warn(f"no latency for {MANY} examples: {str(error).partition(chr(10))[0]}", stacklevel=2)
    measured = {
        "latency_ms": single[0],
        "latency_128_ms": many[0],
        "latency_device": devices[0].type,
        "latency_threads": torch.get_num_threads(),
        "weight_bytes": _num_bytes(net),
    }
    if dense is None:
        return measured
    return measured | {
        "latency_dense_ms": single[1],
        "latency_dense_128_ms": many[1],
        "weight_bytes_dense": _num_bytes(dense),
    }


def interleaved_ms(nets: Sequence[Network], example_input: Tensor, batch_size: int) -> list[float]:
    """Median milliseconds of a forward pass of each of `nets`, which take turns: what else goes on slows all alike.

    Each is an nn.Module, which is put in eval mode meanwhile, with autocast off, or any function of one tensor. It gets
    `batch_size` examples of example_input's shape, where its weights are, in their dtype and memory format: random
    numbers for floats, else the example again and again. Without gradients. Each has passes that do not count, and then
    as many as one second allows for all together, from 3 to about 30; where they take more than 5 seconds, fewer.
    """
    with ExitStack() as stack:
        for net in nets:
            if isinstance(net, nn.Module):
                stack.enter_context(evaluation_mode(net))
        stack.enter_context(torch.no_grad())
        runs = [(net, _batch(net, example_input, batch_size)) for net in nets]
        _take_turns(runs, FEWEST_WARM_UPS, MOST_WARM_UPS, WARM_UP_SECONDS)
        seconds = _take_turns(runs, FEWEST_PASSES, MOST_PASSES, SECONDS)
    return [1e3 * statistics.median(of_net) for of_net in seconds]


def _take_turns(runs: Sequence[tuple[Network, Tensor]], fewest: int, most: int, seconds: float) -> list[list[float]]:
    """Seconds of each pass, for each of `runs`."""
    taken: list[list[float]] = [[] for _ in runs]
    started = time.perf_counter()
    while (done := min(map(len, taken))) < most:
        elapsed = time.perf_counter() - started
        if done > 0 and elapsed > (seconds if done >= fewest else PATIENCE):
            break
        for (net, batch), of_net in zip(runs, taken, strict=True):
            turn = [_pass_seconds(net, batch)]
            while len(turn) < TURN_PASSES and sum(turn) < TURN_SECONDS:
                turn.append(_pass_seconds(net, batch))
            of_net += turn
    return taken


def _pass_seconds(net: Network, batch: Tensor) -> float:
    started = time.perf_counter()
    net(batch)
    if batch.device.type == "cuda":
        torch.cuda.synchronize(batch.device)
    return time.perf_counter() - started


def _batch(net: Network, example_input: Tensor, batch_size: int) -> Tensor:
    device, dtype, memory_format = _home(net, example_input)
    if example_input.is_floating_point():
        generator = torch.Generator().manual_seed(0)
        batch = torch.randn(batch_size, *example_input.shape[1:], generator=generator).to(device, dtype)
    else:
        batch = example_input.repeat(batch_size, *[1] * (example_input.ndim - 1)).to(device)
    return batch.contiguous(memory_format=memory_format if batch.ndim == 4 else torch.contiguous_format)


def _home(net: Network, example_input: Tensor) -> tuple[torch.device, torch.dtype, torch.memory_format]:
    """Where the weights are, and what they are like; without weights, the example."""
    weights = list(net.parameters()) if isinstance(net, nn.Module) else []
    first = weights[0] if weights else example_input
    is_last = any(w.is_contiguous(memory_format=torch.channels_last) for w in weights if not w.is_contiguous())
    return first.device, first.dtype, torch.channels_last if is_last else torch.contiguous_format


def _num_bytes(net: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in net.state_dict().values())
