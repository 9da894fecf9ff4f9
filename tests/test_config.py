"""What goes on top of what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prunelab.config import check_config, expand, find_config, overlay, read_config
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
