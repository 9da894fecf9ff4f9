"""A run's directory: its name, its files. The only file that joins paths.

runs/synflow_resnet20-synflow-d0.1-s0-1f3a5c7e/
    config.yaml  versions.yaml  lock
    level_00/    record.json  masks.pt  ticket.pt  rewind.ckpt  metrics.csv  last.ckpt  previous.ckpt  best.ckpt
                 events.out.tfevents.*
    level_01/    the same without rewind.ckpt
    summary/     events.out.tfevents.*, where there are several levels
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass
from glob import escape
from itertools import count
from pathlib import Path
from typing import Any

import yaml

from prunelab.experiment.errors import RunError
from prunelab.experiment.levels import Tickets
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
        """<output_dir>/<config>-<criterion>-d<density>-s<seed>-<hash of all values that change the result>.

        With a control its name follows the criterion's. Masks from elsewhere have no criterion and no density. The
        density is the last level's; where layers have rates of their own (`tickets.layer_rates`), that of rate 1.
        """
        digest = hashlib.sha256(json.dumps(result_keys(config), sort_keys=True).encode()).hexdigest()[:8]
        density = density_of(config)
        words = [name, criterion_name(config), config.get("control"), None if density is None else f"d{density:.6g}"]
        return cls(Path(output_dir) / "-".join([*filter(None, words), f"s{config['seed_everything']}", digest]))

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    @property
    def summary(self) -> Path:
        return self.path / "summary"

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def versions(self) -> Path:
        return self.path / "versions.yaml"

    def level(self, index: int) -> LevelDir:
        return LevelDir(self.path / f"level_{index:02d}")

    def levels(self) -> list[LevelDir]:
        """The levels that have been begun, in order."""
        found = [LevelDir(path) for path in self.path.glob("level_[0-9][0-9]*") if path.is_dir()]
        return sorted(found, key=lambda level: level.index)

    def unfinished_siblings(self, config: Mapping[str, Any]) -> list[tuple[Path, list[str]]]:
        """Unfinished runs that only the hash tells from this one, and the keys in which they differ from `config`."""
        found = []
        for path in sorted(self.path.parent.glob(f"{escape(self.path.name.rpartition('-')[0])}-????????")):
            levels = RunDir(path).levels()
            if path != self.path and levels and not levels[-1].record.exists() and RunDir(path).config.exists():
                found.append((path, differing_keys(RunDir(path).read_config(), config)))
        return found

    def set_aside(self) -> Path:
        """Give the directory another name, <name>.1 or the next that is free; returns it."""
        others = (self.path.with_name(f"{self.path.name}.{number}") for number in count(1))
        kept = next(path for path in others if not path.exists())
        self.path.rename(kept)
        return kept

    def make(self, *paths: Path) -> None:
        """Make the directory and those at `paths` in it. Raises: RunError if they cannot be, or not be written to."""
        for path in (self.path, *paths):
            try:
                path.mkdir(parents=True, exist_ok=True)
            except (PermissionError, NotADirectoryError, FileExistsError) as error:
                raise RunError(f"the run directory {self.path} cannot be written: {error.strerror}") from error
            if not os.access(path, os.W_OK):
                raise RunError(f"the run directory {self.path} cannot be written: no permission")

    def create(self, config: Mapping[str, Any], versions: Mapping[str, str], level: int = 0) -> None:
        """Make the directory and that of a level, and write what will be run; or check that it is what was run.

        Raises: RunError if the directory cannot be written, or holds a run of other values (which).
        """
        self.make(self.level(level).path)
        if self.config.exists():
            self._check_same(config)
        else:
            write_atomically(self.versions, yaml.safe_dump(dict(versions), sort_keys=False))
            write_atomically(self.config, yaml.safe_dump(dict(config), sort_keys=False))

    def remove_unstarted(self) -> None:
        """Remove the directory of a run that was refused before it had a checkpoint."""
        if not any(level.last_checkpoint.exists() for level in self.levels()):
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
    """One training. Level 0 is the only one where nothing says otherwise."""

    path: Path

    @property
    def index(self) -> int:
        return int(self.path.name.removeprefix("level_"))

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

    @property
    def rewind_checkpoint(self) -> Path:
        return self.path / "rewind.ckpt"

    @property
    def ticket(self) -> Path:
        return self.path / "ticket.pt"

    @property
    def channel_index(self) -> Path:
        return self.path / "channel_index.pt"


def result_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a config that decides the result: all but devices, workers, places, bars, and the number of epochs.

    With several levels the number of epochs decides too. The three spellings of one density are one value.
    """
    kept = deepcopy({key: value for key, value in config.items() if key not in ("output_dir", "ckpt_path")})
    for path, names in _HARMLESS.items():
        section: Any = kept
        for key in path.split("."):
            section = section.get(key) or {}
        for name in names - ({"max_epochs"} if has_levels(config) else set()):
            section.pop(name, None)
    kept["pruning"] |= {"density": spelled_density(config), "sparsity": None, "compression_ratio": None}
    return kept | {"tickets": asdict(tickets_of(config)), "control": config.get("control")}


def differing_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The dotted keys that decide the result and are not the same in both configs."""
    one, other = dict(_leaves(result_keys(before))), dict(_leaves(result_keys(now)))
    return sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write beside the target, flush to the disk, rename."""
    temporary = path.with_name(f"{path.name}.tmp")  # one name: what a killed process left is overwritten
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def criterion_name(config: Mapping[str, Any]) -> str:
    """The criterion's short name; "masks_from" where masks come from elsewhere."""
    criterion = config["pruning"].get("criterion")
    return "masks_from" if criterion is None else short_name("pruning.criterion", criterion["class_path"])


def has_levels(config: Mapping[str, Any]) -> bool:
    return tickets_of(config).has_levels


def tickets_of(config: Mapping[str, Any]) -> Tickets:
    return Tickets(**(config.get("tickets") or {}))


def density_of(config: Mapping[str, Any]) -> float | None:
    """The density that is asked for at the end; None if masks from elsewhere bring it."""
    if config["pruning"].get("masks_from") is not None:
        return None
    return tickets_of(config).pruned_densities(spelled_density(config))[-1]


def spelled_density(config: Mapping[str, Any]) -> float | None:
    """The density that `pruning` gives in one of its spellings, if it does."""
    spellings = {key: config["pruning"].get(key) for key in ("density", "sparsity", "compression_ratio")}
    return density_from(**spellings) if any(value is not None for value in spellings.values()) else None


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value
