from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from prunelab.data import DataError
from prunelab.paper.subject import CRITERIA, Subject
from prunelab.pruning import PruningError
from prunelab.pruning.criteria import SynFlow


def test_criteria_are_scored_as_in_the_paper():
    assert list(CRITERIA) == ["random", "magnitude", "snip", "grasp", "synflow"]
    assert [criterion.rounds for criterion in CRITERIA.values()] == [1, 1, 1, 1, 100]
    assert CRITERIA["snip"].batch_norm == CRITERIA["grasp"].batch_norm == "running"


def test_the_network_is_drawn_with_the_seed_and_nothing_else(subject):
    state = torch.get_rng_state()
    weights = {seed: next(replace(subject, seed=seed).net.parameters()) for seed in (0, 1)}
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(weights[0], next(subject.net.parameters()))
    assert not torch.equal(weights[0], weights[1])


def test_grey_pictures_are_scaled_and_get_three_channels():
    batches = Subject(network="lenet_300_100", num_classes=12, image_size=16, samples_per_class=3).batches
    images = torch.cat([images for images, _ in batches])
    labels = torch.cat([labels for _, labels in batches])
    assert images.shape == (30, 3, 16, 16)
    assert torch.equal(images[:, 0], images[:, 2])
    assert torch.bincount(labels, minlength=12).tolist() == [3] * 10 + [0, 0]  # classes 10 and 11 have no pictures


def test_pictures_are_read_only_for_who_needs_them(subject):
    for name in ("random", "magnitude", "synflow"):
        assert subject.options(CRITERIA[name])["batches"] == ()
        assert "data" not in subject.key(CRITERIA[name])
    assert "module" not in vars(subject)
    assert len(subject.options(CRITERIA["snip"])["batches"]) == 1
    assert subject.key(CRITERIA["snip"])["data"] == "digits"


def test_the_key_tells_everything_apart(subject):
    others = [replace(subject, **{name: value}) for name, value in (("network", "conv2"), ("seed", 1))]
    keys = [str(other.key(criterion)) for other in (subject, *others) for criterion in CRITERIA.values()]
    assert len(set(keys)) == len(keys)
    assert subject.key(SynFlow()) != subject.key(SynFlow(precision="float32"))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_classes": 5}, DataError, "digits has 10 classes, the network 5"),
        ({"data_root": "here"}, DataError, "take no --data_root"),
        ({"data": "image_folder"}, DataError, "needs --data_root"),
        ({"samples_per_class": 1000}, DataError, "use at most"),
    ],
)
def test_what_cannot_be(subject, options, error, message):
    with pytest.raises(error, match=message):
        _ = replace(subject, **options).batches


def test_about_counts(subject):
    assert "30,200 prunable weights in 3 layers" in subject.about()
    with pytest.raises(PruningError):
        replace(subject, network="lenet_300_100").scores(replace(CRITERIA["synflow"], path="lean", normalise=True))
