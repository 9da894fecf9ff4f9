from __future__ import annotations

import csv

import pytest

from prunelab.paper import __main__, collapse
from prunelab.paper.__main__ import main

SMALL = ["--network", "mlp", "--num_classes", "10", "--image_size", "8"]


@pytest.mark.parametrize(
    ("words", "files", "lines"),
    [
        (["layer_collapse", "--criteria", "random", "magnitude", "--exponents", "0", "1"], ["layer_collapse"], 12),
        (["critical_compression", "--criteria", "random", "snip", "--seeds", "0", "1"], ["critical_compression"], 4),
        (["conservation", "--criteria", "random", "synflow"], ["unit_conservation", "layer_conservation"], 400),
        (["training_conservation", "--epochs", "1", "--trainings", "0.1,0"], ["training_conservation"], 6),
        (["schedule", "--rounds", "1", "3", "--exponents", "1"], ["schedule"], 4),
    ],
)
def test_commands(words, files, lines, tmp_path, capsys):
    output = tmp_path / "new" / "folder"
    assert main([*words, *SMALL, "--output", str(output)]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.split()[-4] == f"{output}/{files[-1]}_mlp.csv,"
    written = {path.name for path in output.iterdir()} - {"measured"}
    assert written == {f"{name}_mlp.{suffix}" for name in files for suffix in ("csv", "md", "png", "pdf")}
    rows = list(csv.DictReader((output / f"{files[0]}_mlp.csv").open()))
    assert len(rows) == lines
    text = (output / f"{files[0]}_mlp.md").read_text()
    assert f"python -m prunelab.paper {words[0]}" in text
    assert "30,200 prunable weights in 3 layers" in text


def test_the_same_command_measures_nothing_again(tmp_path, capsys, monkeypatch):
    words = ["layer_collapse", *SMALL, "--criteria", "magnitude", "--exponents", "1", "--output", str(tmp_path)]
    assert main(words) == 0
    files = ["layer_collapse_mlp.csv", "layer_collapse_mlp.md"]
    before = [(tmp_path / name).read_bytes() for name in files]
    monkeypatch.setattr(collapse, "keep_highest", None)
    assert main(words) == 0
    assert [(tmp_path / name).read_bytes() for name in files] == before


def test_results_of_another_command_are_kept(tmp_path, capsys):
    words = ["layer_collapse", *SMALL, "--criteria", "magnitude", "--output", str(tmp_path), "--exponents"]
    texts = {}
    for exponent in "012":
        assert main([*words, exponent]) == 0
        texts[exponent] = (tmp_path / "layer_collapse_mlp.md").read_text()
    path = tmp_path / "layer_collapse_mlp"
    assert f"{path}.* were of another command: they are {path}_2.* now" in capsys.readouterr().out
    for name, exponent in {"": "2", "_1": "0", "_2": "1"}.items():
        files = {file.suffix for file in tmp_path.glob(f"layer_collapse_mlp{name}.*")}
        assert files == {".csv", ".md", ".png", ".pdf"}
        assert (tmp_path / f"layer_collapse_mlp{name}.md").read_text() == texts[exponent]


def test_interrupted(tmp_path, capsys, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(collapse, "keep_highest", interrupt)
    words = ["layer_collapse", *SMALL, "--criteria", "magnitude", "--exponents", "1", "--output", str(tmp_path)]
    assert main(words) == 130
    assert capsys.readouterr().err == "interrupted: the same command goes on\n"


def test_interrupted_without_measurements_kept(tmp_path, capsys, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(__main__, "conservation", interrupt)
    assert main(["conservation", *SMALL, "--output", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "interrupted: the same command begins anew\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["figure2"], "invalid choice: 'figure2'"),
        (["conservation", "--network", "vgg99"], "no 'vgg99', did you mean vgg19? there are resnet20, "),
        (["layer_collapse", "--criteria", "synflw"], "no 'synflw', did you mean synflow? there are "),
        (["layer_collapse", "--exponents", "-1"], "expected an exponent in [0, 12], got -1"),
        (["layer_collapse", "--seed", "-1"], "expected a whole number in [0, 2**32), got -1"),
        (["critical_compression", "--tolerance", "x"], "expected a number in [0, 1], got x"),
        (["critical_compression", "--seed", "1"], "unrecognized arguments: --seed 1"),
        (["schedule", "--rounds", "0"], "expected a whole number of at least 1, got 0"),
        (["schedule", "--round", "3"], "unrecognized arguments: --round 3"),
        (
            ["training_conservation", "--trainings", "0.1"],
            "expected RATE,DECAY or RATE,DECAY,SCALE, SCALE above 0, such as 0.01,0.001, got 0.1",
        ),
        (["training_conservation", "--trainings", "0.1,0,0"], "such as 0.01,0.001, got 0"),
        (["conservation", "--network", "resnet20"], "a chain, such as vgg16_bn"),
        (["conservation", "--network", "vgg16_bn", "--image_size", "8"], "16"),
        (
            ["layer_collapse", *SMALL, "--criteria", "snip", "--exponents", "1", "--num_classes", "3"],
            "digits has 10 classes",
        ),
        (
            ["layer_collapse", *SMALL, "--criteria", "magnitude", "--exponents", "9"],
            "10^9 keeps none of 30,200 weights",
        ),
        (
            ["layer_collapse", *SMALL, "--data", "image_folder", "--criteria", "snip", "--exponents", "1"],
            "needs --data_root",
        ),
    ],
)
def test_mistakes_are_one_line(words, message, tmp_path, capsys):
    output = ["--output", str(tmp_path / "out")] if words and words[0] != "figure2" else []
    try:
        code: object = main([*words, *output])
    except SystemExit as error:
        code = error.code
    said = capsys.readouterr()
    assert code == 2
    assert said.err.startswith("python -m prunelab.paper: error: ")
    assert said.err.count("\n") == 1
    assert message in said.err
    assert not list((tmp_path / "out").glob("*.csv"))


def test_an_output_that_is_a_file(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    words = [
        "layer_collapse",
        *SMALL,
        "--criteria",
        "magnitude",
        "--exponents",
        "1",
        "--output",
        str(tmp_path / "file"),
    ]
    assert main(words) == 2
    assert capsys.readouterr().err.count("\n") == 1
