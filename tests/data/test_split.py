from __future__ import annotations

import pytest
import torch

from prunelab.data.errors import DataError
from prunelab.data.split import class_balanced, stratified_split

LABELS = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)[torch.randperm(100, generator=torch.Generator().manual_seed(0))]
NAMES = ("ant", "bee", "cat")


def counts(indices: torch.Tensor) -> list[int]:
    return torch.bincount(LABELS[indices], minlength=3).tolist()


def test_split_is_disjoint_complete_and_stratified() -> None:
    train, val = stratified_split(LABELS, 10, NAMES, seed=0)
    assert counts(val) == [5, 3, 2]
    assert torch.equal(torch.cat([train, val]).sort().values, torch.arange(100))


def test_split_rounds_by_largest_remainder() -> None:
    _, val = stratified_split(LABELS, 11, NAMES, seed=0)  # 5.5, 3.3, 2.2
    assert counts(val) == [6, 3, 2]


def test_split_depends_on_its_seed_only() -> None:
    first, again, other = (stratified_split(LABELS, 10, NAMES, seed)[1] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_val_size_0_trains_on_all() -> None:
    train, val = stratified_split(LABELS, 0, NAMES, seed=0)
    assert torch.equal(train, torch.arange(100))
    assert len(val) == 0


@pytest.mark.parametrize("val_size", [99, 100, 1000])
def test_split_that_leaves_a_class_empty_is_refused(val_size: int) -> None:
    with pytest.raises(DataError, match=rf"val_size {val_size} of 100 .* lower val_size"):
        stratified_split(LABELS, val_size, NAMES, seed=0)


def test_balanced_choice_has_the_same_number_of_every_class() -> None:
    chosen = class_balanced(LABELS, 7, NAMES, seed=0)
    assert counts(chosen) == [7, 7, 7]
    assert len(chosen.unique()) == 21


def test_balanced_choice_mixes_the_classes() -> None:
    labels = LABELS[class_balanced(LABELS, 20, NAMES, seed=0)]
    assert set(labels[:20].tolist()) == {0, 1, 2}


def test_balanced_choice_depends_on_its_seed_only() -> None:
    first, again, other = (class_balanced(LABELS, 5, NAMES, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_balanced_choice_takes_the_whole_smallest_class_but_no_more() -> None:
    assert counts(class_balanced(LABELS, 20, NAMES, seed=0)) == [20, 20, 20]
    with pytest.raises(DataError, match="samples_per_class is 21, but class 'cat' has 20"):
        class_balanced(LABELS, 21, NAMES, seed=0)
