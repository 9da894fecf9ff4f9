"""The house of the project: who may import whom, and that importing does nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "prunelab"
FILES = sorted(PACKAGE.rglob("*.py"))

# a room may import itself, and what is listed for it; names, config, command_line and messages are parts of the
# command line that know nothing, so that anyone may ask them for a short name
ROOMS: dict[str, set[str]] = {
    "pruning": set(),
    "models": set(),
    "data": set(),
    "compat": set(),
    "names": set(),
    "compaction": {"pruning"},
    "training": {"compaction", "pruning", "models", "data", "launcher"},
    "report": {"training", "compaction", "pruning", "models", "data", "names"},
    "experiment": {"report", "training", "compaction", "pruning", "models", "data", "names", "launcher"},
    "launcher": set(),
    "memory": set(),
    "config": {"names"},
    "command_line": {"config", "names"},
    "messages": {"config", "names"},
    "sweep": {"cli", "command_line", "config", "experiment", "report", "names", "launcher", "memory"},
    "paper": {"experiment", "report", "pruning", "models", "data", "names"},
    "export": {"experiment", "report", "training", "compaction", "pruning", "models", "data", "names"},
}
ENTRIES = {
    "cli",
    "report.__main__",
    "export.__main__",
    "paper.__main__",
}  # import what they like: they build what a config says
LIGHT = (
    "names",
    "launcher",
    "memory",
    "config",
    "command_line",
)  # what train.py imports before it knows that there is work
LIGHTNING = ("pytorch_lightning", "lightning", "lightning_fabric", "lightning_utilities", "torchmetrics")
MAY_USE_LIGHTNING = ("data", "training", "report", "experiment", "cli", "compat")
HEAVY = ("torch", "torchvision", "numpy", "sklearn", "matplotlib", "rich", "jsonargparse", "tensorboard", *LIGHTNING)


def module_name(path: Path) -> str:
    """pruning.criteria.snip for src/prunelab/pruning/criteria/snip.py."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    """Everything that a file imports, inside functions too, by its full name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(name: str) -> str:
    return name.partition(".")[0]


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_go_one_way(path: Path) -> None:
    name = module_name(path)
    if name in ENTRIES or name == "__init__":
        return
    ours = {room(found.removeprefix("prunelab.")) for found in imports(path) if found.startswith("prunelab.")}
    assert room(name) in ROOMS, f"{name}: a room that the house does not have"
    # `from prunelab import __version__` belongs to everyone
    wrong = ours - {room(name), "__version__"} - ROOMS[room(name)]
    assert not wrong, f"{name} imports {sorted(wrong)}"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_lightning_stays_in_its_rooms(path: Path) -> None:
    if room(module_name(path)) not in MAY_USE_LIGHTNING:
        assert not [found for found in imports(path) if room(found) in LIGHTNING]


@pytest.mark.parametrize("name", LIGHT)
def test_the_command_line_begins_without_anything_heavy(name: str) -> None:
    found = set(map(room, imports(PACKAGE / f"{name}.py")))
    assert not found & set(HEAVY)


def test_train_py_answers_before_it_imports_anything_heavy() -> None:
    program = "import runpy, sys; sys.argv = ['train.py', '--help']; runpy.run_path('train.py', run_name='__main__')"
    command = [sys.executable, "-X", "importtime", "-c", program]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "prunelab.command_line" in imported
    assert not imported & set(HEAVY)


def test_no_drawer_for_everything() -> None:
    assert not [path for path in FILES if path.stem in ("utils", "helpers", "common", "misc")]


def test_pruning_needs_torch_alone() -> None:
    allowed = {"torch", "numpy", "prunelab", *sys.stdlib_module_names}
    for path in FILES:
        if room(module_name(path)) == "pruning":
            assert set(map(room, imports(path))) <= allowed, path


# run in a process of its own, where nothing is imported yet
QUIET = """
import importlib, os, random, sys
import numpy, torch, pytorch_lightning, torchmetrics, torchvision, sklearn.datasets, matplotlib.figure, tensorboard
import torch.utils.tensorboard, pytorch_lightning.cli
def state():
    return [random.getstate(), str(numpy.random.get_state(legacy=False)), torch.get_rng_state().tolist(), sys.path[:],
        torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(), dict(os.environ), os.getcwd()]
numpy.set_printoptions(threshold=sys.maxsize)
before = state()
for name in sys.argv[1:]:
    importlib.import_module(name)
    assert state() == before, name
"""


def test_importing_runs_nothing(tmp_path: Path) -> None:
    """No draws, no files, no output, no settings."""
    names = [f"prunelab.{module_name(path)}".removesuffix(".__init__") for path in FILES]
    names = [name for name in names if not name.endswith("__main__")]
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", QUIET, *names], cwd=tmp_path, capture_output=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")
    assert not list(tmp_path.iterdir())
