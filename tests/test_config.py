"""What goes on top of what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prunelab.config import axes, check_config, check_grid, expand, find_config, overlay, read_config
from prunelab.names import CommandError

CRITERIA = "prunelab.pruning.criteria"
SYNFLOW_50 = {"class_path": f"{CRITERIA}.SynFlow", "init_args": {"rounds": 50}}


def test_short_names_expand_in_all_their_forms() -> None:
    snip = f"{CRITERIA}.Snip"
    forms: list[Any] = [
        "snip",
        {"name": "snip", "rounds": 5},
        {"class_path": "snip", "rounds": 5},
        {"class_path": snip, "init_args": {"rounds": 5}},
        {"class_path": "my.Mine", "init_args": {"name": "x"}},
        {"rounds": 5},
    ]
    assert [expand({"pruning": {"criterion": form}})["pruning"]["criterion"] for form in forms] == [
        {"class_path": snip, "init_args": {}},
        {"class_path": snip, "init_args": {"rounds": 5}},
        {"class_path": snip, "init_args": {"rounds": 5}},
        {"class_path": snip, "init_args": {"rounds": 5}},
        {"class_path": "my.Mine", "init_args": {"name": "x"}},
        {"init_args": {"rounds": 5}},
    ]
    assert expand({"model": {"lr_scheduler": None}}) == {"model": {"lr_scheduler": None}}


def test_overlay_joins_dicts_replaces_the_rest_and_leaves_its_arguments_alone() -> None:
    base = {"trainer": {"max_epochs": 3, "callbacks": ["A"]}, "model": {"compile": False}}
    layer = {"trainer": {"callbacks": ["B"]}, "model": None}
    assert overlay(base, layer) == {"trainer": {"max_epochs": 3, "callbacks": ["B"]}, "model": None}
    assert base == {"trainer": {"max_epochs": 3, "callbacks": ["A"]}, "model": {"compile": False}}


def test_plus_appends_and_a_key_of_a_list_means_its_last() -> None:
    base = overlay({"trainer": {"callbacks": ["A"]}}, {"trainer": {"callbacks+": "B"}})
    assert base == {"trainer": {"callbacks": ["A", "B"]}}
    assert overlay(base, {"trainer": {"callbacks": {"depth": 2}}}) == {
        "trainer": {"callbacks": ["A", {"class_path": "B", "init_args": {"depth": 2}}]}
    }
    assert overlay({}, {"trainer": {"callbacks+": ["A"]}}) == {"trainer": {"callbacks": ["A"]}}


@pytest.mark.parametrize("before", ["density", "sparsity", "compression_ratio"])
@pytest.mark.parametrize("after", ["density", "sparsity", "compression_ratio"])
def test_a_spelling_of_the_density_replaces_any_other(before: str, after: str) -> None:
    joined = overlay({"pruning": {before: 0.5, "scope": "global"}}, {"pruning": {after: 0.25, "density": 0.25}})
    assert joined["pruning"] == {"density": 0.25, after: 0.25, "scope": "global"}


SPELLINGS = ("density", "sparsity", "compression_ratio")


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_density_replaces_those_of_the_levels_but_not_their_number(spelling: str) -> None:
    base = {"pruning": {"scope": "global"}, "tickets": {"density_per_level": 0.8, "levels": 3, "rewind_step": 5}}
    joined = overlay(base, {"pruning": {spelling: 0.5}})
    assert joined["tickets"] == {"levels": 3, "rewind_step": 5}
    assert overlay({"tickets": {"densities": [0.5]}}, {"pruning": {spelling: 0.5}})["tickets"] == {}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_densities_of_the_levels_replace_every_other_way(spelling: str) -> None:
    base = {
        "pruning": {spelling: 0.5, "scope": "global"},
        "tickets": {"density_per_level": 0.8, "levels": 3, "layer_rates": {"fc": 0.5}},
    }
    joined = overlay(base, {"tickets": {"densities": [0.5, 0.2]}})
    assert joined == {
        "pruning": {"scope": "global"},
        "tickets": {"densities": [0.5, 0.2], "layer_rates": {"fc": 0.5}},
    }
    joined = overlay({**base, "tickets": {"densities": [0.5], "levels": 1}}, {"tickets": {"density_per_level": 0.8}})
    assert joined == {"pruning": {"scope": "global"}, "tickets": {"density_per_level": 0.8, "levels": 1}}


def test_masks_from_elsewhere_replace_all_that_finds_masks() -> None:
    base = {
        "pruning": {"criterion": SYNFLOW_50, "rounds": 9, "sparsity": 0.5, "scope": "global"},
        "tickets": {"density_per_level": 0.8, "levels": 3, "layer_rates": {"fc": 0.5}, "mask_1": "rewind"},
    }
    joined = overlay(base, {"pruning": {"masks_from": "runs/some"}})
    assert joined == {"pruning": {"scope": "global", "masks_from": "runs/some"}, "tickets": {"mask_1": "rewind"}}


def test_parts_of_one_place_do_not_drop_each_other() -> None:
    """Whatever order they are in."""
    base = {"pruning": {"density": 0.5}, "tickets": {"levels": 9}}
    parts = [{"tickets": {"levels": 2}}, {"tickets": {"densities": [0.5, 0.2]}}]
    for layers in (parts, parts[::-1]):
        assert overlay(base, *layers) == {"pruning": {}, "tickets": {"levels": 2, "densities": [0.5, 0.2]}}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"pruning": {"density": 0.5, "sparsity": 0.5}}, "pruning has density and sparsity: give one of them"),
        (
            {"pruning": {"density": 0.5}, "tickets": {"densities": [0.5]}},
            "pruning has density, tickets has densities: give one of them",
        ),
        (
            {"pruning": {"sparsity": 0.5}, "tickets": {"density_per_level": 0.8}},
            "pruning has sparsity, tickets has density_per_level: give one of them",
        ),
        (
            {"tickets": {"density_per_level": 0.8, "densities": [0.5]}},
            "tickets has densities and density_per_level: give one of them",
        ),
        (
            {"pruning": {"masks_from": "x"}, "tickets": {"densities": [0.5]}},
            "tickets has densities, pruning has masks_from: give one of them",
        ),
        (
            {"pruning": {"masks_from": "x", "compression_ratio": 2}},
            "pruning has compression_ratio and masks_from: give one of them",
        ),
        ({"tickets": {"levels": 3}}, "pruning needs one of density, sparsity, compression_ratio, such as "),
        ({"pruning": {"masks_from": None}, "tickets": None}, "(or tickets.densities, tickets.density_per_level, "),
    ],
)
def test_how_much_to_keep_is_said_once(config: dict[str, Any], message: str) -> None:
    with pytest.raises(CommandError) as refused:
        check_config(config)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    "config",
    [
        {"tickets": {"densities": [0.5]}, "pruning": {"density": None}},
        {"tickets": {"density_per_level": 0.8, "levels": 3}},
        {"pruning": {"masks_from": "runs/some"}, "tickets": None},
        {"pruning": {"density": 0.5}, "tickets": {"levels": 3, "densities": None}},
    ],
)
def test_every_way_to_say_it_is_enough(config: dict[str, Any]) -> None:
    check_config(config)


def test_no_spelling_leaves_the_density_alone() -> None:
    assert overlay({"pruning": {"sparsity": 0.5}}, {"pruning": {"density": None}})["pruning"]["sparsity"] == 0.5


def test_another_criterion_drops_knobs_and_rounds() -> None:
    base = {"pruning": {"criterion": SYNFLOW_50, "rounds": 9, "density": 0.1}}
    snip = {"class_path": f"{CRITERIA}.Snip", "init_args": {"signed": True}}
    assert overlay(base, {"pruning": {"criterion": snip}})["pruning"] == {"criterion": snip, "density": 0.1}
    kept = overlay(base, {"pruning": {"criterion": snip, "rounds": 2}})["pruning"]
    assert kept == {"criterion": snip, "rounds": 2, "density": 0.1}


def test_the_same_criterion_keeps_knobs_and_rounds() -> None:
    base = {"pruning": {"criterion": SYNFLOW_50, "rounds": 9}}
    again = {"class_path": f"{CRITERIA}.SynFlow", "init_args": {"input": "mean_abs"}}
    joined = overlay(base, {"pruning": {"criterion": again}})["pruning"]
    assert joined["criterion"]["init_args"] == {"rounds": 50, "input": "mean_abs"}
    assert joined["rounds"] == 9


def test_another_network_keeps_the_shape_of_the_data_for_those_who_take_it() -> None:
    base = {"model": {"net": {"class_path": "a.A", "init_args": {"num_classes": 200, "image_size": 64, "width": 2}}}}
    layer = {"model": {"net": {"class_path": "b.B", "init_args": {"depth": 3}}}}
    expected = {"class_path": "b.B", "init_args": {"depth": 3}, "former": {"num_classes": 200, "image_size": 64}}
    assert overlay(base, layer)["model"]["net"] == expected
    third = overlay(overlay(base, layer), {"model": {"net": {"class_path": "c.C", "init_args": {}}}})["model"]["net"]
    assert third == {"class_path": "c.C", "init_args": {}, "former": {"num_classes": 200, "image_size": 64}}


def test_check_config_accepts_the_ends_of_the_ranges() -> None:
    for pruning in ({"density": 1}, {"density": "1e-3"}, {"sparsity": 0}, {"compression_ratio": "1"}):
        check_config({"pruning": pruning, "seed_everything": "0"})


def test_find_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config("quickstart") == find_config("quickstart.yaml")
    Path("quickstart.yaml").write_text("{}")
    assert find_config("quickstart.yaml") == Path("quickstart.yaml")  # what is here comes before configs/
    with pytest.raises(CommandError, match=r"no config 'qickstart.yaml' .* did you mean quickstart.yaml\?"):
        find_config("qickstart.yaml")


def test_read_config(tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    path.write_text("# only a comment\n")
    assert read_config(path) == {}
    path.write_text("pruning: {criterion: {name: synflow, rounds: 50}}\n")
    assert read_config(path) == {"pruning": {"criterion": SYNFLOW_50}}


LR = "model.optimizer.lr"


@pytest.mark.parametrize(
    ("before", "layer", "after"),
    [
        ({LR: [1, 2], "control": [None]}, {"grid": {LR: [3]}}, {LR: [3], "control": [None]}),
        ({LR: [1, 2], "control": [None]}, {"grid": {LR: None}}, {"control": [None]}),
        ({LR: [1, 2]}, {"grid": None}, {}),
        ({LR: [1, 2]}, {"grid": {f"{LR}+": [3]}}, {LR: [1, 2, 3]}),
        # a value for its key
        ({LR: [1, 2]}, {"model": {"optimizer": {"init_args": {"lr": 3}}}}, {}),
        ({"model.optimizer.init_args.lr": [1]}, {"model": {"optimizer": {"init_args": {"lr": 3}}}}, {}),
        ({"control": [None, "reinit"]}, {"control": None}, {}),
        ({"tickets.layer_rates": [None]}, {"tickets": {"layer_rates": {"fc": 1}}}, {}),
        ({LR: [1]}, {"model": {"optimizer": {"init_args": {"lr": 3}}}, "grid": {LR: [4]}}, {LR: [4]}),
        # no value for its key: another class, another knob
        ({LR: [1]}, {"model": {"optimizer": {"class_path": "torch.optim.Adam", "init_args": {}}}}, {LR: [1]}),
        ({"pruning.criterion": ["snip"]}, {"pruning": {"criterion": {"init_args": {"rounds": 3}}}}, "same"),
        ({"pruning.criterion": ["snip"]}, {"pruning": {"criterion": SYNFLOW_50}}, {}),
        # another way to say how much is kept
        ({"pruning.density": [0.5], LR: [1]}, {"pruning": {"sparsity": 0.25}}, {LR: [1]}),
        ({"pruning.density": [0.5]}, {"tickets": {"densities": [0.5]}}, {}),
        ({"pruning.density": [0.5]}, {"grid": {"pruning.sparsity": [0.2]}}, {"pruning.sparsity": [0.2]}),
        ({"tickets.densities": [[0.5]]}, {"pruning": {"density": 0.5}}, {}),
        ({"pruning.criterion": ["snip"], "pruning.criterion.rounds": [1]}, {"pruning": {"masks_from": "x"}}, {}),
    ],
)
def test_what_becomes_of_a_grid(before: dict[str, Any], layer: dict[str, Any], after: Any) -> None:
    assert axes(overlay({"grid": before}, layer)) == (before if after == "same" else after)


def test_an_axis_may_be_replaced_twice() -> None:
    assert axes(overlay({"grid": {"control": [None]}}, {"control": "random"}, {"control": "reinit"})) == {}


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([1], "grid: expected keys with lists of values, such as seed_everything: [0, 1], got [1]"),
        ({LR: []}, "grid: model.optimizer.lr: expected a list of values, such as [0, 1], got []"),
        ({LR: 0.1}, "grid: model.optimizer.lr: expected a list of values, such as [0, 1], got 0.1"),
        ({"seed": [0]}, "grid: seed cannot vary; what can: control, data, seed_everything and all dotted keys"),
        ({"contrl": [0]}, "grid: contrl cannot vary, did you mean control? what can: "),
        ({"output_dir": ["a"]}, "grid: output_dir cannot vary; what can: "),
    ],
)
def test_a_grid_varies_keys_of_runs(grid: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(CommandError) as refused:
        check_grid({"grid": grid})
    assert message in str(refused.value)
    path = tmp_path / "some.yaml"
    path.write_text(f"grid: {grid}\n")
    with pytest.raises(CommandError, match=f"^{path}: grid: "):
        read_config(path)
