from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from prunelab.pruning import Criterion, Masks, PruningError, Scoring, score
from prunelab.pruning.criteria import magnitude, snip
from prunelab.pruning.scoring import call_with, evaluation_mode

from .nets import dense, mlp, samples, vgg_like, with_dropout


class Constant:
    """A criterion that gives what it was made with; criteria need no base class."""

    rounds = 1
    needs_batches = False
    revives = False
    allocation = None

    def __init__(self, scores: dict[str, Tensor]) -> None:
        self.scores = scores

    def __call__(self, scoring: Scoring) -> dict[str, Tensor]:
        return self.scores


def test_a_criterion_is_anything_of_this_form() -> None:
    assert isinstance(Constant({}), Criterion)
    assert isinstance(magnitude, Criterion)
    assert not isinstance(lambda scoring: {}, Criterion)


def test_scores_all_prunable_weights_by_default() -> None:
    net = vgg_like()
    scores = score(net, magnitude, example_input=torch.zeros(1, 2, 6, 6))
    assert list(scores) == ["0.weight", "4.weight", "9.weight"]
    assert all(torch.equal(scores[name], net.get_parameter(name).abs()) for name in scores)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_scores_that_are_inf_or_nan_raise(bad: float) -> None:
    with pytest.raises(PruningError, match=r"Constant gave 0\.weight scores that are inf or NaN"):
        score(mlp(2, 1), Constant({"0.weight": torch.tensor([[1.0, bad]])}), example_input=torch.zeros(1, 2))


def test_scores_of_other_names_or_shapes_raise() -> None:
    net = mlp(2, 1)
    with pytest.raises(ValueError, match=r"0\.weight"):
        score(net, Constant({}), example_input=torch.zeros(1, 2))
    with pytest.raises(ValueError, match="shape"):
        score(net, Constant({"0.weight": torch.zeros(2)}), example_input=torch.zeros(1, 2))


def test_a_criterion_that_needs_batches_says_so() -> None:
    with pytest.raises(PruningError, match="Snip needs labelled batches"):
        score(mlp(2, 2), snip, example_input=torch.zeros(1, 2))
    with pytest.raises(PruningError, match="Snip needs labelled batches"):
        score(mlp(2, 2), snip, example_input=torch.zeros(1, 2), batches=[])


def test_batches_that_can_be_read_once_only_are_refused() -> None:
    """GraSP reads them twice and rounds many times: a generator would be empty by then."""
    with pytest.raises(PruningError, match="more than once"):
        score(mlp(2, 2), snip, example_input=torch.zeros(1, 2), batches=iter([samples(4, 2, num_classes=2)]))


def test_masks_of_another_network_are_refused() -> None:
    masks = Masks({"nowhere": torch.ones(2, dtype=torch.bool)})
    with pytest.raises(PruningError, match="nowhere"):
        score(mlp(2, 2), magnitude, example_input=torch.zeros(1, 2), masks=masks)


def test_a_data_loader_as_batches_leaves_the_random_state() -> None:
    """Iterating over one draws from the global generator; shuffled ones give the same order at every reading."""
    net = mlp(3, 4, 3)
    loader = DataLoader(TensorDataset(*samples(12, 3)), batch_size=5, shuffle=True)
    before = torch.get_rng_state()
    first = score(net, snip, example_input=torch.zeros(1, 3), batches=loader)
    assert torch.equal(torch.get_rng_state(), before)
    second = score(net, snip, example_input=torch.zeros(1, 3), batches=loader)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_evaluation_mode_gives_everything_back() -> None:
    net = with_dropout().train()
    net[1].eval()
    flags = [module.training for module in net.modules()]
    before = torch.get_rng_state()

    def use_and_fail() -> None:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), evaluation_mode(net, batch_statistics=True):
            assert [module.training for module in net] == [isinstance(m, nn.modules.batchnorm._BatchNorm) for m in net]
            assert torch.is_grad_enabled()
            assert not torch.is_autocast_enabled("cpu")
            torch.rand(3)
            raise KeyError("something went wrong inside")

    with pytest.raises(KeyError):
        use_and_fail()
    assert [module.training for module in net.modules()] == flags
    assert torch.equal(torch.get_rng_state(), before)


def test_call_with_replaces_tensors_and_spares_buffers() -> None:
    net = with_dropout().train()
    inputs, _ = samples(4, 2, 6, 6)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    zero = {"9.weight": torch.zeros_like(net[9].weight)}
    with evaluation_mode(net, batch_statistics=True):
        outputs = call_with(net, zero, inputs)
    assert torch.equal(outputs, net[9].bias.expand(4, 3))
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_tied_weights_are_replaced_everywhere() -> None:
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)).double()
    net[1].weight = net[0].weight
    twice = 2 * torch.eye(2, dtype=torch.float64)
    assert torch.equal(call_with(net, {"0.weight": twice}, torch.ones(1, 2, dtype=torch.float64)), 4 * torch.ones(1, 2))
    scores = score(net, snip, example_input=torch.zeros(1, 2), batches=[samples(3, 2, num_classes=2)])
    assert list(scores) == ["0.weight"]


def test_scoring_gives_weights_in_the_order_of_the_masks() -> None:
    net = vgg_like()
    masks = Masks(dict(reversed(list(dense(net).items()))))
    weights = Scoring(net, masks, torch.zeros(1)).weights()
    assert list(weights) == ["9.weight", "4.weight", "0.weight"]
    assert not any(weight.requires_grad for weight in weights.values())


def test_a_batch_may_carry_more_than_inputs_and_labels() -> None:
    inputs, labels = samples(4, 3)
    extra: list[tuple[Tensor, ...]] = [(inputs, labels, torch.arange(4))]
    plain = score(mlp(3, 4, 3), snip, example_input=inputs[:1], batches=[(inputs, labels)])
    assert all(
        torch.equal(plain[name], values)
        for name, values in score(mlp(3, 4, 3), snip, example_input=inputs[:1], batches=extra).items()
    )


def test_iterables_without_a_length_do() -> None:
    class Batches:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            yield samples(4, 3)

    assert score(mlp(3, 4, 3), snip, example_input=torch.zeros(1, 3), batches=Batches()).keys() == {
        "0.weight",
        "2.weight",
    }
