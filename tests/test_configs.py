"""Every config says what it claims, is valid, and builds what it names."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import yaml
from jsonargparse import Namespace
from pytorch_lightning.cli import LightningArgumentParser

from prunelab.cli import build_parser, resolve
from prunelab.command_line import read_command
from prunelab.names import SHORT_NAMES
from prunelab.training import Classifier, PruningAtInit

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.yaml"))


@pytest.fixture(scope="module")
def parser() -> LightningArgumentParser:
    return build_parser()


def resolved(parser: LightningArgumentParser, path: Path) -> Namespace:
    if "pl_bolts" in path.read_text() and importlib.util.find_spec("pl_bolts") is None:
        pytest.skip("lightning-bolts is not installed")
    words = _command(path).removeprefix("python train.py ").split()
    return resolve(parser, read_command(words).config)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_header(path: Path) -> None:
    claim, *rest = [line for line in path.read_text().splitlines() if line.startswith("# ")]
    assert 20 < len(claim) < 120
    fields = dict(re.fullmatch(r"# (\w+):\s+(.+)", line).groups() for line in rest if re.match(r"# \w+:", line))  # type: ignore[union-attr]
    assert {"command", "hardware", "minutes", "expected"} <= fields.keys()
    assert f"--config {path.name}" in fields["command"]
    assert "published" in fields["expected"] or "arXiv" in fields["expected"]
    is_whole = "net" in yaml.safe_load(path.read_text()).get("model", {})
    assert is_whole != claim.startswith("# Overlay: ")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_its_command_is_valid_and_builds_the_model_and_the_pruning(path: Path, parser: LightningArgumentParser) -> None:
    config = resolved(parser, path)
    built = parser.instantiate(config)  # data modules read nothing before prepare_data
    assert isinstance(built.model, Classifier)
    assert isinstance(built.pruning, PruningAtInit)
    assert (config.trainer.max_epochs or 0) > 0 or config.trainer.max_steps > 0


def test_each_criterion_has_a_config() -> None:
    named = {path.stem.removesuffix("_resnet20") for path in CONFIGS}
    assert set(SHORT_NAMES["pruning.criterion"]) <= named
    for name in SHORT_NAMES["pruning.criterion"]:
        config = read_command(["--config", f"{name}_resnet20"]).config
        assert config["pruning"]["criterion"]["class_path"] == SHORT_NAMES["pruning.criterion"][name]


def test_criteria_are_compared_in_one_setting() -> None:
    texts = [
        read_command(["--config", f"{name}_resnet20"]).config for name in (*SHORT_NAMES["pruning.criterion"], "dense")
    ]
    for key in ("model", "data", "trainer", "seed_everything"):
        assert all(config[key] == texts[0][key] for config in texts)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("synflow_resnet20", 272_474),
        ("synflow_vgg16_cifar100", 14_774_436),
        ("synflow_resnet18_tiny_imagenet", 11_271_432),
    ],
)
def test_networks_have_the_papers_sizes(name: str, parameters: int, parser: LightningArgumentParser) -> None:
    config = resolve(parser, read_command(["--config", name]).config)
    net = parser.instantiate(config).model.net
    assert sum(parameter.numel() for parameter in net.parameters()) == parameters


@pytest.mark.parametrize(("name", "num_seeds"), [("rethinking_resnet20", 5), ("rethinking_quickstart", 3)])
def test_rethinking_compares_in_everything_else_alike(
    name: str, num_seeds: int, parser: LightningArgumentParser
) -> None:
    cells = read_command(["--config", name]).cells
    compared = [(cell.values["model.optimizer.lr"], cell.values["control"]) for cell in cells[::num_seeds]]
    assert compared == [(0.1, None), (0.1, "reinit"), (0.01, None), (0.01, "reinit")]
    assert [cell.values["seed_everything"] for cell in cells] == [*range(num_seeds)] * 4
    first, last = (resolve(parser, cell.config) for cell in (cells[0], cells[-1]))
    assert (last.model.optimizer.init_args.lr, last.control, last.seed_everything) == (0.01, "reinit", num_seeds - 1)
    last.model.optimizer.init_args.lr, last.control, last.seed_everything = 0.1, None, 0
    assert last == first


def _command(path: Path) -> str:
    return re.search(r"^# command:\s+(.+)$", path.read_text(), re.MULTILINE)[1]  # type: ignore[index]
