"""The README is true: its Python runs, its links and configs exist, its commands parse."""

from __future__ import annotations

import importlib.util
import inspect
import re
import shlex
from pathlib import Path

import pytest

from prunelab.command_line import read_command
from prunelab.names import SHORT_NAMES
from prunelab.pruning.criteria import lamp as lamp_instance
from prunelab.sweep.file import find_sweep, read_sweep

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.strip().splitlines()[0][:30])
def test_python_blocks_run(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "readme"}
    exec(compile(block, "README.md", "exec"), namespace)
    if "pruning" in namespace:
        assert namespace["pruning"].masks.density == pytest.approx(0.05, abs=1e-6)
    if "masks" in namespace:
        assert namespace["masks"].num_kept == 27_090


def test_own_script_fits_in_fifteen_lines() -> None:
    script = next(block for block in BLOCKS if "PruningAtInit" in block)
    assert len(script.strip().splitlines()) <= 15


def test_criterion_shown_is_the_one_in_the_repository() -> None:
    shown = re.search(r"^   ```python\n(.*?)^   ```", README, re.DOTALL | re.MULTILINE)
    assert shown is not None
    lines = [line.strip() for line in shown[1].splitlines() if line.strip()]
    source = Path(inspect.getfile(type(lamp_instance))).read_text()
    assert [line for line in lines if line not in source] == []


def test_links_and_configs_exist() -> None:
    links = [link for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", README) if not (ROOT / link).exists()]
    configs = [name for name in re.findall(r"\b(\w+\.yaml)\b", README) if name not in ("config.yaml", "versions.yaml")]
    assert links == []
    folders = (ROOT / "configs", ROOT / "sweeps")
    assert [name for name in configs if not any((folder / name).exists() for folder in folders)] == []


def test_commands_parse() -> None:
    commands = re.findall(r"^    python train\.py (.*?)(?:\s+#.*)?$", README, re.MULTILINE)
    assert len(commands) >= 4
    for command in commands:
        read_command(shlex.split(command))
    sweeps = re.findall(r"^    python -m prunelab\.sweep --config (\S+)", README, re.MULTILINE)
    assert sweeps
    for name in sweeps:
        read_sweep(find_sweep(name))


def test_every_criterion_is_in_the_table() -> None:
    assert re.findall(r"^\| \[`(\w+)`\]", README, re.MULTILINE) == list(SHORT_NAMES["pruning.criterion"])


def test_tables_are_those_of_the_measurements() -> None:
    spec = importlib.util.spec_from_file_location("readme_tables", ROOT / "benchmarks" / "readme_tables.py")
    assert spec is not None
    assert spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    assert tables.with_tables(README) == README
