"""Masks for a network that differs from theirs in its head, and what is said about those that do not fit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from prunelab.pruning import Masks, PruningError, prunable_names
from prunelab.pruning.transfer import differs_in_outputs, head_weight, misfits, transferred


def net(*, inputs: int = 6, hidden: int = 5, classes: int = 3, depth: int = 1) -> nn.Sequential:
    """0 and 1 to `depth` are hidden, the last is the head."""
    hidden_layers = [nn.Linear(hidden, hidden) for _ in range(depth)]
    return nn.Sequential(nn.Linear(inputs, hidden), *hidden_layers, nn.Linear(hidden, classes))


def some_masks(of: nn.Module) -> Masks:
    generator = torch.Generator().manual_seed(0)
    parameters = dict(of.named_parameters())
    return Masks({name: torch.rand(parameters[name].shape, generator=generator) < 0.4 for name in prunable_names(of)})


def moved(to: nn.Module, masks: Masks) -> Masks:
    return transferred(masks, to, prunable_names(to))


def test_the_same_network_takes_the_masks_as_they_are() -> None:
    masks = some_masks(net())
    assert moved(net(), masks) == masks
    assert list(moved(net(), masks)) == prunable_names(net())


def test_a_head_with_other_classes_is_dense_and_the_rest_stays() -> None:
    masks = some_masks(net(classes=3))
    found = moved(net(classes=7), masks)
    assert torch.equal(found["2.weight"], torch.ones(7, 5, dtype=torch.bool))
    assert {name: found[name].tolist() for name in ("0.weight", "1.weight")} == {
        name: masks[name].tolist() for name in ("0.weight", "1.weight")
    }


def test_a_convolution_may_be_the_head() -> None:
    def classified(classes: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, classes, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    found = moved(classified(9), some_masks(classified(2)))
    assert found.layer_num_kept()["1.weight"] == 9 * 4


def test_masks_without_the_head_make_no_other_layer_the_head() -> None:
    """With the head excluded the last mask is that of a hidden layer, whose width is none of its business."""
    names = ["0.weight", "1.weight"]
    without = {name: mask for name, mask in some_masks(net(hidden=5, depth=1)).items() if name in names}
    wider = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 8), nn.Linear(8, 3))
    with pytest.raises(PruningError, match=r"do not fit the network: 1\.weight \(5x5 instead of 8x5\)$"):
        transferred(Masks(without), wider, names)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: net(inputs=7), r"0\.weight \(5x6 instead of 5x7\)$"),
        (lambda: net(inputs=7, classes=9), r"0\.weight \(5x6 instead of 5x7\)$"),
        (lambda: net(hidden=4), r"0\.weight .*, 1\.weight .*, 2\.weight \(3x5 instead of 3x4\)$"),
        (lambda: net(hidden=4, depth=3), r"0\.weight .*, 1\.weight .*, 2\.weight .* and 2 more$"),
        (lambda: net(depth=0), r"network: 2\.weight \(unknown\)$"),
        (lambda: nn.Sequential(nn.Flatten(), *net()), r"1\.weight .*, 2\.weight .*, 3\.weight \(missing\) and 1 more$"),
    ],
)
def test_masks_of_another_network_are_refused_by_name(other: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(PruningError, match=message) as caught:
        moved(other(), some_masks(net()))
    assert str(caught.value).startswith("masks_from: the masks do not fit the network: ")
    assert "\n" not in str(caught.value)


def test_the_head_is_the_last_layer_with_weights_to_prune() -> None:
    assert head_weight(net(depth=2)) == "3.weight"
    assert head_weight(nn.Linear(2, 2)) == "weight"
    assert head_weight(nn.Sequential(nn.Conv1d(1, 1, 1), nn.BatchNorm1d(1))) == "0.weight"
    assert head_weight(nn.BatchNorm1d(3)) == ""


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [((3, 5), (4, 5), True), ((3, 5), (3, 5), False), ((3, 5), (4, 6), False), ((3, 5), (4, 5, 1), False)],
)
def test_only_the_number_of_outputs_makes_a_head_new(
    one: tuple[int, ...], other: tuple[int, ...], expected: bool
) -> None:
    assert differs_in_outputs(torch.zeros(one), torch.zeros(other)) is expected


def test_misfits_are_named_in_the_order_of_the_network() -> None:
    wanted: dict[str, Tensor] = {"a": torch.zeros(2, 3), "b": torch.zeros(4), "c": torch.zeros(()), "d": torch.zeros(1)}
    assert misfits(wanted, wanted) == ""
    given = {"a": torch.zeros(3, 2), "b": "no tensor", "c": torch.zeros(1), "e": torch.zeros(1)}
    assert (
        misfits(given, wanted) == "a (3x2 instead of 2x3), b (str instead of 4), c (1 instead of a scalar) and 2 more"
    )
    assert misfits({"b": torch.zeros(4), "e": 1}, {"b": wanted["b"]}) == "e (unknown)"
