from __future__ import annotations

import itertools
from collections.abc import Mapping
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunelab.models import resnet20
from prunelab.pruning import Masks, PruningError, Scoring, prunable_names, prune
from prunelab.pruning.criteria import SynFlow, erk, force, grasp, iterative_snip, magnitude, random, snip, synflow
from prunelab.pruning.diagnostics import collapsed_layers, mask_overlap

from .nets import Untouchable, dense, mlp, random_masks, samples, three_by_three, two_by_two, vgg_like

IMAGE = torch.zeros(1, 2, 6, 6)


class Recorder:
    """Feeds on rounds."""

    def __init__(self) -> None:
        self.rounds: list[tuple[int, float, dict[str, Tensor], Masks]] = []

    def __call__(self, index: int, density: float, scores: Mapping[str, Tensor], masks: Masks) -> None:
        self.rounds.append((index, density, dict(scores), masks))


def test_twenty_percent_per_round() -> None:
    """The percentages that papers list for 18 rounds of 20 %, and the counts that belong to them."""
    net, recorder = nn.Linear(250, 400), Recorder()
    masks = prune(net, magnitude, density=0.8**18, rounds=18, example_input=torch.zeros(1, 250), on_round=recorder)
    sparsities = [round(100 * (1 - kept.density), 1) for *_, kept in recorder.rounds]
    listed = [20, 36, 48.8, 59, 67.2, 73.8, 79, 83.2, 86.6, 89.3, 91.4, 93.1, 94.5, 95.6, 96.5, 97.2, 97.7, 98.2]
    assert sparsities == listed
    assert [kept.num_kept for *_, kept in recorder.rounds] == [round(100_000 * 0.8**k) for k in range(1, 19)]
    assert recorder.rounds[-1][3] == masks


def test_rounds_tell_index_density_scores_and_masks() -> None:
    recorder = Recorder()
    prune(
        two_by_two(),
        synflow,
        density=0.5,
        rounds=3,
        schedule="linear",
        example_input=IMAGE[0, :, 0, :1].T,
        on_round=recorder,
    )
    assert [index for index, *_ in recorder.rounds] == [0, 1, 2]
    assert [density for _, density, *_ in recorder.rounds] == pytest.approx([5 / 6, 4 / 6, 3 / 6])
    assert [masks.num_kept for *_, masks in recorder.rounds] == [5, 4, 3]
    assert recorder.rounds[0][2]["0.weight"].tolist() == [[2, 4], [3, 0.5]]


@pytest.mark.parametrize("schedule", ["exponential", "linear"])
def test_masks_of_rounds_are_nested_and_their_counts_exact(schedule: str) -> None:
    net, recorder = vgg_like(), Recorder()
    prune(net, synflow, density=0.1, rounds=9, schedule=schedule, example_input=IMAGE, on_round=recorder)
    before = dense(net)
    for _, density, _, masks in recorder.rounds:
        assert masks.is_subset_of(before)
        exact = (Decimal(repr(round(density * masks.num_weights, 6)))).to_integral_value(ROUND_HALF_UP)
        assert masks.num_kept == exact
        before = masks


def test_the_network_is_unchanged() -> None:
    net = vgg_like().train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    prune(net, synflow, density=0.1, rounds=3, example_input=IMAGE)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert net.training


def test_rounds_default_to_the_criterions_own() -> None:
    for criterion, rounds in ((SynFlow(rounds=7), 7), (magnitude, 1)):
        recorder = Recorder()
        prune(vgg_like(), criterion, density=0.3, example_input=IMAGE, on_round=recorder)
        assert len(recorder.rounds) == rounds


def test_no_data_is_touched_by_a_criterion_that_needs_none() -> None:
    for criterion in (synflow, magnitude, random, erk):
        prune(vgg_like(), criterion, density=0.3, rounds=2, example_input=IMAGE, batches=Untouchable())
    with pytest.raises(AssertionError, match="were read"):
        prune(vgg_like(), snip, density=0.3, example_input=IMAGE, batches=Untouchable())


def test_pruned_stays_pruned_though_a_dead_weight_ties_with_it() -> None:
    """Down to 3 of 6 weights, one a round. On the way W1[1, 0] scores 0 no less than the pruned W1[1, 1] would, once
    its neighbour is gone: nothing comes back, and the count is right at every step."""
    net, recorder = two_by_two(), Recorder()
    masks = prune(
        net, synflow, density=0.5, rounds=3, schedule="linear", example_input=torch.ones(1, 2), on_round=recorder
    )
    assert masks["0.weight"].tolist() == [[False, True], [False, False]]
    assert masks["2.weight"].tolist() == [[True, True]]

    cut = Masks({"0.weight": torch.tensor([[True, True], [True, False]]), "2.weight": torch.tensor([[True, False]])})
    for density, kept in ((3 / 6, [[True, True], [False, False]]), (2 / 6, [[False, True], [False, False]])):
        later = prune(net, synflow, density=density, rounds=1, masks=cut, example_input=torch.ones(1, 2))
        assert later["0.weight"].tolist() == kept
        assert later["2.weight"].tolist() == [[True, False]]


BATCH = [samples(12, 2, 6, 6)]


@pytest.mark.parametrize("criterion", [grasp, iterative_snip, synflow], ids=lambda criterion: type(criterion).__name__)
def test_no_round_revives_a_weight(criterion: Any) -> None:
    """Iterated GraSP scores kept weights below 0, that is below the 0 of pruned ones."""
    net, recorder = vgg_like(), Recorder()
    before = random_masks(net, 0.8)
    masks = prune(
        net, criterion, density=0.2, rounds=5, masks=before, example_input=IMAGE, batches=BATCH, on_round=recorder
    )
    for *_, after in recorder.rounds:
        assert after.is_subset_of(before)
        before = after
    assert masks.num_kept == recorder.rounds[-1][3].num_kept
    if criterion is grasp:
        assert any(float(values.min()) < 0 for _, _, scores, _ in recorder.rounds[1:] for values in scores.values())


def test_force_revives_but_never_what_it_was_not_given() -> None:
    net, recorder = vgg_like(), Recorder()
    given = random_masks(net, 0.8)
    prune(net, force, density=0.1, rounds=10, masks=given, example_input=IMAGE, batches=BATCH, on_round=recorder)
    all_masks = [masks for *_, masks in recorder.rounds]
    assert not all(later.is_subset_of(earlier) for earlier, later in itertools.pairwise(all_masks))
    assert all(masks.is_subset_of(given) for masks in all_masks)
    assert [masks.num_kept for masks in all_masks] == sorted((masks.num_kept for masks in all_masks), reverse=True)


def test_masks_that_have_the_wanted_number_come_back_unscored() -> None:
    masks = random_masks(vgg_like(), 0.5)

    class Unscorable:
        rounds, needs_batches, revives, allocation = 1, True, False, None

        def __call__(self, scoring: Scoring) -> dict[str, Tensor]:
            raise AssertionError("scored")

    assert prune(vgg_like(), Unscorable(), density=masks.density, masks=masks, example_input=IMAGE) is masks
    assert prune(vgg_like(), Unscorable(), density=1.0, example_input=IMAGE) == dense(vgg_like())


def test_a_schedule_starts_from_the_given_masks() -> None:
    recorder = Recorder()
    masks = Masks({"weight": torch.arange(1000).view(10, 100) % 2 == 0})
    prune(nn.Linear(100, 10), magnitude, density=0.005, rounds=2, masks=masks, example_input=IMAGE, on_round=recorder)
    assert [kept.num_kept for *_, kept in recorder.rounds] == [50, 5]


def test_every_layer_its_share() -> None:
    net = vgg_like()
    masks = prune(net, magnitude, density=0.25, scope="layerwise", example_input=IMAGE)
    for name, mask in masks.items():
        assert abs(int(mask.sum()) - 0.25 * mask.numel()) < 1
        weakest_kept = net.get_parameter(name).abs()[mask].min()
        assert (net.get_parameter(name).abs()[~mask] <= weakest_kept).all()


def test_floors() -> None:
    masks = prune(vgg_like(), synflow, density=0.1, rounds=10, min_layer_density=0.05, example_input=IMAGE)
    assert masks.num_kept == 27  # of 267
    assert all(density >= 0.05 for density in masks.layer_densities().values())


def test_floors_above_the_budget_are_an_error_before_anything_is_scored() -> None:
    recorder = Recorder()
    with pytest.raises(PruningError, match="min_layer_density"):
        prune(vgg_like(), synflow, density=0.1, min_layer_density=0.2, example_input=IMAGE, on_round=recorder)
    assert recorder.rounds == []


@pytest.mark.parametrize("density", [0.1, 0.5, 1 / 3])
@pytest.mark.parametrize("allocation", ["uniform", "erk"])
def test_allocations_are_exact_in_every_round(allocation: str, density: float) -> None:
    net, recorder = vgg_like(), Recorder()
    masks = prune(
        net, synflow, density=density, rounds=4, allocation=allocation, example_input=IMAGE, on_round=recorder
    )
    assert masks.num_kept == round(density * masks.num_weights)
    for _, now, _, kept in recorder.rounds:
        assert abs(kept.num_kept - now * kept.num_weights) <= 0.5
    if allocation == "uniform":
        assert all(abs(int(mask.sum()) - density * mask.numel()) < 1 for mask in masks.values())


def test_erk_brings_its_own_allocation() -> None:
    """Small layers dense: the classifier's 15 weights and (2 + 4 + 3 + 3) / 72 of the first kernel."""
    masks = prune(vgg_like(), erk, density=0.5, example_input=IMAGE)
    assert masks.layer_densities()["9.weight"] == 1.0
    rest = 0.5 * 267 - 15
    assert masks.layer_num_kept()["0.weight"] == pytest.approx(rest * 12 / 27, abs=1)
    explicit = prune(vgg_like(), random, density=0.5, allocation="erk", example_input=IMAGE)
    assert explicit == masks


def test_a_mapping_gives_every_layer_its_density_by_the_schedule() -> None:
    """One layer is not touched; the others go down round by round, not in the first one."""
    goal = {"0.weight": 0.25, "4.weight": 0.1, "9.weight": 1.0}
    recorder = Recorder()
    masks = prune(
        vgg_like(), synflow, density=51 / 267, rounds=2, allocation=goal, example_input=IMAGE, on_round=recorder
    )
    assert masks.layer_num_kept() == {"0.weight": 18, "4.weight": 18, "9.weight": 15}
    assert recorder.rounds[0][3].layer_num_kept() == {"0.weight": 36, "4.weight": 57, "9.weight": 15}


def test_a_random_control_with_the_layer_densities_of_another_mask() -> None:
    other = prune(vgg_like(), synflow, density=0.2, rounds=10, example_input=IMAGE)
    control = prune(vgg_like(), random, density=other.density, allocation=other.layer_densities(), example_input=IMAGE)
    assert control.layer_num_kept() == other.layer_num_kept()
    assert mask_overlap(control, other) < 0.5


@pytest.mark.parametrize(
    ("allocation", "message"),
    [
        ({"0.weight": 0.5, "4.weight": 0.5}, r"different layers.*9\.weight"),
        ({"0.weight": 1.0, "4.weight": 1.0, "9.weight": 1.0}, "sum to 267 weights, the density asks for 134"),
        ({"0.weight": 1.5, "4.weight": 0.5, "9.weight": 0.5}, r"more than the masks keep in 0\.weight"),
        ("lamp", "unknown allocation"),
    ],
)
def test_allocations_that_do_not_fit_are_errors(allocation: Any, message: str) -> None:
    with pytest.raises(PruningError, match=message):
        prune(vgg_like(), magnitude, density=0.5, allocation=allocation, example_input=IMAGE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({"density": value}, "density") for value in (0, 1.5, -1, float("nan"), "10%", None, True)),
        ({"density": 1e-9}, "of 267 prunable weights keeps none"),
        *(({"rounds": value}, "rounds must be a whole number") for value in (0, -1, 2.5, True, "3")),
        ({"schedule": "cosine"}, "unknown schedule"),
        ({"scope": "local"}, "unknown scope"),
        ({"min_layer_density": 2}, "min_layer_density"),
        ({"masks": random_masks(vgg_like(), 0.2), "density": 0.9}, "pruning cannot add weights"),
    ],
)
def test_user_errors_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PruningError, match=message) as caught:
        prune(vgg_like(), magnitude, **{"density": 0.5, "example_input": IMAGE, **options})
    assert "\n" not in str(caught.value)


def test_densities_of_numpy() -> None:
    """As notebooks make them."""
    for density in np.geomspace(0.1, 0.5, 3):
        masks = prune(vgg_like(), magnitude, density=density, example_input=IMAGE)
        assert masks.num_kept == int(density * 267 + 0.5)


@pytest.mark.parametrize("allocation", [None, "uniform", "erk"])
def test_a_density_that_floats_cannot_hold(allocation: Any) -> None:
    """A sixth of 3 weights is half a weight, which is rounded up."""
    masks = prune(nn.Linear(3, 1), magnitude, density=1 / 6, allocation=allocation, example_input=IMAGE)
    assert masks.num_kept == 1


def test_reproducible_and_steered_by_the_generator() -> None:
    def draw(seed: int | None) -> Masks:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return prune(mlp(10, 20, 3), random, density=0.3, example_input=IMAGE, generator=generator)

    assert draw(0) == draw(0) == draw(None)
    assert draw(0) != draw(1)


def test_only_the_named_parameters() -> None:
    net = vgg_like()
    start = Masks.dense(net, prunable_names(net, exclude=["9.*"]))
    masks = prune(net, synflow, density=0.2, rounds=5, masks=start, example_input=IMAGE)
    assert list(masks) == ["0.weight", "4.weight"]
    assert masks.num_kept == 50  # .2 of 252, rounded


def test_one_shot_synflow_empties_a_layer_and_one_weight_at_a_time_does_not() -> None:
    """R = 72 on 9 + 3 weights. At once, 3 of 12: all of the second layer. One at a time, down to 2: the strongest path,
    6 * 2; no layer is ever empty."""
    net, ones = three_by_three(), torch.ones(1, 3)
    at_once = prune(net, synflow, density=3 / 12, rounds=1, example_input=ones)
    assert at_once.layer_num_kept() == {"0.weight": 0, "2.weight": 3}
    recorder = Recorder()
    masks = prune(net, synflow, density=2 / 12, rounds=10, schedule="linear", example_input=ones, on_round=recorder)
    assert [kept.num_kept for *_, kept in recorder.rounds] == list(range(11, 1, -1))
    assert not any(collapsed_layers(kept) for *_, kept in recorder.rounds)
    assert masks["0.weight"].nonzero().tolist() == [[1, 2]]
    assert masks["2.weight"].nonzero().tolist() == [[0, 1]]


def test_one_shot_synflow_collapses_resnet20_and_a_hundred_rounds_do_not() -> None:
    """Seed 0, Kaiming-normal: 4 dead layers at density .1 and 13 at .01 in one round; none on the way to .01 in 100.

    Other seeds: 2 to 4 and 13 in one round; in 100 rounds to .01 a 1x1 shortcut, which its branch bypasses, dies in
    five seeds of eight, no other layer ever."""
    torch.manual_seed(0)
    net, image, recorder = resnet20(), torch.zeros(1, 3, 32, 32), Recorder()
    at_once = [prune(net, synflow, density=density, rounds=1, example_input=image) for density in (0.1, 0.01)]
    assert [len(collapsed_layers(masks)) for masks in at_once] == [4, 13]
    prune(net, synflow, density=0.01, example_input=image, on_round=recorder)
    assert len(recorder.rounds) == 100
    assert not any(collapsed_layers(masks) for *_, masks in recorder.rounds)
    assert recorder.rounds[49][3].num_kept == at_once[0].num_kept  # half way, .1
    assert recorder.rounds[99][3].num_kept == at_once[1].num_kept == 2709
