"""The command: what its files hold, what is said about them, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

from prunelab import cli
from prunelab.compaction import ChannelIndex
from prunelab.experiment.run_dir import LevelDir, RunDir
from prunelab.export import __main__ as command
from prunelab.export import load_packed
from prunelab.export.__main__ import FORMATS, main
from prunelab.export.programs import Program
from prunelab.models import mlp
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


def export(run_dir: RunDir, output: Path, *words: str, form: str = "ticket") -> int:
    return main([str(run_dir.path), "--format", form, "--output", str(output), *words])


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
    # float32: linear 30 + 5 and 20 + 4, batch norm 4 * 5; one int64 counter
    share = f"{100 * size / (4 * (59 + 20) + 8):.3g} % of the dense network's 324"
    said, simulated, *rest = capsys.readouterr().out.splitlines()
    assert said == f"{output}: level 2, start, density 0.2, 10 of 50 weights kept, {size:,} bytes ({share})"
    assert simulated.startswith("masking is only simulated in this file: loaded, it is a dense network again")
    assert not rest
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
    said = capsys.readouterr().out
    assert f"level {index}, {weights}, density {(1, 0.5, 0.2)[index]}, " in said
    assert ("simulated" in said) == (index > 0)


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


@pytest.mark.parametrize(
    "words",
    [
        ["--format", "onnxx"],
        ["--weights", "best"],
        ["--level", "last"],
        ["--forced"],
        *(["--input_shape", shape] for shape in ("3,a,3", "3,0,3", "3,-1,3", "")),
    ],
)
def test_what_argparse_refuses_is_exit_code_2(words: list[str], run_dir: RunDir, output: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        export(run_dir, output, *words)
    assert caught.value.code == 2
    assert not output.exists()


def test_each_format_is_named_in_the_help(capsys: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert all(f"{name}: " in text for name in FORMATS)


# --- formats for the network of a run, which its config builds

BASE = """\
model:
  net: {name: mlp, depth: 3, width: 12, image_size: 8}
  optimizer: {name: sgd, lr: 0.1}
data: {name: digits, device: cpu}
pruning: {criterion: synflow, density: 0.1}
trainer: {max_epochs: 1, limit_train_batches: 2, accelerator: cpu}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunDir]:
    """Two real runs, one that trained masked and one that trained compact."""
    here = tmp_path_factory.mktemp("trained")
    (here / "base.yaml").write_text(BASE)
    found = {}
    for name in ("masked", "compact"):
        words = ["--pruning.compact", "true"] if name == "compact" else []
        assert cli.main(["--config", str(here / "base.yaml"), "--output_dir", str(here / name), *words]) == 0
        found[name] = RunDir(next((here / name).iterdir()))
    return found


@pytest.fixture(params=["masked", "compact"])
def real(request: pytest.FixtureRequest, trained: dict[str, RunDir], tmp_path: Path) -> RunDir:
    source = trained[request.param].path
    return RunDir(shutil.copytree(source, tmp_path / request.param))


def network(run_dir: RunDir, state: dict[str, torch.Tensor]) -> nn.Module:
    """The run's network, with a state dict that has to fit, in evaluation mode."""
    net = mlp(depth=3, width=12, image_size=8)
    net.load_state_dict(state, strict=True)
    return net.eval()


def masked_network(run_dir: RunDir, output: Path) -> nn.Module:
    """The full network with the trained weights under the level's masks."""
    ticket = output.with_name("full.pt")
    assert export(run_dir, ticket, "--weights", "trained") == 0
    net = network(run_dir, torch.load(ticket))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    Masks.load(run_dir.level(0).masks).apply_to(net)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())  # zeros exact
    return net


PICTURES = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(3))


def test_safetensors_hold_the_full_network(real: RunDir, output: Path, capsys: Any) -> None:
    net = masked_network(real, output)
    assert export(real, output, form="safetensors") == 0
    assert same_bits(network(real, safetensors.torch.load_file(output)), net)
    with safetensors.safe_open(output, "pt") as file:
        about = file.metadata()
    record = json.loads(real.level(0).record.read_text())
    masks = Masks.load(real.level(0).masks)
    assert about["masks_digest"] == record["masks_digest"] == masks.digest()
    assert (about["criterion"], about["level"], about["weights"]) == ("synflow", "0", "trained")
    assert float(about["density"]) == masks.density
    said = capsys.readouterr().out.splitlines()[-5:]
    assert said[1].startswith(f"MACs: dense 1,032, masked {masks.num_kept} (")
    assert "compact " in said[1]
    assert [line.partition(", median, 1 CPU thread: dense ")[0] for line in said[2:4]] == [
        "latency, batch 1",
        "latency, batch 128",
    ]
    assert "only simulated" in said[4]


def test_packed_holds_the_full_network_and_its_masks(real: RunDir, output: Path, capsys: Any) -> None:
    net = masked_network(real, output)
    assert export(real, output, form="packed") == 0
    state, masks = load_packed(output)
    assert same_bits(network(real, state), net)
    assert masks == Masks.load(real.level(0).masks)
    assert "only simulated" in capsys.readouterr().out


def assert_says_what_is_gained(said: list[str], output: Path) -> None:
    assert said[0].startswith(f"{output}: level 0, trained, density 0.0998062, ")
    assert said[1].startswith("the dense network in this format: ")
    dense, masked, compact = (int(part.split()[1].replace(",", "")) for part in said[2].split(": ")[1].split(", "))
    assert dense == 1032
    assert masked <= compact < dense
    assert all(" in this format dense " in line and " ms, exported " in line for line in said[3:5])
    assert said[5].startswith("logits: at most ")
    assert len(said) == 6


def test_a_torch_program_is_the_compact_network(real: RunDir, output: Path, capsys: Any) -> None:
    net = masked_network(real, output)
    capsys.readouterr()
    assert export(real, output, form="torch") == 0
    said = capsys.readouterr()
    assert_says_what_is_gained(said.out.splitlines(), output)
    assert said.err == ""
    program = torch.export.load(output)
    small = program.module()
    for size in (1, 2, 5):
        assert torch.allclose(small(PICTURES[:size]), net(PICTURES[:size]), rtol=0, atol=1e-5)
    stored = sum(value.numel() for value in program.state_dict.values())
    assert stored < sum(value.numel() for value in net.state_dict().values())


def test_an_onnx_program_is_the_compact_network(real: RunDir, output: Path, capsys: Any) -> None:
    net = masked_network(real, output)
    capsys.readouterr()
    assert export(real, output, form="onnx") == 0
    said = capsys.readouterr()
    assert_says_what_is_gained(said.out.splitlines(), output)
    assert said.err == ""
    session = onnxruntime.InferenceSession(output.read_bytes(), providers=["CPUExecutionProvider"])
    for size in (1, 2, 5):
        (found,) = session.run(["logits"], {"input": PICTURES[:size].numpy()})
        assert torch.allclose(torch.from_numpy(found), net(PICTURES[:size]), rtol=0, atol=1e-5)
    assert session.get_modelmeta().custom_metadata_map["prunelab.criterion"] == "synflow"


def test_an_export_without_the_data(trained: dict[str, RunDir], output: Path, monkeypatch: Any, capsys: Any) -> None:
    def gone(self: object) -> None:
        raise AssertionError("the data was read")

    monkeypatch.setattr("prunelab.data.ImageDataModule.prepare_data", gone)
    assert export(trained["masked"], output, "--input_shape", "1,8,8", form="packed") == 0
    assert "MACs: dense 1,032" in capsys.readouterr().out


def test_a_state_dict_needs_no_network(run_dir: RunDir, output: Path, capsys: Any) -> None:
    """The config of this run builds none: the file is written, and the report says what it lacks."""
    assert export(run_dir, output, form="packed") == 0
    assert load_packed(output)[1] == Masks.load(run_dir.level(2).masks)
    said = capsys.readouterr().out.splitlines()
    assert said[1].startswith("MACs and latency: not measured, ")
    assert len(said) == 3


def refuse(run_dir: RunDir, output: Path, capsys: Any, message: str, *words: str, form: str = "torch") -> None:
    capsys.readouterr()
    assert export(run_dir, output, *words, form=form) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"{NAME}: error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not output.exists()
    assert not output.with_name(f"{output.name}.tmp").exists()


@pytest.mark.parametrize(
    ("form", "package"),
    [("safetensors", "safetensors"), ("onnx", "onnx"), ("onnx", "onnxscript"), ("onnx", "onnxruntime")],
)
def test_a_format_whose_packages_are_not_there(
    form: str, package: str, run_dir: RunDir, output: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = command.find_spec
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == package else there(name))
    refuse(run_dir, output, capsys, f"--format {form} needs {package}: pip install -e '.[export]'", form=form)


@pytest.mark.parametrize("form", ["torch", "onnx"])
def test_a_program_needs_a_network(form: str, run_dir: RunDir, output: Path, capsys: Any) -> None:
    refuse(run_dir, output, capsys, "missing: ", form=form)


def test_a_network_that_cannot_be_traced(
    trained: dict[str, RunDir], output: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def by_value(self: nn.Sequential, inputs: torch.Tensor) -> torch.Tensor:
        for module in self:
            inputs = module(inputs) if inputs.sum() > -1e9 else inputs
        return inputs

    monkeypatch.setattr(nn.Sequential, "forward", by_value)
    refuse(trained["masked"], output, capsys, "the network cannot be traced: ")
    monkeypatch.undo()
    monkeypatch.setattr(nn.Sequential, "forward", by_value)
    assert export(trained["masked"], output, form="packed") == 0
    assert "no compact form: the network cannot be traced" in capsys.readouterr().out


def test_inputs_that_the_network_does_not_take(trained: dict[str, RunDir], output: Path, capsys: Any) -> None:
    refuse(trained["masked"], output, capsys, "the network cannot take an input of 1,9,9: ", "--input_shape", "1,9,9")


def test_weights_of_another_network(trained: dict[str, RunDir], output: Path, tmp_path: Path, capsys: Any) -> None:
    run_dir = RunDir(shutil.copytree(trained["masked"].path, tmp_path / "other"))
    run_dir.config.write_text(run_dir.config.read_text().replace("width: 12", "width: 13"))
    refuse(run_dir, output, capsys, "the weights do not fit the network of the run's config: ")


def test_a_damaged_channel_index(trained: dict[str, RunDir], output: Path, tmp_path: Path, capsys: Any) -> None:
    run_dir = RunDir(shutil.copytree(trained["compact"].path, tmp_path / "other"))
    run_dir.level(0).channel_index.write_bytes(b"no index")
    refuse(run_dir, output, capsys, "holds no index of channels or is damaged")


def test_a_foreign_channel_index(trained: dict[str, RunDir], output: Path, tmp_path: Path, capsys: Any) -> None:
    run_dir = RunDir(shutil.copytree(trained["compact"].path, tmp_path / "other"))
    index = ChannelIndex.load(run_dir.level(0).channel_index)
    others = {name: parts for name, parts in index.kept.items() if not name.startswith("classifier")}
    replace(index, kept=others).save(run_dir.level(0).channel_index)
    refuse(run_dir, output, capsys, "is not that of the level's record")


def test_a_file_in_the_levels_directory_if_no_other_is_named(real: RunDir, capsys: Any) -> None:
    assert main([str(real.path), "--format", "packed"]) == 0
    path = real.level(0).path / "trained.packed"
    assert capsys.readouterr().out.startswith(f"{path}: ")
    assert load_packed(path)[1] == Masks.load(real.level(0).masks)


def test_a_program_that_computes_something_else_is_not_written(
    trained: dict[str, RunDir], output: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(net: nn.Module, example_input: torch.Tensor, about: object) -> Program:
        return Program(b"program", lambda inputs: net(inputs) * 1.001)

    monkeypatch.setitem(FORMATS, "torch", command.Format("", ".pt2", program=wrong))
    refuse(trained["masked"], output, capsys, "gives other logits than the masked network: they differ by ")
