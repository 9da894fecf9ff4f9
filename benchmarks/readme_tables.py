"""The tables of measurements in README.md, from benchmarks/results: what stands between their marks is written anew.

    python benchmarks/readme_tables.py

Medians; the files it reads have spreads, machines and versions.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parents[1] / "README.md"
NETWORKS = {"resnet20": "ResNet-20", "vgg16_bn": "VGG-16", "resnet18_64": "ResNet-18, 64 pixels"}
WIDTHS = "compact, widths to x8"  # the default of `pruning.compact_multiple`


def read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def compact_table() -> str:
    """Whole training steps of compact networks against the dense ones, after SynFlow."""
    found, shown = read("compact"), ("vgg16_bn", "resnet20", "resnet18_64")
    lines = [
        "| density | " + " | ".join(NETWORKS[name] for name in shown) + " | masks alone |",
        "|---|---|---|---|---|",
    ]
    for density in (0.1, 0.05, 0.01, 0.001):
        cells, alone = [], []
        for name in shown:
            rows = {
                row["variant"]: row
                for row in found[name]["rows"]
                if (row["criterion"], row["density"]) == ("synflow", density) and not row["compiled"]
            }
            small = rows[WIDTHS]
            cells.append(f"x {small['ratio']:.1f} (MACs / {small['macs_ratio']:.2g})")
            alone.append(rows["masked"]["ratio"])
        lines.append(f"| {density:g} | {' | '.join(cells)} | x {min(alone):.2f} to {max(alone):.2f} |")
    return "\n".join(lines)


def fast_table() -> str:
    rows = [*_synflow(), _large(), *_gradients(), *_masking(), *_data(), *_options(), *_startup()]
    return "\n".join(["| what | against | measured |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)])


def _synflow() -> Iterator[tuple[str, str, str]]:
    rows = {(row["network"], row["version"]): row for row in read("synflow")["rows"]}
    for network in ("vgg16_bn", "resnet20"):
        book = rows[network, "textbook, float32"]["to_bare"][0]
        for precision in ("float64", "float32"):
            row = rows[network, f"fast, {precision}"]
            yield (
                f"SynFlow, 100 rounds to .01, {NETWORKS[network]}, {precision}",
                f"100 bare passes in {precision}; a textbook version in float32 ({book:.1f} bare passes)",
                f"x {row['to_bare'][0]:.2f}; {row['faster_than_textbook'][0]:.1f} times faster",
            )


def _large() -> tuple[str, str, str]:
    row = max(read("large")["rows"], key=lambda row: (row["weights"], row["precision"]))
    what = (
        f"SynFlow on {row['weights']:,} weights ({row['layers']} linear layers), {row['rounds']} rounds, exact budget"
    )
    memory = f"{row['peak_bytes'] / 1e9:.1f} GB, x {row['times_the_weights']:.2f}; {row['seconds']:.0f} s"
    return what, "memory of the float32 weights", memory


def _gradients() -> Iterator[tuple[str, str, str]]:
    found = read("gradient_scoring")["rows"]
    for criterion, title in (("snip", "SNIP"), ("grasp", "GraSP")):
        rows = [row for row in found if row["criterion"] == criterion]
        times = ", ".join(f"x {row['ratio']:.2f} ({NETWORKS[row['network']]})" for row in rows)
        memory = max(row["peak_many"] / row["peak_few"] for row in rows)
        yield title, "the bare passes over the same batches", f"{times}; memory of 8 batches: x {memory:.2f} of one's"


def _masking() -> Iterator[tuple[str, str, str]]:
    found = read("masked_step")
    rows = [row for row in found["rows"] if row["in_step"]]
    added = ", ".join(
        f"{NETWORKS[row['network']]} {row['optimizer']} {100 * statistics.median(row['in_step']):+.2f} %"
        for row in rows
    )
    yield "masks, inside the training step", "the dense step", added
    whole = {
        way: "x {median:.3f} (95 %: {low:.3f} - {high:.3f}; medians of the cases: {lowest:.3f} - {highest:.3f})".format(
            **steps
        )
        for way, steps in found["all_steps"].items()
    }
    yield (
        "whole masked steps",
        "whole dense steps",
        f"{whole['prunelab']}; a second dense network {whole['second dense']}",
    )


def _data() -> Iterator[tuple[str, str, str]]:
    found = read("data")
    for size in found["sizes"]:
        own, pil = size["rows"][0], size["rows"][1]
        what = f"crop, flip, normalise, bit-equal to torchvision, {size['title']}"
        yield (
            what,
            "torchvision on PIL pictures, 2 workers",
            f"{own['per_second']:,.0f} pictures/s, x {pil['median']:.1f}",
        )
    _, several, again = found["decoding"]["rows"]
    what = f"first reading of {found['decoding']['pictures']:,} JPEGs"
    yield (
        what,
        "one process",
        f"x {several['median']:.1f}; from the second start on, from the cache, x {again['median']:.0f}",
    )
    yield "the loader", f"a step of ResNet-20, {found['share']['device']}", f"{100 * found['share']['median']:.1f} %"


def _options() -> Iterator[tuple[str, str, str]]:
    found = read("training_options")
    accuracy = {
        row["name"]: f"{statistics.mean(row['accuracies']):.1f} ± {statistics.stdev(row['accuracies']):.1f}"
        for row in found["accuracies"]
    }
    for name in ("channels_last", "bf16-mixed", "channels_last, bf16-mixed", "compile"):
        times = ", ".join(
            f"{network} x {row['median']:.2f}"
            for network, rows in found["steps"].items()
            for row in rows
            if row["option"]["name"] == name
        )
        digits = (
            f"; digits, 3 seeds: {accuracy[name]} against {accuracy['default (float32)']}" if name in accuracy else ""
        )
        yield f"`{name}`", "float32 step", times + digits


def _startup() -> Iterator[tuple[str, str, str]]:
    found = read("startup")
    commands = {row["what"]: row for row in found["commands"]}
    run = next(row for what, row in commands.items() if "scoring round" in what)
    imports = statistics.median(commands["import torch, pytorch_lightning"]["wall"])
    yield (
        "from command to first scoring round",
        f"importing torch and Lightning, {imports:.1f} s",
        f"x {statistics.median(run['ratio']):.2f}; `--help` in {statistics.median(commands['--help']['wall']):.2f} s",
    )
    for row in found["gaps"]:
        first, later = statistics.median(row["first"]), statistics.median(row["later"])
        what = f"between levels, digits, {NETWORKS.get(row['network'], row['network'])}: last epoch to next step"
        yield what, "", f"{later:.2f} s; the first time {first:.2f} s"


TABLES: dict[str, Callable[[], str]] = {"compact": compact_table, "fast": fast_table}


def with_tables(text: str) -> str:
    """`text` with all tables as they are now. Raises: ValueError if one has no place in it."""
    for name, table in TABLES.items():
        place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not place.search(text):
            raise ValueError(f"README.md has no place for the table {name}")
        text = place.sub(lambda found, table=table: f"{found[1]}\n{table()}\n\n{found[2]}", text)
    return text


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text()))
