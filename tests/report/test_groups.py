from __future__ import annotations

import pytest

from prunelab.report.groups import groups
from prunelab.report.tidy import FinishedCell, Results

AXES = ("pruning.criterion", "pruning.density", "seed_everything")


def test_runs_that_differ_in_the_seed_are_one_group(make_cell):
    cells = [make_cell("snip", 0.1, seed, accuracy) for seed, accuracy in enumerate((0.81, 0.84, 0.87))]
    cells += [make_cell("synflow", 0.1, 0, 0.5), make_cell("snip", 0.01, 0, 0.25)]
    found = groups(Results.of(cells, AXES))
    assert [(group.method, group.density, group.of, len(group.rows)) for group in found] == [
        ("snip", 0.1, 3, 3),
        ("synflow", 0.1, 1, 1),
        ("snip", 0.01, 1, 1),
    ]
    spread = found[0].spread("test_accuracy")  # squared distances .03² + 0 + .03², divided by 2
    assert (spread.mean, spread.std, spread.n) == (pytest.approx(0.84), pytest.approx(0.03), 3)
    assert found[1].spread("test_accuracy").std is None
    assert found[0].spread("test_accuracy", seed=2).mean == 0.87
    assert found[0].compression == pytest.approx(10)
    assert found[0].effective_compression == pytest.approx(20)


def test_a_group_says_how_many_runs_there_should_be(make_cell):
    absent = [FinishedCell(f"x{seed}", make_cell("snip", 0.1, seed, 0.5).values, []) for seed in (1, 2)]
    (group,) = groups(Results.of([make_cell("snip", 0.1, 0, 0.5), *absent], AXES))
    assert (group.of, len(group.rows), group.spread("test_accuracy").n) == (3, 1, 1)


@pytest.mark.parametrize(
    ("axis", "value", "density"),
    [
        ("pruning.density", 0.05, 0.05),
        ("pruning.sparsity", 0.75, 0.25),
        ("pruning.compression_ratio", 20, 0.05),
        ("compression_exponent", 2, 0.01),
    ],
)
def test_the_density_of_a_run_without_record_is_known_from_its_axis(axis, value, density):
    (group,) = groups(Results.of([FinishedCell("x", {"pruning.criterion": "snip", axis: value}, [])], (AXES[0], axis)))
    assert group.density == pytest.approx(density)
    assert group.compression == pytest.approx(1 / density)
    assert (group.method, group.level, group.rows, group.spread("test_accuracy")) == ("snip", None, [], None)


def test_what_was_not_measured_does_not_count(make_cell):
    cells = [make_cell("snip", 0.1, 0, 0.5), make_cell("snip", 0.1, 1, None)]
    (group,) = groups(Results.of(cells, AXES))
    assert (len(group.rows), group.spread("test_accuracy").n) == (2, 1)


def test_every_level_is_a_group(make_cell):
    one = make_cell("magnitude", 1, 0, 0.75, num_levels=2)
    two = make_cell("magnitude", 0.5, 0, 0.5, num_levels=2, level=1)
    unfinished = FinishedCell("x", one.values | {"seed_everything": 1}, one.records)
    found = groups(Results.of([FinishedCell(one.run_dir, one.values, one.records + two.records), unfinished], AXES))
    assert [(group.level, group.density, group.of, len(group.rows)) for group in found] == [
        (0, 1, 2, 2),
        (1, 0.5, 2, 1),
    ]


def test_settings_are_what_is_trained_and_methods_how_it_is_pruned(make_cell):
    axes = ("pair", "model.optimizer.lr", "pruning.rounds", "control", *AXES)
    varied = {"pair": "vgg", "model.optimizer.lr": 0.1, "pruning.rounds": 100, "control": None}
    others = varied | {"pair": "resnet", "pruning.rounds": None, "control": "reinit"}
    found = groups(Results.of([make_cell("synflow", 0.1, 0, 0.5, axes=v) for v in (varied, others)], axes))
    assert [(group.setting, group.method) for group in found] == [
        ("vgg, lr 0.1", "synflow, rounds 100"),
        ("resnet, lr 0.1", "synflow, reinit"),
    ]


@pytest.mark.parametrize("axis", ["criterion", "method"])
def test_an_axis_may_name_methods(make_cell, axis):
    cells = [make_cell("snip", 0.1, 0, 0.5, axes={axis: name}) for name in ("snip_batch", "snip_running")]
    found = groups(Results.of(cells, (axis, "pruning.density")))
    assert [(group.setting, group.method) for group in found] == [("", "snip_batch"), ("", "snip_running")]


def test_configs_that_choose_the_criterion_are_methods_and_others_settings(make_cell):
    def read(*pairs: tuple[str, str]) -> list[tuple[str, str]]:
        cells = [make_cell(pair[0], 0.1, seed, 0.5, axes={"config": pair[1]}) for seed, pair in enumerate(pairs)]
        return [(group.setting, group.method) for group in groups(Results.of(cells, ("config", "pruning.density")))]

    assert read(("snip", "snip_vgg"), ("grasp", "mine")) == [("", "snip, snip_vgg"), ("", "grasp, mine")]
    assert read(("snip", "vgg"), ("grasp", "vgg")) == [("vgg", "snip")]
    assert read(("snip", "a"), ("snip", "b")) == [("a", "snip"), ("b", "snip")]


def test_two_runs_of_one_seed_are_no_repeats(make_cell):
    cells = [make_cell("snip", 0.1, 0, accuracy, axes={"lr": lr}) for accuracy, lr in ((0.5, 0.1), (0.75, 0.01))]
    assert len(groups(Results.of(cells, ("lr", *AXES)))) == 2
    with pytest.raises(
        ValueError, match=r"snip-0.1-0-0.1 and snip-0.1-0-0.01 have seed 0 and do not differ in pruning"
    ):
        groups(Results.of(cells, AXES))
