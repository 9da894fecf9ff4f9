from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from prunelab.pruning import Masks, prunable_names, prune
from prunelab.pruning import streamed as rounds_module
from prunelab.pruning import streamed_flow as flow_module
from prunelab.pruning.criteria import SynFlow

from .nets import mlp, random_masks, residual, seeded, vgg_like

ROW, IMAGE = torch.zeros(1, 6, dtype=torch.float64), torch.zeros(1, 2, 6, 6, dtype=torch.float64)


def both(net: nn.Module, example: Tensor, **options: Any) -> tuple[list[dict[str, Tensor]], ...]:
    """Masks, and scores of what was kept before, of all rounds: from the lean path and from each round by itself."""
    histories: list[list[dict[str, Tensor]]] = []
    knobs = options.pop("knobs", {})
    for path in ("lean", "plain"):
        history = [dict(options.get("masks") or Masks.dense(net, prunable_names(net)))]

        def on_round(index: int, density: float, scores: Any, masks: Masks, to: Any = history) -> None:
            to.extend([{name: torch.where(kept, scores[name], 0) for name, kept in to[-1].items()}, dict(masks)])

        criterion = SynFlow(path=path, **knobs)  # type: ignore[arg-type]
        prune(net, criterion, example_input=example, on_round=on_round, **options)
        histories.append(history)
    return tuple(histories)


def assert_same(lean: list[dict[str, Tensor]], plain: list[dict[str, Tensor]]) -> None:
    assert len(lean) == len(plain)
    for one, other in zip(lean, plain, strict=True):
        for name, tensor in one.items():
            if tensor.dtype == torch.bool:
                assert torch.equal(tensor, other[name])
            else:  # sums of the rows of a block may be made in another order
                torch.testing.assert_close(tensor, other[name], rtol=1e-12, atol=0)


@pytest.mark.parametrize("knobs", [{}, {"gradient_only": True}, {"objective": "l2"}, {"objective": "log"}], ids=str)
@pytest.mark.parametrize("build", [lambda: mlp(6, 200, 101, 50, 4), vgg_like, residual], ids=["mlp", "vgg", "residual"])
def test_layers_of_many_blocks(build: Any, knobs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_module, "BLOCK", 7)
    net = build()
    example = ROW if isinstance(next(net.children()), nn.Linear) else IMAGE
    assert_same(*both(net, example, density=0.1, rounds=4, knobs=knobs))


class Widest(TorchDispatchMode):
    """The largest tensor of float64 numbers that any operation gave."""

    num_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dtype == torch.float64:
            self.num_bytes = max(self.num_bytes, result.untyped_storage().nbytes())
        return result


def test_no_linear_layer_is_ever_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_module, "BLOCK", 48 * 100)
    net = nn.Sequential(nn.Linear(100, 960), nn.ReLU(), nn.Linear(960, 100), nn.Linear(100, 480))  # float32
    found = {}
    for path in ("lean", "plain"):
        with Widest() as widest:
            criterion = SynFlow(rounds=2, path=path)  # type: ignore[arg-type]
            prune(net, criterion, density=0.1, example_input=torch.zeros(1, 100))
        found[path] = widest.num_bytes
    assert found["lean"] == 8 * 48 * 960
    assert found["plain"] >= 8 * 960 * 100


@pytest.mark.parametrize("share_of_zeros", [0, 0.4])
@pytest.mark.parametrize("num_rounds", [1, 5])
def test_ties_are_dropped_in_the_order_of_the_layers(
    share_of_zeros: float, num_rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bins so few that the interval shrinks to a single number, which many scores have."""
    monkeypatch.setattr(rounds_module, "_BIN_BITS", 5)
    monkeypatch.setattr(flow_module, "BLOCK", 50)
    net = mlp(6, 60, 60, 4)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in net.parameters():
            weight.copy_(torch.rand(weight.shape, generator=generator) >= share_of_zeros)
    lean, plain = both(net, ROW, density=0.3, rounds=num_rounds)
    assert_same(lean, plain)
    assert sum(int(mask.sum()) for mask in lean[-1].values()) == round(0.3 * (6 * 60 + 60 * 60 + 60 * 4))


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_few_bins_take_more_passes_to_the_same_masks(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = prune(vgg_like(), SynFlow(rounds=6, precision=precision, path="plain"), density=0.1, example_input=IMAGE)  # type: ignore[arg-type]
    monkeypatch.setattr(rounds_module, "_BIN_BITS", 4)
    criterion = SynFlow(rounds=6, precision=precision, path="lean")  # type: ignore[arg-type]
    assert prune(vgg_like(), criterion, density=0.1, example_input=IMAGE) == wanted


def test_what_is_pruned_need_not_be_a_number() -> None:
    net = mlp(6, 30, 30, 4)
    start = random_masks(net, 0.6)
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if name in start:
                weight[~start[name]] = torch.nan
    assert_same(*both(net, ROW, density=0.2, rounds=3, masks=start))


def test_weights_in_another_memory_format() -> None:
    assert_same(*both(vgg_like().to(memory_format=torch.channels_last), IMAGE, density=0.1, rounds=3))


class Tokens(nn.Module):
    """A linear layer that gets several rows, and one that gets one without a first dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 70), nn.Linear(70, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x.expand(3, 6)).sum(0))


def test_rows_of_a_linear_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_module, "BLOCK", 7)
    assert_same(*both(seeded(Tokens(), 0), ROW, density=0.2, rounds=3))


def test_nothing_waits_for_the_garbage_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[Any]] = []

    class Flow(flow_module.StreamedFlow):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            alive.extend(map(weakref.ref, (self, self._net)))

    def on_round(index: int, density: float, scores: Any, masks: Masks) -> None:
        assert (scores["0.weight"] >= 0).all()
        alive.append(weakref.ref(scores))
        flow = alive[0]()
        alive.extend(map(weakref.ref, flow._rooms))

    monkeypatch.setattr(rounds_module, "StreamedFlow", Flow)
    gc.collect()
    gc.disable()
    try:
        prune(mlp(6, 20, 10, 4), SynFlow(path="lean"), density=0.1, rounds=3, example_input=ROW, on_round=on_round)
        assert [one() for one in alive] == [None] * (2 + 3 * 3)
    finally:
        gc.enable()
