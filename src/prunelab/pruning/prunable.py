"""Which parameters may be pruned: the weights of convolutions and linear layers, plus and minus patterns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.parameter import UninitializedParameter

from prunelab.pruning.errors import PruningError

# torch has no public base class of its convolutions
PRUNABLE_MODULES = (nn.modules.conv._ConvNd, nn.Linear)


def prunable_names(net: nn.Module, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> list[str]:
    """Names (as in `net.named_parameters()`, same order) of the parameters that pruning may touch.

    By default every convolution's and linear layer's `weight`; not biases, norms, embeddings, or attention's packed
    `in_proj_weight`. `include` adds and `exclude` removes parameters by shell patterns (`head.*`, `*in_proj_weight`).
    What a pattern includes is taken as it is, biases and norms too: prefer patterns that end in `weight`.
    Frozen weights count too; a tied weight appears once, under its first name.

    Raises: PruningError if a pattern matches nothing, if nothing is left, or if a weight that is not excluded is no
    plain parameter (parametrizations, `torch.nn.utils.prune`, old-style weight norm, LoRA wrappers, lazy modules):
    masks are kept by writing zeros into plain parameters, which such wrappers would undo.
    """
    _refuse_wrapped_weights(net, exclude)
    weights = {id(module.weight) for module in net.modules() if isinstance(module, PRUNABLE_MODULES)}
    parameters = dict(net.named_parameters())
    for pattern in (*include, *exclude):
        if not any(fnmatchcase(name, pattern) for name in parameters):
            raise PruningError(f"the pattern {pattern!r} matches no parameter of the network")
    names = [
        name
        for name, parameter in parameters.items()
        if (id(parameter) in weights or _matches(name, include)) and not _matches(name, exclude)
    ]
    if not names:
        raise PruningError("nothing to prune: no convolution or linear weight is left after include and exclude")
    return names


def unpruned_parameters(net: nn.Module, names: Iterable[str]) -> list[tuple[str, int, str]]:
    """(name, number of values, why) of every parameter that is not in `names`, for the report."""
    weights = {id(module.weight) for module in net.modules() if isinstance(module, PRUNABLE_MODULES)}
    owners = {
        f"{path}.{leaf}" if path else leaf: type(module).__name__
        for path, module in net.named_modules()
        for leaf, _ in module.named_parameters(recurse=False)
    }
    pruned = set(names)
    return [
        (name, parameter.numel(), "excluded" if id(parameter) in weights else f"{owners[name]} parameter")
        for name, parameter in net.named_parameters()
        if name not in pruned
    ]


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _refuse_wrapped_weights(net: nn.Module, exclude: Sequence[str]) -> None:
    for path, module in net.named_modules():
        if _matches(f"{path}.weight" if path else "weight", exclude):
            continue
        where = f"{path or 'the network'} ({type(module).__name__})"
        if hasattr(module, "lora_A"):
            raise PruningError(f"{where} is a LoRA wrapper: merge it into a plain layer before pruning")
        if not isinstance(module, PRUNABLE_MODULES):
            continue
        if isinstance(module._parameters.get("weight"), UninitializedParameter):
            raise PruningError(f"{where} has no weight yet: run one batch through lazy modules before pruning")
        if not isinstance(module._parameters.get("weight"), nn.Parameter):
            raise PruningError(
                f"{where} computes its weight (a parametrization, weight norm or torch.nn.utils.prune): "
                "remove that first, only plain parameters can be pruned"
            )
