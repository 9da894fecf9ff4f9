"""What an export saves, measured, and in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from prunelab.experiment.footprint import MANY, Network, interleaved_ms
from prunelab.export.found import Found
from prunelab.pruning.diagnostics import count_macs

SIMULATED = (
    "masking is only simulated in this file: loaded, it is a dense network again, as large and as slow as before "
    "(--format torch or onnx removes dead channels)"
)


@dataclass(frozen=True)
class Costs:
    """Multiply-adds of one example; median milliseconds of a forward pass for each batch size, of the full network as
    a torch module and, where it was exported as a program, of the full and of the compact one in that form.

    macs_compact: None where the network cannot be compacted. not_measured: why the batch of 128 is missing.
    """

    macs_dense: int
    macs_masked: int
    macs_compact: int | None
    module_ms: dict[int, float]
    programs_ms: dict[int, tuple[float, float]] | None
    num_threads: int
    not_measured: str | None = None


def measure(
    found: Found,
    net: nn.Module,
    small: nn.Module | None,
    example_input: Tensor,
    programs: tuple[Network, Network] | None = None,
) -> Costs:
    """Costs of the full network `net`, of its compact form `small`, and of the loaded programs made of the two."""
    taking_turns: Sequence[Network] = [net, *(programs or ())]
    measured, not_measured = {1: interleaved_ms(taking_turns, example_input, 1)}, None
    try:
        measured[MANY] = interleaved_ms(taking_turns, example_input, MANY)
    except Exception as error:  # want of memory, for example: the file is good without this number
        not_measured = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return Costs(
        count_macs(net, example_input),
        count_macs(net, example_input, found.computed),
        None if small is None else count_macs(small, example_input),
        {size: milliseconds[0] for size, milliseconds in measured.items()},
        None if programs is None else {size: (of[1], of[2]) for size, of in measured.items()},
        torch.get_num_threads(),
        not_measured,
    )


def size_line(found: Found, path: Path) -> str:
    """What the file is, how dense, and how large."""
    masks, size = found.masks, path.stat().st_size
    kept = f"density {masks.density:.6g}, {masks.num_kept:,} of {masks.num_weights:,} weights kept"
    share = f"{100 * size / found.dense_bytes:.3g} % of the dense network's {found.dense_bytes:,}"
    return f"{path}: level {found.level}, {found.when}, {kept}, {size:,} bytes ({share})"


def cost_lines(costs: Costs) -> Iterator[str]:
    """What an example costs: in theory, and in time."""
    macs = [f"dense {costs.macs_dense:,}", f"masked {_share(costs.macs_masked, costs.macs_dense)} in theory"]
    if costs.macs_compact is not None:
        macs.append(f"compact {_share(costs.macs_compact, costs.macs_dense)}")
    yield f"MACs: {', '.join(macs)}"
    threads = f"{costs.num_threads} CPU thread{'s' * (costs.num_threads > 1)}"
    for size in (1, MANY):
        if size not in costs.module_ms:
            yield f"latency, batch {size}: not measured, {costs.not_measured}"
            continue
        text = f"latency, batch {size}, median, {threads}: dense {costs.module_ms[size]:.3g} ms"
        if costs.programs_ms is not None:
            dense, exported = costs.programs_ms[size]
            text += f", in this format dense {dense:.3g} ms, exported {exported:.3g} ms ({dense / exported:.3g}x)"
        yield text


def _share(macs: int, dense: int) -> str:
    return f"{macs:,} ({100 * macs / dense:.3g} %)"
