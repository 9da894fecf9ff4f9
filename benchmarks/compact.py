"""Step time and peak memory of dense, masked and compact networks, side by side in one run.

    OMP_NUM_THREADS=2 python benchmarks/compact.py [--quick] [--networks resnet20 ...] [--cache DIR]

A step is whole: forward, loss, backward, masked gradients, SGD with momentum and weight decay, masked weights; float32,
channels last. The variants of a network take turns; a ratio is the median over the turns of dense
seconds over the variant's in the same turn. Peak memory is that of a few steps in a process of their own. On a GPU, if
there is one, with and without `net.compile()`.
Masks are at initialisation, seed 0. SNIP reads a batch of scikit-learn's digits; IMP prunes by magnitude in levels of
30 steps on them, each from the initial weights. `--cache` keeps the masks.
Writes compact.json and compact.md into `--output`, after each network.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from compact_masks import SETTINGS, find_masks
from measuring import RESULTS, finish, machine, spread
from training_step import Training, Variant, compacted, dense, masked

from prunelab.memory import keep_freed_memory
from prunelab.pruning.diagnostics import count_macs

DENSITIES = (0.1, 0.05, 0.01, 0.001)
COMPARED = ("snip", "magnitude", "imp")
COMPARED_DENSITIES = (0.1, 0.01)


@dataclass(frozen=True)
class Row:
    """What was measured of one variant. ratio: dense seconds / these; macs: of one example, millions."""

    network: str
    variant: str
    criterion: str
    density: float
    compiled: bool
    milliseconds: float
    ratio: float
    ratio_min: float
    ratio_max: float
    macs: float
    macs_ratio: float
    peak_mb: float


@dataclass(frozen=True)
class _Name:
    """Which variant: kind is "dense", "masked" or "compact", with the multiple that widths are made of."""

    kind: str
    criterion: str = ""
    density: float = 1.0
    multiple: int = 1
    compiled: bool = False


def measure(network: str, names: list[_Name], options: argparse.Namespace, device: str) -> list[Row]:
    """The rows of one network: memory first, then all variants in turns. The first name is what ratios are against."""
    macs, peaks, trainings = [], [], []
    for name in names:
        variant = _build(network, name, options.cache)
        macs.append(count_macs(variant.net, SETTINGS[network].example()))
        peaks.append(_peak_bytes(variant, device, name.compiled))
        trainings.append(Training(variant, device, name.compiled))
    seconds = _in_turns(trainings, options.turns, options.steps, device)
    rows = []
    for name, num_macs, peak, own in zip(names, macs, peaks, seconds, strict=True):
        kind = f"{name.kind}, widths to x{name.multiple}" if name.multiple > 1 else name.kind
        milliseconds, mega = 1e3 * statistics.median(own), (num_macs / 1e6, macs[0] / num_macs, peak / 1e6)
        where = (network, kind, name.criterion, name.density, name.compiled)
        rows.append(Row(*where, milliseconds, *spread(seconds[0], own), *mega))
    return rows


def _names(network: str, options: argparse.Namespace, device: str) -> list[_Name]:
    found = [("synflow", density) for density in DENSITIES]
    found += [(c, d) for c in COMPARED for d in COMPARED_DENSITIES]
    if options.quick:
        found = [("synflow", 0.01)]
    names = [_Name("dense")]
    for criterion, density in found:
        if criterion == "synflow":  # a masked network multiplies its zeros whatever put them there
            names.append(_Name("masked", criterion, density))
        multiples = options.multiple if criterion == "synflow" else options.multiple[:1]
        names += [_Name("compact", criterion, density, multiple) for multiple in multiples]
    if device == "cuda":
        names += [_Name(n.kind, n.criterion, n.density, n.multiple, compiled=True) for n in names]
    return names


def _build(network: str, name: _Name, cache: Path) -> Variant:
    if name.kind == "dense":
        return dense(network)
    masks = find_masks(network, name.criterion, name.density, cache)
    return masked(network, masks) if name.kind == "masked" else compacted(network, masks, name.multiple)


def _peak_bytes(variant: Variant, device: str, compiled: bool) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "variant.pt"
        variant.save(path, device, compiled)
        program = [sys.executable, str(Path(__file__).with_name("training_step.py")), str(path)]
        return int(subprocess.run(program, check=True, stdout=subprocess.PIPE, text=True).stdout)


def _in_turns(trainings: list[Training], turns: int, steps: int, device: str) -> list[list[float]]:
    """Seconds per step: of each training, in each turn."""
    for training in trainings:
        training.step()
        training.step()
    return [
        list(own) for own in zip(*([_seconds(t, steps, device) for t in trainings] for _ in range(turns)), strict=True)
    ]


def _seconds(training: Training, steps: int, device: str) -> float:
    finish(device)
    started = time.perf_counter()
    for _ in range(steps):
        training.step()
    finish(device)
    return (time.perf_counter() - started) / steps


def table(network: str, rows: list[Row]) -> str:
    """Markdown."""
    setting = SETTINGS[network]
    side, batch = setting.image_size, setting.batch_size
    head = (
        f"\n**{setting.title}**, {side} x {side} pixels, batch {batch}, {setting.num_classes} classes\n",
        "| criterion | density | network | step, ms | faster: median (min - max) | MACs | less | peak, MB |",
        "|---|---|---|---|---|---|---|---|",
    )
    return "\n".join((*head, *map(_line, rows)))


def _line(row: Row) -> str:
    kind = f"{row.variant}, compiled" if row.compiled else row.variant
    ratio = f"{row.ratio:.2f} ({row.ratio_min:.2f} - {row.ratio_max:.2f})"
    macs = f"{row.macs:.1f} M | {row.macs_ratio:.1f}"
    density = f"{row.density:g}" if row.criterion else ""
    return f"| {row.criterion} | {density} | {kind} | {row.milliseconds:.0f} | {ratio} | {macs} | {row.peak_mb:.0f} |"


def _write(folder: Path, network: str, circumstances: dict[str, Any], rows: list[Row]) -> None:
    """After each network, in the place of what was measured of it before; others stay."""
    path = folder / "compact.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    found[network] = {**circumstances, "rows": [asdict(row) for row in rows]}
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
    parts = []
    for name in SETTINGS:
        if name in found:
            parts += [table(name, [Row(**row) for row in found[name]["rows"]]), f"\n{found[name]['machine']}"]
            parts.append(f"{found[name]['turns']} turns of {found[name]['steps']} step(s)\n")
    (folder / "compact.md").write_text("\n".join(parts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--quick", action="store_true", help="SynFlow at density 0.01 only, few turns, nothing written")
    parser.add_argument(
        "--multiple",
        type=int,
        nargs="+",
        default=[1, 8],
        help="what widths are made multiples of; criteria other than SynFlow: the first of them",
    )
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--steps", type=int, default=1, help="steps in a turn")
    parser.add_argument("--cache", type=Path, help="folder for masks; default: a temporary one")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.quick:
        options.turns = min(options.turns, 3)
    keep_freed_memory()  # as train.py does
    device = "cuda" if torch.cuda.is_available() else "cpu"
    where = machine(device)
    print(where, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        options.cache = options.cache or Path(folder)
        for network in options.networks:  # before anything is timed
            for name in _names(network, options, device)[1:]:
                find_masks(network, name.criterion, name.density, options.cache)
        for network in options.networks:
            rows = measure(network, _names(network, options, device), options, device)
            print(table(network, rows), flush=True)
            if not options.quick:
                _write(
                    options.output, network, {"machine": where, "turns": options.turns, "steps": options.steps}, rows
                )


if __name__ == "__main__":
    main()
