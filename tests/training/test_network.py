from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from prunelab.pruning import PruningError
from prunelab.training.network import find_network, load_weights


def test_a_network_is_found_by_its_dotted_path(make_module: Any) -> None:
    module = make_module()
    assert find_network(module, "net") is module.net
    assert find_network(module, "net.3") is module.net[3]
    assert find_network(module, "") is module


def test_a_missing_network_is_named_with_those_that_are_there(make_module: Any) -> None:
    with pytest.raises(PruningError, match=r"Classifier has no network 'backbone'; its modules: net"):
        find_network(make_module(), "backbone")


def save_plain(net: nn.Module, path: Path) -> None:
    torch.save(net.state_dict(), path)


def save_checkpoint(net: nn.Module, path: Path) -> None:
    state = {f"net.{name}": value for name, value in net.state_dict().items()} | {"loss.weight": torch.ones(3)}
    torch.save({"state_dict": state, "epoch": 7, "global_step": 3}, path)


@pytest.mark.parametrize("save", [save_plain, save_checkpoint])
def test_weights_come_from_a_state_dict_or_a_lightning_checkpoint(save: Any, make_net: Any, tmp_path: Path) -> None:
    source, net = make_net(seed=1), make_net(seed=2)
    source[1].running_mean.fill_(3.0)
    save(source, tmp_path / "weights.pt")
    load_weights(net, str(tmp_path / "weights.pt"), "net")
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in net.state_dict().items())


def write_nothing(net: nn.Module, path: Path) -> None:
    pass


def write_garbage(net: nn.Module, path: Path) -> None:
    path.write_bytes(b"this is no checkpoint" * 10)


def write_empty(net: nn.Module, path: Path) -> None:
    path.touch()


def write_half(net: nn.Module, path: Path) -> None:
    save_plain(net, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def write_list(net: nn.Module, path: Path) -> None:
    torch.save([1, 2, 3], path)


def write_object(net: nn.Module, path: Path) -> None:
    torch.save(net, path)  # a whole module: code, not only tensors


def write_numbers(net: nn.Module, path: Path) -> None:
    torch.save({0: torch.ones(2)}, path)


def write_other_shape(net: nn.Module, path: Path) -> None:
    save_plain(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), *net[1:]), path)


def write_other_names(net: nn.Module, path: Path) -> None:
    torch.save({f"model.{name}": value for name, value in net.state_dict().items()}, path)


def write_optimizer(net: nn.Module, path: Path) -> None:
    torch.save({"0.weight": "no tensor", "epoch": 3}, path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_nothing, "no file"),
        (write_garbage, "damaged or no state dict"),
        (write_empty, "damaged or no state dict"),
        (write_half, "damaged or no state dict"),
        (write_list, "damaged or no state dict"),
        (write_object, "damaged or no state dict"),
        (write_numbers, "does not fit the network"),
        (write_other_shape, "does not fit the network: 0.weight"),
        (write_other_names, "does not fit the network: .* and [0-9]+ more"),
        (write_optimizer, "does not fit the network: 0.weight"),
    ],
)
def test_what_cannot_be_loaded_is_one_line_that_names_the_file(
    write: Any, message: str, make_net: Any, tmp_path: Path
) -> None:
    net = make_net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    write(net, tmp_path / "weights.pt")
    with pytest.raises(PruningError, match=message) as caught:
        load_weights(net, str(tmp_path / "weights.pt"), "net")
    assert "weights.pt" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
