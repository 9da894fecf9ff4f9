"""What the networks of records cost: multiply-adds and sizes dense, masked and compact, and what was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]

SIMULATION = "Masking is a simulation: the network is neither faster nor smaller until it is compacted."
HOW_TO_COMPACT = "`--pruning.compact true` makes it really smaller."
COLUMNS = ("dense", "masked", "compact")


def cost_statement(record: Record) -> str:
    """Return one sentence a line: whether the network is really smaller, and what of that was measured."""
    if record.get("compacted"):
        return "\n".join([_compacted(record), *_speed(record)])
    reason = str(record.get("not_compacted") or "").rstrip(".")
    asked = [f"Not compacted, although asked for: {reason}."] if reason else []
    if record["num_kept"] == record["num_prunable"]:
        return "\n".join(asked)
    # pruned weights that hold other values than 0 cannot be removed
    advice = [] if asked or record.get("mask_0", "zero") != "zero" else [HOW_TO_COMPACT]
    return "\n".join([*asked, SIMULATION, *advice])


def cost_rows(record: Record) -> list[list[str]]:
    """Return rows of a label and the three COLUMNS, for a network that was not compacted without the last one.

    A masked network computes and stores its zeros, so that it costs what the dense one does: what was measured of one
    stands in its column, beside a compact one it says "as dense". Bytes are those of the state dict.
    """
    compacted = bool(record.get("compacted"))
    kept, prunable, parameters = record["num_kept"], record["num_prunable"], record["num_parameters"]
    macs = [record["macs_dense"], record["macs_masked"], record.get("macs_compact")]
    unprunable = parameters - prunable
    weights = [prunable, kept, record.get("compact_weights")]
    rows = [
        ["MACs per example", *map(_count, macs)],
        ["against dense", *(_factor(value, macs[0]) for value in macs)],
        ["prunable weights", *map(_count, weights)],
        ["all parameters", *map(_count, [parameters, kept + unprunable, record.get("num_parameters_compact")])],
        ["channels", _count(record.get("num_channels")), "-", _count(record.get("num_channels_compact"))],
        ["ms for 1 example", *_measured(record, "latency_dense_ms", "latency_ms", _milliseconds)],
        ["ms for 128", *_measured(record, "latency_dense_128_ms", "latency_128_ms", _milliseconds)],
        ["MB of weights", *_measured(record, "weight_bytes_dense", "weight_bytes", _megabytes)],
    ]
    rows = rows if compacted else [row[:-1] for row in rows]
    return [row for row in rows if set(row[1:]) != {"-"}]


def cost_lines(record: Record) -> list[str]:
    """Return `cost_rows` as aligned lines below a header."""
    rows = cost_rows(record)
    return [
        f"{label:<19}" + "".join(f"{cell:>18}" for cell in cells)
        for label, *cells in [["", *COLUMNS[: len(rows[0]) - 1]], *rows]
    ]


def cost_columns(records: Sequence[Record]) -> dict[str, list[str]]:
    """Return header, of several lines -> one cell per record; without columns that have nothing to say."""
    columns: dict[str, Callable[[Record], str]] = {
        "masked\nMACs": lambda r: _factor(r["macs_masked"], r["macs_dense"]),
        "compact\nMACs": lambda r: _factor(r.get("macs_compact"), r["macs_dense"]),
        "channels\nleft": _channels,
        "weights\nstored": lambda r: _count(r.get("compact_weights") if r.get("compacted") else r["num_prunable"]),
        "dense ms\nfor 1": lambda r: _milliseconds(r.get("latency_dense_ms")),
        "ms\nfor 1": lambda r: _milliseconds(r.get("latency_ms")),
        "dense ms\nfor 128": lambda r: _milliseconds(r.get("latency_dense_128_ms")),
        "ms\nfor 128": lambda r: _milliseconds(r.get("latency_128_ms")),
        "MB of\nweights": lambda r: _megabytes(r.get("weight_bytes")),
        "MB of\nlast.ckpt": lambda r: _megabytes(r.get("checkpoint_bytes")),
    }
    cells = {header: [cell(record) for record in records] for header, cell in columns.items()}
    return {header: column for header, column in cells.items() if set(column) != {"-"}}


def tells_cost(record: Record) -> bool:
    """Whether the record is of a version that measured what the network costs."""
    return "latency_128_ms" in record or "compacted" in record


def measured_where(record: Record) -> str:
    """Return how the latencies were measured: "median, cpu, 2 threads"."""
    threads = record["latency_threads"]
    return f"median, {record['latency_device']}, {threads} {'thread' if threads == 1 else 'threads'}"


def measured_text(record: Record) -> str:
    """Return what was measured of the network as it is, in a line for its speed and one for its bytes."""
    if record.get("latency_ms") is None:
        return "not measured"
    times = f"{_milliseconds(record['latency_ms'])} ms for one example"
    if "latency_128_ms" in record:
        many = record["latency_128_ms"]
        times += ", not measured for 128" if many is None else f", {_milliseconds(many)} ms for 128"
    sizes = f"{_megabytes(record['weight_bytes'])} MB of weights"
    if record.get("checkpoint_bytes") is not None:
        sizes += f", {_megabytes(record['checkpoint_bytes'])} MB in last.ckpt"
    return f"{times} ({measured_where(record)})\n{sizes}"


def _compacted(record: Record) -> str:
    parts = []
    if record.get("num_channels") is not None and record.get("num_channels_compact") is not None:
        parts.append(f"{record['num_channels_compact']:,} of {record['num_channels']:,} channels left")
    if record.get("macs_compact"):
        parts.append(f"{record['macs_dense'] / record['macs_compact']:.1f} times fewer MACs than dense")
    return f"Compacted: {', '.join(parts) or 'the network itself is smaller'}."


def _speed(record: Record) -> list[str]:
    times = []
    for key, dense, examples in (
        ("latency_ms", "latency_dense_ms", "one example"),
        ("latency_128_ms", "latency_dense_128_ms", "128"),
    ):
        if record.get(key) and record.get(dense):
            times.append(f"x {record[dense] / record[key]:.2f} for {examples}")
    if not times:
        return ["Its speed against the dense network was not measured."]
    return [f"Speed measured against the dense network: {', '.join(times)}."]


def _measured(record: Record, dense: str, own: str, spell: Callable[[float | None], str]) -> list[str]:
    if record.get("compacted"):
        return [spell(record.get(dense)), "as dense" if record.get(dense) is not None else "-", spell(record.get(own))]
    return ["-", spell(record.get(own)), "-"]


def _channels(record: Record) -> str:
    if not record.get("compacted") or record.get("num_channels_compact") is None:
        return "-"
    return f"{record['num_channels_compact']:,} of {_count(record.get('num_channels'))}"


def _factor(value: int | None, dense: int) -> str:
    return "-" if value is None else f"x {value / dense:.4f}"


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _megabytes(value: float | None) -> str:
    return "-" if value is None else f"{value / 1e6:.2f}"
