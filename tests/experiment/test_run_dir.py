from __future__ import annotations

import os
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from prunelab.experiment.errors import RunError
from prunelab.experiment.run_dir import RunDir, differing_keys, write_atomically


@pytest.fixture
def config(experiment: Any) -> dict[str, Any]:
    return experiment.config()


def name_of(config: dict[str, Any], name: str = "tiny") -> str:
    return RunDir.of("runs", name, config).path.name


def test_the_name_is_made_of_values(config: dict[str, Any]) -> None:
    name, digest = name_of(config).rsplit("-", 1)
    assert name == "tiny-snip-d0.1-s0"
    assert len(digest) == 8
    assert set(digest) <= set("0123456789abcdef")
    assert name_of(config) == name_of(deepcopy(config))
    assert RunDir.of("some/where", "tiny", config).path.parent == Path("some/where")


def test_the_order_of_keys_does_not_matter(config: dict[str, Any]) -> None:
    turned = {key: dict(reversed(value.items())) if isinstance(value, dict) else value for key, value in config.items()}
    assert name_of(dict(reversed(turned.items()))) == name_of(config)


@pytest.mark.parametrize(
    "path",
    [
        *("trainer.devices", "trainer.accelerator", "trainer.strategy", "trainer.num_nodes", "trainer.max_epochs"),
        *("trainer.max_time", "trainer.enable_progress_bar", "trainer.logger", "trainer.default_root_dir"),
        *("data.init_args.data_dir", "data.init_args.num_workers", "data.init_args.download", "data.init_args.device"),
        *("pruning.on_collapse", "output_dir", "ckpt_path"),
    ],
)
def test_what_does_not_change_the_result_does_not_change_the_name(path: str, experiment: Any) -> None:
    assert name_of(experiment.config(**{path: "other"})) == name_of(experiment.config())
    assert differing_keys(experiment.config(), experiment.config(**{path: "other"})) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seed_everything", 1),
        ("pruning.density", 0.2),
        ("pruning.scope", "layerwise"),
        ("pruning.criterion.init_args.rounds", 2),
        ("model.net.init_args.width", 9),
        ("model.optimizer.init_args.lr", 0.2),
        ("data.init_args.batch_size", 8),
        ("data.init_args.val_size", 30),
        ("data.init_args.root", "other/pictures"),  # of an image folder: other pictures
        ("trainer.precision", "bf16-mixed"),
        ("trainer.gradient_clip_val", 1.0),
        ("trainer.accumulate_grad_batches", 4),
        ("trainer.max_steps", 10),
        ("trainer.callbacks", [{"class_path": "EMAWeightAveraging"}]),
    ],
)
def test_what_changes_the_result_changes_the_name_and_is_named(path: str, value: Any, experiment: Any) -> None:
    changed = experiment.config(**{path: value})
    assert name_of(changed) != name_of(experiment.config())
    assert differing_keys(experiment.config(), changed) == [path]


def test_three_spellings_of_a_density_are_one_run(experiment: Any) -> None:
    spellings = [
        {"pruning.density": 0.05},
        {"pruning.density": None, "pruning.sparsity": 0.95},
        {"pruning.density": None, "pruning.compression_ratio": 20},
        {"pruning.density": None, "pruning.compression_ratio": 20.0},
    ]
    configs = [experiment.config(**spelling) for spelling in spellings]
    assert len({name_of(config) for config in configs}) == 1
    assert name_of(configs[0]).startswith("tiny-snip-d0.05-s0-")
    assert differing_keys(configs[0], configs[1]) == differing_keys(configs[1], configs[2]) == []
    assert differing_keys(configs[0], experiment.config()) == ["pruning.density"]


def test_another_criterion_by_import_path_gives_its_last_part(experiment: Any) -> None:
    config = experiment.config(**{"pruning.criterion.class_path": "mine.criteria.Best"})
    assert name_of(config).startswith("tiny-Best-d0.1-s0-")


def test_the_directory_and_what_will_be_run_are_written_first(config: dict[str, Any], tmp_path: Path) -> None:
    run_dir = RunDir.of(str(tmp_path), "tiny", config)
    run_dir.create(config, {"torch": "2.15.0"})
    assert yaml.safe_load(run_dir.config.read_text()) == run_dir.read_config() == config
    assert yaml.safe_load(run_dir.versions.read_text()) == {"torch": "2.15.0"}
    assert sorted(path.name for path in run_dir.path.iterdir()) == ["config.yaml", "level_00", "versions.yaml"]

    run_dir.create(config | {"output_dir": "else"}, {"torch": "2.16.0"})  # again: the first ones stay
    assert run_dir.read_config() == config
    assert yaml.safe_load(run_dir.versions.read_text()) == {"torch": "2.15.0"}


def test_a_directory_of_another_configuration_is_refused(config: dict[str, Any], tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "run")
    run_dir.create(config, {})
    changed = deepcopy(config)
    changed["model"]["optimizer"]["init_args"]["lr"] = 0.5
    with pytest.raises(RunError, match=r"another configuration, they differ in model\.optimizer\.init_args\.lr"):
        run_dir.create(changed, {})
    assert run_dir.read_config() == config


@pytest.mark.parametrize("content", ["a: [1", "just text", "", "\udce4".encode("utf-8", "surrogateescape")])
def test_a_damaged_config_is_named(content: str | bytes, config: dict[str, Any], tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "run")
    run_dir.create(config, {})
    run_dir.config.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RunError, match=r"config\.yaml is damaged") as caught:
        run_dir.create(config, {})
    assert "\n" not in str(caught.value)


def test_what_is_no_run_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is no run directory: it has no config\.yaml"):
        RunDir(tmp_path).read_config()


@pytest.mark.parametrize("blocked", ["output_dir", "run directory", "level"])
def test_a_file_in_the_place_of_a_directory(blocked: str, config: dict[str, Any], tmp_path: Path) -> None:
    run_dir = RunDir.of(str(tmp_path / "runs"), "tiny", config)
    place = {"output_dir": tmp_path / "runs", "run directory": run_dir.path, "level": run_dir.level(0).path}[blocked]
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("in the way")
    with pytest.raises(RunError, match="cannot be written"):
        run_dir.create(config, {})
    assert place.read_text() == "in the way"


def test_no_permission(config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(RunError, match="cannot be written: no permission"):
        RunDir(tmp_path / "run").create(config, {})


class Killed(BaseException):
    pass


@pytest.mark.parametrize("call", ["os.fsync", "pathlib.Path.replace"])
def test_a_crash_while_writing_leaves_the_old_file(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: Any) -> None:
        raise Killed

    path = tmp_path / "record.json"
    write_atomically(path, "old")
    monkeypatch.setattr(call, die)
    with pytest.raises(Killed):
        write_atomically(path, "new" * 10_000)
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["record.json"]
    monkeypatch.undo()
    write_atomically(path, "new")
    assert path.read_text() == "new"


def test_files_have_the_names_that_others_rely_on(tmp_path: Path) -> None:
    level = RunDir(tmp_path).level(3)
    paths = [
        level.record,
        level.masks,
        level.metrics,
        level.last_checkpoint,
        level.previous_checkpoint,
        level.best_checkpoint,
    ]
    names = ["record.json", "masks.pt", "metrics.csv", "last.ckpt", "previous.ckpt", "best.ckpt"]
    assert paths == [tmp_path / "level_03" / name for name in names]
