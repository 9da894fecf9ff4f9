from __future__ import annotations

import math
import random
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from prunelab.pruning import Masks, PruningError, keep_highest
from prunelab.pruning.selection import kth_smallest, layer_floors, lowest


def all_kept(*shapes: tuple[int, ...]) -> Masks:
    return Masks({f"layer{i}": torch.ones(shape, dtype=torch.bool) for i, shape in enumerate(shapes)})


def like(masks: Masks, value: float) -> dict[str, Tensor]:
    return {name: torch.full(mask.shape, value) for name, mask in masks.items()}


SHAPES = ((3, 2, 3, 3), (7,), (5, 4), (1, 1))  # 82 weights


@pytest.mark.parametrize("scope", ["global", "layerwise"])
@pytest.mark.parametrize("value", [1.0, 0.0, -2.0])
@pytest.mark.parametrize(("density", "count"), [(1.0, 82), (0.5, 41), (0.01, 1), (0.0061, 1), (0.25, 21)])
def test_budget_is_exact_though_all_scores_tie(density: float, count: int, value: float, scope: str) -> None:
    masks = all_kept(*SHAPES)
    assert keep_highest(like(masks, value), density, masks, scope=scope).num_kept == count


@pytest.mark.parametrize(("first", "second", "count"), [(0.5, 0.25, 21), (0.5, 0.5, 41), (0.31, 0.01, 1)])
def test_budget_is_exact_after_earlier_masks(first: float, second: float, count: int) -> None:
    masks = all_kept(*SHAPES)
    earlier = keep_highest(like(masks, 1.0), first, masks)
    later = keep_highest(like(masks, 1.0), second, earlier)
    assert later.num_kept == count
    assert later.is_subset_of(earlier)


def test_ties_go_by_position() -> None:
    """The lower flat index goes first, and the first layer before the second."""
    masks = all_kept((2, 2), (3,))
    kept = keep_highest(like(masks, 1.0), 4 / 7, masks)
    assert kept["layer0"].flatten().tolist() == [False, False, False, True]
    assert kept["layer1"].tolist() == [True, True, True]
    layerwise = keep_highest(like(masks, 1.0), 4 / 7, masks, scope="layerwise")
    assert layerwise["layer0"].flatten().tolist() == [False, False, True, True]
    assert layerwise["layer1"].tolist() == [False, True, True]


def test_zero_and_minus_zero_tie() -> None:
    masks = all_kept((4,))
    kept = keep_highest({"layer0": torch.tensor([0.0, -0.0, 0.0, -0.0])}, 0.5, masks)
    assert kept["layer0"].tolist() == [False, False, True, True]


def test_pruned_stays_pruned_whatever_its_score() -> None:
    """Above all others, NaN or inf: what is pruned does not compete. Kept weights with any score win over it."""
    masks = Masks({"a": torch.tensor([False, True, False, True, False]), "b": torch.tensor([True, False])})
    scores = {"a": torch.tensor([9.0, -1.0, float("nan"), -5.0, float("inf")]), "b": torch.tensor([-9.0, 0.0])}
    kept = keep_highest(scores, 2 / 7, masks)
    assert kept["a"].tolist() == [False, True, False, True, False]
    assert kept["b"].tolist() == [False, False]
    assert keep_highest(scores, 3 / 7, masks) == masks


def test_more_than_the_masks_keep_is_refused() -> None:
    masks = Masks({"a": torch.tensor([True, False, False, False])})
    with pytest.raises(PruningError, match="2 weights are to be kept but the masks keep 1"):
        keep_highest({"a": torch.ones(4)}, 0.5, masks)


def exact(density: float) -> Fraction:
    return Fraction(Decimal(repr(density)))


def half_up(value: Fraction) -> int:
    return math.floor(value + Fraction(1, 2))


Item = tuple[float, int, int]  # score, layer, flat index: what goes last in this order is kept first


def items(scores: dict[str, Tensor], masks: Masks) -> list[list[Item]]:
    return [
        sorted((value, layer, i) for i, value in enumerate(scores[name].flatten().tolist()) if mask.flatten()[i])
        for layer, (name, mask) in enumerate(masks.items())
    ]


def as_masks(kept: set[tuple[int, int]], masks: Masks) -> Masks:
    return Masks(
        {
            name: torch.tensor([(layer, i) in kept for i in range(mask.numel())], dtype=torch.bool).view(mask.shape)
            for layer, (name, mask) in enumerate(masks.items())
        }
    )


def brute_force_global(scores: dict[str, Tensor], density: float, masks: Masks, floor: float) -> Masks:
    layers = items(scores, masks)
    counts = [math.ceil(exact(floor) * mask.numel()) for mask in masks.values()]
    safe = [item for layer, count in zip(layers, counts, strict=True) for item in layer[len(layer) - count :][:count]]
    rest = sorted(item for layer in layers for item in layer if item not in safe)
    missing = half_up(exact(density) * masks.num_weights) - len(safe)
    if missing < 0:
        raise PruningError("floors")
    chosen = safe + rest[len(rest) - missing :]
    return as_masks({(layer, i) for _, layer, i in chosen}, masks)


def random_case(draw: random.Random) -> tuple[dict[str, Tensor], Masks]:
    """Up to four layers, half of them with many ties, a part of the weights pruned already."""
    scores, masks = {}, {}
    share = draw.choice([1.0, 1.0, 0.8, 0.5])
    for layer in range(draw.randint(1, 4)):
        shape = [draw.randint(1, 5) for _ in range(draw.randint(1, 3))]
        size = math.prod(shape)
        values = [draw.randint(0, 2) if draw.random() < 0.7 else draw.uniform(-1, 3) for _ in range(size)]
        dtype = draw.choice([torch.float32, torch.float64])
        scores[str(layer)] = torch.tensor(values, dtype=dtype).view(shape)
        masks[str(layer)] = torch.tensor([draw.random() < share for _ in range(size)]).view(shape)
    return scores, Masks(masks)


def test_global_selection_equals_sorting_a_list() -> None:
    draw = random.Random(0)
    compared = refused = 0
    while compared < 400:
        scores, masks = random_case(draw)
        density = draw.randint(1, 20) / 20
        floor = draw.choice([0.0, 0.0, 0.1, 0.25])
        if half_up(exact(density) * masks.num_weights) > masks.num_kept:
            continue
        if floor and any(math.ceil(exact(floor) * mask.numel()) > mask.sum() for mask in masks.values()):
            continue
        try:
            expected = brute_force_global(scores, density, masks, floor)
        except PruningError:
            refused += 1
            with pytest.raises(PruningError, match="min_layer_density"):
                keep_highest(scores, density, masks, min_layer_density=floor)
            continue
        assert keep_highest(scores, density, masks, min_layer_density=floor) == expected
        compared += 1
    assert refused > 5


def test_layerwise_selection_equals_largest_remainder_and_sorting() -> None:
    draw = random.Random(1)
    for _ in range(300):
        scores, _ = random_case(draw)
        masks = Masks({name: torch.ones_like(values, dtype=torch.bool) for name, values in scores.items()})
        density = draw.randint(1, 20) / 20
        quotas = [exact(density) * values.numel() for values in scores.values()]
        counts = [math.floor(quota) for quota in quotas]
        missing = half_up(sum(quotas, Fraction(0))) - sum(counts)
        by_remainder = sorted(range(len(quotas)), key=lambda layer: (counts[layer] - quotas[layer], layer))
        for layer in by_remainder[:missing]:
            counts[layer] += 1
        layers = items(scores, masks)
        kept = {(item[1], item[2]) for layer, n in zip(layers, counts, strict=True) for item in layer[len(layer) - n :]}
        expected = as_masks(kept, masks)
        assert keep_highest(scores, density, masks, scope="layerwise") == expected
        assert keep_highest(scores, dict.fromkeys(masks, density), masks) == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64])
def test_scores_of_any_type(dtype: torch.dtype) -> None:
    scores = {"layer0": torch.tensor([3, 1, 2, 2, 5, 0]).to(dtype)}
    kept = keep_highest(scores, 0.5, all_kept((6,)))
    assert kept["layer0"].tolist() == [True, False, False, True, True, False]


def test_layers_with_scores_of_different_precision_compete() -> None:
    scores = {"layer0": torch.tensor([1.0, 3.0]), "layer1": torch.tensor([2.0, 4.0], dtype=torch.float64)}
    kept = keep_highest(scores, 0.5, all_kept((2,), (2,)))
    assert [mask.tolist() for mask in kept.values()] == [[False, True], [False, True]]


def test_densities_per_layer_of_a_lottery_ticket() -> None:
    """LeNet-300-100, 20 % per level, output layer 10 %: the percentages that the lottery ticket paper lists."""
    sizes = {"fc1": 784 * 300, "fc2": 300 * 100, "out": 100 * 10}
    masks = Masks({name: torch.ones(size, dtype=torch.bool) for name, size in sizes.items()})
    generator = torch.Generator().manual_seed(0)
    scores = {name: torch.rand(size, generator=generator) for name, size in sizes.items()}
    for level, percent in {3: 51.28, 7: 21.07, 9: 13.52, 12: 6.95, 15: 3.58, 18: 1.85, 20: 1.19}.items():
        masks = keep_highest(scores, {"fc1": 0.8**level, "fc2": 0.8**level, "out": 0.9**level}, masks)
        assert round(100 * masks.density, 2) == pytest.approx(percent, abs=0.011)
        assert masks.layer_num_kept()["out"] == pytest.approx(1000 * 0.9**level, abs=1)


def test_an_allocation_may_empty_a_layer() -> None:
    masks = all_kept((4,), (4,))
    kept = keep_highest(like(masks, 1.0), {"layer0": 0.0, "layer1": 0.5}, masks)
    assert kept.layer_num_kept() == {"layer0": 0, "layer1": 2}


def test_floors_keep_the_best_of_each_layer() -> None:
    """The best ceil(.3 * n) of each layer, the rest by score: without the floor the first layer would be empty."""
    masks = all_kept((4,), (6,))
    scores = {"layer0": torch.tensor([0.1, 0.4, 0.2, 0.3]), "layer1": torch.arange(6.0) + 1}
    kept = keep_highest(scores, 0.5, masks, min_layer_density=0.3)
    assert kept["layer0"].tolist() == [False, True, False, True]
    assert kept["layer1"].tolist() == [False, False, False, True, True, True]
    assert keep_highest(scores, 0.5, masks).layer_num_kept() == {"layer0": 0, "layer1": 5}


@pytest.mark.parametrize("scope", ["global", "layerwise"])
def test_floors_above_the_budget_are_an_error(scope: str) -> None:
    """.1 of 15 layers of 10 is one each; .11 is two each, which is more than .15 * 150 = 23."""
    masks = all_kept(*[(10,)] * 15)
    assert keep_highest(like(masks, 1.0), 0.15, masks, scope=scope, min_layer_density=0.1).num_kept == 23
    with pytest.raises(PruningError, match=r"min_layer_density 0\.11 needs 30 weights but the budget is 23"):
        keep_highest(like(masks, 1.0), 0.15, masks, scope=scope, min_layer_density=0.11)


def test_a_floor_is_not_more_than_what_is_there() -> None:
    masks = Masks({"a": torch.tensor([True, False, False, False]), "b": torch.ones(4, dtype=torch.bool)})
    assert layer_floors(masks, 0.5, 3) == {"a": 1, "b": 2}
    assert keep_highest(like(masks, 1.0), 3 / 8, masks, min_layer_density=0.5).layer_num_kept() == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("density", "options"),
    [
        *((density, {}) for density in (0, -0.5, 1.0001, float("nan"), "0.5", True, None)),
        ({"layer0": 1.5}, {}),
        ({"layer0": -0.1}, {}),
        (0.5, {"scope": "local"}),
        (0.5, {"min_layer_density": -0.1}),
        (0.5, {"min_layer_density": 1.1}),
        (0.5, {"min_layer_density": float("nan")}),
    ],
)
def test_refuses_what_cannot_be(density: object, options: dict[str, object]) -> None:
    masks = all_kept((4,))
    with pytest.raises(PruningError):
        keep_highest(like(masks, 1.0), density, masks, **options)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_scores_that_are_not_finite_are_never_sorted(bad: float) -> None:
    with pytest.raises(ValueError, match="inf or NaN"):
        keep_highest({"layer0": torch.tensor([1.0, bad])}, 0.5, all_kept((2,)))


def test_scores_of_another_network_are_refused() -> None:
    masks = all_kept((2,))
    with pytest.raises(ValueError, match="other"):
        keep_highest({"other": torch.ones(2)}, 0.5, masks)
    with pytest.raises(ValueError, match="shape"):
        keep_highest({"layer0": torch.ones(2, 1)}, 0.5, masks)


def test_scores_are_left_as_they_are() -> None:
    scores = {"layer0": torch.tensor([3.0, 1.0, 2.0])}
    keep_highest(scores, 1 / 3, all_kept((3,)))
    assert scores["layer0"].tolist() == [3.0, 1.0, 2.0]


def numbers(kind: str, count: int) -> np.ndarray:
    random = np.random.default_rng(0)
    values = {
        "random": random.standard_normal(count) ** 3,
        "few": random.integers(0, 4, count).astype(float),
        "equal": np.ones(count),
        "ascending": np.arange(float(count)),
        "with NaN": np.where(np.arange(count) % 3 == 1, np.nan, random.random(count)),
        # what a sample at equal distances sees is not like the rest
        "periodic": np.where(np.arange(count) % max(count >> 13, 1) == 0, 100.0, random.random(count)),
    }
    return values[kind].astype(np.float32)


@pytest.mark.parametrize("count", [1, 10, 1000, (1 << 16) + 1, 300_000])
@pytest.mark.parametrize("kind", ["random", "few", "equal", "ascending", "with NaN", "periodic"])
def test_the_lowest_are_those_of_a_sorted_list(kind: str, count: int) -> None:
    values = numbers(kind, count)
    in_order = np.sort(values)  # NaN last
    num_numbers = np.count_nonzero(~np.isnan(values))
    for share in (0.0, 1e-4, 0.045, 0.19, 0.21, 0.5, 0.95, 1.0):
        k = min(max(round(share * num_numbers), 1), num_numbers)
        positions, threshold = lowest(values, k)
        assert threshold == in_order[k - 1] == kth_smallest(values, k)
        assert np.array_equal(positions, np.flatnonzero(values <= in_order[k - 1]))
