from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from prunelab.pruning import Masks, PruningError, prune
from prunelab.pruning.actions import kept_values, pruned_values
from prunelab.pruning.criteria import random

from .nets import mlp, random_masks

WEIGHTS = {"a": torch.tensor([[1.0, -2.0, 3.0], [-4.0, 0.0, 6.0]]), "b": torch.tensor([5.0, -7.0])}
FRESH = {"a": torch.tensor([[-0.1, -0.2, 0.3], [0.4, -0.5, 0.6]]), "b": torch.tensor([0.7, 0.8])}
MASKS = Masks({"a": torch.tensor([[True, True, False], [True, True, False]]), "b": torch.tensor([True, False])})


def weights_of(*widths: int, seed: int = 0) -> dict[str, Tensor]:
    return {name: weight.detach() for name, weight in mlp(*widths, seed=seed).named_parameters()}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- kept weights ---


@pytest.mark.parametrize("keep_sign", [False, True])
def test_rewind_changes_nothing(keep_sign: bool) -> None:
    values = kept_values("rewind", WEIGHTS, MASKS, keep_sign=keep_sign)
    assert all(torch.equal(values[name], WEIGHTS[name]) for name in MASKS)


def test_reinit_by_hand() -> None:
    values = kept_values("reinit", WEIGHTS, MASKS, fresh=FRESH)
    assert torch.equal(values["a"], torch.tensor([[-0.1, -0.2, 3.0], [0.4, -0.5, 6.0]]))
    assert torch.equal(values["b"], torch.tensor([0.7, -7.0]))


def test_reinit_with_the_signs_of_the_rewind_point_by_hand() -> None:
    """The weight that is 0 counts as positive."""
    values = kept_values("reinit", WEIGHTS, MASKS, fresh=FRESH, keep_sign=True)
    assert torch.equal(values["a"], torch.tensor([[0.1, -0.2, 3.0], [-0.4, 0.5, 6.0]]))
    assert torch.equal(values["b"], torch.tensor([0.7, -7.0]))


def test_reinit_needs_fresh_weights() -> None:
    with pytest.raises(ValueError, match="freshly drawn"):
        kept_values("reinit", WEIGHTS, MASKS)


def test_constant_by_hand() -> None:
    """a has mean 2/3 and mean square 11, b mean -1 and mean square 37: variances 95/9 and 36, pruned ones included."""
    c, d = (95 / 9) ** 0.5, 6.0
    values = kept_values("constant", WEIGHTS, MASKS, keep_sign=True)
    torch.testing.assert_close(values["a"], torch.tensor([[c, -c, 3.0], [-c, c, 6.0]]))
    assert values["b"].tolist() == [d, -7.0]
    random_signs = kept_values("constant", WEIGHTS, MASKS)
    torch.testing.assert_close(random_signs["a"].abs(), torch.tensor([[c, c, 3.0], [c, c, 6.0]]))
    assert torch.equal(random_signs["a"][~MASKS["a"]], WEIGHTS["a"][~MASKS["a"]])


def test_reshuffled_values_are_those_of_the_layers_kept_weights_elsewhere() -> None:
    weights, masks = weights_of(20, 20, 10), random_masks(mlp(20, 20, 10), 0.6)
    values = kept_values("reshuffle", weights, masks, generator=seeded(0))
    for name, mask in masks.items():
        assert torch.equal(values[name][mask].sort().values, weights[name][mask].sort().values)
        moved = values[name][mask] != weights[name][mask]
        assert moved.float().mean() > 0.9  # of n permuted values one stays on average
        assert torch.equal(values[name][~mask], weights[name][~mask])


def test_reshuffled_sizes_keep_the_signs_of_their_places() -> None:
    weights, masks = weights_of(20, 20, 10), random_masks(mlp(20, 20, 10), 0.6)
    values = kept_values("reshuffle", weights, masks, generator=seeded(0), keep_sign=True)
    for name, mask in masks.items():
        assert torch.equal(values[name].sign(), weights[name].sign())
        assert torch.equal(values[name][mask].abs().sort().values, weights[name][mask].abs().sort().values)
        assert (values[name][mask] != weights[name][mask]).float().mean() > 0.9


def test_the_signs_of_zeros() -> None:
    """0 and -0 both count as positive."""
    weights, masks = {"a": torch.tensor([0.0, -0.0, 1.0])}, Masks({"a": torch.ones(3, dtype=torch.bool)})
    fresh = {"a": torch.tensor([-1.0, -2.0, -3.0])}
    assert kept_values("reinit", weights, masks, fresh=fresh, keep_sign=True)["a"].tolist() == [1, 2, 3]
    assert (kept_values("constant", weights, masks, keep_sign=True)["a"] > 0).all()


@pytest.mark.parametrize("action", ["reshuffle", "constant"])
def test_draws_come_from_the_generator_alone(action: Any) -> None:
    weights, masks = weights_of(10, 10), random_masks(mlp(10, 10), 0.9)
    state = torch.get_rng_state()
    first, again, other = (kept_values(action, weights, masks, generator=seeded(s))["0.weight"] for s in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("seed", [0, 7])
def test_signs_are_independent_of_weights_and_of_a_random_mask_of_the_same_seed(seed: int) -> None:
    """A run has one seed: with shared numbers all weights that a random mask keeps would get one sign."""
    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Linear(200, 100, bias=False))
    masks = prune(net, random, density=0.3, example_input=torch.zeros(1, 200), generator=seeded(seed))
    weights = {name: weight.detach() for name, weight in net.named_parameters()}
    signs = kept_values("constant", weights, masks, generator=seeded(seed))["0.weight"].sign()
    kept = masks["0.weight"]
    bound = 4 / int(kept.sum()) ** 0.5  # four standard deviations
    assert abs(float(signs[kept].mean())) < bound
    assert abs(float((signs * weights["0.weight"].sign())[kept].mean())) < bound


@pytest.mark.parametrize("action", ["rewind", "reinit", "reshuffle", "constant"])
@pytest.mark.parametrize("keep_sign", [False, True])
def test_what_is_given_stays_and_what_comes_back_is_new(action: Any, keep_sign: bool) -> None:
    weights = {**weights_of(6, 4), "running_mean": torch.ones(4)}
    before = {name: weight.clone() for name, weight in weights.items()}
    masks = random_masks(mlp(6, 4))
    values = kept_values(action, weights, masks, keep_sign=keep_sign, fresh=weights_of(6, 4, seed=1))
    assert list(values) == list(masks)
    for tensor in values.values():
        assert (tensor.dtype, tensor.requires_grad) == (torch.float64, False)
        tensor.zero_()
    assert all(torch.equal(weights[name], before[name]) for name in weights)


def test_layers_without_kept_weights_and_with_one() -> None:
    for mask in (torch.zeros(2, dtype=torch.bool), torch.tensor([False, True])):
        values = kept_values("reshuffle", WEIGHTS, Masks({"b": mask}))
        assert torch.equal(values["b"], WEIGHTS["b"])


# --- pruned weights ---

INITIAL = {"a": torch.tensor([[1.0, -2.0, 3.0], [-4.0, 5.0, 6.0]])}
FINAL = {"a": torch.tensor([[2.0, -9.0, -3.5], [1.0, 5.0, -5.9]])}
PRUNED = Masks({"a": torch.tensor([[True, False, False], [False, False, False]])})


def test_zero_needs_no_values() -> None:
    assert pruned_values("zero", INITIAL, FINAL, PRUNED) is None


def test_init_by_hand() -> None:
    values = pruned_values("init", INITIAL, FINAL, PRUNED)
    assert values is not None
    assert values["a"].tolist() == [[0, -2, 3], [-4, 5, 6]]


def test_init_if_grew_by_hand() -> None:
    """-2 -> -9 and 3 -> -3.5 grew, -4 -> 1 and 6 -> -5.9 shrank, 5 did not shrink."""
    values = pruned_values("init_if_grew", INITIAL, FINAL, PRUNED)
    assert values is not None
    assert values["a"].tolist() == [[0, -2, 3], [0, 5, 0]]


def test_what_an_earlier_level_decided_stays() -> None:
    """Weights pruned at level 1 end level 2 at what they were held at, 0 or their initial value."""
    initial, first, second = (weights_of(20, 20, seed=seed) for seed in (0, 1, 2))
    early = random_masks(mlp(20, 20), 0.7)
    late = Masks({name: mask & random_masks(mlp(20, 20), 0.7, seed=1)[name] for name, mask in early.items()})
    held = pruned_values("init_if_grew", initial, first, early)
    assert held is not None
    ended = {name: torch.where(mask, second[name], held[name]) for name, mask in early.items()}
    later = pruned_values("init_if_grew", initial, ended, late)
    assert later is not None
    for name, mask in early.items():
        assert torch.equal(later[name][~mask], held[name][~mask])
        assert 0 < int((held[name][~mask] == 0).sum()) < int((~mask).sum())


@pytest.mark.parametrize("action", ["init", "init_if_grew"])
def test_pruned_values_leave_what_they_are_given(action: Any) -> None:
    before = INITIAL["a"].clone()
    values = pruned_values(action, INITIAL, FINAL, PRUNED)
    assert values is not None
    values["a"].fill_(7)
    assert torch.equal(INITIAL["a"], before)


@pytest.mark.parametrize("call", [partial(kept_values, "retrain", WEIGHTS), partial(pruned_values, "one", {}, {})])
def test_unknown_actions_are_named(call: Any) -> None:
    with pytest.raises(PruningError, match="unknown mask_"):
        call(MASKS)
