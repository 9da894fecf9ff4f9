"""The report: multiply-adds counted by hand, latencies of what was given, and how it is put."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from prunelab.export.costs import Costs, cost_lines, measure, size_line
from prunelab.export.found import Found
from prunelab.pruning import Masks


@pytest.fixture
def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.Flatten(), nn.Linear(16, 3, bias=False)).eval()


@pytest.fixture
def found(net: nn.Module) -> Found:
    masks = Masks({"0.weight": (torch.arange(36) < 9).view(4, 1, 3, 3), "2.weight": (torch.arange(48) < 6).view(3, 16)})
    masks.apply_to(net)
    return Found(0, "trained", net.state_dict(), masks, None, {})


def test_counts_and_sizes(net: nn.Module, found: Found) -> None:
    small = nn.Sequential(nn.Conv2d(1, 1, 3, bias=False), nn.Flatten(), nn.Linear(4, 3, bias=False))
    passes = {"dense": [0], "small": [0]}

    def run(name: str, inputs: Tensor) -> Tensor:
        passes[name].append(len(inputs))
        return inputs

    programs = (lambda inputs: run("dense", inputs), lambda inputs: run("small", inputs))
    costs = measure(found, net, small, torch.zeros(1, 1, 4, 4), programs)
    # 2 x 2 positions of the convolution
    assert (costs.macs_dense, costs.macs_masked, costs.macs_compact) == (4 * 36 + 48, 4 * 9 + 6, 4 * 9 + 12)
    assert set(passes["dense"]) == set(passes["small"]) == {0, 1, 128}
    assert costs.programs_ms is not None
    assert costs.module_ms.keys() == costs.programs_ms.keys() == {1, 128}
    assert costs.num_threads == torch.get_num_threads()
    assert measure(found, net, None, torch.zeros(1, 1, 4, 4)).programs_ms is None


def test_a_batch_that_is_too_large_is_said(net: nn.Module, found: Found) -> None:
    def small_batches(inputs: Tensor) -> Tensor:
        if len(inputs) > 1:
            raise MemoryError("no more\nof it")
        return inputs

    costs = measure(found, net, None, torch.zeros(1, 1, 4, 4), (small_batches, small_batches))
    lines = list(cost_lines(costs))
    assert lines[1].startswith("latency, batch 1, median")
    assert lines[2:] == ["latency, batch 128: not measured, MemoryError: no more"]


def test_how_it_is_put(found: Found, tmp_path: Path) -> None:
    costs = Costs(192_000, 42_000, 48_000, {1: 2.0, 128: 60.0}, {1: (1.0, 0.5), 128: (50.0, 12.5)}, 2)
    assert list(cost_lines(costs)) == [
        "MACs: dense 192,000, masked 42,000 (21.9 %) in theory, compact 48,000 (25 %)",
        "latency, batch 1, median, 2 CPU threads: dense 2 ms, in this format dense 1 ms, exported 0.5 ms (2x)",
        "latency, batch 128, median, 2 CPU threads: dense 60 ms, in this format dense 50 ms, exported 12.5 ms (4x)",
    ]
    assert list(cost_lines(Costs(100, 10, None, {1: 2.0, 128: 60.0}, None, 1))) == [
        "MACs: dense 100, masked 10 (10 %) in theory",
        "latency, batch 1, median, 1 CPU thread: dense 2 ms",
        "latency, batch 128, median, 1 CPU thread: dense 60 ms",
    ]
    path = tmp_path / "file"
    path.write_bytes(bytes(84))
    share = "84 bytes (25 % of the dense network's 336)"
    assert size_line(found, path) == f"{path}: level 0, trained, density 0.178571, 15 of 84 weights kept, {share}"
