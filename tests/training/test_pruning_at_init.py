from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.nn.utils import parametrizations
from torch.utils.data import DataLoader

from prunelab.models import resnet20
from prunelab.pruning import Masks, PruningError, Scoring, prune
from prunelab.pruning.criteria import Random, SynFlow, grasp, magnitude, snip, synflow
from prunelab.pruning.preflight import Preflight
from prunelab.training import KeepPruned, PruningAtInit

EXAMPLE = torch.zeros(1, 1, 6, 6)


class ScoresOnce:
    """A criterion that fails when it is asked a second time."""

    rounds, needs_batches, revives, allocation = 1, False, False, None

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, scoring: Scoring) -> dict[str, Tensor]:
        self.calls += 1
        if self.calls > 1:
            raise AssertionError("scored again")
        return {name: weight.abs() for name, weight in scoring.weights().items()}


class Record(Callback):
    """What the pruning hooks were called with, and the epochs that began."""

    def __init__(self) -> None:
        self.rounds: list[tuple[Any, ...]] = []
        self.pruned: list[tuple[Any, ...]] = []
        self.order: list[str] = []

    def on_pruning_round(self, trainer: Trainer, pl_module: LightningModule, *arguments: Any) -> None:
        self.order.append("round")
        self.rounds.append(arguments)

    def on_pruned(self, trainer: Trainer, pl_module: LightningModule, *arguments: Any) -> None:
        self.order.append("pruned")
        self.pruned.append(arguments)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.order.append("epoch")


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


# --- data, and random draws


def test_synflow_never_touches_the_data(
    make_net: Any, make_module: Any, make_pruning: Any, fit: Any, tiny_data: Any
) -> None:
    data = tiny_data()
    record = Record()

    def raises(*_: Any, **__: Any) -> Any:
        raise AssertionError("touched")

    def opens(*_: Any) -> DataLoader:
        assert record.pruned
        return tiny_data().train_dataloader()

    data.scoring_batches, data.train_dataloader = raises, opens
    pruning, keep = make_pruning(synflow, rounds=3)
    fit(make_module(), [pruning, keep, record], data=data)
    assert pruning.masks == prune(make_net(), synflow, density=0.2, example_input=EXAMPLE, rounds=3)
    with pytest.raises(AssertionError, match="touched"):
        fit(make_module(), make_pruning(snip), data=data)


@pytest.mark.parametrize("criterion", [synflow, magnitude])
def test_samples_for_a_criterion_that_reads_none_are_a_mistake(criterion: Any) -> None:
    with pytest.raises(PruningError, match=r"samples_per_class: .* scores without data"):
        PruningAtInit(criterion, density=0.1, samples_per_class=5)


def test_data_criteria_score_with_the_data_modules_scoring_batches(
    make_net: Any, make_module: Any, make_pruning: Any, fit: Any, images: Any
) -> None:
    for samples_per_class, count in ((None, 30), (4, 12)):
        pruning, keep = make_pruning(snip, samples_per_class=samples_per_class)
        fit(make_module(make_net()), [pruning, keep])
        batches = [images[:count]]
        assert pruning.masks == prune(make_net(), snip, density=0.2, example_input=EXAMPLE, batches=batches)
        with torch.no_grad():
            loss = cross_entropy(make_net().eval()(batches[0][0]), batches[0][1])
        assert pruning.preflight.scoring_loss == pytest.approx(float(loss), rel=1e-5)


def test_own_batches_and_own_loss(make_net: Any, make_module: Any, make_pruning: Any, fit: Any, images: Any) -> None:
    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        return mse_loss(outputs, nn.functional.one_hot(labels, 3).float())

    batches = [images[:10], images[10:17]]
    expected = prune(make_net(), snip, density=0.2, example_input=EXAMPLE, batches=batches, loss=loss)
    for given in (batches, iter(batches), DataLoader(torch.utils.data.Subset(images, range(17)), batch_size=10)):
        pruning, keep = make_pruning(snip, batches=given, loss=loss)
        fit(make_module(make_net()), [pruning, keep])
        assert pruning.masks == expected
    assert expected != prune(make_net(), snip, density=0.2, example_input=EXAMPLE, batches=batches)


@pytest.mark.parametrize("given", [[], ["text"], [torch.ones(2, 1, 6, 6)]])
def test_batches_that_are_none_are_refused(given: Any, make_module: Any, make_pruning: Any, fit: Any) -> None:
    with pytest.raises(PruningError, match=r"batches: \(inputs, labels\) are needed"):
        fit(make_module(), make_pruning(snip, batches=given))


def random_state() -> tuple[Any, ...]:
    kind, numbers, *position = np.random.get_state()
    return torch.get_rng_state().tolist(), torch.initial_seed(), random.getstate(), (kind, tuple(numbers), *position)


class States(Callback):
    def __init__(self) -> None:
        self.before: Any = None
        self.after: Any = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.after = random_state()


@pytest.mark.parametrize("criterion", [Random(), magnitude, snip, grasp, SynFlow(rounds=5)])
def test_training_draws_the_same_numbers_whatever_the_criterion(
    criterion: Any, make_net: Any, make_module: Any, make_pruning: Any, fit: Any, images: Any
) -> None:
    """Also with a shuffling loader, read for scoring, whose samples are changed by all three generators."""

    class Noisy(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            image, label = images[index]
            return image + torch.rand(1) + np.random.rand() + random.random(), label

    class Orders(Callback):
        def __init__(self) -> None:
            self.labels: list[int] = []

        def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, *_: Any) -> None:
            self.labels += batch[1].tolist()

    labels = []
    for own_generator in (False, True):
        torch.manual_seed(3)
        random.seed(3)
        np.random.seed(3)
        states, orders = States(), Orders()
        generator = torch.Generator().manual_seed(1) if own_generator else None
        loader = DataLoader(Noisy(), batch_size=8, shuffle=True, generator=generator)
        module = make_module(make_net(0.5, seed=3))
        before = random_state()
        fit(module, [*make_pruning(criterion), states, orders], data=loader)
        assert states.after == before
        labels.append(orders.labels)
    torch.manual_seed(3)
    make_net(0.5, seed=3)
    expected = [label for _, batch in DataLoader(Noisy(), batch_size=8, shuffle=True) for label in batch.tolist()]
    own = DataLoader(Noisy(), batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(1))
    assert labels == [expected, [label for _, batch in own for label in batch.tolist()]]


def test_the_criterions_draws_come_from_the_seed(make_net: Any, make_module: Any, make_pruning: Any, fit: Any) -> None:
    def digest(run_seed: int, **options: Any) -> str:
        module = make_module(make_net(seed=9))
        torch.manual_seed(run_seed)
        pruning, keep = make_pruning(Random(), **options)
        fit(module, [pruning, keep])
        return pruning.masks.digest()

    assert digest(0) == digest(0) == digest(5, seed=0)  # 0 is a seed, not the absence of one
    assert digest(5) == digest(5) != digest(0)
    expected = prune(
        make_net(), Random(), density=0.2, example_input=EXAMPLE, generator=torch.Generator().manual_seed(0)
    )
    assert digest(0) == expected.digest()


# --- the user's own module and weights


class OwnModule(LightningModule):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.backbone = net
        self.example_input_array = torch.zeros(2, 1, 6, 6)

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone(images)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


@pytest.mark.parametrize("path", ["backbone", ""])
def test_a_users_own_module_and_loader(path: str, make_net: Any, make_pruning: Any, fit: Any, images: Any) -> None:
    module = OwnModule(make_net())
    pruning, keep = make_pruning(snip, net=path)
    loader = DataLoader(images, batch_size=16)
    with pytest.warns(UserWarning, match="scoring batches come from the training loader"):
        fit(module, [pruning, keep], data=loader, max_epochs=3)
    prefix = "" if path else "backbone."
    expected = prune(make_net(), snip, density=0.2, example_input=EXAMPLE, batches=[images[:30]])
    assert {name: mask.tolist() for name, mask in pruning.masks.items()} == {
        f"{prefix}{name}": mask.tolist() for name, mask in expected.items()
    }
    weights = dict(module.backbone.named_parameters())
    assert not any(weights[name][~mask].any() for name, mask in expected.items())


def test_a_wrong_attribute_is_named_with_the_right_ones(
    make_net: Any, make_pruning: Any, fit: Any, images: Any
) -> None:
    with pytest.raises(PruningError, match="OwnModule has no network 'net'; its modules: backbone"):
        fit(OwnModule(make_net()), make_pruning(), data=DataLoader(images))


def test_pretrained_weights_are_scored_and_pruned(
    make_net: Any, make_module: Any, make_pruning: Any, fit: Any, tmp_path: Path
) -> None:
    torch.save(make_net(seed=4).state_dict(), tmp_path / "weights.pt")
    pruning, keep = make_pruning(weights_from=str(tmp_path / "weights.pt"))
    fit(make_module(make_net(seed=5)), [pruning, keep])
    assert pruning.masks == prune(make_net(seed=4), magnitude, density=0.2, example_input=EXAMPLE)

    fit(make_module(make_net(seed=4)), []).save_checkpoint(tmp_path / "dense.ckpt")
    trained = torch.load(tmp_path / "dense.ckpt", weights_only=True)["state_dict"]
    pruning, keep = make_pruning(weights_from=str(tmp_path / "dense.ckpt"))
    fit(make_module(make_net(seed=5)), [pruning, keep])
    net = make_net()
    net.load_state_dict({name.removeprefix("net."): value for name, value in trained.items()})
    assert pruning.masks == prune(net, magnitude, density=0.2, example_input=EXAMPLE)


def test_missing_weights_are_an_error_before_anything_is_scored(make_module: Any, fit: Any) -> None:
    criterion = ScoresOnce()
    with pytest.raises(PruningError, match=r"weights_from: no file nowhere\.pt"):
        fit(make_module(), [PruningAtInit(criterion, density=0.2, weights_from="nowhere.pt"), KeepPruned()])
    assert criterion.calls == 0


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
