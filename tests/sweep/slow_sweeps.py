"""Sweeps of slow runs, which signals find where they are meant to, and what they leave."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .conftest import CONFIG, NET, Command

OF_THE_CLOCK = ("latency_ms", "latency_128_ms", "seconds_scoring", "seconds_training")
TWO = """\
# Two runs that take their time
base: slow.yaml
grid: {model.optimizer.lr: [0.1, 0.05]}
seeds: [7]
"""
THREE = TWO.replace("0.05]", "0.05, -1]").replace("Two runs", "Two runs and one that cannot be")
NAMES = ("lr 0.1", "lr 0.05")


def write_sweeps(directory: Path) -> None:
    (directory / "slow_net.py").write_text(NET)
    net = "net: {class_path: slow_net.SlowNet}"
    lines = [net.join(["  ", ""]) if line.startswith("  net:") else line for line in CONFIG.splitlines()]
    (directory / "slow.yaml").write_text("\n".join(lines).replace("max_epochs: 2", "max_epochs: 3"))
    (directory / "two.yaml").write_text(TWO)
    (directory / "three.yaml").write_text(THREE)


@dataclass(frozen=True)
class Sweeping:
    """sweeping(output_dir, file): the command; what it left is read by the other methods."""

    start: Callable[..., Command]
    directory: Path

    def __call__(self, output_dir: str, file: str = "two.yaml", *words: str, **environment: str) -> Command:
        arguments = ["--config", file, "--output_dir", output_dir, *words]
        return self.start(arguments, self.directory, **environment)

    def checkpoints(self, output_dir: str) -> int:
        return len(list((self.directory / output_dir).glob("slow-*/level_00/last.ckpt")))

    def states(self, output_dir: str, file: str = "two") -> list[dict[str, Any]]:
        return json.loads((self.directory / output_dir / "sweeps" / file / "states.json").read_text())

    def logs(self, output_dir: str, file: str = "two") -> list[str]:
        """Of the cells in their order, empty where none has begun."""
        paths = [self.directory / state["log"] for state in self.states(output_dir, file)]
        return [path.read_text() if path.exists() else "" for path in paths]

    def results(self, output_dir: str) -> dict[str, tuple[dict[str, Any], str]]:
        """Run -> its record without what the clock decides, and its metrics.csv."""
        found = {}
        for path in sorted((self.directory / output_dir).glob("slow-*/level_00/record.json")):
            record = json.loads(path.read_text())
            kept = {key: value for key, value in record.items() if key not in OF_THE_CLOCK}
            assert len(kept) == len(record) - len(OF_THE_CLOCK)
            found[path.parts[-3]] = kept, path.with_name("metrics.csv").read_text()
        return found
