from __future__ import annotations

import pytest

from prunelab.report.table import compare_table, levels_markdown, levels_table, report_text, run_table

EXPECTED = """\
digits-synflow-d0.1-s0-0123abcd: synflow, seed 0, 3 epochs

                     prunable weights    all parameters
kept                              100               200
of                              1,000             1,100
density                      0.100000          0.181818
sparsity                     0.900000          0.818182
compression ratio               10.00              5.50

density requested    0.1
effective density    0.0900  (kept weights on a kept input-output path)
dead layers          1: b.weight
validation accuracy  0.7500
test accuracy        0.5000
MACs per example     40,000 dense -> 3,000 masked, in theory (x 0.0750)
measured             1.26 ms for one example (median, cpu, 2 threads)
                     1.10 MB of weights
                     Masking is a simulation: the network is neither faster nor smaller until it is compacted.
                     `--pruning.compact true` makes it really smaller.
leaked weights       0
seconds              1.2 scoring, 60.0 training
masks                0123456789ab
directory            runs/digits"""

EXPECTED_LEVELS = """\
digits-magnitude-d0.25-s0-0123abcd: magnitude, rewind weights, rewind_step 5, seed 0

                                                                                             test
                        sparsity  compression  effective    dead       val      test  accuracy at             leaked
level   density   kept         %        ratio    density  layers  accuracy  accuracy   best epoch      MACs  weights  steps  seconds
    0  1.000000  1,000      0.00         1.00   1.000000       0    0.7500    0.5000       0.5625  x 1.0000        0  1,200     60.0
    1  0.500000    500     50.00         2.00   0.500000       0    0.8125    0.6250            -  x 0.5000        0  1,200     61.2
    2  0.250000    250     75.00         4.00   0.240000       0    0.7500    0.2500       0.3000  x 0.2000        0  1,200     61.2

MACs per example  40,000 dense; the factors are theory
                  Masking is a simulation: the network is neither faster nor smaller until it is compacted.
                  `--pruning.compact true` makes it really smaller.
seconds           2.5 scoring, 180.0 training, all levels together
masks             0: 0123456789ab, 1: 1123456789ab, 2: 2123456789ab
directory         runs/digits"""  # noqa: E501


EXPECTED_COMPACT = """\
digits-synflow-d0.1-s0-0123abcd: synflow, seed 0, 3 epochs

                     prunable weights    all parameters
kept                               65                78
of                                324               337
density                      0.200617          0.231454
sparsity                     0.799383          0.768546
compression ratio                4.98              4.32

                                dense            masked           compact
MACs per example                1,512               308               540
against dense                x 1.0000          x 0.2037          x 0.3571
prunable weights                  324                65               108
all parameters                    337                78               116
channels                           13                 -                 8
ms for 1 example                 0.75          as dense              0.50
ms for 128                      40.00          as dense             10.00
MB of weights                    0.13          as dense              0.05

density requested    0.1
effective density    0.0900  (kept weights on a kept input-output path)
dead layers          1: b.weight
validation accuracy  0.7500
test accuracy        0.5000
measured             0.50 ms for one example, 10.00 ms for 128 (median, cpu, 2 threads)
                     0.05 MB of weights, 0.10 MB in last.ckpt
                     Compacted: 8 of 13 channels left, 2.8 times fewer MACs than dense.
                     Speed measured against the dense network: x 1.50 for one example, x 4.00 for 128.
leaked weights       0
seconds              1.2 scoring, 60.0 training
masks                0123456789ab
directory            runs/digits"""

EXPECTED_LEVEL_COSTS = """\
         masked   compact  channels  weights  dense ms     ms  dense ms       ms    MB of      MB of
level      MACs      MACs      left   stored     for 1  for 1   for 128  for 128  weights  last.ckpt
    0  x 1.0000         -         -    1,000         -   0.50         -    10.00     0.05       0.10
    1  x 0.5000  x 0.2500   8 of 13      108      0.75   0.50     40.00    10.00     0.05       0.10
    2  x 0.2000  x 0.2500   8 of 13      108      0.75   0.50     40.00    10.00     0.05       0.10
"""


def test_the_table_of_a_run_is_the_same_text_for_the_same_record(record):
    assert run_table(record, "runs/digits") == EXPECTED


def test_the_directory_is_the_last_word_of_the_last_line(record):
    assert run_table(record, "/runs/a-b/c").splitlines()[-1].split()[-1] == "/runs/a-b/c"


def test_what_was_not_measured_says_so(record):
    nothing = record | {"test_accuracy": None, "val_accuracy": None, "effective_density": None, "collapsed_layers": []}
    text = run_table(nothing, "runs/digits")
    assert "test accuracy        not measured" in text
    assert "dead layers          none" in text


def test_a_checkpoint_evaluated_anew_stands_beside_the_record(record):
    text = run_table(record, "runs/digits", {"test_accuracy": 0.5})
    assert "test_accuracy anew   0.5000" in text
    assert text.split()[-1] == "runs/digits"


def test_a_compacted_network_is_no_simulation(compact_record):
    text = run_table(compact_record, "runs/digits")
    assert "simulation" not in text
    assert text.splitlines()[1:] == EXPECTED_COMPACT.splitlines()[1:]


def test_batches_and_bytes_on_the_disk_are_there_if_they_were_measured(measured_record):
    lines = run_table(measured_record, "runs/digits").splitlines()
    place = lines.index("measured             1.26 ms for one example, 45.10 ms for 128 (median, cpu, 2 threads)")
    assert lines[place + 1] == "                     1.10 MB of weights, 2.21 MB in last.ckpt"
    assert max(map(len, lines)) <= 120


def test_the_last_line_is_the_directory_where_nothing_is_pruned(record):
    text = run_table(record | {"num_kept": 1000}, "runs/digits")
    assert "simulation" not in text
    assert text.split()[-1] == "runs/digits"


def test_the_costs_of_levels_stand_below_them(levels, compact_record):
    keys = [key for key in compact_record if key.startswith(("latency", "weight_bytes", "checkpoint", "num_chan"))]
    costs = {key: compact_record[key] for key in [*keys, "compacted", "compact_weights"]}
    dense = {key: value for key, value in costs.items() if key.startswith(("latency", "weight_b", "checkpoint"))}
    dense |= {"latency_dense_ms": None, "latency_dense_128_ms": None, "compacted": False}
    records = [levels[0] | dense, *(level | costs | {"macs_compact": 10_000} for level in levels[1:])]
    text = levels_table(records, "runs/digits")
    lines = text.splitlines()
    assert lines[9:14] == EXPECTED_LEVEL_COSTS.splitlines()
    # the levels themselves are the lines that they always were
    assert lines[:8] == EXPECTED_LEVELS.splitlines()[:8]
    assert "MACs per example  40,000 dense; the factors are theory, those of compact ones are computed" in lines
    assert "latencies         forward pass, median, cpu, 2 threads" in lines
    assert "simulation" not in text
    _, table = levels_markdown(records).split("\n\n")
    assert table.splitlines()[0].startswith("| level | masked MACs | compact MACs | channels left | weights stored |")
    assert table.splitlines()[3].startswith("| 1 | x 0.5000 | x 0.2500 | 8 of 13 | 108 | 0.75 | 0.50 | 40.00 | 10.00 |")


def test_runs_are_compared_by_what_they_cost_too(record, measured_record, compact_record):
    first, second = compare_table([record, measured_record, compact_record]).split("\n\n")
    assert first == compare_table([record, record, compact_record | {"compacted": None}]).split("\n\n")[0]
    header, _, *rows = [line.strip("| ").split(" | ") for line in second.splitlines()]
    old, masked, compact = (dict(zip(header, row, strict=True)) for row in rows)
    assert [row["masked MACs"] for row in (old, masked, compact)] == ["x 0.0750", "x 0.0750", "x 0.2037"]
    assert [row["compact MACs"] for row in (old, masked, compact)] == ["-", "-", "x 0.3571"]
    assert [row["ms for 128"] for row in (old, masked, compact)] == ["-", "45.10", "10.00"]
    assert [row["dense MACs"] for row in (old, masked, compact)] == ["40,000", "40,000", "1,512"]
    assert masked["measured"] == "median, cpu, 2 threads"
    assert compact["run"] == compact_record["name"]


def test_runs_side_by_side_are_a_markdown_table(record):
    other = record | {"criterion": "snip", "seed": 7, "collapsed_layers": []}
    lines = compare_table([record, other]).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert [line.split(" | ")[0] for line in lines] == ["| criterion", "| ---", "| synflow", "| snip"]
    assert "| 0.1 | 0.0900 | 1 | 0.7500 | 0.5000 | x 0.0750 |" in lines[2]


def test_a_run_from_before_there_were_levels_has_its_table(record):
    assert report_text([record], "runs/digits") == EXPECTED
    assert report_text([record], "runs/digits", {"test_accuracy": 0.5}) == run_table(
        record, "runs/digits", {"test_accuracy": 0.5}
    )


def test_levels_stand_below_each_other(levels):
    assert levels_table(levels, "runs/digits") == EXPECTED_LEVELS
    assert report_text(levels, "runs/digits") == EXPECTED_LEVELS


@pytest.mark.parametrize("finished", [1, 2])
def test_of_an_unfinished_run_the_table_says_which_level_is_missing(levels, finished):
    lines = report_text(levels[:finished], "runs/digits").splitlines()
    assert lines[-2].startswith(f"not finished      level {finished} of 0 to 2 is missing")
    assert lines[-1].split()[-1] == "runs/digits"
    numbered = [line.split()[0] for line in lines if line.startswith("    ") and line.split()[0].isdigit()]
    assert numbered == ["0", "1"][:finished]


def test_a_control_begins_after_the_dense_level(levels):
    lines = report_text([record | {"control": "reinit"} for record in levels[1:]], "runs/digits").splitlines()
    assert [line.split()[0] for line in lines[5:7]] == ["1", "2"]
    assert not [line for line in lines if "missing" in line]
    assert "level 2 of 0 to 2 is missing" in report_text(levels[1:2], "runs/digits")


def test_what_went_wrong_in_a_level_is_seen(levels):
    assert "LEAKED" not in levels_table(levels, "runs/digits")
    levels[1] |= {"leaked_weights": 1_234}
    levels[2] |= {"collapsed_layers": ["a.weight", "b.weight"], "effective_density": None}
    lines = levels_table(levels, "runs/digits").splitlines()
    assert "1,234 !" in lines[6]
    assert "    -       2  " in lines[7]
    assert "LEAKED, level 1       1,234 pruned weights do not hold the value that they should hold" in lines
    assert "dead layers, level 2  a.weight, b.weight" in lines


def test_supermask_control_source_and_a_new_evaluation_are_there_if_they_are(levels):
    plain = levels_table(levels, "runs/digits")
    for word in ("supermask", "control", "masks from", "anew"):
        assert word not in plain
    levels[1] |= {"supermask_test_accuracy": 0.4}
    levels[2] |= {"control": "reinit", "masks_from": "fedcba9876543210" * 4}
    text = levels_table(levels, "runs/digits", {"test_accuracy": 0.125})
    assert "rewind_step 5, control reinit, seed 0" in text.splitlines()[0]
    # of level 0, level 1 and level 2, beside the MACs
    assert [line.split()[10] for line in text.splitlines()[5:8]] == ["-", "0.4000", "-"]
    assert "masks from          fedcba987654" in text
    assert "test_accuracy anew  0.1250" in text


def test_levels_without_rewinding_name_none(levels):
    levels[2] |= {"rewind": None, "rewind_step": None}
    assert levels_table(levels, "runs/digits").splitlines()[0].endswith(": magnitude, seed 0")


def test_one_level_of_several_has_a_table_of_its_own(levels):
    text = run_table(levels[1] | {"supermask_test_accuracy": 0.4, "control": "shuffle"}, "runs/digits/level_01")
    assert text.splitlines()[0].endswith(": magnitude, level 1 of 0 to 2, control shuffle, seed 0, 3 epochs")
    assert "supermask            0.4000" in text
    assert text.split()[-1] == "runs/digits/level_01"


def test_transferred_masks_name_their_source(record):
    assert "masks from           fedcba987654" in run_table(record | {"masks_from": "fedcba9876543210" * 4}, "runs/a")


def test_levels_as_markdown_have_the_same_cells(levels):
    lines = levels_markdown(levels).splitlines()
    assert lines[0].startswith("| level | density | kept | sparsity % | compression ratio | effective density |")
    assert "| test accuracy at best epoch | MACs |" in lines[0]
    cells = [line.strip("| ").replace("x ", "x").split(" | ") for line in lines[2:]]
    assert cells == [line.replace("x ", "x").split() for line in EXPECTED_LEVELS.splitlines()[5:8]]


def test_a_run_with_levels_stands_beside_others_by_its_last_one(record, levels):
    assert "levels" not in compare_table([record])
    header, _, *rows = [
        line.strip("| ").split(" | ") for line in compare_table([record, levels[2], levels[1]]).split("\n")
    ]
    cells = [dict(zip(header, row, strict=True)) for row in rows]
    assert [row["levels"] for row in cells] == ["1", "3", "2 of 3"]
    assert [row["rewind"] for row in cells] == ["-", "weights, step 5", "weights, step 5"]
    assert [row["density"] for row in cells] == ["0.1", "0.25", "0.5"]
    assert "control" not in header


def test_controls_stand_beside_their_ticket(levels):
    header, _, *rows = compare_table([levels[2], levels[2] | {"control": "reinit"}]).splitlines()
    column = header.split(" | ").index("control")
    assert [row.split(" | ")[column] for row in rows] == ["-", "reinit"]
