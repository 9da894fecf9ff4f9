"""Tickets of finished runs in plain networks, with prunelab and without."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from prunelab.experiment.errors import RunError
from prunelab.experiment.run_dir import LevelDir, RunDir
from prunelab.experiment.tickets import finished_level, load_ticket, trained_weights
from prunelab.pruning import Masks
from prunelab.pruning.diagnostics import count_leaked
from prunelab.training.resume import read_checkpoint

TICKET: dict[str, Any] = {
    "pruning.criterion": {"class_path": "prunelab.pruning.criteria.Magnitude", "init_args": {}},
    "pruning.density": None,
    "model.net": {"class_path": "noisy", "init_args": {}},
    "tickets.levels": 2,
    "tickets.density_per_level": 0.5,
    "tickets.rewind_step": "4it",
    "trainer.max_epochs": 2,
}


def plain(classes: int = 3) -> nn.Sequential:
    """The run's network, written down again."""
    conv, norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
    return nn.Sequential(conv, norm, nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(144, classes))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("source") / "run"


@pytest.fixture
def run_dir(experiment: Any, finished: Path, tmp_path: Path) -> Path:
    """A dense level and two pruned ones; trained once, and copied for every test."""
    if not finished.exists():
        shutil.copytree(experiment(**TICKET).path.parent, finished)
    return shutil.copytree(finished, tmp_path / "run")


def level_of(run_dir: Path, index: int) -> LevelDir:
    return RunDir(run_dir).level(index)


def state_in(path: Path) -> dict[str, torch.Tensor]:
    content = read_checkpoint(path)
    assert content is not None
    return {name.removeprefix("net."): value for name, value in content["state_dict"].items()}


def same(net: nn.Module, state: dict[str, torch.Tensor]) -> bool:
    own = net.state_dict()
    return own.keys() == state.keys() and all(torch.equal(value, state[name]) for name, value in own.items())


def test_a_level_loads_with_its_masks(run_dir: Path) -> None:
    rewound = state_in(level_of(run_dir, 0).rewind_checkpoint)
    for index, kept in ((1, 234), (2, 117)):  # half and a quarter of 36 + 432
        net = plain()
        masks = load_ticket(run_dir, net, level=index)
        assert masks == Masks.load(level_of(run_dir, index).masks)
        assert masks.num_kept == kept
        assert count_leaked(net, masks) == 0
        assert same(net, rewound | {name: rewound[name].masked_fill(~mask, 0) for name, mask in masks.items()})
    assert load_ticket(run_dir, plain(), level=0).density == 1


def test_the_last_finished_level_is_meant_by_default(run_dir: Path) -> None:
    assert load_ticket(str(run_dir), plain()) == Masks.load(level_of(run_dir, 2).masks)
    level_of(run_dir, 2).record.unlink()
    assert load_ticket(run_dir, plain()) == Masks.load(level_of(run_dir, 1).masks)


def remove_record(run_dir: Path) -> None:
    level_of(run_dir, 2).record.unlink()


def remove_records(run_dir: Path) -> None:
    for level in RunDir(run_dir).levels():
        level.record.unlink()


def remove_masks(run_dir: Path) -> None:
    level_of(run_dir, 2).masks.unlink()


def remove_ticket(run_dir: Path) -> None:
    level_of(run_dir, 2).ticket.unlink()


def cut_masks(run_dir: Path) -> None:
    level_of(run_dir, 2).masks.write_bytes(b"PK")


def cut_ticket(run_dir: Path) -> None:
    path = level_of(run_dir, 2).ticket
    path.write_bytes(path.read_bytes()[:100])


def list_as_ticket(run_dir: Path) -> None:
    torch.save([1, 2], level_of(run_dir, 2).ticket)


def remove_run(run_dir: Path) -> None:
    shutil.rmtree(run_dir)


@pytest.mark.parametrize(
    ("harm", "level", "message"),
    [
        (lambda _: None, 3, r"has no level 3: there are 0, 1, 2$"),
        (lambda _: None, -1, r"has no level -1: there are 0, 1, 2$"),
        (remove_record, 2, r"level_02 is not finished"),
        (remove_records, None, r"level_02 is not finished"),
        (remove_masks, None, r"masks\.pt is missing$"),
        (remove_ticket, None, r"ticket\.pt is missing$"),
        (cut_masks, None, r"masks\.pt holds no masks or is damaged"),
        (cut_ticket, None, r"ticket\.pt is damaged"),
        (list_as_ticket, None, r"ticket\.pt is damaged: it holds no tensors"),
        (remove_run, None, r"is no run directory: it has no levels$"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(harm: Any, level: int | None, message: str, run_dir: Path) -> None:
    harm(run_dir)
    net = plain()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(RunError, match=message) as caught:
        load_ticket(run_dir, net, level)
    assert "\n" not in str(caught.value)
    assert same(net, before)


def test_a_ticket_goes_into_its_own_network_alone(run_dir: Path) -> None:
    other = plain(classes=5)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(RunError, match=r"does not fit the network: 5\.weight \(3x144 instead of 5x144\), 5\.bias \(3 "):
        load_ticket(run_dir, other)
    assert same(other, before)
    with pytest.raises(RunError, match=r"does not fit the network: 6\.weight \(missing\), 6\.bias \(missing\)$"):
        load_ticket(run_dir, nn.Sequential(*plain(), nn.Linear(3, 3)))
    with pytest.raises(RunError, match=r"does not fit the network: 5\.weight \(unknown\), 5\.bias \(unknown\)$"):
        load_ticket(run_dir, plain()[:-1])


def test_trained_weights_are_those_of_the_levels_end_bit_for_bit(run_dir: Path) -> None:
    for index in range(3):
        level = finished_level(RunDir(run_dir), index)
        weights, expected = trained_weights(RunDir(run_dir), level), state_in(level.last_checkpoint)
        assert weights.keys() == plain().state_dict().keys()
        assert all(value.numpy().tobytes() == expected[name].numpy().tobytes() for name, value in weights.items())


def test_a_level_that_is_trained_on_has_no_end(run_dir: Path) -> None:
    level = level_of(run_dir, 2)
    record = json.loads(level.record.read_text())
    level.record.write_text(json.dumps(record | {"steps": record["steps"] + 6}))
    with pytest.raises(RunError, match=r"last\.ckpt is not the end of the finished training"):
        trained_weights(RunDir(run_dir), level)
    torch.save({"weights": 1}, level.last_checkpoint)
    with pytest.raises(RunError, match="is not the end of the finished training"):
        trained_weights(RunDir(run_dir), level)
    level.last_checkpoint.unlink()
    with pytest.raises(RunError, match=r"last\.ckpt is missing"):
        trained_weights(RunDir(run_dir), level)


# in a process of its own that can import neither prunelab nor Lightning
ALONE = """
import sys
for name in ("prunelab", "pytorch_lightning", "lightning", "lightning_fabric"):
    sys.modules[name] = None
import torch
from torch import nn
run_dir, pictures, output = sys.argv[1:]
conv, norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
net = nn.Sequential(conv, norm, nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(144, 3))
pictures = torch.load(pictures, weights_only=True)
logits = {}
for level in ("level_00", "level_01", "level_02"):
    net.load_state_dict(torch.load(f"{run_dir}/{level}/ticket.pt", weights_only=True), strict=True)
    logits[level] = net.eval()(pictures).detach()
rewound = torch.load(f"{run_dir}/level_00/rewind.ckpt", weights_only=True)["state_dict"]
net.load_state_dict({name.removeprefix("net."): value for name, value in rewound.items()}, strict=True)
masks = torch.load(f"{run_dir}/level_02/masks.pt", weights_only=True)
for name, parameter in net.named_parameters():
    if name in masks:
        parameter.data.mul_(masks.pop(name))
assert not masks
logits["rewound"] = net.eval()(pictures).detach()
torch.save(logits, output)
"""


def test_everything_opens_without_prunelab(run_dir: Path, tmp_path: Path) -> None:
    pictures = torch.randn(7, 1, 6, 6)
    torch.save(pictures, tmp_path / "pictures.pt")
    command = [sys.executable, "-c", ALONE, str(run_dir), str(tmp_path / "pictures.pt"), str(tmp_path / "logits.pt")]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    logits = torch.load(tmp_path / "logits.pt", weights_only=True)
    for index in range(3):
        net = plain()
        load_ticket(run_dir, net, index)
        expected = net.eval()(pictures)
        torch.testing.assert_close(logits[f"level_0{index}"], expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(logits["rewound"], logits["level_02"], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(logits["level_01"], logits["level_02"], atol=1e-3)
