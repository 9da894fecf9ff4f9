"""What PruningAtInit takes: data, random draws, the user's own module and weights."""

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
from torch.utils.data import DataLoader

from prunelab.pruning import PruningError, prune
from prunelab.pruning.criteria import Random, SynFlow, grasp, magnitude, snip, synflow
from prunelab.training import KeepPruned, PruningAtInit

from .watching import Record, ScoresOnce

EXAMPLE = torch.zeros(1, 1, 6, 6)


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
