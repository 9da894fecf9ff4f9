from __future__ import annotations

from prunelab.report.table import compare_table, run_table

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
measured             1.26 ms for one example (cpu, 2 threads), 1.10 MB of weights
                     Masking is a simulation: the network is neither faster nor smaller until it is compacted.
leaked weights       0
seconds              1.2 scoring, 60.0 training
masks                0123456789ab
directory            runs/digits"""


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


def test_a_compacted_network_is_no_simulation(record):
    assert "simulation" not in run_table(record | {"compacted": True}, "runs/digits")


def test_runs_side_by_side_are_a_markdown_table(record):
    other = record | {"criterion": "snip", "seed": 7, "collapsed_layers": []}
    lines = compare_table([record, other]).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert [line.split(" | ")[0] for line in lines] == ["| criterion", "| ---", "| synflow", "| snip"]
    assert "| 0.1 | 0.0900 | 1 | 0.7500 | 0.5000 | x 0.0750 |" in lines[2]
