"""A run's directory: its name, its files. The only file that joins paths.

runs/synflow_resnet20-synflow-d0.1-s0-1f3a5c7e/
    config.yaml  versions.yaml
    level_00/    record.json  masks.pt  metrics.csv  last.ckpt  previous.ckpt  best.ckpt  events.out.tfevents.*
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from prunelab.experiment.errors import RunError
from prunelab.names import short_name
from prunelab.pruning.density import density_from

# what may change between a run and its resumption without changing its result
_HARMLESS = {
    "trainer": {
        *("accelerator", "strategy", "devices", "num_nodes", "max_epochs", "max_time", "logger", "profiler"),
        *("enable_progress_bar", "enable_model_summary", "log_every_n_steps"),
        *("default_root_dir", "num_sanity_val_steps", "enable_autolog_hparams"),
    },
    "data.init_args": {"data_dir", "download", "num_workers", "device", "cache_dir", "cache", "pin_memory"},
    "pruning": {"on_collapse"},
}


@dataclass(frozen=True)
class RunDir:
    path: Path

    @classmethod
    def of(cls, output_dir: str, name: str, config: Mapping[str, Any]) -> RunDir:
        """<output_dir>/<config>-<criterion>-d<density>-s<seed>-<hash of all values that change the result>."""
        criterion = short_name("pruning.criterion", config["pruning"]["criterion"]["class_path"])
        digest = hashlib.sha256(json.dumps(result_keys(config), sort_keys=True).encode()).hexdigest()[:8]
        values = f"{criterion}-d{density_of(config):.6g}-s{config['seed_everything']}-{digest}"
        return cls(Path(output_dir) / f"{name}-{values}")

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def versions(self) -> Path:
        return self.path / "versions.yaml"

    def level(self, index: int) -> LevelDir:
        return LevelDir(self.path / f"level_{index:02d}")

    def create(self, config: Mapping[str, Any], versions: Mapping[str, str]) -> None:
        """Make the directory and write what will be run, before it runs; or check that it is what was run.

        Raises: RunError if the directory cannot be written, or holds a run of other values (which).
        """
        try:
            self.level(0).path.mkdir(parents=True, exist_ok=True)
            if self.config.exists():
                self._check_same(config)
            else:
                write_atomically(self.versions, yaml.safe_dump(dict(versions), sort_keys=False))
                write_atomically(self.config, yaml.safe_dump(dict(config), sort_keys=False))
        except (PermissionError, NotADirectoryError, FileExistsError) as error:
            raise RunError(f"the run directory {self.path} cannot be written: {error.strerror}") from error
        if not os.access(self.path, os.W_OK) or not os.access(self.level(0).path, os.W_OK):
            raise RunError(f"the run directory {self.path} cannot be written: no permission")

    def remove_unstarted(self) -> None:
        """Remove the directory of a run that was refused before it had a checkpoint."""
        if not self.level(0).last_checkpoint.exists():
            shutil.rmtree(self.path, ignore_errors=True)

    def read_config(self) -> dict[str, Any]:
        """Raises: RunError if there is none or it is damaged."""
        try:
            config = yaml.safe_load(self.config.read_text())
        except FileNotFoundError:
            raise RunError(f"{self.path} is no run directory: it has no {self.config.name}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise RunError(f"{self.config} is damaged: {' '.join(str(error).split())}") from error
        if not isinstance(config, dict):
            raise RunError(f"{self.config} is damaged: it holds no keys")
        return config

    def _check_same(self, config: Mapping[str, Any]) -> None:
        if different := differing_keys(self.read_config(), config):
            raise RunError(f"{self.path} holds a run of another configuration, they differ in {', '.join(different)}")


@dataclass(frozen=True)
class LevelDir:
    """One training. Level 0 is the only one for criteria at initialisation."""

    path: Path

    @property
    def record(self) -> Path:
        return self.path / "record.json"

    @property
    def masks(self) -> Path:
        return self.path / "masks.pt"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def last_checkpoint(self) -> Path:
        return self.path / "last.ckpt"

    @property
    def previous_checkpoint(self) -> Path:
        return self.path / "previous.ckpt"

    @property
    def best_checkpoint(self) -> Path:
        return self.path / "best.ckpt"


def result_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a config that decides the result: all but devices, workers, places, bars, and the number of epochs.

    The three spellings of one density are one value.
    """
    kept = deepcopy({key: value for key, value in config.items() if key not in ("output_dir", "ckpt_path")})
    for path, names in _HARMLESS.items():
        section: Any = kept
        for key in path.split("."):
            section = section.get(key) or {}
        for name in names:
            section.pop(name, None)
    kept["pruning"] |= {"density": density_of(config), "sparsity": None, "compression_ratio": None}
    return kept


def differing_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The dotted keys that decide the result and are not the same in both configs."""
    one, other = dict(_leaves(result_keys(before))), dict(_leaves(result_keys(now)))
    return sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))


def write_atomically(path: Path, text: str) -> None:
    """Write beside the target, flush to the disk, rename."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def density_of(config: Mapping[str, Any]) -> float:
    return density_from(**{key: config["pruning"].get(key) for key in ("density", "sparsity", "compression_ratio")})


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value
