"""Records as text: the table that ends a run, its levels below each other, and runs side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from prunelab.report.cost import cost_columns, cost_lines, cost_statement, measured_text, measured_where, tells_cost

Record = Mapping[str, Any]

_USUAL = {"mask_1": "rewind", "mask_0": "zero", "weights_from": None}


def report_text(records: Sequence[Record], run_dir: str, evaluated: Mapping[str, float] | None = None) -> str:
    """Return the table of a run from the records of its finished levels: `run_table` if it has one level, else
    `levels_table`, also when only the first of several levels is finished. Its last word is `run_dir`."""
    if _num_levels(records[-1]) == 1:
        return run_table(records[-1], run_dir, evaluated)
    return levels_table(records, run_dir, evaluated)


def run_table(record: Record, run_dir: str, evaluated: Mapping[str, float] | None = None) -> str:
    """Return the table of one level, for most runs all of it: the same text for the same record; its last word is
    `run_dir`.

    Densities are given with both of their other spellings, over the prunable weights and over all parameters.
    MACs are per example, one multiply-add counted as one, in convolutions and linear layers. Of a compacted network the
    costs are a table of their own: dense, masked and compact. `evaluated` are the metrics of a checkpoint that was
    evaluated anew, printed beside the record's.
    """
    several, control = _num_levels(record) > 1, record.get("control")
    parts = [
        f"{record['name']}: {record['criterion']}",
        *([f"level {record['level']} of {_level_range(record)}"] if several else []),
        *([f"control {control}"] if control else []),
        f"seed {record['seed']}",
        f"{record['epochs']} epochs",
    ]
    compacted = bool(record.get("compacted"))
    lines = [", ".join(parts), "", *_budget_lines(record), "", *([*cost_lines(record), ""] if compacted else [])]
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
    if record.get("supermask_test_accuracy") is not None:
        rows["supermask"] = f"{_number(record['supermask_test_accuracy'])}  (test accuracy with the mask, untrained)"
    rows |= {f"{name} anew": _number(value) for name, value in (evaluated or {}).items()}
    dense, masked = record["macs_dense"], record["macs_masked"]
    if not compacted:
        rows["MACs per example"] = f"{dense:,} dense -> {masked:,} masked, in theory (x {masked / dense:.4f})"
    rows |= {
        "measured": measured_text(record),
        "": cost_statement(record),
        "leaked weights": f"{record['leaked_weights']:,}",
        "seconds": _seconds([record]),
        "masks": _short(record["masks_digest"]),
    }
    if record.get("masks_from"):
        rows["masks from"] = _short(record["masks_from"])
    return "\n".join([*lines, *_labelled(rows | {"directory": run_dir})])


def levels_table(records: Sequence[Record], run_dir: str, evaluated: Mapping[str, float] | None = None) -> str:
    """Return the table of a run with several levels, one line per finished level; its last word is `run_dir`.

    records: of levels that follow each other; a control shares the dense one with its ticket and begins with the
    next. If the run has more levels, a line says which is missing.
    A dash is what was not measured or is not defined; seconds are those of scoring and training together. What each
    level's network costs is a second table below it, where the records say so.
    `evaluated` are the metrics of the last level's checkpoint, evaluated anew.
    """
    last = records[-1]
    title = [
        f"{last['name']}: {_criterion(last)}",
        *([f"rewind {last['rewind']}"] if last.get("rewind") else []),
        *([f"rewind_step {last['rewind_step']}"] if last.get("rewind_step") is not None else []),
        *([f"control {last['control']}"] if last.get("control") else []),
        *_actions(last),
        f"seed {last['seed']}",
    ]
    costs = [*aligned_columns(_level_costs(records)), ""] if any(map(tells_cost, records)) else []
    rows = _complaints(records)
    rows |= {f"{name} anew": _number(value) for name, value in (evaluated or {}).items()}
    rows |= {
        "MACs per example": f"{last['macs_dense']:,} dense; the factors are theory{_but_compact(records)}",
        **({"latencies": f"forward pass, {measured_where(last)}"} if last.get("latency_ms") and costs else {}),
        "": cost_statement(last),
        "seconds": f"{_seconds(records)}, all levels together",
        "masks": ", ".join(f"{record['level']}: {_short(record['masks_digest'])}" for record in records),
    }
    if last.get("masks_from"):
        rows["masks from"] = _short(last["masks_from"])
    if last["level"] + 1 < _num_levels(last):
        rows["not finished"] = (
            f"level {last['level'] + 1} of {_level_range(last)} is missing: the command that started the run goes on"
        )
    table = aligned_columns(_level_columns(records))
    return "\n".join([", ".join(title), "", *table, "", *costs, *_labelled(rows | {"directory": run_dir})])


def _criterion(record: Record) -> str:
    settings = record.get("criterion_settings") or {}
    given = ", ".join(f"{key} {value}" for key, value in settings.items())
    return f"{record['criterion']} ({given})" if given else record["criterion"]


def _actions(record: Record) -> list[str]:
    """What is unusual about kept and pruned weights, and where the weights are from."""
    said = [f"{key} {record[key]}" for key, usual in _USUAL.items() if record.get(key, usual) != usual]
    return [*said, *(["keep_sign"] if record.get("keep_sign") else [])]


def levels_markdown(records: Sequence[Record]) -> str:
    """Return the tables of `levels_table` as markdown: the levels, and what they cost where the records say so."""
    tables = [_level_columns(records), *([_level_costs(records)] if any(map(tells_cost, records)) else [])]
    return "\n\n".join(map(_markdown, tables))


def compare_table(records: Iterable[Record]) -> str:
    """Return a markdown table with one row per run, in the given order, and below it what their networks cost, where
    the records say so.

    Of a run with several levels give the record of the last one that is finished. If there is such a run, columns
    say the number of levels and how they are rewound; if there is a control, a column says which.
    """
    records = list(records)
    columns: dict[str, Callable[[Record], str]] = {
        "criterion": lambda r: r["criterion"],
        "density": lambda r: f"{r['density']:.6g}",
        "effective density": lambda r: _number(r["effective_density"], "not defined"),
        "dead layers": lambda r: str(len(r["collapsed_layers"])),
        "val accuracy": lambda r: _number(r.get("val_accuracy")),
        "test accuracy": lambda r: _number(r.get("test_accuracy")),
        "MACs": lambda r: f"x {r['macs_masked'] / r['macs_dense']:.4f}",
        "scoring s": lambda r: f"{r['seconds_scoring']:.1f}",
    }
    if any(_num_levels(record) > 1 for record in records):
        columns |= {"levels": _levels_finished, "rewind": _rewind}
    if any(record.get("control") for record in records):
        columns["control"] = lambda r: r.get("control") or "-"
    columns |= {
        "epochs": lambda r: str(r["epochs"]),
        "seed": lambda r: str(r["seed"]),
        "run": lambda r: r["name"],
    }
    tables = [{header: [cell(record) for record in records] for header, cell in columns.items()}]
    if any(map(tells_cost, records)):
        where = [measured_where(record) if record.get("latency_ms") is not None else "-" for record in records]
        dense = [f"{record['macs_dense']:,}" for record in records]
        runs = [record["name"] for record in records]
        tables.append({"dense MACs": dense, **cost_columns(records), "measured": where, "run": runs})
    return "\n\n".join(map(_markdown, tables))


def markdown_table(header: list[str], rows: Iterable[list[str]]) -> str:
    """Return a markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _markdown(columns: Mapping[str, Sequence[str]]) -> str:
    """A markdown table of header, of several lines -> cells."""
    return markdown_table(
        [" ".join(header.split()) for header in columns], map(list, zip(*columns.values(), strict=True))
    )


def _level_costs(records: Sequence[Record]) -> dict[str, list[str]]:
    return {"level": [str(record["level"]) for record in records], **cost_columns(records)}


def _but_compact(records: Sequence[Record]) -> str:
    return ", those of compact ones are computed" if any(record.get("compacted") for record in records) else ""


def _level_columns(records: Sequence[Record]) -> dict[str, list[str]]:
    """Header, of several lines -> one cell per record."""
    columns: dict[str, Callable[[Record], str]] = {
        "level": lambda r: str(r["level"]),
        "density": lambda r: f"{r['num_kept'] / r['num_prunable']:.6f}",
        "kept": lambda r: f"{r['num_kept']:,}",
        "sparsity\n%": lambda r: f"{100 - 100 * r['num_kept'] / r['num_prunable']:.2f}",
        "compression\nratio": lambda r: _compression_ratio(r["num_kept"], r["num_prunable"]),
        "effective\ndensity": lambda r: _number(r["effective_density"], "-", 6),
        "dead\nlayers": lambda r: str(len(r["collapsed_layers"])),
        "val\naccuracy": lambda r: _number(r.get("val_accuracy"), "-"),
        "test\naccuracy": lambda r: _number(r.get("test_accuracy"), "-"),
        "test\naccuracy at\nbest epoch": lambda r: _number(r.get("test_accuracy_best"), "-"),
        "supermask\ntest\naccuracy": lambda r: _number(r.get("supermask_test_accuracy"), "-"),
        "MACs": lambda r: f"x {r['macs_masked'] / r['macs_dense']:.4f}",
        "leaked\nweights": lambda r: f"{r['leaked_weights']:,}{' !' if r['leaked_weights'] else ''}",
        "steps": lambda r: f"{r['steps']:,}",
        "seconds": lambda r: f"{r['seconds_scoring'] + r['seconds_training']:.1f}",
    }
    if all(record.get("supermask_test_accuracy") is None for record in records):
        del columns["supermask\ntest\naccuracy"]
    return {header: [cell(record) for record in records] for header, cell in columns.items()}


def _complaints(records: Sequence[Record]) -> dict[str, str]:
    rows = {}
    for record in records:
        if record["collapsed_layers"]:
            rows[f"dead layers, level {record['level']}"] = ", ".join(record["collapsed_layers"])
        if record["leaked_weights"]:
            rows[f"LEAKED, level {record['level']}"] = (
                f"{record['leaked_weights']:,} pruned weights do not hold the value that they should hold"
            )
    return rows


def aligned_columns(columns: Mapping[str, Sequence[str]]) -> list[str]:
    """The lines of a table whose columns are aligned to the right, headers of several lines to the bottom."""
    headers = [header.split("\n") for header in columns]
    height = max(map(len, headers))
    cells = [
        [""] * (height - len(header)) + header + list(column)
        for header, column in zip(headers, columns.values(), strict=True)
    ]
    widths = [max(map(len, column)) for column in cells]
    return [
        "  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in zip(*cells, strict=True)
    ]


def _labelled(rows: Mapping[str, str]) -> list[str]:
    """One line per row, and further ones for a text of several lines; none for an empty text."""
    width = max(map(len, rows))
    return [
        f"{label if place == 0 else '':<{width}}  {line}"
        for label, text in rows.items()
        for place, line in enumerate(text.splitlines())
    ]


def _num_levels(record: Record) -> int:
    return record.get("num_levels", 1)


def _level_range(record: Record) -> str:
    return f"0 to {_num_levels(record) - 1}"


def _levels_finished(record: Record) -> str:
    finished, num_levels = record.get("level", 0) + 1, _num_levels(record)
    return str(num_levels) if finished == num_levels else f"{finished} of {num_levels}"


def _rewind(record: Record) -> str:
    if _num_levels(record) == 1 or not record.get("rewind"):
        return "-"
    step = record.get("rewind_step")
    return record["rewind"] if step is None else f"{record['rewind']}, step {step}"


def _budget_lines(record: Record) -> list[str]:
    kept, prunable, parameters = record["num_kept"], record["num_prunable"], record["num_parameters"]
    unprunable = parameters - prunable  # biases, norms, excluded layers: kept as they are
    lines = [f"{'':<19}{'prunable weights':>18}{'all parameters':>18}"]
    for label, cell in (
        ("kept", lambda kept, of: f"{kept:,}"),
        ("of", lambda kept, of: f"{of:,}"),
        ("density", lambda kept, of: f"{kept / of:.6f}"),
        ("sparsity", lambda kept, of: f"{1 - kept / of:.6f}"),
        ("compression ratio", _compression_ratio),
    ):
        lines.append(f"{label:<19}{cell(kept, prunable):>18}{cell(kept + unprunable, parameters):>18}")
    return lines


def _compression_ratio(kept: int, of: int) -> str:
    return f"{of / kept:.2f}" if kept else "inf"


def _seconds(records: Sequence[Record]) -> str:
    scoring, training = (sum(record[f"seconds_{what}"] for record in records) for what in ("scoring", "training"))
    return f"{scoring:.1f} scoring, {training:.1f} training"


def _short(digest: str) -> str:
    return str(digest)[:12]


def _dead_layers(names: list[str]) -> str:
    return f"{len(names)}: {', '.join(names)}" if names else "none"


def _number(value: float | None, missing: str = "not measured", decimals: int = 4) -> str:
    return missing if value is None else f"{value:.{decimals}f}"
