"""Compact training under Lightning is the masked training: same losses, steps, averages; smaller tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import EMAWeightAveraging
from torch import Tensor, nn

from prunelab.compaction import ChannelIndex, CompactionError, compact, shrink
from prunelab.pruning import Masks, PruningError
from prunelab.pruning.criteria import magnitude, snip
from prunelab.pruning.diagnostics import count_leaked
from prunelab.training import Classifier, KeepPruned, PruningAtInit
from prunelab.training.compacting import KEY, accept_full_slots, accept_full_weights, in_full, shrink_as_in

DOUBLE = {"precision": "64-true", "max_epochs": 3}


def dead_rows(net: nn.Module) -> Masks:
    """Channels 1 and 2 of the first convolution without weights, channel 0 of the second one read by nobody."""
    masks = {name: torch.ones_like(net.get_parameter(name), dtype=torch.bool) for name in ("0.weight", "3.weight")}
    masks["7.weight"] = torch.ones(3, 24, dtype=torch.bool)
    masks["0.weight"][1:3] = False
    masks["3.weight"][:, :, 1] = torch.rand(6, 4, 3, generator=torch.Generator().manual_seed(0)) < 0.5
    masks["7.weight"][:, :4] = False
    return Masks(masks)


class Losses(Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.values.append(float(outputs["loss"]))


@pytest.fixture
def masks_file(make_net: Any, tmp_path: Path) -> str:
    dead_rows(make_net()).save(tmp_path / "masks.pt")
    return str(tmp_path / "masks.pt")


@pytest.fixture
def train(make_net: Any, make_module: Any, fit: Any, masks_file: str) -> Any:
    """train(compact, ...) -> (module, pruning, losses, trainer) of a training in float64 with those masks."""

    def run(compact: bool, *callbacks: Callback, net: nn.Module | None = None, **options: Any) -> Any:
        module = make_module(make_net() if net is None else net)
        pruning, losses = PruningAtInit(masks_from=masks_file, compact=compact, compact_multiple=1), Losses()
        trainer = fit(module, [pruning, KeepPruned(), losses, *callbacks], **DOUBLE | options)
        return module, pruning, losses, trainer

    return run


def test_trains_like_the_masked_network(train: Any) -> None:
    (masked, _, losses, _), (small, pruning, compact_losses, trainer) = train(False), train(True)
    assert compact_losses.values == pytest.approx(losses.values, rel=1e-12)
    assert [tuple(small.net[i].weight.shape) for i in (0, 3, 7)] == [(2, 1, 3, 3), (5, 2, 3, 3), (3, 20)]
    index = pruning.index
    trained = index.take(masked.net.state_dict())
    for name, values in small.net.state_dict().items():
        torch.testing.assert_close(values, trained[name], rtol=1e-10, atol=1e-12)
    assert count_leaked(small.net, pruning.held_masks) == 0
    # the report is that of the full network, the optimizer's that of the small one
    assert pruning.masks == dead_rows(masked.net)
    in_optimizer = [p for group in trainer.optimizers[0].param_groups for p in group["params"]]
    assert [id(p) for p in in_optimizer] == [id(p) for p in small.net.parameters()]
    assert sum(p.numel() for p in in_optimizer) < sum(p.numel() for p in masked.net.parameters())


def test_says_how_much_smaller(train: Any, capsys: pytest.CaptureFixture[str]) -> None:
    train(True)
    # channels: 4 + 6 + 3, weights 36 + 216 + 72; MACs 36 * 16 + 216 * 4 + 72 of 1512, 18 * 16 + 90 * 4 + 60 of 708
    line = "compact            10 of 13 channels left, 168 of 324 prunable weights stored, 2.14 times fewer MACs"
    assert line in capsys.readouterr().out.splitlines()


def test_scores_like_the_masked_run(make_net: Any, make_module: Any, fit: Any, make_pruning: Any) -> None:
    found = []
    for is_compact in (False, True):
        pruning = make_pruning(snip, 0.1, compact=is_compact, compact_multiple=1)
        fit(make_module(make_net()), pruning)
        found.append(pruning[0].masks)
    assert found[0] == found[1]


def test_weight_averaging_averages_the_small_network(train: Any) -> None:
    averages = [EMAWeightAveraging(decay=0.9), EMAWeightAveraging(decay=0.9)]
    (masked, _, _, _), (small, pruning, _, _) = train(False, averages[0]), train(True, averages[1])
    # at the end of a training Lightning puts the average in the module's place
    trained = pruning.index.take(masked.net.state_dict())
    for name, values in small.net.state_dict().items():
        torch.testing.assert_close(values, trained[name], rtol=1e-10, atol=1e-12)
    assert count_leaked(small.net, pruning.held_masks) == 0


def test_weight_averaging_that_comes_first_is_refused(
    make_net: Any, make_module: Any, fit: Any, masks_file: str
) -> None:
    callbacks = [
        EMAWeightAveraging(decay=0.9),
        PruningAtInit(masks_from=masks_file, compact=True, compact_multiple=1),
        KeepPruned(),
    ]
    with pytest.raises(PruningError, match="before weight averaging"):
        fit(make_module(make_net()), callbacks)


def test_compiles_in_place(train: Any, make_net: Any, fit: Any, masks_file: str, monkeypatch: Any) -> None:
    compile_in_place = nn.Module.compile
    shapes: list[tuple[int, ...]] = []

    def quick(net: nn.Module) -> None:
        shapes.append(tuple(net.get_parameter("0.weight").shape))
        compile_in_place(net, backend="eager")  # the default one takes a minute on a CPU

    monkeypatch.setattr(nn.Module, "compile", quick)
    _, _, losses, _ = train(True)
    module = Classifier(make_net(), lambda p: torch.optim.SGD(p, 0.1, 0.9, 0, 1e-2, nesterov=True), compile=True)
    compiled = Losses()
    fit(
        module,
        [PruningAtInit(masks_from=masks_file, compact=True, compact_multiple=1), KeepPruned(), compiled],
        **DOUBLE,
    )
    assert shapes == [(2, 1, 3, 3)]
    assert compiled.values == pytest.approx(losses.values, rel=1e-9)


def test_resumes_bit_for_bit(train: Any, make_module: Any, make_net: Any, fit: Any, tmp_path: Path) -> None:
    whole, _, losses, _ = train(True)
    _, _, _, trainer = train(True, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    # all that counts is in the checkpoint; Lightning makes a network double only after it has read it
    module = make_module(make_net(seed=1).double())
    pruning, rest = PruningAtInit(masks_from="gone.pt", compact=True), Losses()
    pruning.resume_from(torch.load(tmp_path / "one.ckpt", weights_only=True))
    fit(module, [pruning, KeepPruned(), rest], ckpt_path=tmp_path / "one.ckpt", **DOUBLE)
    assert rest.values == losses.values[3:]
    for name, values in module.net.state_dict().items():
        assert torch.equal(values, whole.net.state_dict()[name])


def test_load_from_checkpoint_makes_the_network_small(train: Any, make_net: Any, tmp_path: Path) -> None:
    module, _, _, trainer = train(True)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    loaded = Classifier.load_from_checkpoint(tmp_path / "end.ckpt", net=make_net(seed=1).double(), optimizer=None)
    inputs = torch.randn(2, 1, 6, 6, dtype=torch.float64)
    assert torch.equal(loaded.eval()(inputs), module.eval()(inputs))


def test_another_networks_checkpoint_is_refused(train: Any, tmp_path: Path) -> None:
    _, _, _, trainer = train(True)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    other = nn.Sequential(nn.Conv2d(1, 4, 5), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), *[nn.ReLU()] * 3)
    with pytest.raises(CompactionError, match=r"the network has no 7\.weight"):
        Classifier.load_from_checkpoint(tmp_path / "end.ckpt", net=other, optimizer=None)


def test_an_optimizer_of_the_full_network_is_refused(make_net: Any, fit: Any, masks_file: str) -> None:
    class Early(Classifier):
        def __init__(self, net: nn.Module) -> None:
            super().__init__(net, torch.optim.SGD)
            self.made = torch.optim.SGD(self.parameters(), lr=0.1)

        def configure_optimizers(self) -> Any:
            return self.made

    fit(Early(make_net()), [PruningAtInit(masks_from=masks_file), KeepPruned()])
    with pytest.raises(PruningError, match="take them in configure_optimizers"):
        fit(Early(make_net()), [PruningAtInit(masks_from=masks_file, compact=True, compact_multiple=1), KeepPruned()])


def test_a_compact_network_is_not_compacted_again(train: Any, fit: Any, masks_file: str) -> None:
    module, pruning, _, _ = train(True)
    with pytest.raises(PruningError, match="a compact one already"):
        fit(module, [PruningAtInit(magnitude, density=0.1, compact=True), KeepPruned()])
    fit(module, [pruning, KeepPruned()], **DOUBLE)  # with the masks that it has it goes on


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3, bias=False), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv(x)
        return self.head((hidden if hidden.sum() > 0 else -hidden).flatten(1))


def test_a_network_that_cannot_be_traced_trains_masked(make_module: Any, fit: Any, make_pruning: Any) -> None:
    module, callbacks = make_module(Untraceable()), make_pruning(density=0.2, compact=True)
    with pytest.warns(UserWarning, match="not compacted, trains masked: the network cannot be traced"):
        fit(module, callbacks)
    assert callbacks[0].index is None
    assert "cannot be traced" in callbacks[0].not_compacted
    assert count_leaked(module.net, callbacks[0].masks) == 0


def test_kept_widths_are_multiples(make_module: Any, fit: Any, masks_file: str) -> None:
    module = make_module()
    fit(module, [PruningAtInit(masks_from=masks_file, compact=True, compact_multiple=3), KeepPruned()])
    assert [tuple(module.net[i].weight.shape) for i in (0, 3, 7)] == [(3, 1, 3, 3), (6, 3, 3, 3), (3, 24)]


@pytest.fixture
def small(make_net: Any) -> tuple[nn.Module, nn.Module, ChannelIndex]:
    """A full network, the compact one, and the map between them."""
    full = make_net()
    dead_rows(full).apply_to(full)
    compacted = compact(full, dead_rows(full), torch.zeros(1, 1, 6, 6))
    return full, compacted.net, compacted.index


def test_full_weights_load_into_the_small_network(small: Any, make_net: Any) -> None:
    _, net, index = small
    accept_full_weights(net, index)
    other = make_net(seed=1).state_dict()
    before = {name: values.clone() for name, values in other.items()}
    nn.ModuleDict({"net": net}).load_state_dict({f"net.{name}": values for name, values in other.items()})
    assert all(torch.equal(values, index.take(other)[name]) for name, values in net.state_dict().items())
    assert all(torch.equal(values, before[name]) for name, values in other.items())
    net.load_state_dict(net.state_dict())  # its own too
    with pytest.raises(CompactionError, match="compacted otherwise"):
        net.load_state_dict(other | {"0.weight": torch.zeros(3, 1, 3, 3)})


def test_optimizer_slots_go_both_ways(small: Any) -> None:
    """Momentum of the full network -> the small one -> a checkpoint -> the full one again."""
    full, net, index = small
    optimizers = [torch.optim.SGD(model.parameters(), 0.1, 0.9) for model in (full, net)]
    for model, optimizer in zip((full, net), optimizers, strict=True):
        model(torch.randn(4, 1, 6, 6)).square().sum().backward()
        optimizer.step()
    slots = optimizers[0].state_dict()
    accept_full_slots(optimizers[1], net, index)
    optimizers[1].load_state_dict(slots)
    names = [name for name, _ in full.named_parameters()]
    for number, name in enumerate(names):
        taken = optimizers[1].state_dict()["state"][number]["momentum_buffer"]
        assert torch.equal(taken, index.select(name, slots["state"][number]["momentum_buffer"]))
    checkpoint = {
        "state_dict": {f"net.{name}": values for name, values in net.state_dict().items()} | {"other": torch.ones(1)},
        "optimizer_states": [optimizers[1].state_dict()],
        KEY: {"net": "net", "index": index.state_dict(), "parameters": [names]},
    }
    again = in_full(checkpoint, full.state_dict())
    assert KEY not in again
    assert torch.equal(again["state_dict"]["other"], torch.ones(1))
    for number, name in enumerate(names):
        slot = again["optimizer_states"][0]["state"][number]["momentum_buffer"]
        assert slot.shape == full.get_parameter(name).shape
        assert torch.equal(index.select(name, slot), optimizers[1].state_dict()["state"][number]["momentum_buffer"])
        assert slot.count_nonzero() <= taken_size(index, name, slot)
    assert in_full(again, {}) is again  # full ones stay


def taken_size(index: ChannelIndex, name: str, slot: Tensor) -> int:
    return index.select(name, slot).numel()


def test_shrink_as_in_leaves_others_alone(small: Any, make_module: Any, make_net: Any) -> None:
    module = make_module(make_net())
    shrink_as_in(module, {"state_dict": {}})
    assert module.net[0].out_channels == 4
    shrink(module.net, small[2])
    shrink_as_in(module, {KEY: {"net": "net", "index": small[2].state_dict()}})  # it is that small already
    assert module.net[0].out_channels == 2
