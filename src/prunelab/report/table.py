"""A record as text: the table that ends a run, and runs side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

SIMULATION = "Masking is a simulation: the network is neither faster nor smaller until it is compacted."


def run_table(record: Mapping[str, Any], run_dir: str, evaluated: Mapping[str, float] | None = None) -> str:
    """Return the table of one run, the same text for the same record; its last word is `run_dir`.

    Densities are given with both of their other spellings, over the prunable weights and over all parameters.
    MACs are per example, one multiply-add counted as one, in convolutions and linear layers. `evaluated` are
    the metrics of a checkpoint that was evaluated anew, printed beside the record's.
    """
    title = f"{record['name']}: {record['criterion']}, seed {record['seed']}, {record['epochs']} epochs"
    lines = [title, "", *_budget_lines(record), ""]
    rows = {
        "density requested": f"{record['density_requested']:.6g}",
        "effective density": _number(record["effective_density"], "not defined")
        + "  (kept weights on a kept input-output path)",
        "dead layers": _dead_layers(record["collapsed_layers"]),
        "validation accuracy": _number(record.get("val_accuracy")),
        "test accuracy": _number(record.get("test_accuracy")),
    }
    if record.get("best_epoch") is not None:
        best = f"{_number(record['test_accuracy_best'])}  (epoch {record['best_epoch']}, chosen on validation data)"
        rows["at the best epoch"] = best
    rows |= {f"{name} anew": _number(value) for name, value in (evaluated or {}).items()}
    dense, masked = record["macs_dense"], record["macs_masked"]
    rows |= {
        "MACs per example": f"{dense:,} dense -> {masked:,} masked, in theory (x {masked / dense:.4f})",
        "measured": _footprint(record),
        "": "Compacted: the network itself is smaller." if record.get("compacted") else SIMULATION,
        "leaked weights": f"{record['leaked_weights']:,}",
        "seconds": f"{record['seconds_scoring']:.1f} scoring, {record['seconds_training']:.1f} training",
        "masks": str(record["masks_digest"])[:12],
        "directory": run_dir,
    }
    width = max(map(len, rows))
    return "\n".join(lines + [f"{label:<{width}}  {text}" for label, text in rows.items()])


def compare_table(records: Iterable[Mapping[str, Any]]) -> str:
    """Return a markdown table with one row per run, in the given order."""
    columns = {
        "criterion": lambda r: r["criterion"],
        "density": lambda r: f"{r['density']:.6g}",
        "effective density": lambda r: _number(r["effective_density"], "not defined"),
        "dead layers": lambda r: str(len(r["collapsed_layers"])),
        "val accuracy": lambda r: _number(r.get("val_accuracy")),
        "test accuracy": lambda r: _number(r.get("test_accuracy")),
        "MACs": lambda r: f"x {r['macs_masked'] / r['macs_dense']:.4f}",
        "scoring s": lambda r: f"{r['seconds_scoring']:.1f}",
        "epochs": lambda r: str(r["epochs"]),
        "seed": lambda r: str(r["seed"]),
        "run": lambda r: r["name"],
    }
    return markdown_table(list(columns), [[cell(record) for cell in columns.values()] for record in records])


def markdown_table(header: list[str], rows: Iterable[list[str]]) -> str:
    """Return a markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _budget_lines(record: Mapping[str, Any]) -> list[str]:
    kept, prunable, parameters = record["num_kept"], record["num_prunable"], record["num_parameters"]
    unprunable = parameters - prunable  # biases, norms, excluded layers: kept as they are
    lines = [f"{'':<19}{'prunable weights':>18}{'all parameters':>18}"]
    for label, cell in (
        ("kept", lambda kept, of: f"{kept:,}"),
        ("of", lambda kept, of: f"{of:,}"),
        ("density", lambda kept, of: f"{kept / of:.6f}"),
        ("sparsity", lambda kept, of: f"{1 - kept / of:.6f}"),
        ("compression ratio", lambda kept, of: f"{of / kept:.2f}" if kept else "inf"),
    ):
        lines.append(f"{label:<19}{cell(kept, prunable):>18}{cell(kept + unprunable, parameters):>18}")
    return lines


def _footprint(record: Mapping[str, Any]) -> str:
    if record.get("latency_ms") is None:
        return "not measured"
    where = f"{record['latency_device']}, {record['latency_threads']} threads"
    return f"{record['latency_ms']:.2f} ms for one example ({where}), {record['weight_bytes'] / 1e6:.2f} MB of weights"


def _dead_layers(names: list[str]) -> str:
    return f"{len(names)}: {', '.join(names)}" if names else "none"


def _number(value: float | None, missing: str = "not measured") -> str:
    return missing if value is None else f"{value:.4f}"
