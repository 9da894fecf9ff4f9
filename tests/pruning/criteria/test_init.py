"""What every criterion has to hold, over all of them and their knobs."""

from __future__ import annotations

import random as python_random
from collections.abc import Iterator
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunelab.pruning import Criterion, Masks, PruningError, Scoring, criteria, keep_highest, prune, score
from prunelab.pruning.criteria import Force, Grasp, IterativeSnip, Magnitude, MaskCriterion, Random, Snip, SynFlow
from prunelab.pruning.criteria.mask_criterion import Score

from ..nets import Untouchable, dense, random_masks, samples, vgg_like, with_dropout

NAMES = [
    *("random", "erk", "magnitude", "lamp", "mask_criterion"),
    *("snip", "iterative_snip", "force", "grasp", "synflow"),
]
DEFAULTS: dict[str, Any] = {name: getattr(criteria, name) for name in NAMES}
VARIANTS: dict[str, Any] = {
    **DEFAULTS,
    "magnitude normalised": Magnitude(normalise=True),
    **{f"mask_criterion {score}": MaskCriterion(score=score) for score in get_args(Score)},
    "mask_criterion movement same": MaskCriterion(score="movement", sign="same"),
    "mask_criterion large_init different": MaskCriterion(score="large_init", sign="different"),
    "mask_criterion random same": MaskCriterion(score="random", sign="same"),
    "snip batch": Snip(batch_norm="batch"),
    "snip signed": Snip(signed=True),
    "snip normalised": Snip(normalise=True),
    "snip signed normalised": Snip(signed=True, normalise=True),
    "iterative_snip batch signed": IterativeSnip(batch_norm="batch", signed=True),
    "force batch": Force(batch_norm="batch"),
    "grasp running": Grasp(batch_norm="running", temperature=1.0),
    "synflow mean_abs": SynFlow(input="mean_abs"),
    "synflow l2": SynFlow(objective="l2"),
    "synflow log": SynFlow(objective="log"),
    "synflow own": SynFlow(activations="own"),
    "synflow gradient": SynFlow(gradient_only=True),
    "synflow normalised": SynFlow(normalise=True),
    "synflow float32": SynFlow(precision="float32"),
}
every = pytest.mark.parametrize("criterion", VARIANTS.values(), ids=VARIANTS.keys())

IMAGE = torch.zeros(1, 2, 6, 6, dtype=torch.float64)
BATCHES = [samples(8, 2, 6, 6), samples(4, 2, 6, 6, seed=1)]


def initial_of(net: nn.Module) -> dict[str, Tensor]:
    """Weights that the network might have been initialised with."""
    generator = torch.Generator().manual_seed(9)
    return {name: torch.randn(p.shape, generator=generator, dtype=p.dtype) for name, p in net.named_parameters()}


def scores_of(net: nn.Module, criterion: Criterion, masks: Masks | None = None, **scoring: Any) -> dict[str, Tensor]:
    given = {"example_input": IMAGE, "batches": BATCHES, "initial": initial_of(net), **scoring}
    return score(net, criterion, masks=masks, **given)


def pruned(net: nn.Module, criterion: Criterion, density: float, **options: Any) -> Masks:
    given = {"example_input": IMAGE, "batches": BATCHES, "initial": initial_of(net), **options}
    return prune(net, criterion, density=density, **given)


def draws(criterion: Any) -> bool:
    return isinstance(criterion, Random | criteria.Erk) or getattr(criterion, "score", None) == "random"


def bits(net: nn.Module) -> Iterator[tuple[str, Any]]:
    """All that scoring must not change."""
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        yield name, (id(tensor), tensor._version, tensor.detach().clone().numpy().tobytes(), tensor.requires_grad)
    for name, parameter in net.named_parameters():
        grad = parameter.grad
        yield f"{name}.grad", None if grad is None else (id(grad), grad._version, grad.numpy().tobytes())
    for name, module in net.named_modules():
        yield f"{name}.training", (module.training, len(module._forward_hooks), len(module._forward_pre_hooks))
    yield "torch", torch.get_rng_state().numpy().tobytes()
    yield "numpy", str(np.random.get_state())
    yield "python", python_random.getstate()
    yield "switches", (torch.is_grad_enabled(), torch.get_default_dtype(), torch.is_autocast_enabled("cpu"))


def test_the_names_of_configs_are_instances_of_the_classes_beside_them() -> None:
    assert {type(criterion).__name__ for criterion in DEFAULTS.values()} <= set(criteria.__all__)
    assert set(NAMES) <= set(criteria.__all__)
    assert len(criteria.__all__) == 2 * len(NAMES)


def test_rounds_of_their_own() -> None:
    rounds = {name: criterion.rounds for name, criterion in DEFAULTS.items()}
    assert rounds == {**dict.fromkeys(NAMES, 1), "iterative_snip": 10, "force": 10, "synflow": 100}
    assert [name for name, criterion in DEFAULTS.items() if criterion.revives] == ["force"]
    trained = [name for name, criterion in DEFAULTS.items() if getattr(criterion, "scores_trained_weights", False)]
    assert trained == ["magnitude", "lamp", "mask_criterion"]
    data = [name for name, criterion in DEFAULTS.items() if criterion.needs_batches]
    assert data == ["snip", "iterative_snip", "force", "grasp"]
    assert SynFlow(input="mean_abs").needs_batches


@every
def test_form(criterion: Any) -> None:
    assert isinstance(criterion, Criterion)
    assert hash(criterion) == hash(type(criterion)()) or criterion != type(criterion)()
    with pytest.raises(AttributeError):
        criterion.rounds = 3


@every
@pytest.mark.parametrize("density", [1.0, 0.5])
def test_keys_shapes_and_finite_numbers(criterion: Any, density: float) -> None:
    net = with_dropout()
    masks = dense(net) if density == 1 else random_masks(net, density)
    scores = scores_of(net, criterion, masks)
    assert list(scores) == list(masks)
    for name, values in scores.items():
        assert values.shape == masks[name].shape
        assert values.is_floating_point()
        assert not values.requires_grad
        assert torch.isfinite(values).all()


@every
@pytest.mark.parametrize("batch_norm_only", [False, True])
def test_leaves_the_network_and_all_global_state_bit_identical(criterion: Any, batch_norm_only: bool) -> None:
    """Batch norm and dropout, in train mode, one module in eval mode, one weight frozen, some gradients."""
    net = with_dropout().train()
    net[3].eval()
    net[5].weight.requires_grad_(False)
    net[0].weight.grad = torch.ones_like(net[0].weight)
    masks = Masks({"0.weight": random_masks(net)["0.weight"]}) if batch_norm_only else random_masks(net)
    before = dict(bits(net))
    scores_of(net, criterion, masks)
    after = dict(bits(net))
    assert [name for name in before if before[name] != after[name]] == []


@every
def test_the_mode_of_the_network_does_not_matter(criterion: Any) -> None:
    """Nor do gradients that are switched off: scores are the same numbers."""
    expected = scores_of(with_dropout().eval(), criterion)
    training = scores_of(with_dropout().train(), criterion)
    with torch.no_grad():
        without_grad = scores_of(with_dropout().eval(), criterion)
    for name, values in expected.items():
        assert torch.equal(training[name], values)
        assert torch.equal(without_grad[name], values)


@every
def test_autocast_does_not_change_scores(criterion: Any) -> None:
    net, batches = with_dropout().float(), [(inputs.float(), labels) for inputs, labels in BATCHES]
    plain = scores_of(net, criterion, example_input=IMAGE.float(), batches=batches)
    with torch.autocast("cpu", torch.bfloat16):
        inside = scores_of(net, criterion, example_input=IMAGE.float(), batches=batches)
    assert all(torch.equal(plain[name], inside[name]) for name in plain)


@every
def test_scores_are_reproducible_and_random_ones_come_from_the_generator(criterion: Any) -> None:
    def draw(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        return scores_of(with_dropout(), criterion, generator=torch.Generator().manual_seed(5))

    first, second = draw(0), draw(1)
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = scores_of(with_dropout(), criterion, generator=torch.Generator().manual_seed(6))
    assert draws(criterion) != all(torch.equal(first[name], other[name]) for name in first)


@every
def test_only_shape_and_type_of_the_example_count(criterion: Any) -> None:
    expected = scores_of(with_dropout(), criterion)
    other = scores_of(with_dropout(), criterion, example_input=torch.full_like(IMAGE, -7))
    assert all(torch.equal(other[name], expected[name]) for name in expected)


@every
def test_pruned_weights_do_not_matter(criterion: Any) -> None:
    """The network that is scored is w * mask: what stands in pruned places changes no score of a kept weight."""
    net, masks = with_dropout(), random_masks(with_dropout())
    expected = scores_of(net, criterion, masks)
    masks.apply_to(net)
    other = scores_of(net, criterion, masks)
    assert all(torch.equal(expected[name][masks[name]], other[name][masks[name]]) for name in masks)


@every
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_raise(criterion: Any, bad: float) -> None:
    net = with_dropout()
    with torch.no_grad():
        net[5].weight[0, 0] = bad
    if isinstance(criterion, Random | criteria.Erk):  # do not look at weights
        scores_of(net, criterion)
        return
    with pytest.raises(PruningError):
        scores_of(net, criterion)


@every
@pytest.mark.parametrize(("density", "count"), [(1.0, 267), (0.5, 134), (0.01, 3)])
def test_exact_budget(criterion: Any, density: float, count: int) -> None:
    """267 weights: .5 is 133.5, rounded up; .01 is 2.67."""
    masks = pruned(vgg_like(), criterion, density, rounds=3)
    assert masks.num_kept == count


@every
def test_exact_budget_after_earlier_masks(criterion: Any) -> None:
    earlier = random_masks(vgg_like(), 0.6)
    for density, count in ((0.5, 134), (0.3, 80), (0.01, 3)):
        masks = pruned(vgg_like(), criterion, density, masks=earlier, rounds=2)
        assert masks.num_kept == count
        assert masks.is_subset_of(earlier)


@every
@pytest.mark.parametrize("scope", ["global", "layerwise"])
def test_exact_budget_when_all_weights_are_equal(criterion: Any, scope: Any) -> None:
    """All tie, inside a layer or everywhere: an initialisation made to break thresholds."""
    net = vgg_like()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(1.0)
    for density, count in ((0.5, 134), (0.25, 67), (0.01, 3)):
        masks = pruned(net, criterion, density, rounds=2, scope=scope, initial=dict(net.named_parameters()))
        assert masks.num_kept == count


@pytest.mark.parametrize("criterion", DEFAULTS.values(), ids=DEFAULTS.keys())
def test_exact_budget_when_all_scores_are_zero(criterion: Any) -> None:
    """A last layer of zeros: gradients and paths of all others are 0, and the count is exact all the same."""
    net = vgg_like()
    with torch.no_grad():
        net[9].weight.zero_()
    masks = Masks({name: mask for name, mask in dense(net).items() if name != "9.weight"})
    if isinstance(criterion, SynFlow):
        with pytest.raises(PruningError, match="scores are 0"):
            scores_of(net, criterion, masks)
        scores = {name: torch.zeros(mask.shape) for name, mask in masks.items()}
    else:
        scores = scores_of(net, criterion, masks)
    for density, count in ((1.0, 252), (0.5, 126), (0.01, 3)):
        assert keep_highest(scores, density, masks).num_kept == count


@pytest.mark.parametrize("name", ["random", "erk", "magnitude", "lamp", "mask_criterion", "synflow"])
def test_criteria_without_data_never_touch_a_loader(name: str) -> None:
    score(vgg_like(), DEFAULTS[name], example_input=IMAGE, batches=Untouchable())
    with pytest.raises(AssertionError, match="were read"):
        score(vgg_like(), SynFlow(input="mean_abs"), example_input=IMAGE, batches=Untouchable())


@every
def test_networks_in_single_precision_and_frozen_ones_do(criterion: Any) -> None:
    net, batches = with_dropout().float().requires_grad_(False), [(x.float(), y) for x, y in BATCHES]
    masks = pruned(net, criterion, 0.3, rounds=2, example_input=IMAGE.float(), batches=batches)
    assert masks.num_kept == round(0.3 * masks.num_weights)


def test_a_loss_of_ones_own() -> None:
    """Data criteria use the loss that they are given."""

    def squares(outputs: Tensor, labels: Tensor) -> Tensor:
        return (outputs - labels[:, None]).square().mean()

    for name in ("snip", "iterative_snip", "force", "grasp"):
        default = scores_of(with_dropout(), DEFAULTS[name])
        own = scores_of(with_dropout(), DEFAULTS[name], loss=squares)
        assert not torch.allclose(default["9.weight"], own["9.weight"])


def test_scoring_is_frozen() -> None:
    scoring = Scoring(vgg_like(), dense(vgg_like()), IMAGE)
    with pytest.raises(AttributeError):
        scoring.round = 3
