from __future__ import annotations

import copy
import pickle
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional as F

from prunelab.data import module as module_file
from prunelab.data.arrays import ImageArrays
from prunelab.data.errors import DataError
from prunelab.data.loader import TensorLoader
from prunelab.data.module import Augment, ImageDataModule

pytestmark = pytest.mark.filterwarnings("ignore::pytorch_lightning.utilities.warnings.PossibleUserWarning")


def read() -> ImageArrays:
    """3 classes, 30 + 12 pictures of 2 x 4 x 4. Training pictures are below 200, test pictures above."""
    generator = torch.Generator().manual_seed(0)
    return ImageArrays(
        torch.randint(0, 200, (30, 2, 4, 4), dtype=torch.uint8, generator=generator),
        torch.arange(30) % 3,
        torch.randint(200, 256, (12, 2, 4, 4), dtype=torch.uint8, generator=generator),
        torch.arange(12) % 3,
        ("ant", "bee", "cat"),
    )


def build(
    batch_size: int = 8,
    val_size: int | None = 6,
    augment: Augment = "crop_flip",
    seed: int | None = 0,
    split_seed: int = 0,
) -> ImageDataModule:
    module = ImageDataModule(read, batch_size, val_size, augment, 1, seed, split_seed)
    module.setup()
    return module


def pixels(module: ImageDataModule, batches: TensorLoader) -> set[tuple[int, ...]]:
    """The uint8 pictures behind normalised batches."""
    std, mean = module.normalise.std[:, None, None], module.normalise.mean[:, None, None]
    return {tuple(((picture * std + mean) * 255).round().int().flatten().tolist()) for x, _ in batches for picture in x}


def as_set(images: Tensor) -> set[tuple[int, ...]]:
    return {tuple(image.flatten().tolist()) for image in images}


def test_train_validation_and_test_are_kept_apart() -> None:
    module = build(augment="none")
    arrays = read()
    val = module.val_dataloader()
    assert isinstance(val, TensorLoader)
    train_pixels, val_pixels = pixels(module, module.train_dataloader()), pixels(module, val)
    assert len(val_pixels) == 6
    assert len(train_pixels) == 24
    assert train_pixels | val_pixels == as_set(arrays.train_images)
    assert pixels(module, module.test_dataloader()) == as_set(arrays.test_images)


def test_statistics_are_those_of_the_training_split() -> None:
    module = build(augment="none")
    train = read().train_images[module.train_indices].double() / 255
    torch.testing.assert_close(module.normalise.mean.double(), train.mean((0, 2, 3)), atol=1e-7, rtol=0)


def test_split_has_a_seed_of_its_own() -> None:
    assert torch.equal(build(seed=0).val_indices, build(seed=1).val_indices)
    assert not torch.equal(build(split_seed=0).val_indices, build(split_seed=1).val_indices)


def test_val_size_none_is_a_tenth() -> None:
    assert len(build(val_size=None).val_indices) == 3


def test_no_validation_loader_without_validation_pictures() -> None:
    module = build(val_size=0)
    assert module.val_dataloader() == []
    assert len(module.train_indices) == 30


def test_val_size_too_large() -> None:
    with pytest.raises(DataError, match="val_size 29 of 30"):
        build(val_size=29)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"val_size": -1}, {"padding": -1}])
def test_numbers_out_of_range(wrong: dict[str, int]) -> None:
    with pytest.raises(DataError, match=r"batch_size .* has to be >= 1"):
        ImageDataModule(read, **wrong)


def test_augments_training_pictures_only() -> None:
    module = build(augment="crop_flip")
    train = as_set(read().train_images[module.train_indices])
    assert not pixels(module, module.train_dataloader()) <= train
    val = module.val_dataloader()
    assert isinstance(val, TensorLoader)
    assert pixels(module, val) <= as_set(read().train_images)


def test_facts_about_the_data() -> None:
    module = build()
    assert module.image_shape == (2, 4, 4)
    assert module.num_classes == 3
    assert module.class_names == ("ant", "bee", "cat")
    assert torch.equal(module.example_input(), torch.zeros(1, 2, 4, 4))


def test_facts_before_setup_say_what_is_missing() -> None:
    with pytest.raises(RuntimeError, match="call setup"):
        _ = ImageDataModule(read).num_classes


def test_scoring_batches_are_balanced_normalised_and_from_the_training_split() -> None:
    module = build()
    batches = module.scoring_batches(samples_per_class=4, batch_size=5)
    assert [len(y) for _, y in batches] == [5, 5, 2]
    assert torch.bincount(torch.cat([y for _, y in batches])).tolist() == [4, 4, 4]
    assert all(x.dtype == torch.float32 and x.device.type == "cpu" for x, _ in batches)
    assert pixels(module, batches) <= as_set(read().train_images[module.train_indices])
    assert len(pixels(module, batches)) == 12


def test_scoring_batches_are_fixed_by_the_seed() -> None:
    module = build(seed=0)
    first = torch.cat([x for x, _ in module.scoring_batches(4)])
    list(module.train_dataloader())
    assert torch.equal(first, torch.cat([x for x, _ in module.scoring_batches(4)]))
    assert torch.equal(first, torch.cat([x for x, _ in build(seed=0).scoring_batches(4)]))
    assert not torch.equal(first, torch.cat([x for x, _ in build(seed=1).scoring_batches(4)]))


def test_scoring_batches_ask_for_no_more_than_there_is() -> None:
    with pytest.raises(DataError, match="samples_per_class is 9, but class 'ant' has 8"):
        build().scoring_batches(9)


def test_seed_none_is_the_seed_of_the_run() -> None:
    torch.manual_seed(7)
    inherited = build(seed=None)
    assert inherited.run_seed == 7
    torch.manual_seed(8)
    assert inherited.run_seed == 7
    first, _ = next(iter(inherited.train_dataloader()))
    assert torch.equal(first, next(iter(build(seed=7).train_dataloader()))[0])


def test_seed_0_is_a_seed() -> None:
    torch.manual_seed(7)
    assert build(seed=0).run_seed == 0


def test_shards_the_loaders_by_the_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    module = build(val_size=0, augment="none")
    whole = pixels(module, module.train_dataloader())
    shards = []
    for rank in (0, 1):
        monkeypatch.setattr(module_file, "process_rank", lambda rank=rank: (rank, 2))
        shards.append(pixels(module, module.train_dataloader()))
        assert len(module.test_dataloader()) == 2
    assert shards[0] | shards[1] == whole
    assert not shards[0] & shards[1]
    monkeypatch.setattr(module_file, "process_rank", lambda: (0, 3))
    with pytest.raises(DataError, match=r"batch_size 8 .* multiple of 3"):
        module.train_dataloader()


def test_only_a_module_that_takes_them_gets_batches_without_samples() -> None:
    device = SimpleNamespace(root_device=torch.device("cpu"))
    for attributes, allow_empty in (({}, False), ({"takes_empty_batches": True}, True)):
        module = build()
        trainer = SimpleNamespace(strategy=device, lightning_module=SimpleNamespace(**attributes))
        module.trainer = trainer  # type: ignore[assignment]
        assert module.train_dataloader().allow_empty == allow_empty
        assert not module.test_dataloader().allow_empty  # metrics need no equal number of batches
    module.trainer = None
    assert not module.train_dataloader().allow_empty


def test_ranks_that_were_split_before_they_met_get_one_seed() -> None:
    module = build(seed=None)
    module.trainer = SimpleNamespace(  # type: ignore[assignment]
        strategy=SimpleNamespace(root_device=torch.device("cpu"), broadcast=lambda _: 42)
    )
    module.setup("fit")
    assert module.run_seed == 42


def test_without_a_process_group_there_is_one_rank() -> None:
    assert module_file.process_rank() == (0, 1)


@pytest.mark.parametrize(("free", "expected"), [(199, False), (200, True)])
def test_fits_in_half_of_the_free_memory(monkeypatch: pytest.MonkeyPatch, free: int, expected: bool) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**9))
    assert module_file.fits(100, torch.device("cuda")) is expected


def test_can_be_copied_and_pickled() -> None:
    module = build()
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(next(iter(twin.train_dataloader()))[0], next(iter(module.train_dataloader()))[0])


class Linear(pl.LightningModule):
    """Softmax regression that remembers the labels it has seen."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer = torch.nn.Linear(32, 3)
        self.seen: list[tuple[int, list[int]]] = []

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        self.seen.append((self.current_epoch, y.tolist()))
        return F.cross_entropy(self.layer(x.flatten(1)), y)

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        self.log("val_loss", F.cross_entropy(self.layer(batch[0].flatten(1)), batch[1]))

    def test_step(self, batch: tuple[Tensor, Tensor]) -> None:
        self.log("test_loss", F.cross_entropy(self.layer(batch[0].flatten(1)), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def trainer(folder: Path, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        default_root_dir=folder,
        max_epochs=3,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


class SaveEverywhere(pl.Callback):
    """A checkpoint at every moment at which a run might save one.

    Not on_train_epoch_start: Lightning 2.6 resumes from there with the batch counts of the epoch before.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, trainer: pl.Trainer, moment: str) -> None:
        if not trainer.sanity_checking:
            trainer.save_checkpoint(self.folder / f"{trainer.global_step:02d}-{moment}.ckpt")

    def on_train_start(self, trainer: pl.Trainer, *_: object) -> None:
        self.save(trainer, "train-start")

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        self.save(trainer, "batch-end")

    def on_validation_end(self, trainer: pl.Trainer, *_: object) -> None:
        self.save(trainer, "validation-end")

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: object) -> None:
        self.save(trainer, "epoch-end")


@pytest.mark.parametrize("options", [{}, {"val_check_interval": 2}, {"limit_train_batches": 2}])
def test_resumed_anywhere_is_the_uninterrupted_run(tmp_path: Path, options: dict[str, int]) -> None:
    whole = Linear()
    trainer(tmp_path, callbacks=[SaveEverywhere(tmp_path)], **options).fit(whole, datamodule=build(10))
    checkpoints = sorted(tmp_path.glob("*.ckpt"))
    for checkpoint in checkpoints:
        resumed = Linear()
        trainer(tmp_path, **options).fit(resumed, datamodule=build(10), ckpt_path=checkpoint)
        num_steps = torch.load(checkpoint, weights_only=True)["global_step"]
        assert resumed.seen == whole.seen[num_steps:], checkpoint.name
        assert torch.equal(resumed.layer.weight, whole.layer.weight), checkpoint.name


def test_lightning_trains_without_validation_pictures(tmp_path: Path) -> None:
    model = Linear()
    trainer(tmp_path).fit(model, datamodule=build(val_size=0))
    assert len(model.seen) == 3 * 4
    assert [epoch for epoch, _ in model.seen] == [0] * 4 + [1] * 4 + [2] * 4


def test_lightning_evaluates_every_picture_once(tmp_path: Path) -> None:
    module, model, runner = build(batch_size=5), Linear(), trainer(tmp_path)
    results = [runner.validate(model, module, verbose=False), runner.test(model, module, verbose=False)]
    arrays = read()
    for result, images, labels in (
        (results[0], arrays.train_images[module.val_indices], arrays.train_labels[module.val_indices]),
        (results[1], arrays.test_images, arrays.test_labels),
    ):
        expected = F.cross_entropy(model.layer(module.normalise(images).flatten(1)), labels)
        assert next(iter(result[0].values())) == pytest.approx(expected.item(), rel=1e-5)


def test_overfit_batches_repeats_the_same_pictures(tmp_path: Path) -> None:
    model = Linear()
    trainer(tmp_path, overfit_batches=1).fit(model, datamodule=build())
    assert [seen for _, seen in model.seen] == [model.seen[0][1]] * 3


def test_what_another_module_has_read_can_be_shared() -> None:
    calls = []

    def counting(name: str) -> ImageArrays:
        calls.append(name)
        return read()

    def module(name: str = "a", **options: Any) -> ImageDataModule:
        return ImageDataModule(partial(counting, name), 8, **{"val_size": 6, "augment": "crop_flip", **options})

    first, second, alone = module(seed=1), module(seed=2), module(seed=2)
    first.setup()
    second.take_over(first)
    for each in (second, alone):
        each.setup()
    assert calls == ["a", "a"]
    assert second.arrays is first.arrays
    pairs = zip(second.train_dataloader(), alone.train_dataloader(), strict=True)
    assert all(torch.equal(ours, theirs) for one, other in pairs for ours, theirs in zip(one, other, strict=True))
    for other in (module("b"), module(val_size=5), module(split_seed=1)):
        with pytest.raises(DataError, match="read or split differently"):
            other.take_over(first)


def test_pictures_move_to_a_gpu_once(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[torch.device] = []

    def move(arrays: ImageArrays, device: torch.device) -> ImageArrays:
        moved.append(device)  # "meta" stands in for a GPU
        tensors = (arrays.train_images, arrays.train_labels, arrays.test_images, arrays.test_labels)
        return ImageArrays(*(tensor.to("meta") for tensor in tensors), arrays.class_names)

    monkeypatch.setattr(ImageArrays, "to", move)
    monkeypatch.setattr(module_file, "fits", lambda num_bytes, device: True)
    module = ImageDataModule(read, 8, 6, "crop_flip", 1, 0)
    gpu = SimpleNamespace(root_device=torch.device("cuda", 0), broadcast=lambda value: value)
    module.trainer = SimpleNamespace(strategy=gpu)  # type: ignore[assignment]
    module.setup("fit")
    gpu.root_device = torch.device("meta")
    for loader in (module.train_dataloader(), module.val_dataloader(), module.test_dataloader()):
        assert isinstance(loader, TensorLoader)
        assert loader.images is module.arrays.train_images or loader.images is module.arrays.test_images
        assert all(x.device.type == y.device.type == "meta" for x, y in loader)
    assert moved == [torch.device("cuda", 0)]


def test_reads_once_for_fit_and_test(tmp_path: Path) -> None:
    calls = []

    def counting() -> ImageArrays:
        calls.append(1)
        return read()

    module, model, runner = ImageDataModule(counting, 8, 6), Linear(), trainer(tmp_path)
    runner.fit(model, datamodule=module)
    runner.test(model, datamodule=module, verbose=False)
    assert len(calls) == 1
