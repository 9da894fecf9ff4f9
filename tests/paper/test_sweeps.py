"""The sweeps of figures 1 and 6 are what the paper ran; those of figure 5a end at one compression."""

from __future__ import annotations

import pytest

from prunelab.cli import build_parser, resolve
from prunelab.command_line import read_command
from prunelab.experiment.levels import Tickets
from prunelab.sweep.file import find_sweep, read_sweep

CRITERIA = {"random", "magnitude", "snip", "grasp", "synflow"}
# network -> (learning rate, weight decay, factor) on CIFAR; on Tiny ImageNet .01, 1e-4, .2 for all
CIFAR = {"vgg11_bn": (0.1, 1e-4, 0.1), "vgg16_bn": (0.1, 1e-4, 0.1)}
CIFAR |= dict.fromkeys(("resnet18_64", "wrn18_64"), (0.01, 5e-4, 0.2))


@pytest.mark.parametrize(
    ("name", "exponents", "num_cells"),
    [
        ("synflow_figure6", [place / 4 for place in range(13)], 2196),
        ("synflow_figure1", [place / 2 for place in range(13)], 183),
    ],
)
def test_grid(name, exponents, num_cells):
    sweep = read_sweep(find_sweep(name))
    num_pairs = 12 if name == "synflow_figure6" else 1
    assert len(sweep.cells) == num_cells == num_pairs * (5 * 12 + 1) * 3
    assert sorted({cell.values["compression_exponent"] for cell in sweep.cells}) == exponents
    assert {cell.values["criterion"] for cell in sweep.cells} == CRITERIA
    assert {cell.values["seed_everything"] for cell in sweep.cells} == {0, 1, 2}
    told = {cell.words[cell.words.index("--pruning.on_collapse") + 1] for cell in sweep.cells}
    assert told == {"train"}, "a network without any path is a point of the curve too, at chance"


def test_settings_of_figure_6():
    parser = build_parser()
    cells = read_sweep(find_sweep("synflow_figure6")).cells
    by_pair = {cell.values["pair"]: cell for cell in cells if cell.values["criterion"] == "grasp"}
    found = set()
    for cell in by_pair.values():
        config = resolve(parser, read_command([*cell.words]).config)
        net, data = (path.rpartition(".")[2] for path in (config.model.net.class_path, config.data.class_path))
        found.add((net, data))
        tiny = data == "tiny_imagenet"
        rate, decay, factor = (0.01, 1e-4, 0.2) if tiny else CIFAR[net]
        optimizer, schedule = config.model.optimizer.init_args, config.model.lr_scheduler.init_args
        assert (optimizer.lr, optimizer.weight_decay, schedule.gamma) == (rate, decay, factor)
        assert (optimizer.momentum, optimizer.nesterov) == (0.9, True)
        assert schedule.milestones == ([30, 60, 80] if tiny else [60, 120])
        assert config.trainer.max_epochs == (100 if tiny else 160)
        shape = config.model.net.init_args
        num_classes = {"cifar10": 10, "cifar100": 100, "tiny_imagenet": 200}[data]
        assert (shape.num_classes, shape.image_size) == (num_classes, 64 if tiny else 32)
        assert (config.data.init_args.batch_size, config.data.init_args.val_size) == (128, 0)
        assert config.pruning.criterion.init_args.batch_norm == "running"
        assert config.pruning.on_collapse == "train"
    assert found == {(net, data) for net in CIFAR for data in ("cifar10", "cifar100", "tiny_imagenet")}


@pytest.mark.parametrize(
    ("name", "largest", "num_levels", "num_trainings"),
    [("synflow_figure5a", 3, {12, 6, 3, 1}, 90), ("synflow_figure5a_quick", 2.5, {10, 5, 2, 1}, 102)],
)
def test_cycles_of_figure_5a_end_at_one_compression(name, largest, num_levels, num_trainings):
    parser = build_parser()
    found, trainings = {}, 0
    for cell in read_sweep(find_sweep(name)).cells:
        config = resolve(parser, read_command([*cell.words]).config)
        tickets = Tickets(levels=config.tickets.levels, density_per_level=config.tickets.density_per_level)
        ratio = config.pruning.compression_ratio
        densities = tickets.pruned_densities(None if ratio is None else 1 / ratio)
        found[tickets.levels] = min(densities[-1], found.get(tickets.levels, 1))
        trainings += 1 + len(densities)
    assert set(found) == num_levels
    assert list(found.values()) == pytest.approx([10**-largest] * len(found))
    assert trainings == num_trainings
