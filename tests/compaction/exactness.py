"""What compaction promises, measured: a masked network and its compact one side by side, in float64."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from prunelab.compaction import Compacted, compact, expand
from prunelab.pruning import Masks, prunable_names

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Step:
    """SGD with momentum, and a learning rate at which the networks of the tests are not chaotic."""

    number: int = 3
    lr: float = 0.01


def ragged_masks(net: nn.Module, density: float, seed: int, alive: float = 0.6) -> Masks:
    """Random masks in which whole rows and whole columns are pruned too: each stays with probability `alive`."""
    generator = torch.Generator().manual_seed(seed)
    parameters, masks = dict(net.named_parameters()), {}
    for name in prunable_names(net):
        mask = torch.rand(parameters[name].shape, generator=generator) < density
        rows, columns = (torch.rand(size, generator=generator) < alive for size in mask.shape[:2])
        mask &= rows.view(-1, *[1] * (mask.dim() - 1))
        masks[name] = mask & columns.view(1, -1, *[1] * (mask.dim() - 2))
    return Masks(masks)


def masked(net: nn.Module, masks: Masks) -> nn.Module:
    net = copy.deepcopy(net).double()
    masks.apply_to(net)
    return net


def make_trained(net: nn.Module, seed: int) -> None:
    """Shifts and running statistics as training leaves them: none of them is where it began."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    if tensor is not None:
                        tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            elif isinstance(getattr(module, "bias", None), nn.Parameter):
                module.bias.copy_(torch.randn(module.bias.shape, generator=generator))


def train(net: nn.Module, masks: Masks, batch: Batch, steps: Step) -> list[float]:
    """Steps that hold the zeros as training does: gradients are masked, and weights after each step."""
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), steps.lr, momentum=0.9, weight_decay=5e-4)
    held, losses = [(parameter, masks[name]) for name, parameter in net.named_parameters() if name in masks], []
    for _ in range(steps.number):
        optimizer.zero_grad()
        loss = cross_entropy(net(batch[0]), batch[1])
        loss.backward()
        losses.append(loss.item())
        for parameter, mask in held:
            if parameter.grad is not None:
                parameter.grad *= mask
        optimizer.step()
        with torch.no_grad():
            for parameter, mask in held:
                parameter *= mask
    return losses


def gradients(net: nn.Module, masks: Masks, batch: Batch) -> dict[str, Tensor]:
    """Of all parameters, as the optimizer gets them; the network keeps its buffers."""
    net = copy.deepcopy(net).train()
    cross_entropy(net(batch[0]), batch[1]).backward()
    found = {}
    for name, parameter in net.named_parameters():
        found[name] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        if name in masks:
            found[name] = found[name] * masks[name]
    return found


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Between two sets of tensors as one vector each, relative to the second."""
    vectors = [torch.cat([tensors[name].double().flatten() for name in other]) for tensors in (one, other)]
    return float((vectors[0] - vectors[1]).norm() / vectors[1].norm().clamp(min=1e-30))


def outputs(net: nn.Module, inputs: Tensor, training: bool) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(net).train(training)(inputs)


def assert_exact(
    net: nn.Module, masks: Masks, batch: Batch, *, multiple: int = 1, steps: Step | None = None, trains: bool = True
) -> Compacted:
    """All of the promise, for this network under these masks. trains: False leaves out the steps."""
    full = masked(net, masks)
    before = copy.deepcopy(full.state_dict())
    found = compact(full, masks, batch[0][:1], multiple=multiple)
    assert all(torch.equal(tensor, before[name]) for name, tensor in full.state_dict().items()), "compact wrote"
    small, index = found.net, found.index
    assert type(small).__name__ == type(full).__name__  # a GraphModule has a class of its own in every copy
    assert [name for name, _ in small.named_parameters()] == [name for name, _ in full.named_parameters()]

    for training in (False, True):
        wanted, given = (outputs(network, batch[0], training) for network in (full, small))
        # where all channels are dead, what is left of the outputs may be 0 up to rounding
        difference = float((wanted - given).abs().max() / wanted.abs().max().clamp(min=1e-3))
        assert difference <= 1e-12, f"outputs, training={training}: {difference}"

    expanded = expand(small, index, full)
    assert all(torch.equal(tensor, before[name]) for name, tensor in expanded.state_dict().items()), "expand"
    wanted_gradients, given_gradients = gradients(full, masks, batch), gradients(small, found.masks, batch)
    assert distance(given_gradients, index.take(wanted_gradients)) <= 1e-10, "gradients"
    nothing = {name: torch.zeros_like(tensor) for name, tensor in given_gradients.items()}
    removed = index.put(nothing, wanted_gradients)
    assert not any(bool(tensor.any()) for tensor in removed.values()), "gradients of what is removed"

    if trains:
        _assert_trained_equal(full, found, masks, batch, steps or Step(), wanted_gradients)
    return found


def _assert_trained_equal(
    full: nn.Module, found: Compacted, masks: Masks, batch: Batch, steps: Step, first: dict[str, Tensor]
) -> None:
    small, initial, full = copy.deepcopy(found.net), copy.deepcopy(full), copy.deepcopy(full)
    train(full, masks, batch, steps)
    train(small, found.masks, batch, steps)
    live = {name: ~_is_dead(name, first) for name, _ in full.named_buffers()}
    wanted_state = found.index.take(_live_state(full, live))
    difference = distance(_live_state(small, {k: _cut(v, found, k) for k, v in live.items()}), wanted_state)
    assert difference <= 1e-9 or difference <= _drift(initial, found, masks, batch, steps, live, wanted_state), (
        f"after {steps.number} steps: {difference}"
    )
    # and the full network that computes the same, whichever one is filled in
    wanted = outputs(small, batch[0], False)
    for other in (initial, full):
        given = outputs(expand(small, found.index, other), batch[0], False)
        assert torch.allclose(given, wanted, rtol=0, atol=1e-11 * float(wanted.abs().max().clamp(min=1e-3)))


def _drift(
    initial: nn.Module,
    found: Compacted,
    masks: Masks,
    batch: Batch,
    steps: Step,
    live: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
) -> float:
    """Where rounding grows: how far a control ends whose weights began perturbed by 1e-15."""
    control, generator = copy.deepcopy(initial), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in control.parameters():
            parameter *= 1 + 1e-15 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    train(control, masks, batch, steps)
    return distance(found.index.take(_live_state(control, live)), wanted)


def _live_state(net: nn.Module, live: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the statistics of channels that stay although they are dead, as no layer is empty: they may see other
    inputs."""
    state = {name: tensor for name, tensor in net.state_dict().items() if tensor.is_floating_point()}
    return {name: torch.where(live[name], tensor, 0) if name in live else tensor for name, tensor in state.items()}


def _is_dead(name: str, first: Mapping[str, Tensor]) -> Tensor:
    """Of a running statistic's channels: whether no gradient reached their scale and shift."""
    path = name.rpartition(".")[0]
    weight, bias = first.get(f"{path}.weight"), first.get(f"{path}.bias")
    if weight is None or bias is None:
        return torch.tensor(False)
    return (weight == 0) & (bias == 0)


def _cut(live: Tensor, found: Compacted, name: str) -> Tensor:
    return found.index.select(name, live) if live.dim() else live
