"""The experiments of questions/: what each of them computes, against answers known by hand, on tiny networks."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from prunelab.models import mlp
from prunelab.pruning import Masks, prune
from prunelab.pruning.criteria import SynFlow

ROOT = Path(__file__).parents[1]


@pytest.fixture
def question(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "questions")
    asking = importlib.import_module("asking")
    monkeypatch.setattr(asking, "EPOCHS", 1)
    return importlib.import_module


def two_layers(first: list[list[float]], second: list[list[float]]) -> nn.Module:
    net = nn.Sequential(
        nn.Linear(len(first[0]), len(first), bias=False), nn.ReLU(), nn.Linear(len(first), 1, bias=False)
    )
    net[0].weight.data, net[2].weight.data = torch.tensor(first), torch.tensor(second)
    return net


def tiny() -> nn.Module:
    """444 weights in two layers."""
    torch.manual_seed(0)
    return mlp(in_channels=1, image_size=8, depth=2, width=6)


def test_training_keeps_zeros_and_repeats_itself(question: Any) -> None:
    asking = question("asking")
    masks = prune(tiny(), SynFlow(), density=0.3, example_input=asking.EXAMPLE, rounds=3)
    nets = [tiny(), tiny()]
    accuracies = [asking.train(net, masks, seed=1, epochs=1) for net in nets]
    assert accuracies[0] == accuracies[1]
    for name, mask in masks.items():
        weights = [dict(net.named_parameters())[name] for net in nets]
        assert torch.equal(*weights)
        assert torch.equal(weights[0] != 0, mask)


def test_digits_and_their_scoring_batch(question: Any) -> None:
    asking = question("asking")
    assert abs(asking.digits().train.mean().item()) < 1e-5
    assert asking.digits(normalised=False).train.min() == 0
    ((inputs, labels),) = asking.scoring_batch()
    assert inputs.shape == (100, 1, 8, 8)
    assert labels.bincount().tolist() == [10] * 10


def test_numbers_as_text(question: Any) -> None:
    asking = question("asking")
    assert asking.spread([1.0, 3.0]) == "2.0 ± 1.4"
    assert asking.table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_floors_hold(question: Any) -> None:
    floors = question("floors")
    assert floors.floors_of(0.2) == [0.0, 0.02, 0.1]
    assert floors.floors_of(0.05) == [0.0, 0.005]
    masks = question("asking").pruned(tiny(), "magnitude", 0.2, min_layer_density=0.1)
    assert min(masks.layer_densities().values()) >= 0.1
    assert masks.num_kept == round(0.2 * 444)


def test_black_pixels_keep_nothing_under_a_mean_image(question: Any) -> None:
    mean_image = question("mean_image")
    pictures = torch.zeros(2, 1, 8, 8)
    pictures[:, 0, 1:7] = torch.tensor([-1.0, 3.0]).view(2, 1, 1)
    net = tiny()
    masks = mean_image.masks_for(net, 0.2, pictures)
    by_pixel = mean_image.kept_by_pixel(masks)
    assert by_pixel.sum() == by_pixel[1:7].sum() > 0
    # a constant picture is ones times a constant
    assert mean_image.masks_for(net, 0.2, -2 * torch.ones(1, 1, 8, 8)) == mean_image.masks_for(net, 0.2, None)


def test_gradient_without_weight_takes_whole_units(question: Any) -> None:
    gradient_only = question("gradient_only")
    masks = Masks({"0.weight": torch.tensor([[True, False], [True, True]]), "2.weight": torch.tensor([[False, True]])})
    net = two_layers([[1.0, -2.0], [3.0, 0.5]], [[2.0, -1.0]])
    assert gradient_only.live_units(masks) == 2
    # layer 1: (1 + 3 + .5) / 1.625, layer 2: 1 / 1.5
    assert gradient_only.mean_size(net, masks) == pytest.approx((4.5 / 1.625 + 1 / 1.5) / 4)


def test_scopes(question: Any) -> None:
    asking = question("asking")
    layerwise = asking.pruned(tiny(), "synflow", 0.25, scope="layerwise")
    assert layerwise.layer_num_kept() == {"fc1.weight": 96, "classifier.weight": 15}
    assert asking.pruned(tiny(), "synflow", 0.25, scope="global").num_kept == 111


def test_live_outputs(question: Any) -> None:
    kept = torch.zeros(3, 2, 3, 3, dtype=torch.bool)
    kept[1, 0, 2, 2] = kept[1, 1, 0, 0] = True
    assert question("scope").live_outputs(kept) == 1


def test_conservation_of_one_unit(question: Any) -> None:
    activations = question("activations")

    def in_and_out(activation: nn.Module) -> tuple[float, float]:
        net = nn.Sequential(nn.Linear(1, 1), activation, nn.Linear(1, 1)).double()
        with torch.no_grad():
            for parameter, value in zip(net.parameters(), (0.5, 0.5, 2.0, 7.0), strict=True):
                parameter.fill_(value)
        coming, going = activations.sums(net, net(torch.ones(1, 1, dtype=torch.float64)).sum())
        return coming.item(), going.item()

    assert in_and_out(nn.ReLU()) == pytest.approx((2, 2))
    # z = 1: in = 2 z (1 - tanh(z)^2), out = 2 tanh(z)
    assert in_and_out(nn.Tanh()) == pytest.approx((2 * (1 - math.tanh(1) ** 2), 2 * math.tanh(1)))
    assert activations.residual(torch.tensor([1.0, -1.0]), torch.tensor([1.0, 1.0])) == 0.5


def test_depth_changes_maximal_not_size(question: Any) -> None:
    depth = question("depth")
    sizes = [depth.maximal_compression(make()) for make in depth.NETWORKS.values()]
    assert sizes == [112_200 / 3, 112_220 / 30]
    torch.manual_seed(0)
    net = mlp(in_channels=1, image_size=8, depth=4, width=5)
    # magnitude gives nothing to a layer whose weights are a thousandth of the others'
    net.fc2.weight.data /= 1000  # type: ignore[union-attr, operator]
    # 420 weights, of which the 25 small ones go first
    assert 420 / 395 / depth.PRECISION <= depth.critical_compression(net, "magnitude", 0) <= 420 / 395
    assert depth.critical_compression(net, "synflow", 0) == 420 / 4
    assert len({depth.critical_compression(net, "random", seed) for seed in range(2)}) == 2  # each its own draw


def test_rescaled_signals_keep_their_size(question: Any) -> None:
    depth, asking = question("depth"), question("asking")
    net, inputs = tiny(), torch.randn(50, 1, 8, 8)
    masks = asking.pruned(net, "synflow", 0.1)
    masks.apply_to(net)
    depth.rescale(net, inputs)
    with torch.no_grad():
        assert net(inputs).square().mean().item() == pytest.approx(1, rel=1e-5)
        hidden = net[:2](inputs)  # type: ignore[index]
    assert hidden.square().mean().item() == pytest.approx(2, rel=1e-5)
    assert all(bool((weight[~masks[name]] == 0).all()) for name, weight in net.named_parameters() if name in masks)


def test_scores_of_weights_that_cancel(question: Any) -> None:
    odd_weights = question("odd_weights")
    scores = odd_weights.toy_scores()
    assert scores["synflow"] == [9999, 9999, 1] * 2
    assert scores["snip"] == [2 * 9999, 2 * 9999, 2] * 2  # of (f - 0)^2 at f = 1
    assert odd_weights.toy()(torch.ones(1, 1)).item() == 1


def test_pairs_cancel_and_ones_have_the_masks_of_ones(question: Any) -> None:
    asking, odd_weights = question("asking"), question("odd_weights")
    net, same = asking.build(asking.lenet, 0), asking.build(asking.lenet, 0)
    odd_weights.cancelling(net, pairs=150)
    inputs = torch.randn(3, 1, 8, 8)
    assert torch.allclose(net(inputs), torch.zeros(3, 10), atol=1e-4)
    assert not torch.allclose(same(inputs), torch.zeros(3, 10), atol=1e-1)
    scaled, ones = odd_weights.all_ones(tiny()), tiny()
    for name, parameter in ones.named_parameters():
        if name.endswith("weight"):
            nn.init.ones_(parameter)
    both = [prune(net, SynFlow(), density=0.3, example_input=asking.EXAMPLE, rounds=5) for net in (scaled, ones)]
    assert both[0].layer_num_kept() == both[1].layer_num_kept()


def test_controls_have_the_layer_densities(question: Any) -> None:
    layer_ratios = question("layer_ratios")
    mask = torch.tensor([[True, False, False], [False, False, True], [False, False, False]])
    assert layer_ratios.live_block(mask).tolist() == [[True, False, True], [True, False, True], [False] * 3]
    found = layer_ratios.masks_for(tiny(), 0.2, seed=0)
    flow, same, inside, *rest = found.values()
    assert flow.layer_num_kept() == same.layer_num_kept() == inside.layer_num_kept()
    assert all(bool((layer_ratios.live_block(flow[name]) | ~inside[name]).all()) for name in flow)
    assert {masks.num_kept for masks in rest} == {flow.num_kept}
    assert same != flow


def test_log_flow_and_its_shares(question: Any) -> None:
    log_flow = question("log_flow")
    net = tiny().double()
    weights = [parameter for name, parameter in net.named_parameters() if name.endswith("weight")]
    flow = log_flow.log_flow(net)
    first, second = (weight.detach().abs() for weight in weights)
    assert flow.item() == pytest.approx((second @ first).sum().log().item())
    shares = [(w * g).sum().item() for w, g in zip(weights, torch.autograd.grad(flow, weights), strict=True)]
    assert shares == pytest.approx([1, 1])


def test_flow_through_a_graph(question: Any) -> None:
    max_flow = question("max_flow")
    layers = [torch.tensor([[1.0, -2.0], [3.0, 0.5]]), torch.tensor([[2.0, -1.0]])]
    assert max_flow.path_sum(layers) == 9.5
    # unit 1: 3 come in, 2 go out; unit 2: 3.5 come in, 1 goes out
    assert max_flow.max_flow(layers) == pytest.approx(3, abs=1e-6)
    layers[1][0, 0] = 0
    assert max_flow.max_flow(layers) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", ["floors", "gradient_only", "scope", "log_flow", "max_flow"])
def test_a_question_from_end_to_end(name: str, question: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asking, module = question("asking"), question(name)
    monkeypatch.setattr(asking, "train", lambda net, masks, seed, **_: 50.0 + seed)
    monkeypatch.setattr(asking, "trained", lambda make, seed, masks: 50.0 + seed)
    if name != "log_flow":
        monkeypatch.setattr(module, "DENSITIES", (0.2,))
    for networks in ("thin_vgg", "lenet"):
        monkeypatch.setattr(asking, networks, tiny)
    monkeypatch.setattr(asking, "NETWORKS", {"net": tiny})
    assert "50.5 ± 0.7" in module.ask(2).table


def test_page_is_filled_between_its_marks(question: Any) -> None:
    questions = question("all")
    assert questions.fill("a <!-- x -->old<!-- /x --> b", "x", "new") == "a <!-- x -->\nnew\n<!-- /x --> b"
    with pytest.raises(ValueError, match="<!-- y -->"):
        questions.fill("a", "y", "new")
    page = (ROOT / "docs" / "questions.md").read_text()
    questions.fill(page, "machine", "")
    for name in questions.NAMES:
        assert (ROOT / "questions" / f"{name}.py").exists()
        assert questions.fill(page, name, "") != page
        picture = f"images/question_{name}.png"
        assert (picture in page) == (ROOT / "docs" / picture).exists()
