"""A ticket found in one run, trained in another: on other data, with another optimizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback

from prunelab.data import ImageArrays, ImageDataModule
from prunelab.experiment.errors import RunError
from prunelab.experiment.run_dir import LevelDir
from prunelab.experiment.tickets import find_masks, find_weights
from prunelab.pruning import Masks, PruningError
from prunelab.training.resume import read_checkpoint

TICKET: dict[str, Any] = {
    "pruning.criterion": {"class_path": "prunelab.pruning.criteria.Magnitude", "init_args": {}},
    "pruning.density": None,
    "model.net": {"class_path": "noisy", "init_args": {}},
    "tickets.levels": 2,
    "tickets.density_per_level": 0.5,
    "tickets.rewind_step": "4it",
    "trainer.max_epochs": 2,
}
PERCEPTRON = {"num_classes": 3, "in_channels": 1, "image_size": 6, "depth": 2, "width": 8}
FLAT = {"model.net": {"class_path": "prunelab.models.mlp", "init_args": PERCEPTRON}}
ADAM = {"class_path": "torch.optim.Adam", "init_args": {"lr": 1e-3}}


def transfer_from(source: Path | str, **changes: Any) -> dict[str, Any]:
    """Changes of CONFIG for a run that takes masks and weights from elsewhere."""
    return {
        "model.net": TICKET["model.net"],
        "pruning.criterion": None,
        "pruning.density": None,
        "pruning.masks_from": str(source),
        "pruning.weights_from": str(source),
        "trainer.max_epochs": 2,
    } | changes


def record_of(level: LevelDir) -> dict[str, Any]:
    return json.loads(level.record.read_text())


def network_in(path: Path) -> dict[str, torch.Tensor]:
    content = read_checkpoint(path)
    assert content is not None
    return {name.removeprefix("net."): value for name, value in content["state_dict"].items()}


def ticket_of(level: LevelDir) -> dict[str, torch.Tensor]:
    return torch.load(level.ticket, weights_only=True)


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Also the signs of zeros."""
    return one.dtype == other.dtype and one.numpy().tobytes() == other.numpy().tobytes()


def five_classes(batch_size: int = 16, val_size: int = 24) -> ImageDataModule:
    def read() -> ImageArrays:
        generator = torch.Generator().manual_seed(5)
        labels = torch.arange(150) % 5
        images = torch.randint(200, (150, 1, 6, 6), generator=generator) + 11 * labels[:, None, None, None]
        pictures = images.to(torch.uint8)
        return ImageArrays(pictures[:120], labels[:120], pictures[120:], labels[120:], tuple("abcde"))

    return ImageDataModule(read, batch_size, val_size, augment="crop_flip", padding=1)


@pytest.fixture
def other_data(experiment: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Changes of CONFIG for a run on five classes."""
    monkeypatch.setitem(type(experiment).__call__.__globals__, "random_pictures", five_classes)
    net = {"class_path": "prunelab.models.mlp", "init_args": PERCEPTRON | {"num_classes": 5}}
    return {"model.net": net, "data.class_path": "five_classes"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("source") / "runs"


@pytest.fixture
def source(experiment: Any, finished: Path) -> list[LevelDir]:
    """A dense level and two pruned ones, with batch norm and dropout; trained once, and copied for every test."""
    if not finished.exists():
        experiment(**TICKET)
        shutil.copytree(experiment.directory, finished)
    shutil.copytree(finished, experiment.directory, dirs_exist_ok=True)
    return [experiment.level(index, **TICKET) for index in range(3)]


class Interrupted(Exception):
    pass


class InterruptAtStep(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise Interrupted


def test_a_ticket_with_another_optimizer_starts_from_the_sources_rewind_point(
    experiment: Any, source: list[LevelDir]
) -> None:
    (level,) = experiment.levels(**transfer_from(source[0].path.parent, **{"model.optimizer": ADAM}))
    masks = Masks.load(source[2].masks)
    assert Masks.load(level.masks) == masks
    rewound = network_in(source[0].rewind_checkpoint)
    assert {"1.running_mean", "1.num_batches_tracked"} < rewound.keys() == ticket_of(level).keys()
    for name, value in ticket_of(level).items():
        expected = torch.where(masks[name], rewound[name], 0.0) if name in masks else rewound[name]
        assert same_bits(value, expected), name
    record = record_of(level)
    assert record["masks_from"] == masks.digest() == record["masks_digest"] == record_of(source[2])["masks_digest"]
    assert record["density"] == record["density_requested"] == masks.density
    assert (record["criterion"], record["num_levels"], record["rewind"]) == ("masks_from", 1, None)
    assert record["leaked_weights"] == 0
    assert record["steps"] == 12  # a whole training, not what is left after the rewind point
    trained = network_in(level.last_checkpoint)
    assert all(bool((trained[name][~mask] == 0).all()) for name, mask in masks.items())
    assert not torch.equal(trained["5.weight"], network_in(source[2].last_checkpoint)["5.weight"])


def test_other_classes_get_a_new_head_as_drawn_and_dense(
    experiment: Any, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    source = experiment.levels(**(TICKET | FLAT | {"tickets.levels": 1}))
    other_data = request.getfixturevalue("other_data")  # only now: the source has three classes
    config = transfer_from(source[0].path.parent, **other_data)
    capsys.readouterr()
    (level,) = experiment.levels(**config)
    assert capsys.readouterr().out.count("weights_from: classifier has another number of outputs") == 1
    found, masks = Masks.load(level.masks), Masks.load(source[1].masks)
    hidden, head = "fc1.weight", "classifier.weight"
    assert torch.equal(found[hidden], masks[hidden])
    assert found[head].shape == (5, 8)
    assert bool(found[head].all())
    start, rewound = ticket_of(level), network_in(source[0].rewind_checkpoint)
    assert same_bits(start[hidden], torch.where(masks[hidden], rewound[hidden], 0.0))
    assert same_bits(start["fc1.bias"], rewound["fc1.bias"])
    # what a run draws that takes its weights from nowhere
    (drawn,) = experiment.levels(**(config | {"pruning.weights_from": None}))
    assert same_bits(start[head], ticket_of(drawn)[head])
    assert same_bits(start["classifier.bias"], ticket_of(drawn)["classifier.bias"])
    assert not torch.equal(start[hidden], ticket_of(drawn)[hidden])
    record = record_of(level)
    kept = masks.layer_num_kept()[hidden] + 5 * 8
    assert (record["num_kept"], record["num_prunable"]) == (kept, 36 * 8 + 5 * 8)
    assert record["density"] == record["density_requested"] == kept / (36 * 8 + 5 * 8)
    assert record["layer_densities"][head] == 1
    assert record["masks_from"] == masks.digest() != record["masks_digest"]


def test_masks_and_weights_may_come_from_one_level(experiment: Any, source: list[LevelDir]) -> None:
    (level,) = experiment.levels(**transfer_from(source[1].path))
    assert level.masks.read_bytes() == source[1].masks.read_bytes()
    assert all(same_bits(value, ticket_of(source[1])[name]) for name, value in ticket_of(level).items())


def test_what_a_directory_means(source: list[LevelDir]) -> None:
    run_dir = source[0].path.parent
    assert find_masks(str(run_dir)) == source[2].masks
    assert find_weights(str(run_dir)) == source[0].rewind_checkpoint
    assert find_weights(str(source[1].path)) == source[1].ticket
    for path in (source[1].last_checkpoint, run_dir / "nowhere.pt"):  # whether it is there says who reads it
        assert find_weights(str(path)) == path


def test_a_network_of_another_shape_is_refused_by_name(experiment: Any, source: list[LevelDir]) -> None:
    run_dir = source[0].path.parent
    with pytest.raises(
        PruningError, match=r"weights_from: .* fit the network: fc1\.weight \(missing\), .* and 10 more"
    ):
        experiment(**transfer_from(run_dir, **FLAT))
    with pytest.raises(PruningError, match=r"masks_from: .* fit the network: fc1\.weight \(missing\), "):
        experiment(**transfer_from(run_dir, **FLAT, **{"pruning.weights_from": None}))
    # a hidden layer of another width is no head
    flat = experiment(**FLAT).path.parent
    wide = {"model.net": {"class_path": "prunelab.models.mlp", "init_args": PERCEPTRON | {"width": 9}}}
    named = r"fc1\.weight \(8x36 instead of 9x36\), classifier\.weight \(3x8 instead of 3x9\)$"
    with pytest.raises(PruningError, match=rf"^masks_from: the masks do not fit the network: {named}"):
        experiment(**transfer_from(flat, **wide, **{"pruning.weights_from": None}))
    assert len(list(run_dir.parent.iterdir())) == 2  # the two sources: what was refused left nothing


def test_what_has_no_masks_or_no_weights_is_refused(experiment: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=r"masks_from: .*empty is no file of masks and no run"):
        experiment(**transfer_from(tmp_path / "empty", **{"pruning.weights_from": None}))
    with pytest.raises(RunError, match=r"weights_from: .*empty has no rewind point and no ticket"):
        experiment(**transfer_from(tmp_path / "empty"))
    (tmp_path / "noise.pt").write_bytes(b"no masks")
    with pytest.raises(PruningError, match=r"noise\.pt holds no masks or is damaged"):
        experiment(**transfer_from(tmp_path / "noise.pt", **{"pruning.weights_from": None}))
    with pytest.raises(RunError, match="brings one mask: there are no levels"):
        experiment(**transfer_from(tmp_path / "noise.pt", **{"tickets.levels": 2}))
    assert not list(experiment.directory.iterdir())


def test_an_unfinished_run_has_no_ticket(experiment: Any) -> None:
    experiment.callbacks = [InterruptAtStep(8)]
    with pytest.raises(Interrupted):
        experiment(**TICKET)
    experiment.callbacks = []
    unfinished = experiment.level(**TICKET).path.parent
    with pytest.raises(RunError, match="is not finished; one of its level directories may be given"):
        experiment(**transfer_from(unfinished))


def test_a_resumed_run_keeps_its_masks_when_their_file_changes(
    experiment: Any, source: list[LevelDir], tmp_path: Path
) -> None:
    path, original = tmp_path / "found.pt", Masks.load(source[2].masks)
    config = transfer_from(path, **{"pruning.weights_from": str(tmp_path / "weights.ckpt")})
    shutil.copy(source[2].masks, path)
    shutil.copy(source[0].rewind_checkpoint, tmp_path / "weights.ckpt")
    (whole,) = experiment.levels(**config)
    trained, ticket = network_in(whole.last_checkpoint), whole.ticket.read_bytes()
    shutil.rmtree(whole.path.parent)

    experiment.callbacks = [InterruptAtStep(8)]
    with pytest.raises(Interrupted):
        experiment(**config)
    experiment.callbacks = []
    shutil.copy(source[1].masks, path)
    (tmp_path / "weights.ckpt").unlink()
    level = experiment(**config)
    record = record_of(level)
    assert record["masks_from"] == record["masks_digest"] == original.digest()
    assert Masks.load(level.masks) == original
    assert level.ticket.read_bytes() == ticket
    assert all(same_bits(value, trained[name]) for name, value in network_in(level.last_checkpoint).items())


def test_a_resumed_run_needs_its_sources_no_more(experiment: Any, source: list[LevelDir], tmp_path: Path) -> None:
    copy = shutil.copytree(source[0].path.parent, tmp_path / "copy")
    experiment.callbacks = [InterruptAtStep(8)]
    with pytest.raises(Interrupted):
        experiment(**transfer_from(copy))
    experiment.callbacks = []
    shutil.rmtree(copy)
    level = experiment(**transfer_from(copy))
    assert record_of(level)["masks_from"] == Masks.load(source[2].masks).digest()
    assert record_of(level)["steps"] == 12


def test_a_control_that_draws_new_weights_takes_none_from_a_file(experiment: Any, source: list[LevelDir]) -> None:
    changes = TICKET | {"pruning.weights_from": str(source[0].path), "tickets.rewind_step": 0, "tickets.levels": 1}
    ticket = experiment.levels(**changes)
    control = experiment.levels(**changes, control="reinit")
    given = ticket_of(source[0])["5.weight"]
    assert same_bits(ticket_of(ticket[0])["5.weight"], given)
    masks, drawn = Masks.load(control[0].masks), ticket_of(control[0])["5.weight"]
    assert masks == Masks.load(ticket[1].masks)
    kept = masks["5.weight"]
    assert not bool((drawn[kept] == given[kept]).any())
