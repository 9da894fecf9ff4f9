from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset
from torchvision.transforms import v2

from prunelab.pruning import PruningError
from prunelab.training.scoring_data import example_input, scoring_batches

EXAMPLE = torch.zeros(1, 1, 6, 6)


def trainer_with(loader: Any = None, datamodule: Any = None) -> Any:
    """What of a Trainer these functions look at, when `fit` has started."""
    source = SimpleNamespace(dataloader=lambda: loader)
    return SimpleNamespace(fit_loop=SimpleNamespace(_data_source=source), datamodule=datamodule)


def indexed(labels: list[int]) -> TensorDataset:
    """Pictures that hold their own index."""
    images = torch.arange(len(labels), dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 1, 6, 6)
    return TensorDataset(images, torch.tensor(labels))


def test_each_class_gives_its_first_samples(make_net: Any) -> None:
    loader = DataLoader(indexed([0, 0, 0, 2, 1, 1, 0, 2, 2, 1]), batch_size=3)
    with pytest.warns(UserWarning, match="scoring batches come from the training loader$"):
        ((images, labels),) = scoring_batches(trainer_with(loader), None, 2, make_net(), EXAMPLE)
    assert labels.tolist() == [0, 0, 2, 1, 1, 2]
    assert images[:, 0, 0, 0].tolist() == [0, 1, 3, 4, 5, 7]


def test_reading_stops_when_there_are_enough(make_net: Any) -> None:
    def endless() -> Any:
        yield from DataLoader(indexed([0, 1, 2]), batch_size=3)
        raise AssertionError("read on")

    with pytest.warns(UserWarning, match="training loader"):
        scoring_batches(trainer_with(endless()), None, 1, make_net(), EXAMPLE)


def test_a_class_with_too_few_samples_is_named(make_net: Any) -> None:
    loader = DataLoader(indexed([0, 0, 2, 2, 1]), batch_size=3)
    message = r"the training loader has fewer than 2 samples of the classes \[1\]"
    with pytest.warns(UserWarning, match="training loader"), pytest.raises(PruningError, match=message):
        scoring_batches(trainer_with(loader), None, 2, make_net(), EXAMPLE)


class Augmented(Dataset):
    def __init__(self, transform: Any) -> None:
        self.transform = transform
        self.samples = indexed([0, 1, 2])

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, label = self.samples[index]
        return self.transform(image), label


@pytest.mark.parametrize(
    ("transform", "named"),
    [
        (
            v2.Compose([v2.RandomCrop(6, 2), v2.Identity(), v2.RandomHorizontalFlip()]),
            "RandomCrop, RandomHorizontalFlip",
        ),
        (v2.RandomVerticalFlip(), "RandomVerticalFlip"),
        (v2.Compose([v2.RandAugment(0)]), "RandAugment"),
    ],
)
def test_random_augmentation_is_named(transform: Any, named: str, make_net: Any) -> None:
    dataset = Augmented(transform)
    for whole in (dataset, Subset(dataset, [0, 1, 2])):
        with pytest.warns(UserWarning, match=rf"which augments \({named}\): the mask depends on those draws"):
            scoring_batches(trainer_with(DataLoader(whole, batch_size=2)), None, 1, make_net(), EXAMPLE)


def test_what_does_not_draw_is_not_named(make_net: Any) -> None:
    loader = DataLoader(Augmented(v2.Compose([v2.Identity(), v2.Normalize([0.0], [1.0])])), batch_size=2)
    with pytest.warns(UserWarning, match="training loader") as caught:
        scoring_batches(trainer_with(loader), None, 1, make_net(), EXAMPLE)
    assert "augments" not in str(caught[0].message)


def test_a_loaders_own_generator_is_left_as_it_was(make_net: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    before = generator.get_state()
    trainer = trainer_with(DataLoader(indexed([0, 1, 2] * 4), batch_size=4, shuffle=True, generator=generator))
    example_input(trainer, LightningModule(), None)
    assert torch.equal(generator.get_state(), before)
    with pytest.warns(UserWarning, match="training loader"):
        scoring_batches(trainer, None, 1, make_net(), EXAMPLE)
    assert torch.equal(generator.get_state(), before)


def test_the_example_comes_from_the_nearest_source() -> None:
    """Given batches, then the data module, then the module, then the loader; without any warning."""
    given = [(torch.full((4, 1, 6, 6), 1.0), torch.zeros(4))]
    datamodule = SimpleNamespace(example_input=lambda: torch.full((1, 1, 6, 6), 2.0))
    module = LightningModule()
    module.example_input_array = torch.full((5, 1, 6, 6), 3.0)
    loader = DataLoader(TensorDataset(torch.full((6, 1, 6, 6), 4.0), torch.zeros(6)), batch_size=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = [
            example_input(trainer_with(loader, datamodule), module, given),
            example_input(trainer_with(loader, datamodule), module, None),
            example_input(trainer_with(loader), module, None),
            example_input(trainer_with(loader), LightningModule(), None),
        ]
    assert [float(example.mean()) for example in found] == [1, 2, 3, 4]
    assert {example.shape for example in found} == {(1, 1, 6, 6)}


@pytest.mark.parametrize("batches", [[{"image": torch.ones(1), "label": torch.ones(1)}], [], ["text"], [torch.ones(3)]])
def test_a_loader_of_something_else_is_refused(batches: list[Any], make_net: Any) -> None:
    trainer = trainer_with(batches)
    with pytest.raises(PruningError, match=r"the training loader: \(inputs, labels\) are needed"):
        example_input(trainer, LightningModule(), None)
    message = r"\(inputs, labels\) are needed" if batches else "fewer than 1 samples"
    with pytest.warns(UserWarning, match="training loader"), pytest.raises(PruningError, match=message):
        scoring_batches(trainer, None, 1, make_net(), EXAMPLE)


def test_the_data_modules_own_scoring_batches_come_first(make_net: Any) -> None:
    def batches(samples_per_class: int) -> list[int]:
        return [samples_per_class]

    trainer = trainer_with([], SimpleNamespace(scoring_batches=batches))
    assert scoring_batches(trainer, None, 7, make_net(), EXAMPLE) == [7]
    assert scoring_batches(trainer, ["given"], 7, make_net(), EXAMPLE) == ["given"]
