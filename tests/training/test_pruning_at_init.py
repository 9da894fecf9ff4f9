from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.data import DataLoader

from prunelab.models import resnet20
from prunelab.pruning import Masks, PruningError, prune
from prunelab.pruning.criteria import Random, magnitude, snip, synflow
from prunelab.pruning.preflight import Preflight
from prunelab.training import KeepPruned, PruningAtInit

from .watching import Record, ScoresOnce

EXAMPLE = torch.zeros(1, 1, 6, 6)


# --- what it does to the network


def test_the_network_starts_training_with_the_masks_that_prune_finds(
    make_net: Any, make_module: Any, make_pruning: Any, fit: Any
) -> None:
    expected = prune(make_net(), magnitude, density=0.2, example_input=EXAMPLE)
    module = make_module(make_net())
    start = {name: weight.detach().clone() for name, weight in module.net.named_parameters()}

    class First(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            for name, weight in pl_module.net.named_parameters():
                wanted = start[name].masked_fill(~expected[name], 0) if name in expected else start[name]
                assert torch.equal(weight, wanted)

    pruning, keep = make_pruning()
    fit(module, [pruning, keep, First()])
    assert pruning.masks == expected
    assert pruning.preflight.num_kept == expected.num_kept == 65


def test_three_spellings_give_the_same_mask(make_net: Any, make_module: Any, make_pruning: Any, fit: Any) -> None:
    found = []
    for spelling in ({"density": 0.05}, {"sparsity": 0.95}, {"compression_ratio": 20}):
        pruning, keep = make_pruning(synflow, **({"density": None} | spelling), rounds=5)
        fit(make_module(make_net()), [pruning, keep])
        found.append((pruning.density, pruning.masks.digest()))
    assert len(set(found)) == 1


@pytest.mark.parametrize("spellings", [{"density": 0.1, "sparsity": 0.9}, {"density": 0.0}, {"compression_ratio": 0.5}])
def test_exactly_one_meaningful_density_is_needed(spellings: dict[str, float]) -> None:
    with pytest.raises(PruningError):
        PruningAtInit(magnitude, **spellings)


def test_no_density_is_noticed_before_anything_is_scored(make_module: Any, make_pruning: Any, fit: Any) -> None:
    pruning, keep = make_pruning(synflow, density=None)
    with pytest.raises(PruningError, match="exactly one of density, sparsity and compression_ratio, got none"):
        fit(make_module(), [pruning, keep])


def test_density_1_prunes_nothing_and_says_so(make_module: Any, make_pruning: Any, fit: Any) -> None:
    record = Record()
    pruning, keep = make_pruning(snip, density=1.0)
    fit(make_module(), [pruning, keep, record])
    assert pruning.masks.density == pruning.preflight.density == 1.0
    assert pruning.preflight.zero_score_share is None
    assert not record.rounds
    assert len(record.pruned) == 1


def test_options_reach_prune(make_net: Any, make_module: Any, make_pruning: Any, fit: Any) -> None:
    options: dict[str, Any] = {"rounds": 3, "schedule": "linear", "scope": "layerwise", "min_layer_density": 0.1}
    expected = prune(make_net(), synflow, density=0.3, example_input=EXAMPLE, **options)
    pruning, keep = make_pruning(synflow, density=0.3, **options)
    fit(make_module(make_net()), [pruning, keep])
    assert pruning.masks == expected

    pruning, keep = make_pruning(magnitude, density=0.5, exclude=["0.*"], include=["3.bias"])
    fit(make_module(make_net()), [pruning, keep])
    assert list(pruning.masks) == ["3.weight", "3.bias", "7.weight"]

    pruning, keep = make_pruning(Random(), density=0.3, allocation="erk")
    fit(make_module(make_net()), [pruning, keep])
    assert pruning.masks.layer_densities()["0.weight"] > pruning.masks.layer_densities()["3.weight"]


def test_only_keep_pruned_makes_it_last(make_module: Any, make_pruning: Any, fit: Any) -> None:
    pruning, _ = make_pruning()
    with pytest.raises(PruningError, match=r"PruningAtInit needs KeepPruned\(\)"):
        fit(make_module(), [pruning])


def test_the_same_callbacks_keep_their_masks_in_a_second_fit(
    make_module: Any, fit: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    criterion = ScoresOnce()
    callbacks = [PruningAtInit(criterion, density=0.2), KeepPruned()]
    module = make_module()
    fit(module, callbacks)
    masks = callbacks[0].masks
    fit(module, callbacks, max_epochs=2)
    assert callbacks[0].masks is masks
    assert criterion.calls == 1
    assert "scoring skipped" in capsys.readouterr().out
    assert all(not weight[~masks[name]].any() for name, weight in module.net.named_parameters() if name in masks)


# --- what it says


def test_the_report_is_printed_before_the_first_epoch(
    make_module: Any, make_pruning: Any, fit: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    class Epoch(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            print(f"epoch {trainer.current_epoch}")

    pruning, keep = make_pruning()
    fit(make_module(), [pruning, keep, Epoch()], max_epochs=2)
    printed = capsys.readouterr().out
    assert str(pruning.preflight) in printed.partition("epoch 0")[0]
    assert printed.count("effective density") == 1


def test_hooks_are_called_once_per_round_and_once_at_the_end(make_module: Any, make_pruning: Any, fit: Any) -> None:
    record = Record()
    pruning, keep = make_pruning(synflow, density=0.1, rounds=4)
    fit(make_module(), [pruning, keep, record], max_epochs=2)
    assert record.order == ["round"] * 4 + ["pruned"] + ["epoch"] * 2
    for round, (index, num_rounds, density, scores, masks) in enumerate(record.rounds):
        assert (index, num_rounds) == (round, 4)
        assert density == pytest.approx(0.1 ** ((round + 1) / 4))
        assert scores.keys() == masks.keys()
        assert masks.num_kept == int(density * 324 + 0.5)
    preflight, scores, masks = record.pruned[0]
    assert isinstance(preflight, Preflight)
    assert preflight is pruning.preflight
    assert masks == pruning.masks == record.rounds[-1][-1]
    assert scores is record.rounds[-1][3]


def test_a_resumed_training_calls_no_hooks(make_module: Any, make_pruning: Any, fit: Any, tmp_path: Path) -> None:
    fit(make_module(), make_pruning()).save_checkpoint(tmp_path / "last.ckpt")
    record = Record()
    fit(make_module(), [*make_pruning(), record], max_epochs=2, ckpt_path=tmp_path / "last.ckpt")
    assert record.order == ["epoch"]


class Skip(nn.Module):
    """A linear layer beside an identity: the network lives on when the layer dies."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(36, 36)
        self.classifier = nn.Linear(36, 3)

    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)
        return self.classifier(flat + self.inner(flat))


def collapsing_net() -> Skip:
    torch.manual_seed(0)
    net = Skip()
    nn.init.constant_(net.inner.weight, 1e-6)
    return net


def test_a_dead_layer_is_warned_about_by_name(make_module: Any, make_pruning: Any, fit: Any) -> None:
    pruning, keep = make_pruning(density=0.05)
    with pytest.warns(UserWarning, match=r"layer collapse: inner\.weight kept no weight"):
        fit(make_module(collapsing_net()), [pruning, keep])
    assert pruning.preflight.collapsed_layers == ["inner.weight"]


def test_a_dead_layer_ends_the_run_if_asked(
    make_module: Any, make_pruning: Any, fit: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    module, record = make_module(collapsing_net()), Record()
    with pytest.raises(PruningError, match=r"layer collapse: inner\.weight kept no weight"):
        fit(module, [*make_pruning(density=0.05, on_collapse="fail"), record])
    assert record.order == ["round"]
    assert "dead layers        1 of 2: inner.weight" in capsys.readouterr().out


@pytest.mark.parametrize("on_collapse", ["warn", "fail"])
def test_without_any_path_there_is_no_training(on_collapse: str, make_module: Any, make_pruning: Any, fit: Any) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 36), nn.Linear(36, 3))
    nn.init.constant_(net[1].weight, 1e-6)
    record = Record()
    with pytest.raises(PruningError, match=r"no path leads .*: 1\.weight kept no weight"):
        fit(make_module(net), [*make_pruning(density=0.05, on_collapse=on_collapse), record])
    assert "epoch" not in record.order


def test_without_any_path_there_is_training_if_asked(make_module: Any, make_pruning: Any, fit: Any) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 36), nn.Linear(36, 3))
    nn.init.constant_(net[1].weight, 1e-6)
    (pruning, *rest), record = make_pruning(density=0.05, on_collapse="train"), Record()
    with pytest.warns(UserWarning, match="no path leads from input to output"):
        fit(make_module(net), [pruning, *rest, record])
    assert "epoch" in record.order
    assert (pruning.preflight.effective_density, pruning.preflight.collapsed_layers) == (0, ["1.weight"])
    assert net(torch.randn(5, 36)).unique(dim=0).shape == (1, 3)  # whatever it is shown


def lora_like() -> nn.Module:
    layer = nn.Linear(36, 3)
    layer.lora_A = nn.Linear(36, 1)
    return nn.Sequential(nn.Flatten(), layer)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (lambda: nn.Sequential(nn.Flatten(), parametrizations.weight_norm(nn.Linear(36, 3))), "computes its weight"),
        (lora_like, r"1 \(Linear\) is a LoRA wrapper"),
    ],
)
def test_weights_that_are_not_plain_parameters_are_refused_by_name(
    net: Any, message: str, make_module: Any, make_pruning: Any, fit: Any
) -> None:
    with pytest.raises(PruningError, match=message):
        fit(make_module(net()), make_pruning())


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 1, batch_first=True)
        self.classifier = nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Tensor:
        rows = images.flatten(1, 2)
        return self.classifier(self.attention(rows, rows, rows)[0].mean(1))


def test_what_is_not_pruned_is_listed(
    make_module: Any, make_pruning: Any, fit: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    pruning, keep = make_pruning(exclude=["classifier.weight"])
    fit(make_module(Attention()), [pruning, keep])
    unpruned = {name: (size, reason) for name, size, reason in pruning.preflight.unpruned}
    assert unpruned["attention.in_proj_weight"] == (108, "MultiheadAttention parameter")
    assert unpruned["classifier.weight"] == (18, "excluded")
    assert pruning.preflight.effective_density is None
    printed = capsys.readouterr().out
    assert "attention.in_proj_weight (MultiheadAttention parameter) 108" in printed

    pruning, keep = make_pruning(include=["*in_proj_weight"])
    fit(make_module(Attention()), [pruning, keep])
    assert "attention.in_proj_weight" in pruning.masks


# --- checkpoints


def test_a_resumed_training_does_not_score_and_keeps_masks_and_report(
    make_module: Any, fit: Any, tmp_path: Path
) -> None:
    """Row 14: on a resume, callback state and trained weights are there before `on_fit_start`."""
    first = PruningAtInit(ScoresOnce(), density=0.2)
    fit(make_module(), [first, KeepPruned()], max_epochs=2).save_checkpoint(tmp_path / "last.ckpt")

    class Seen(Callback):
        def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            self.masks = second.masks
            self.weight = pl_module.net[0].weight.detach().clone()
            self.step = trainer.global_step

    criterion = ScoresOnce()
    criterion.calls = 1  # the next call fails
    second = PruningAtInit(criterion, density=0.2)
    seen, module = Seen(), make_module()
    fit(module, [seen, second, KeepPruned()], max_epochs=3, ckpt_path=tmp_path / "last.ckpt")
    trained = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]["net.0.weight"]
    assert seen.masks == first.masks
    assert torch.equal(seen.weight, trained)
    assert seen.step == 0  # loops and optimizers are restored after on_fit_start
    assert second.masks == first.masks
    assert second.preflight == first.preflight
    assert second.seconds_scoring == first.seconds_scoring > 0
    assert not any(module.net.get_parameter(name)[~mask].any() for name, mask in first.masks.items())


def test_the_state_is_tensors_and_plain_values(make_module: Any, make_pruning: Any, fit: Any, tmp_path: Path) -> None:
    pruning, keep = make_pruning(synflow, rounds=2)
    fit(make_module(), [pruning, keep]).save_checkpoint(tmp_path / "last.ckpt")
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert Masks(content["callbacks"]["PruningAtInit"]["masks"]) == pruning.masks
    assert all(name.startswith("net.") for name in content["state_dict"])


# --- several ranks: more in test_ranks.py


def test_scores_do_not_depend_on_the_number_of_threads(make_module: Any, make_pruning: Any, fit: Any) -> None:
    """SynFlow's in float64 neither: on two threads the last bits of this network's are others."""
    pictures = DataLoader([(torch.ones(3, 32, 32), label) for label in range(2)], batch_size=2)
    found = []
    for num_threads in (1, 2):
        torch.set_num_threads(num_threads)
        torch.manual_seed(0)
        record, module = Record(), make_module(resnet20())
        fit(module, [*make_pruning(synflow, rounds=1), record], data=pictures, max_steps=1)
        assert torch.get_num_threads() == num_threads
        found.append(record.pruned[0])
    (_, scores, masks), (_, other_scores, other_masks) = found
    assert all(torch.equal(values, other_scores[name]) for name, values in scores.items())
    assert masks == other_masks


def test_nothing_of_lightnings_model_pruning_is_used() -> None:
    """Row 15: its live weights alias its stored copy."""
    root = Path(__file__).parents[2] / "src"
    assert not [
        path for path in root.rglob("*.py") if "ModelPruning" in path.read_text() or "utils.prune " in path.read_text()
    ]
