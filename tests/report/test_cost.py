from __future__ import annotations

import pytest
import torch
from torch import nn

from prunelab.pruning.diagnostics import count_macs
from prunelab.report.cost import cost_columns, cost_lines, cost_rows, cost_statement, measured_text, tells_cost


def cells(record, label):
    return next(row[1:] for row in cost_rows(record) if row[0] == label)


def channels(first, second):
    layers = nn.Conv2d(1, first, 3), nn.Conv2d(first, second, 3), nn.Flatten(), nn.Linear(4 * second, 3)
    return nn.Sequential(*layers)


def test_the_numbers_of_the_record_are_those_of_its_networks(compact_record):
    for net, macs, weights, parameters, rows in (
        (channels(4, 6), "macs_dense", "num_prunable", "num_parameters", "num_channels"),
        (channels(2, 3), "macs_compact", "compact_weights", "num_parameters_compact", "num_channels_compact"),
    ):
        matrices = [parameter for parameter in net.parameters() if parameter.ndim > 1]
        assert count_macs(net, torch.zeros(1, 1, 6, 6)) == compact_record[macs]
        assert sum(matrix.numel() for matrix in matrices) == compact_record[weights]
        assert sum(parameter.numel() for parameter in net.parameters()) == compact_record[parameters]
        assert sum(len(matrix) for matrix in matrices) == compact_record[rows]


def test_dense_masked_and_compact_stand_side_by_side(compact_record):
    assert cells(compact_record, "MACs per example") == ["1,512", "308", "540"]
    # 308 / 1512 and 540 / 1512
    assert cells(compact_record, "against dense") == ["x 1.0000", "x 0.2037", "x 0.3571"]
    # 13 biases are kept in any case
    assert cells(compact_record, "all parameters") == ["337", "78", "116"]
    assert cells(compact_record, "ms for 128") == ["40.00", "as dense", "10.00"]
    assert cells(compact_record | {"latency_dense_128_ms": None}, "ms for 128") == ["-", "-", "10.00"]
    header = cost_lines(compact_record)[0]
    assert header.split() == ["dense", "masked", "compact"]
    assert {len(line) for line in cost_lines(compact_record)} == {len(header)} == {19 + 3 * 18}


def test_a_masked_network_has_no_third_column(record, measured_record):
    assert cells(measured_record, "MACs per example") == ["40,000", "3,000"]
    assert cells(measured_record, "ms for 128") == ["-", "45.10"]
    assert "ms for 128" not in [label for label, *_ in cost_rows(record)]
    assert cost_lines(record)[0].split() == ["dense", "masked"]


def test_a_masked_network_says_how_it_gets_smaller(record):
    lines = cost_statement(record).splitlines()
    assert "simulation" in lines[0]
    assert "--pruning.compact true" in lines[1]
    assert "--pruning.compact" not in cost_statement(record | {"mask_0": "init"}), "held values cannot be removed"


def test_a_network_that_could_not_be_compacted_says_why(record):
    first, second = cost_statement(record | {"compacted": False, "not_compacted": "it draws."}).splitlines()
    assert first == "Not compacted, although asked for: it draws."
    assert "simulation" in second


def test_a_dense_network_simulates_nothing(record):
    assert cost_statement(record | {"num_kept": record["num_prunable"]}) == ""


def test_a_compacted_network_says_what_was_measured(compact_record):
    # 1512 / 540, 0.75 / 0.5 and 40 / 10
    assert cost_statement(compact_record).splitlines() == [
        "Compacted: 8 of 13 channels left, 2.8 times fewer MACs than dense.",
        "Speed measured against the dense network: x 1.50 for one example, x 4.00 for 128.",
    ]
    slower = compact_record | {"latency_ms": 1.5, "latency_dense_128_ms": None}
    assert cost_statement(slower).endswith("dense network: x 0.50 for one example.")


def test_without_numbers_a_compacted_network_claims_none(record):
    assert cost_statement(record | {"compacted": True}).splitlines() == [
        "Compacted: the network itself is smaller.",
        "Its speed against the dense network was not measured.",
    ]
    assert cells(record | {"compacted": True}, "MACs per example") == ["40,000", "3,000", "-"]


def test_columns_without_anything_to_say_are_left_out(record, measured_record, compact_record):
    old = cost_columns([record])
    assert list(old) == ["masked\nMACs", "weights\nstored", "ms\nfor 1", "MB of\nweights"]
    assert cost_columns([record, measured_record])["ms\nfor 128"] == ["-", "45.10"]
    mixed = cost_columns([measured_record, compact_record])
    assert mixed["channels\nleft"] == ["-", "8 of 13"]
    assert mixed["weights\nstored"] == ["1,000", "108"]
    assert mixed["dense ms\nfor 1"] == ["-", "0.75"]


def test_only_records_that_measured_it_tell_what_a_network_costs(record, measured_record):
    assert not tells_cost(record)
    assert tells_cost(measured_record)
    assert tells_cost(record | {"compacted": True})


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, "1.26 ms for one example, 45.10 ms for 128 (median, cpu, 2 threads)"),
        ({"latency_128_ms": None}, "1.26 ms for one example, not measured for 128 (median, cpu, 2 threads)"),
        ({"latency_ms": None}, "not measured"),
        ({"latency_threads": 1}, "1.26 ms for one example, 45.10 ms for 128 (median, cpu, 1 thread)"),
    ],
)
def test_times_say_how_they_were_measured(measured_record, values, expected):
    assert measured_text(measured_record | values).splitlines()[0] == expected


def test_bytes_are_those_of_the_weights_and_of_the_file(record, measured_record):
    assert measured_text(measured_record).splitlines()[1] == "1.10 MB of weights, 2.21 MB in last.ckpt"
    assert measured_text(record).splitlines()[1] == "1.10 MB of weights"
