from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from prunelab.pruning import PruningError
from prunelab.training.network import find_network, load_weights, under_prefix


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
        (write_numbers, r"does not fit the network: 0\.weight \(missing\), .* and [0-9]+ more"),
        (write_other_shape, r"does not fit the network: 0\.weight \(4x3x3x3 instead of 4x1x3x3\)$"),
        (write_other_names, "does not fit the network: .* and [0-9]+ more"),
        (write_optimizer, r"does not fit the network: 0\.weight \(str instead of 4x1x3x3\), "),
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


def with_classes(net: nn.Sequential, classes: int) -> nn.Sequential:
    return nn.Sequential(*net[:-1], nn.Linear(24, classes))


@pytest.mark.parametrize("save", [save_plain, save_checkpoint])
def test_a_head_with_other_classes_stays_as_drawn_where_that_is_asked_for(
    save: Any, make_net: Any, tmp_path: Path
) -> None:
    source, net = with_classes(make_net(seed=1), 5), make_net(seed=2)
    source[1].running_var.fill_(7.0)
    drawn = {name: value.clone() for name, value in net.state_dict().items()}
    save(source, tmp_path / "weights.pt")
    assert load_weights(net, str(tmp_path / "weights.pt"), "net", new_head=True) == "7"
    for name, value in net.state_dict().items():
        assert torch.equal(value, drawn[name] if name.startswith("7.") else source.state_dict()[name])


def test_a_head_of_the_same_size_is_loaded_like_the_rest(make_net: Any, tmp_path: Path) -> None:
    source, net = make_net(seed=1), make_net(seed=2)
    save_plain(source, tmp_path / "weights.pt")
    assert load_weights(net, str(tmp_path / "weights.pt"), "net", new_head=True) is None
    assert torch.equal(net[7].weight, source[7].weight)


def test_a_bare_layer_is_its_own_head(tmp_path: Path) -> None:
    net = nn.Linear(4, 3)
    save_plain(nn.Linear(4, 2), tmp_path / "weights.pt")
    before = net.weight.clone()
    assert load_weights(net, str(tmp_path / "weights.pt"), "", new_head=True) == ""
    assert torch.equal(net.weight, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda net: nn.Sequential(nn.Conv2d(1, 5, 3, bias=False), *net[1:-1], nn.Linear(24, 5)),
            r"0\.weight \(5x1x3x3",
        ),
        (lambda net: nn.Sequential(*net[:-1], nn.Linear(23, 5)), r"7\.weight \(5x23 instead of 3x24\)"),
        (lambda net: nn.Sequential(*net[:-1]), r"7\.weight \(missing\), 7\.bias \(missing\)$"),
    ],
)
def test_every_other_misfit_stays_an_error(change: Any, message: str, make_net: Any, tmp_path: Path) -> None:
    net = make_net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    save_plain(change(make_net(seed=1)), tmp_path / "weights.pt")
    with pytest.raises(PruningError, match=message):
        load_weights(net, str(tmp_path / "weights.pt"), "net", new_head=True)
    with pytest.raises(PruningError, match="does not fit the network"):
        load_weights(net, str(tmp_path / "weights.pt"), "net")
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_under_prefix_takes_the_networks_part_or_everything() -> None:
    assert under_prefix({"net.a": 1, "net.b.c": 2, "loss": 3}, "net") == {"a": 1, "b.c": 2}
    assert under_prefix({"net.a": 1, "network.a": 2}, "net") == {"a": 1}
    assert under_prefix({"a": 1, "b": 2}, "net") == {"a": 1, "b": 2}
    assert under_prefix({"net.a": 1}, "") == {"net.a": 1}
