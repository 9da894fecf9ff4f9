"""Short names: what a config or a command line may write instead of an import path. Imports nothing heavy.

A slot is a place in the config that takes a class or a builder function, such as `pruning.criterion`.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class CommandError(ValueError):
    """A command line or config that cannot be meant as written; the message is one line that says how to mend it."""


def _paths(module: str, **names: str) -> dict[str, str]:
    return {short: f"{module}.{name}" for short, name in names.items()}


def _builders(module: str, names: str) -> dict[str, str]:
    return _paths(module, **{name: name for name in names.split()})


SHORT_NAMES: dict[str, dict[str, str]] = {
    "pruning.criterion": _paths(
        "prunelab.pruning.criteria",
        random="Random",
        erk="Erk",
        magnitude="Magnitude",
        lamp="Lamp",
        mask_criterion="MaskCriterion",
        snip="Snip",
        iterative_snip="IterativeSnip",
        force="Force",
        grasp="Grasp",
        synflow="SynFlow",
    ),
    "model.net": _builders(
        "prunelab.models",
        "resnet20 resnet32 resnet44 resnet56 resnet110 resnet1202 "
        "resnet18_64 resnet34_64 resnet50_64 wrn18_64 "
        "vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn "
        "conv2 conv4 conv6 lenet5 lenet_300_100 mlp",
    )
    | {"learned_supermask": "prunelab.pruning.supermask.LearnedSupermask"},
    "data": _builders("prunelab.data", "cifar10 cifar100 fashion_mnist mnist tiny_imagenet image_folder digits"),
    "model.optimizer": _paths("torch.optim", sgd="SGD", adam="Adam", adamw="AdamW", rmsprop="RMSprop"),
    "model.lr_scheduler": _paths(
        "torch.optim.lr_scheduler",
        multistep="MultiStepLR",
        step="StepLR",
        cosine="CosineAnnealingLR",
        exponential="ExponentialLR",
        linear="LinearLR",
        onecycle="OneCycleLR",
    )
    | {"warmup_cosine": "pl_bolts.optimizers.lr_scheduler.LinearWarmupCosineAnnealingLR"},  # compat/bolts.py
}


def import_path(slot: str, name: str) -> str:
    """The import path that `name` stands for in `slot`; a dotted name is one already.

    Case, `-` and `_` do not count, and a class's own name serves too: SynFlow, ResNet-20, MultiStepLR.
    Raises: CommandError with all short names of the slot and the nearest one.
    """
    if "." in name:
        return name
    table = SHORT_NAMES[slot]
    spellings = {_plain(word): path for short, path in table.items() for word in (short, path.rpartition(".")[2])}
    if _plain(name) in spellings:
        return spellings[_plain(name)]
    hint = nearest(name, table) or ";"
    raise CommandError(f"{slot}: no {name!r}{hint} there are {', '.join(table)}, or any import path")


def short_name(slot: str, path: str) -> str:
    """The short name of an import path, or else its last part."""
    return next((short for short, known in SHORT_NAMES[slot].items() if known == path), path.rpartition(".")[2])


def nearest(word: str, words: Iterable[str], prefix: str = "", cutoff: float = 0.6) -> str:
    """', did you mean <prefix><the most similar of words>?', or nothing when none is similar enough."""
    matches = get_close_matches(word, list(words), n=1, cutoff=cutoff)
    return f", did you mean {prefix}{matches[0]}?" if matches else ""


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
