"""Each control changes what it should, and nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from prunelab.experiment.controls import (
    CONTROLS,
    Corrupted,
    Inverted,
    random_masks,
    shuffled_labels,
    shuffled_masks,
    shuffled_pixels,
)
from prunelab.experiment.errors import RunError
from prunelab.experiment.run_dir import LevelDir
from prunelab.pruning import Masks, PruningError, Scoring, prune
from prunelab.pruning.criteria import magnitude, snip, synflow
from prunelab.training.resume import read_checkpoint

MAGNITUDE = {"class_path": "prunelab.pruning.criteria.Magnitude", "init_args": {}}
TICKET: dict[str, Any] = {
    "pruning.criterion": MAGNITUDE,
    "pruning.density": None,
    "model.net": {"class_path": "noisy", "init_args": {}},
    "tickets.levels": 2,
    "tickets.density_per_level": 0.5,
    "tickets.rewind_step": "4it",
    "trainer.max_epochs": 2,
}


def state_of(path: Any) -> dict[str, Any]:
    content = read_checkpoint(path)
    assert content is not None
    return content


def ticket_of(level: LevelDir) -> dict[str, torch.Tensor]:
    """The network before its first step."""
    return torch.load(level.ticket, weights_only=True)


def masks_of(level: LevelDir) -> Masks:
    return Masks.load(level.masks)


@pytest.fixture
def masks() -> Masks:
    generator = torch.Generator().manual_seed(0)
    return Masks({"a": torch.rand(40, 50, generator=generator) < 0.3, "b": torch.rand(600, generator=generator) < 0.05})


@pytest.mark.parametrize("draw", [random_masks, shuffled_masks])
def test_drawn_masks_keep_layer_densities_and_nothing_else(masks: Masks, draw: Any) -> None:
    dense = Masks({name: torch.ones_like(mask) for name, mask in masks.items()})
    drawn = draw(masks, dense, torch.Generator().manual_seed(1))
    assert drawn.layer_num_kept() == masks.layer_num_kept()
    assert drawn == draw(masks, dense, torch.Generator().manual_seed(1))
    assert drawn != draw(masks, dense, torch.Generator().manual_seed(2))
    # as much in common with the ticket as chance gives: hypergeometric, 2000 * .3 * .3 and its deviation
    common = int((drawn["a"] & masks["a"]).sum())
    kept = masks.layer_num_kept()["a"]
    expected = kept**2 / 2000
    assert abs(common - expected) < 5 * (expected * (1 - kept / 2000) ** 2) ** 0.5


@pytest.mark.parametrize("draw", [random_masks, shuffled_masks])
def test_drawn_masks_stay_within_others(masks: Masks, draw: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    within = Masks({name: mask | (torch.rand(mask.shape, generator=generator) < 0.2) for name, mask in masks.items()})
    drawn = draw(masks, within, generator)
    assert drawn.is_subset_of(within)
    assert drawn.layer_num_kept() == masks.layer_num_kept()
    assert drawn != masks


def test_drawn_masks_are_uniform() -> None:
    mask = Masks({"a": torch.tensor([True, False, False, False])})
    dense = Masks({"a": torch.ones(4, dtype=torch.bool)})
    for draw in (random_masks, shuffled_masks):
        generator = torch.Generator().manual_seed(0)
        counts = sum(draw(mask, dense, generator)["a"].int() for _ in range(2000))
        assert counts.sum() == 2000  # type: ignore[union-attr]
        assert (counts - 500).abs().max() < 5 * (2000 * 0.25 * 0.75) ** 0.5  # type: ignore[operator]


def test_inverted_scores_keep_the_smallest() -> None:
    net = torch.nn.Linear(6, 1, bias=False)
    net.weight.data = torch.tensor([[3.0, -1.0, 0.5, -4.0, 2.0, 0.1]])
    found = prune(net, Inverted(magnitude), density=0.5, example_input=torch.zeros(1, 6))
    assert found["weight"].tolist() == [[False, True, True, False, False, True]]
    assert Inverted(synflow).rounds == 100
    assert not Inverted(snip).revives


def test_shuffled_labels_keep_pictures_and_class_counts() -> None:
    images = torch.arange(24.0).view(12, 1, 1, 2)
    batches = [(images[:8], torch.arange(8) % 3), (images[8:], torch.arange(4) % 3)]
    shuffled = shuffled_labels(batches, torch.Generator().manual_seed(0))
    assert [torch.equal(new[0], old[0]) for new, old in zip(shuffled, batches, strict=True)] == [True, True]
    before, after = (torch.cat([batch[1] for batch in of]) for of in (batches, shuffled))
    assert torch.equal(before.bincount(), after.bincount())
    assert not torch.equal(before, after)


def test_shuffled_pixels_keep_labels_and_each_pictures_pixels() -> None:
    images = torch.rand(5, 3, 4, 4)
    ((shuffled, labels),) = shuffled_pixels([(images, torch.arange(5))], torch.Generator().manual_seed(0))
    assert torch.equal(labels, torch.arange(5))
    assert not torch.equal(shuffled, images)
    # a pixel is moved as a whole: the triples of channels are the same set, in another order for each picture
    orders = []
    for old, new in zip(images.flatten(2), shuffled.flatten(2), strict=True):
        order = [int((old == new[:, place : place + 1]).all(0).nonzero().item()) for place in range(16)]
        assert sorted(order) == list(range(16))
        orders.append(tuple(order))
    assert len(set(orders)) == 5


@pytest.mark.parametrize("what", ["labels", "pixels"])
def test_corrupted_scores_are_those_of_corrupted_batches(what: Any) -> None:
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(8, 3)).double()
    batches = [(torch.rand(6, 2, 2, 2).double(), torch.arange(6) % 3)]
    names = Masks.dense(net, ["1.weight"])
    scores = Corrupted(snip, what, 7)(Scoring(net, names, batches[0][0][:1], batches=batches))
    corrupt = shuffled_labels if what == "labels" else shuffled_pixels
    by_hand = corrupt(batches, torch.Generator().manual_seed(7))  # type: ignore[arg-type]
    expected = snip(Scoring(net, names, batches[0][0][:1], batches=by_hand))
    assert torch.equal(scores["1.weight"], expected["1.weight"])
    plain = snip(Scoring(net, names, batches[0][0][:1], batches=batches))
    assert not torch.allclose(scores["1.weight"], plain["1.weight"])


def test_what_scores_without_data_cannot_be_corrupted() -> None:
    with pytest.raises(PruningError, match="control corrupt_pixels: SynFlow scores without data"):
        Corrupted(synflow, "pixels", 0)


# --- whole runs


@pytest.fixture
def ticket(experiment: Any) -> list[LevelDir]:
    return experiment.levels(**TICKET)


def control(experiment: Any, name: str, **changes: Any) -> list[LevelDir]:
    levels = experiment.levels(**(TICKET | changes), control=name)
    assert [level.path.name for level in levels] == ["level_01", "level_02"]
    assert f"-{name}-" in levels[0].path.parent.name
    return levels


@pytest.mark.parametrize("name", ["random", "shuffle"])
def test_other_places_and_the_same_rewind_point(experiment: Any, ticket: list[LevelDir], name: str) -> None:
    rewind = state_of(ticket[0].rewind_checkpoint)
    for level, of_ticket in zip(control(experiment, name), ticket[1:], strict=True):
        assert masks_of(level).layer_num_kept() == masks_of(of_ticket).layer_num_kept()
        assert masks_of(level) != masks_of(of_ticket)
        mask = masks_of(level)
        for key, value in ticket_of(level).items():
            start = rewind["state_dict"][f"net.{key}"]
            assert torch.equal(value, start * mask[key] if key in mask else start)
        assert state_of(level.last_checkpoint)["global_step"] == state_of(of_ticket.last_checkpoint)["global_step"]


def test_reinit_keeps_the_masks_and_draws_the_weights_anew(experiment: Any, ticket: list[LevelDir]) -> None:
    first = ticket_of(control(experiment, "reinit")[0])
    for level, of_ticket in zip(control(experiment, "reinit"), ticket[1:], strict=True):
        assert masks_of(level) == masks_of(of_ticket)
        mask, old, new = masks_of(level), ticket_of(of_ticket), ticket_of(level)
        for key in ("0.weight", "5.weight"):
            kept = mask[key]
            assert (new[key][kept] != old[key][kept]).all()
            assert not new[key][~kept].any()
        assert new["5.weight"].abs().max() <= 1 / 12  # the layer's own: uniform within 1 / sqrt(fan_in)
        assert torch.equal(new["1.running_mean"], torch.zeros(4))
        # from the first step, with the schedule and the batches of any training of this config
        assert [int(row.split(",")[1]) for row in level.metrics.read_text().split()[1:]] == [6, 12]
    again = ticket_of(control(experiment, "reinit")[0])
    assert all(torch.equal(value, again[key]) for key, value in first.items())


def test_invert_keeps_the_smallest_weights_of_each_layer(experiment: Any, ticket: list[LevelDir]) -> None:
    inverted = control(experiment, "invert")
    for index, level in enumerate(inverted, start=1):
        assert masks_of(level).layer_num_kept() == masks_of(ticket[index]).layer_num_kept()
        final, before = state_of(ticket[index - 1].last_checkpoint)["state_dict"], masks_of(ticket[index - 1])
        for key, mask in masks_of(level).items():
            size = final[f"net.{key}"].abs()
            assert (mask & ~before[key]).sum() == 0
            assert size[mask].max() <= size[before[key] & ~mask].min()


def test_dense_trains_as_often_as_the_ticket(experiment: Any, ticket: list[LevelDir]) -> None:
    start = state_of(ticket[0].last_checkpoint)["state_dict"]
    for level in control(experiment, "dense"):
        assert masks_of(level).density == 1
        end = state_of(level.last_checkpoint)
        assert end["global_step"] == 12
        assert all(torch.equal(value, start[f"net.{key}"]) for key, value in ticket_of(level).items())
        start = end["state_dict"]


@pytest.mark.parametrize("name", ["corrupt_labels", "corrupt_pixels"])
def test_corrupted_scoring_data_changes_the_mask_alone(experiment: Any, name: str) -> None:
    changes = {"model.net": {"class_path": "noisy", "init_args": {}}}  # SNIP at initialisation, one level
    plain = experiment(**changes)
    corrupted = experiment.levels(**changes, control=name)[0]
    assert masks_of(corrupted).num_kept == masks_of(plain).num_kept
    assert masks_of(corrupted) != masks_of(plain)
    both = masks_of(corrupted), masks_of(plain)
    for key, value in ticket_of(corrupted).items():
        kept = both[0][key] & both[1][key] if key in both[0] else torch.ones_like(value, dtype=torch.bool)
        assert torch.equal(value[kept], ticket_of(plain)[key][kept])


@pytest.mark.parametrize("name", ["random", "shuffle", "reinit", "invert", "dense"])
def test_controls_of_a_network_pruned_at_initialisation(experiment: Any, name: str) -> None:
    plain, level = experiment(), experiment.levels(control=name)[0]
    if name == "dense":
        assert masks_of(level).density == 1
    else:
        assert masks_of(level).layer_num_kept() == masks_of(plain).layer_num_kept()
    assert (masks_of(level) == masks_of(plain)) is (name == "reinit")


def test_without_its_ticket_a_control_is_refused(experiment: Any) -> None:
    with pytest.raises(RunError, match=r"control shuffle needs the finished ticket .*: run the same command without"):
        experiment(**TICKET, control="shuffle")
    assert not experiment.directory.exists()


def test_a_control_that_lacks_weights_is_refused(experiment: Any) -> None:
    late = {"tickets.levels": 2, "tickets.rewind_step": "4it", "trainer.max_epochs": 1}
    experiment(**late)
    with pytest.raises(RunError, match="control random: the ticket was pruned before its rewind point"):
        experiment(**late, control="random")
    early = late | {"tickets.rewind_step": 0}
    experiment(**early)
    levels = experiment.levels(**early, control="random")
    assert [masks_of(level).num_kept for level in levels] == [99, 31]
    assert all(bool(ticket_of(levels[1])[name][mask].ne(0).all()) for name, mask in masks_of(levels[1]).items())


@pytest.mark.parametrize("mode", ["learning_rate", "finetune"])
@pytest.mark.parametrize("name", ["dense", "reinit", "random"])
def test_the_schedule_of_controls_that_do_not_rewind_weights(experiment: Any, mode: str, name: str) -> None:
    settings = TICKET | {"tickets.levels": 1, "tickets.rewind": mode, "tickets.rewind_step": 0, "trainer.max_epochs": 3}
    experiment(**settings)
    level = experiment.levels(**settings, control=name)[0]
    rates = [float(row.split(",")[2]) for row in level.metrics.read_text().split()[1:]]
    fixed = mode == "finetune" and name == "random"
    assert rates == pytest.approx([0.005] * 3 if fixed else [0.05, 0.05, 0.005])
    shown = {"dense": "learning_rate", "reinit": None, "random": mode}[name]
    assert json.loads(level.record.read_text())["rewind"] == shown


def test_reinit_of_a_ticket_of_reinitialised_weights(experiment: Any) -> None:
    settings = TICKET | {"tickets.mask_1": "reinit", "tickets.levels": 1}
    plain, level = experiment.levels(**settings)[1], experiment.levels(**settings, control="reinit")[0]
    kept = masks_of(plain)["5.weight"]
    assert masks_of(plain) == masks_of(level)
    assert (ticket_of(plain)["5.weight"][kept] != ticket_of(level)["5.weight"][kept]).all()


def test_a_control_is_trained_as_long_as_its_ticket(experiment: Any) -> None:
    experiment(**{"trainer.max_epochs": 1})
    with pytest.raises(RunError, match=r"its ticket was trained with --trainer\.max_epochs 1"):
        experiment(**{"trainer.max_epochs": 2}, control="random")


def test_every_control_is_tried_here() -> None:
    """So that a new one is."""
    tried = {"random", "shuffle", "reinit", "invert", "dense", "corrupt_labels", "corrupt_pixels"}
    assert set(CONTROLS) == tried
