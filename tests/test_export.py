"""A ticket as one file: what it holds, what is said about it, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from prunelab.experiment.run_dir import LevelDir, RunDir
from prunelab.export import FORMATS, main
from prunelab.pruning import Masks

NAME = "python -m prunelab.export"


def plain(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4))


def write_level(level: LevelDir, masks: Masks, prefix: str) -> None:
    """What a finished training leaves, as far as it matters here; one of its zeros is negative."""
    level.path.mkdir(parents=True)
    start, end = plain(seed=level.index), plain(seed=level.index + 10)
    for net in (start, end):
        masks.apply_to(net)
    end[1].running_mean.fill_(0.5)
    with torch.no_grad():
        end[0].bias[0] = -0.0
    masks.save(level.masks)
    torch.save(dict(start.state_dict()), level.ticket)
    trained = {f"{prefix}{name}": value for name, value in end.state_dict().items()} | {"loss.weight": torch.ones(4)}
    torch.save({"state_dict": trained if prefix else end.state_dict(), "global_step": 60}, level.last_checkpoint)
    level.record.write_text(json.dumps({"level": level.index, "steps": 60}))


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    """A dense level and two pruned ones, with 25 and 10 of 50 weights."""
    run_dir = RunDir(tmp_path / "run")
    for index, kept in enumerate((50, 25, 10)):
        order = torch.randperm(50, generator=torch.Generator().manual_seed(0)) < kept
        masks = Masks({"0.weight": order[:30].view(5, 6), "3.weight": order[30:].view(4, 5)})
        write_level(run_dir.level(index), masks, "net.")
    run_dir.config.write_text("pruning: {density: 0.2, net: net}\n")
    return run_dir


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "ticket.pt"


def export(run_dir: RunDir, output: Path, *words: str) -> int:
    return main([str(run_dir.path), "--format", "ticket", "--output", str(output), *words])


def loaded(output: Path) -> nn.Sequential:
    net = plain(seed=99)
    net.load_state_dict(torch.load(output), strict=True)
    return net


def same_bits(one: nn.Module, other: nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return all(value.numpy().tobytes() == states[1][name].numpy().tobytes() for name, value in states[0].items())


def expected(run_dir: RunDir, index: int, seed: int) -> nn.Sequential:
    net = plain(seed)
    Masks.load(run_dir.level(index).masks).apply_to(net)
    return net


def test_the_ticket_of_the_last_level_goes_into_a_plain_network(run_dir: RunDir, output: Path, capsys: Any) -> None:
    assert export(run_dir, output) == 0
    assert same_bits(loaded(output), expected(run_dir, 2, seed=2))
    size = output.stat().st_size
    said = f"{output}: level 2, start, density 0.2, 10 of 50 weights kept, {size:,} bytes\n"
    assert capsys.readouterr() == (said, "")
    assert type(torch.load(output)) is dict


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("weights", ["start", "trained"])
def test_any_level_before_or_after_training(
    run_dir: RunDir, output: Path, index: int, weights: str, capsys: Any
) -> None:
    assert export(run_dir, output, "--level", str(index), "--weights", weights) == 0
    net = loaded(output)
    wanted = expected(run_dir, index, seed=index + 10 * (weights == "trained"))
    if weights == "trained":
        wanted[1].running_mean.fill_(0.5)
        wanted[0].bias.data[0] = -0.0
        assert torch.signbit(net[0].bias[0])
    assert same_bits(net, wanted)
    assert f"level {index}, {weights}, density {(1, 0.5, 0.2)[index]}, " in capsys.readouterr().out


def test_a_network_at_another_place_of_its_module(run_dir: RunDir, output: Path) -> None:
    shutil.rmtree(run_dir.path)
    masks = Masks({"0.weight": torch.eye(5, 6) > 0})
    write_level(run_dir.level(0), masks, "body.net.")
    run_dir.config.write_text("pruning: {net: body.net}\n")
    assert export(run_dir, output, "--weights", "trained") == 0
    assert torch.equal(loaded(output)[3].weight, plain(seed=10)[3].weight)


def test_nothing_is_overwritten_without_force(run_dir: RunDir, output: Path, capsys: Any) -> None:
    output.write_text("dear")
    assert export(run_dir, output) == 2
    assert capsys.readouterr() == ("", f"{NAME}: error: {output} is there already: --force replaces it\n")
    assert output.read_text() == "dear"
    assert export(run_dir, output, "--force") == 0
    assert same_bits(loaded(output), expected(run_dir, 2, seed=2))
    assert sorted(path.name for path in output.parent.iterdir()) == ["run", "ticket.pt"]


def test_a_failed_write_leaves_what_was_there(
    run_dir: RunDir, output: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    output.write_text("dear")
    monkeypatch.setattr(Path, "replace", full)
    assert export(run_dir, output, "--force") == 2
    assert capsys.readouterr().err == f"{NAME}: error: {output} cannot be written: No space left on device\n"
    assert output.read_text() == "dear"
    assert sorted(path.name for path in output.parent.iterdir()) == ["run", "ticket.pt"]


def unfinished(run_dir: RunDir) -> None:
    run_dir.level(2).record.unlink()


def damaged_record(run_dir: RunDir) -> None:
    run_dir.level(2).record.write_text("{")


def without_config(run_dir: RunDir) -> None:
    run_dir.config.unlink()


@pytest.mark.parametrize(
    ("harm", "words", "message"),
    [
        (lambda _: None, ["--level", "7"], "has no level 7: there are 0, 1, 2"),
        (unfinished, ["--level", "2"], "level_02 is not finished"),
        (damaged_record, [], "record.json is damaged"),
        (without_config, ["--weights", "trained"], "is no run directory: it has no config.yaml"),
        (lambda run_dir: run_dir.level(2).ticket.unlink(), [], "ticket.pt is missing"),
        (lambda run_dir: run_dir.level(2).masks.write_bytes(b""), [], "masks.pt holds no masks or is damaged"),
        (lambda run_dir: run_dir.level(2).last_checkpoint.unlink(), ["--weights", "trained"], "last.ckpt is missing"),
        (lambda run_dir: shutil.rmtree(run_dir.path), [], "run is no run directory: it has no levels"),
    ],
)
def test_user_errors_are_one_line_and_exit_code_2(
    harm: Any, words: list[str], message: str, run_dir: RunDir, output: Path, capsys: Any
) -> None:
    harm(run_dir)
    assert export(run_dir, output, *words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"{NAME}: error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not output.exists()


def test_places_that_take_no_file(run_dir: RunDir, tmp_path: Path, capsys: Any) -> None:
    assert export(run_dir, tmp_path) == 2
    assert "is a directory: --output takes the file to write" in capsys.readouterr().err
    assert export(run_dir, tmp_path / "nowhere" / "ticket.pt") == 2
    assert "ticket.pt cannot be written: No such file or directory" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--format", "onnxx"], ["--weights", "best"], ["--level", "last"], ["--forced"]])
def test_what_argparse_refuses_is_exit_code_2(words: list[str], run_dir: RunDir, output: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        export(run_dir, output, *words)
    assert caught.value.code == 2
    assert not output.exists()


def test_each_format_is_named_in_the_help(capsys: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(f"{name}: " in text for name in FORMATS)
