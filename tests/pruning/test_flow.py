from __future__ import annotations

import contextlib
import sys
import threading
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from prunelab.models import resnet20
from prunelab.pruning import Masks, PruningError, flow_rounds, prunable_names, prune
from prunelab.pruning.criteria import SynFlow
from prunelab.pruning.flow import Flow, NotHeldError
from prunelab.pruning.streamed import StreamedFlow
from prunelab.pruning.surrogate import surrogate_output, surrogate_tensors

from .nets import mlp, random_masks, residual, seeded, vgg_like

IMAGE = torch.zeros(1, 2, 6, 6, dtype=torch.float64)
NETS: dict[str, Any] = {
    "mlp": (lambda: mlp(6, 30, 30, 4), torch.zeros(1, 6, dtype=torch.float64)),
    "vgg": (vgg_like, IMAGE),
    "residual": (residual, IMAGE),
    "resnet20": (lambda: seeded(resnet20(width=0.5), 0), torch.zeros(1, 3, 8, 8)),
}
KNOBS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "float32": {"precision": "float32"},
    "l2": {"objective": "l2"},
    "log": {"objective": "log"},
    "gradient only": {"gradient_only": True},
    "own activations": {"activations": "own"},
}


def recorded(path: str, net: nn.Module, example: Tensor, **options: Any) -> tuple[list[Any], Masks]:
    history: list[Any] = []
    knobs = options.pop("knobs", {})

    def on_round(index: int, density: float, scores: Any, masks: Masks) -> None:
        history.append((index, density, {name: scores[name].clone() for name in scores}, masks))

    criterion = SynFlow(path=path, **knobs)  # type: ignore[arg-type]
    return history, prune(net, criterion, example_input=example, on_round=on_round, **options)


def layer_of_the_highest(scores: dict[str, Tensor]) -> str:
    return max(scores, key=lambda name: float(scores[name].max()))


@pytest.mark.parametrize("way", ["fast", "fast, by whole passes", "lean"])
@pytest.mark.parametrize("knobs", KNOBS)
@pytest.mark.parametrize("name", NETS)
def test_every_path_gives_the_masks_and_scores_of_each_round_by_itself(
    way: str, knobs: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores bit for bit, but where passes go through blocks: those add up in another order."""
    path, _, whole = way.partition(", ")
    monkeypatch.setattr(flow_rounds, "WORTH", 0.0 if whole else flow_rounds.WORTH)
    is_close = way == "fast" and knobs not in ("float32", "own activations")
    build, example = NETS[name]
    net = build()
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    options = {"knobs": KNOBS[knobs], "density": 0.1, "rounds": 7}
    plain, wanted = recorded("plain", net, example, **options)
    other, found = recorded(path, net, example, **options)
    assert found.num_kept == wanted.num_kept
    if way == "fast" and knobs == "float32":  # in blocks, sums of float32 may decide otherwise
        del plain[1:], other[1:]
    else:
        assert found == wanted
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())
    kept = dict(Masks.dense(net, prunable_names(net)))
    for (index, density, scores, masks), (*same, other_scores, other_masks) in zip(plain, other, strict=True):
        assert [index, density] == same
        assert masks == other_masks
        wanted_scores = {layer: torch.where(kept[layer], scores[layer], 0) for layer in scores}  # 0 for the dropped
        factor = other_scores[layer_of_the_highest(scores)].max() / max(part.max() for part in scores.values())
        if is_close:
            factor = factor.log2().round().exp2()
        assert torch.frexp(factor).mantissa == 0.5  # a power of two, where the signal had to be scaled
        for layer in scores:
            if is_close:
                assert_close(other_scores[layer], wanted_scores[layer] * factor, rtol=1e-13, atol=0)
            else:
                assert torch.equal(other_scores[layer], wanted_scores[layer] * factor)
        kept = dict(masks)


@pytest.mark.parametrize("path", ["fast", "lean"])
@pytest.mark.parametrize("schedule", ["exponential", "linear"])
def test_paths_from_masks_that_are_not_dense(path: str, schedule: str) -> None:
    net = vgg_like()
    start = random_masks(net, 0.6)
    options = {"density": 0.05, "rounds": 9, "masks": start, "schedule": schedule}
    assert recorded(path, net, IMAGE, **options)[1] == recorded("plain", net, IMAGE, **options)[1]


@pytest.mark.parametrize("path", ["fast", "lean"])
@pytest.mark.parametrize("factor", [1e-9, 1e9], ids=["below", "above"])
def test_paths_where_the_signal_leaves_the_floating_range(path: str, factor: float) -> None:
    """30 layers whose R is 1e-270 or 1e270 times another one: masks of float64, and finite ones in float32."""
    net = mlp(4, *[5] * 29, 3)
    example, options = torch.zeros(1, 4, dtype=torch.float64), {"density": 0.3, "rounds": 6}
    wanted = recorded("plain", net, example, **options)[1]
    with torch.no_grad():
        for parameter in net.parameters():
            parameter *= 2.0 ** (30 if factor > 1 else -30)
    for path_ in ("plain", path):
        assert recorded(path_, net, example, **options)[1] == wanted
    single = {"precision": "float32"}
    assert recorded(path, net, example, knobs=single, **options)[1].num_kept == wanted.num_kept


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_do_not_matter(threads: int) -> None:
    net, before = seeded(resnet20(), 0), torch.get_num_threads()
    wanted = prune(net, SynFlow(rounds=5), density=0.01, example_input=torch.zeros(1, 3, 32, 32))
    torch.set_num_threads(threads)
    try:
        assert prune(net, SynFlow(rounds=5), density=0.01, example_input=torch.zeros(1, 3, 32, 32)) == wanted
    finally:
        torch.set_num_threads(before)


def test_weights_may_change_in_place_between_passes() -> None:
    net = vgg_like()
    parameters = dict(net.named_parameters())
    weights = {name: parameters[name].detach().abs().requires_grad_() for name in prunable_names(net)}
    flow = Flow(net, weights, torch.ones_like(IMAGE))
    for _ in range(3):
        total, gradients = flow.gradients(torch.ones_like(IMAGE))
        tensors = surrogate_tensors(net, weights, torch.float64)
        wanted = surrogate_output(net.eval(), tensors, torch.ones_like(IMAGE)).sum()
        assert torch.equal(total, wanted)
        for one, other in zip(gradients, torch.autograd.grad(wanted, list(weights.values())), strict=True):
            assert torch.equal(one, other)
        with torch.no_grad():
            for weight in weights.values():
                weight.flatten()[::2] *= 0.5


class Locked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lock = nn.Linear(4, 6), threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.fc(x))


def test_networks_that_cannot_be_copied_are_scored_one_round_at_a_time_and_it_is_said() -> None:
    net, example = seeded(Locked(), 0), torch.zeros(1, 4)
    for path in ("fast", "lean"):
        with pytest.raises(NotHeldError, match="cannot be copied"):
            prune(net, SynFlow(path=path), density=0.5, example_input=example)  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="SynFlow takes another path: the network cannot be copied"):
        masks = prune(net, SynFlow(), density=0.5, example_input=example)
    assert masks == prune(net, SynFlow(path="plain"), density=0.5, example_input=example)


def test_weights_that_are_used_twice() -> None:
    net, example = seeded(Tied(), 0), torch.zeros(1, 4)
    wanted = prune(net, SynFlow(path="plain", rounds=4), density=0.5, example_input=example)
    assert prune(net, SynFlow(path="fast", rounds=4), density=0.5, example_input=example) == wanted
    with pytest.raises(NotHeldError, match=r"fc\.weight is used more than once"):
        prune(net, SynFlow(path="lean", rounds=4), density=0.5, example_input=example)


def test_large_networks_take_the_lean_path_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules[SynFlow.__module__]
    monkeypatch.setattr(module, "MAX_FAST", 10)
    taken: list[str] = []
    for name in ("StreamedRounds", "FlowRounds"):
        kind = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, kind=kind, name=name, **k: taken.append(name) or kind(*a, **k))
    prune(vgg_like(), SynFlow(rounds=2), density=0.5, example_input=IMAGE)
    with pytest.warns(UserWarning, match="used more than once"):
        prune(seeded(Tied(), 0), SynFlow(rounds=2), density=0.5, example_input=torch.zeros(1, 4))
    assert taken == ["StreamedRounds", "StreamedRounds", "FlowRounds"]


def test_scores_of_an_earlier_round_are_not_those_of_a_later_one() -> None:
    kept: list[Any] = []
    prune(
        vgg_like(),
        SynFlow(rounds=2),
        density=0.5,
        example_input=IMAGE,
        on_round=lambda index, density, scores, masks: kept.append(scores),
    )
    with pytest.raises(RuntimeError, match="scores of an earlier round"):
        dict(kept[0])
    assert len(dict(kept[1])) == len(kept[1])


def test_normalised_scores_have_one_path() -> None:
    with pytest.raises(PruningError, match="does not go with normalise"):
        SynFlow(path="fast", normalise=True)


class Hidden(nn.Module):
    """A part of its forward belongs to the original, whatever is copied."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.bn = nn.Linear(4, 6), nn.BatchNorm1d(6)
        self.act = lambda x: self.bn(self.fc(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x)


class Awkward(nn.Module):
    """Norms with weights of the moment, a weight that is used transposed, one in a list, one that nothing reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3, self.idle = (nn.Linear(6, 6) for _ in range(4))
        self.scale = nn.Parameter(torch.rand(6) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.layer_norm(self.fc1(x), (6,), self.scale * 2.0)
        x = nn.functional.layer_norm(x @ self.fc2.weight.T, (6,), self.scale * 3.0)
        return x @ torch.cat([self.fc3.weight, self.fc3.weight]).T


class Repeated(nn.Module):
    """One block forty times: R leaves the range of float32."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.end = nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(40):
            x = self.block(x)
        return self.end(x)


HARD: dict[str, tuple[Any, Tensor, dict[str, Any]]] = {
    "hidden": (Hidden, torch.zeros(1, 4), {}),
    "awkward": (Awkward, torch.zeros(1, 6), {}),
    "repeated": (Repeated, torch.zeros(1, 8), {}),
    "norms are pruned, too": (lambda: vgg_like().float(), IMAGE.float(), {"include": ["*.weight"]}),
}


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("name", HARD)
def test_hard_networks_get_the_same_masks_and_stay_as_they_are(
    precision: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whichever path they can go; the lean one, where it is asked for, or says why not."""
    build, example, patterns = HARD[name]
    net = seeded(build(), 0).train()
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    start = Masks.dense(net, prunable_names(net, **patterns))
    options: dict[str, Any] = {"density": 0.4, "rounds": 5, "masks": start, "knobs": {"precision": precision}}
    wanted = recorded("plain", net, example, **options)[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert recorded("auto", net, example, **options)[1] == wanted
        monkeypatch.setattr(sys.modules[SynFlow.__module__], "MAX_FAST", 1)
        assert recorded("auto", net, example, **options)[1] == wanted
    for path in ("fast", "lean"):
        with contextlib.suppress(NotHeldError):
            assert recorded(path, net, example, **options)[1] == wanted
    assert net.training
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())


@pytest.mark.parametrize("path", ["fast", "lean"])
def test_masks_in_another_memory_format(path: str) -> None:
    net = vgg_like()
    kept = {name: mask.contiguous(memory_format=torch.channels_last) if mask.dim() == 4 else mask
            for name, mask in random_masks(net, 0.7).items()}  # fmt: skip
    options: dict[str, Any] = {"density": 0.1, "rounds": 4, "masks": Masks(kept)}
    assert recorded(path, net, IMAGE, **options)[1] == recorded("plain", net, IMAGE, **options)[1]


def test_the_mean_picture_needs_batches_on_every_path() -> None:
    for path in ("plain", "fast", "lean"):
        with pytest.raises(PruningError, match="needs labelled batches"):
            recorded(path, vgg_like(), IMAGE, density=0.5, knobs={"input": "mean_abs"})


def test_the_lean_path_reads_several_layers_in_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    scans: list[None] = []
    scan = StreamedFlow.scan
    monkeypatch.setattr(StreamedFlow, "scan", lambda self, *a, **k: scans.append(None) or scan(self, *a, **k))
    net = mlp(6, 30, *[10] * 40, 4)
    recorded("lean", net, torch.zeros(1, 6, dtype=torch.float64), density=0.5, rounds=1)
    assert len(scans) < 3 + 12  # a trial, two of the round, and each reading an eighth of the weights
