"""Short names stand for what they say, and each of them exists."""

from __future__ import annotations

import pkgutil

import pytest

import prunelab.data
import prunelab.models
import prunelab.pruning.criteria
from prunelab.names import SHORT_NAMES, CommandError, import_path, nearest, short_name

EVERY_NAME = [
    (slot, name, path)
    for slot, table in SHORT_NAMES.items()
    for name, path in table.items()
    if not path.startswith("pl_bolts.")
]


@pytest.mark.parametrize(("slot", "name", "path"), EVERY_NAME)
def test_every_short_name_can_be_imported(slot: str, name: str, path: str) -> None:
    assert callable(pkgutil.resolve_name(path))
    assert import_path(slot, name) == path
    assert short_name(slot, path) == name


def test_every_criterion_model_and_data_set_has_a_short_name() -> None:
    criteria = {f"prunelab.pruning.criteria.{name}" for name in prunelab.pruning.criteria.__all__ if name[0].isupper()}
    assert set(SHORT_NAMES["pruning.criterion"].values()) == criteria
    builders = {name for name in prunelab.models.__all__ if name[0].islower()} - {"initialise", "wide_resnet18_64"}
    assert set(SHORT_NAMES["model.net"]) == builders | {"learned_supermask"}  # a network around one of these
    assert set(SHORT_NAMES["data"]) == {name for name in prunelab.data.__all__ if name[0].islower()}


@pytest.mark.parametrize(
    ("slot", "spelling", "path"),
    [
        ("pruning.criterion", "SynFlow", "prunelab.pruning.criteria.SynFlow"),
        ("pruning.criterion", "iterative-snip", "prunelab.pruning.criteria.IterativeSnip"),
        ("model.net", "ResNet-20", "prunelab.models.resnet20"),
        ("model.lr_scheduler", "MultiStepLR", "torch.optim.lr_scheduler.MultiStepLR"),
        ("model.net", "torchvision.models.resnet18", "torchvision.models.resnet18"),
    ],
)
def test_spellings_of_a_name(slot: str, spelling: str, path: str) -> None:
    assert import_path(slot, spelling) == path


def test_an_unknown_name_gets_the_nearest_and_all() -> None:
    with pytest.raises(CommandError, match=r"no 'synflw', did you mean synflow\? there are random, erk, .*"):
        import_path("pruning.criterion", "synflw")


def test_short_name_of_a_class_of_the_users() -> None:
    assert short_name("pruning.criterion", "my.module.Mine") == "Mine"


def test_nearest() -> None:
    assert nearest("densty", ["density", "sparsity"]) == ", did you mean density?"
    assert nearest("zzz", ["density", "sparsity"]) == ""
