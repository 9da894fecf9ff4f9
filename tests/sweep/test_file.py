"""A sweep's file and the cells that it means, listed by hand; its mistakes, in one line each."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from prunelab.command_line import read_command
from prunelab.names import CommandError
from prunelab.sweep.file import SWEEPS, Sweep, find_sweep, read_sweep


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "many.yaml"


def read(path: Path, text: str, *options: tuple[str, str], repeats: int | None = None) -> Sweep:
    path.write_text(text)
    return read_sweep(path, options, repeats)


def commands(sweep: Sweep) -> list[str]:
    return [" ".join(cell.words) for cell in sweep.cells]


def test_cells_are_the_grid_seed_by_seed(path: Path) -> None:
    text = """\
# What it claims
# command: none
base: [one.yaml, two]
set: {trainer.max_epochs: 3, data: digits}
grid:
  - {pruning.criterion: [synflow, {name: snip, rounds: 5}], compression_exponent: [1, 0.5]}
  - {pruning.criterion: [random], pruning.density: [1.0]}
repeats: 2
exclude: [{pruning.criterion: synflow, compression_exponent: 0.5, seed_everything: 1}]
"""
    sweep = read(path, text)
    assert (sweep.name, sweep.claim) == ("many", "What it claims")
    assert sweep.axes == ("pruning.criterion", "compression_exponent", "pruning.density")
    begin = "--config one.yaml --config two --trainer.max_epochs 3 --data digits --pruning.criterion "
    snip = '{"name": "snip", "rounds": 5} --pruning.compression_ratio '
    of_seed = [
        "synflow --pruning.compression_ratio 10.0 --seed_everything ",
        "synflow --pruning.compression_ratio 3.1622776601683795 --seed_everything ",
        f"{snip}10.0 --seed_everything ",
        f"{snip}3.1622776601683795 --seed_everything ",
        "random --pruning.density 1.0 --seed_everything ",
    ]
    expected = [f"{begin}{words}0" for words in of_seed] + [f"{begin}{words}1" for words in of_seed]
    del expected[6]
    assert commands(sweep) == expected
    assert sweep.cells[1].title == "pruning.criterion synflow, compression_exponent 0.5, seed_everything 0"
    assert dict(sweep.cells[1].values) == {
        "pruning.criterion": "synflow",
        "compression_exponent": 0.5,
        "seed_everything": 0,
    }
    assert dict(sweep.cells[4].values) == {"pruning.criterion": "random", "pruning.density": 1.0, "seed_everything": 0}


def test_keys_vary_together_and_configs_go_on_top(path: Path) -> None:
    text = """\
base: one
grid:
  pair: {small: {model.net: mlp, data: digits}, large: {model.net: vgg16_bn, config: [big, fast.yaml]}}
  config: [a.yaml, [b, c.yaml]]
"""
    sweep = read(path, text)
    assert sweep.claim == "a sweep"
    assert [tuple(cell.values.values()) for cell in sweep.cells] == [
        ("small", "a"),
        ("small", "b+c"),
        ("large", "a"),
        ("large", "b+c"),
    ]
    assert commands(sweep) == [
        "--config one --config a.yaml --model.net mlp --data digits",
        "--config one --config b --config c.yaml --model.net mlp --data digits",
        "--config one --config big --config fast.yaml --config a.yaml --model.net vgg16_bn",
        "--config one --config big --config fast.yaml --config b --config c.yaml --model.net vgg16_bn",
    ]
    listed = read(path, "base: one\ngrid: {pair: [{model.net: mlp, data: digits}]}")
    assert [dict(cell.values) for cell in listed.cells] == [{"pair": "mlp digits"}]


def test_options_go_on_top_of_set_and_repeats_in_place_of_the_files(path: Path) -> None:
    text = "base: one\nset: {trainer.max_epochs: 3}\ngrid: {pruning.density: [0.1]}\nseeds: [4, 5]\n"
    assert commands(read(path, text, ("trainer.max_epochs", "1"))) == [
        f"--config one --trainer.max_epochs 1 --pruning.density 0.1 --seed_everything {seed}" for seed in (4, 5)
    ]
    assert [cell.values["seed_everything"] for cell in read(path, text, repeats=1).cells] == [0]


def test_a_cell_is_read_by_train_py_as_it_was_meant(path: Path) -> None:
    text = """\
base: quickstart.yaml
set: {trainer.enable_progress_bar: false, tickets.densities: null}
grid: {pruning.criterion: [{name: snip, rounds: 5}], model.optimizer.lr: [1e-2], pruning.compression_ratio: [20]}
"""
    (cell,) = read(path, text).cells
    config = read_command(list(cell.words)).config
    assert config["pruning"]["criterion"]["init_args"] == {"rounds": 5}
    assert config["model"]["optimizer"]["init_args"]["lr"] == "1e-2"
    assert "density" not in config["pruning"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bases: one", "unknown key bases, did you mean base? a sweep has base, set, grid"),
        ("grid: {pruning.density: [1]}", "base: name the config"),
        ("base: {a: 1}", "base: expected names of files"),
        ("base: one", "grid: is empty"),
        ("base: one\ngrid: {}", "grid: is empty"),
        ("base: one\ngrid: []", "grid: is empty"),
        ("base: one\ngrid: [{}, {data: [digits]}]", "grid: expected keys with lists of values, got {}"),
        ("base: one\ngrid: {pruning.density: []}", "grid: pruning.density: expected a list of values"),
        ("base: one\ngrid: {pruning.density: 0.1}", "grid: pruning.density: expected a list of values"),
        ("base: one\ngrid: {criterion: [snip]}", "grid: criterion cannot vary, did you mean pruning.criterion?"),
        ("base: one\ngrid: {compression_exponents: [1]}", "did you mean compression_exponent?"),
        ("base: one\ngrid: {compression_exponent: [x]}", "compression_exponent: expected a number, got x"),
        ("base: one\ngrid: {pair: [{}]}", "grid: pair: expected keys that vary together"),
        ("base: one\ngrid: {pair: [{nett: 1}]}", "grid: nett cannot vary"),
        ("base: one\ngrid: {config: [3]}", "grid: config: expected names of files, got 3"),
        (
            "base: one\ngrid: {pair: [{data: a}], data: [b]}",
            "grid: data is given by two axes in pair a, data b",
        ),
        ("base: one\nset: {data: a}\ngrid: {data: [b]}", "data is varied by the grid and cannot be given too"),
        ("base: one\nset: 3\ngrid: {data: [b]}", "set: expected keys and values, got 3"),
        ("base: one\ngrid: {data: [b]}\nrepeats: 2\nseeds: [1]", "repeats and seeds both give seeds"),
        ("base: one\ngrid: {seed_everything: [1]}\nrepeats: 2", "repeats and grid: seed_everything both give seeds"),
        ("base: one\ngrid: {data: [b]}\nrepeats: 0", "repeats: expected a whole number of at least 1, got 0"),
        ("base: one\ngrid: {data: [b]}\nrepeats: true", "repeats: expected a whole number of at least 1, got true"),
        ("base: one\ngrid: {data: [b]}\nseeds: []", "seeds: expected whole numbers"),
        ("base: one\ngrid: {data: [b]}\nseeds: [a]", "seeds: expected whole numbers, got a"),
        ("base: one\ngrid: {data: [b]}\nexclude: [{dta: b}]", "exclude: dta is no axis, did you mean data?"),
        ("base: one\ngrid: {data: [b]}\nexclude: [{data: c}]", "exclude: no cell has data c"),
        ("base: one\ngrid: {data: [b]}\nexclude: [{data: b}]", "exclude: leaves no cell"),
        ("base: one\ngrid: {data: [b]}\nexclude: [{}]", "exclude: an entry without keys"),
        ("base: one\ngrid: {data: [b]}\nexclude: 3", "exclude: expected keys and values, got 3"),
        (
            "base: one\ngrid: {data: [b]}\nexpected: [{data: c, test_accuracy: 0.9}]",
            "expected: no cell has data c",
        ),
        (
            "base: one\ngrid: {data: [b]}\nexpected: [{data: b, test_acuracy: 0.9}]",
            "expected: test_acuracy is no axis, did you mean test_accuracy?",
        ),
        ("base: one\ngrid: {data: [b]}\nexpected: [{data: b}]", "expected: data b has no value of test_accuracy"),
        ("base: one\ngrid: {data: [b]}\nexpected: [{test_accuracy: hi}]", "expected: test_accuracy: expected a number"),
        ("base: one\nbase: two", "base is given twice"),
    ],
)
def test_mistakes(text: str, message: str, path: Path) -> None:
    with pytest.raises(CommandError) as error:
        read(path, text)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_an_option_cannot_give_what_varies(path: Path) -> None:
    text = "base: one\ngrid: {data: [b]}\nrepeats: 2"
    with pytest.raises(CommandError, match="data is varied"):
        read(path, text, ("data", "digits"))
    with pytest.raises(CommandError, match="seed_everything is varied"):
        read(path, text, ("seed_everything", "3"))
    with pytest.raises(CommandError, match="--repeats and grid: seed_everything"):
        read(path, "base: one\ngrid: {seed_everything: [1]}", repeats=2)


def test_expected_values_are_handed_on(path: Path) -> None:
    entry = "{pruning.density: 0.10, test_accuracy: 0.93, source: somebody}"
    sweep = read(path, f"base: one\ngrid: {{pruning.density: [0.1, 0.2]}}\nexpected: [{entry}]")
    assert list(sweep.expected) == [{"pruning.density": 0.1, "test_accuracy": 0.93, "source": "somebody"}]


def test_expected_values_have_the_values_of_the_cells(path: Path) -> None:
    """YAML reads 1e-4 as text, and 1.0e-4 as a number."""
    text = """\
base: one
grid:
  - {model.optimizer.lr: [1e-4], data: [a]}
  - {model.optimizer.lr: [1.0e-4, 1], data: [b]}
expected:
  - {model.optimizer.lr: 1.0e-4, data: a, test_accuracy: 0.9}
  - {model.optimizer.lr: 1e-4, test_accuracy: 0.8, level: 2}
  - {model.optimizer.lr: "1.0", test_accuracy: 0.7}
  - {data: b, test_accuracy: 0.6}
"""
    sweep = read(path, text)
    assert [cell.values["model.optimizer.lr"] for cell in sweep.cells] == ["1e-4", 1e-4, 1]
    assert list(sweep.expected) == [
        {"model.optimizer.lr": "1e-4", "data": "a", "test_accuracy": 0.9},
        {"model.optimizer.lr": "1e-4", "test_accuracy": 0.8, "level": 2},
        {"model.optimizer.lr": 1e-4, "test_accuracy": 0.8, "level": 2},
        {"model.optimizer.lr": 1, "test_accuracy": 0.7},
        {"data": "b", "test_accuracy": 0.6},
    ]


def test_sweeps_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_sweep("synflow_quickstart") == SWEEPS / "synflow_quickstart.yaml"
    with pytest.raises(CommandError, match="did you mean synflow_quickstart"):
        find_sweep("synflow_quick_start.yaml")


def test_lists_are_appended_to_as_often_as_typed(path: Path) -> None:
    text = "base: one\nset: {trainer.callbacks+: A, trainer.max_epochs: 3}\ngrid: {data: [b]}\n"
    typed = [("trainer.callbacks+", "B"), ("trainer.max_epochs", "1"), ("trainer.callbacks+", "C")]
    assert commands(read(path, text, *typed)) == [
        "--config one --trainer.callbacks+ A --trainer.callbacks+ B --trainer.max_epochs 1 --trainer.callbacks+ C "
        "--data b"
    ]


@pytest.mark.parametrize(
    ("options", "repeats", "name"),
    [
        ([], None, "many"),
        ([], 2, "many"),  # as the file has it
        ([], 1, "many-repeats=1"),
        ([("trainer.max_epochs", "1"), ("data", "digits")], 1, "many-repeats=1-trainer.max_epochs=1-data=digits"),
    ],
)
def test_results_of_a_trial_have_a_folder_of_their_own(
    options: list[tuple[str, str]], repeats: int | None, name: str, path: Path
) -> None:
    sweep = read(path, "base: one\ngrid: {pruning.density: [0.1]}\nrepeats: 2", *options, repeats=repeats)
    assert (sweep.name, sweep.path) == (name, path)


def test_a_trial_that_is_no_name_has_a_short_hash(path: Path) -> None:
    text = "base: one\ngrid: {pruning.density: [0.1]}"
    names = [read(path, text, ("data.data_dir", word)).name for word in ("/a/b", "/a/c", "x" * 100)]
    assert all(re.fullmatch(r"many-[0-9a-f]{8}", name) for name in names)
    assert len(set(names)) == 3


@pytest.mark.parametrize(
    ("grid", "called", "different"),
    [
        (
            "{opt: [{model.optimizer.lr: 0.1}, {model.optimizer.weight_decay: 0.1}]}",
            "opt 0.1",
            "--model.optimizer.weight_decay",
        ),
        ("[{opt: [{data.a: 1}]}, {opt: [{data.b: 1}]}]", "opt 1", "--data.b"),
        ("{config: [here/a.yaml, there/a.yaml]}", "config a", "there/a.yaml"),
    ],
)
def test_what_tables_could_not_tell_apart_is_found_before(grid: str, called: str, different: str, path: Path) -> None:
    with pytest.raises(CommandError) as error:
        read(path, f"base: one\ngrid: {grid}")
    assert f"two cells are called {called}, one of them has {different}: give values names" in str(error.value)
    assert read(path, "base: one\ngrid: {opt: {a: {data.a: 1}, b: {data.b: 1}}}").cells[1].title == "opt b"
