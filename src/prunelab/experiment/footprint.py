"""What a network really costs, measured, beside what its mask says in theory."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn

from prunelab.pruning.scoring import evaluation_mode

WARM_UP, PASSES = 5, 30


def footprint(net: nn.Module, example_input: Tensor) -> dict[str, Any]:
    """latency_ms: median of 30 forward passes of one example in eval mode, after 5 others, where the network is
    (latency_device: after a fit Lightning has moved it back to the CPU); latency_threads: torch's on the CPU;
    weight_bytes: of the state dict, zeros included."""
    weight = next(net.parameters())
    device = weight.device
    example = example_input.to(device, weight.dtype)
    seconds = []
    with evaluation_mode(net), torch.no_grad():
        for _ in range(WARM_UP + PASSES):
            started = time.perf_counter()
            net(example)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - started)
    return {
        "latency_ms": 1e3 * statistics.median(seconds[WARM_UP:]),
        "latency_device": device.type,
        "latency_threads": torch.get_num_threads(),
        "weight_bytes": sum(tensor.numel() * tensor.element_size() for tensor in net.state_dict().values()),
    }
