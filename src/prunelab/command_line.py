"""The command line up to the point where types matter: arguments -> config, and the short help.

Configs go on top of each other in the order given, the options of the command line on top of all of them.
Imports nothing heavy.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from math import prod
from pathlib import Path
from textwrap import fill
from typing import Any

import yaml

from prunelab.config import (
    CONFIGS,
    Config,
    axes,
    check_config,
    check_grid,
    check_one_source,
    expand,
    find_config,
    gives,
    overlay,
    read_config,
)
from prunelab.names import SHORT_NAMES, CommandError

FRESH = "--fresh"  # the only option without a value, beside the actions
ACTIONS = {"-h": "help", "--help": "help", "--help_all": "help_all", "--print_config": "print_config"}

HELP = """\
Prune at initialisation or from trained weights, rewind, train.

  python train.py --config quickstart.yaml
  python train.py --config synflow_resnet20.yaml --pruning.density 0.01 --model.net resnet56
  python train.py --config imp_quickstart.yaml            # then with --control reinit, random, shuffle, ...
  python train.py --config snip_resnet20.yaml --config fast_cpu.yaml --pruning.criterion.batch_norm batch

Configs, in configs/ (any other path will do; of several, each goes on top of those before it):
{configs}

Short names (any import path will do as well):
{names}

How much to keep: --pruning.density 0.1, --pruning.sparsity 0.9 or --pruning.compression_ratio 10.
The same command again goes on with a run that was stopped; --fresh starts it anew and keeps the old directory.
Several runs in one table: `grid:` in a config, or --grid.seed_everything [0,1,2]; an option for the key ends it.
Every key: --help_all.   What a run would use: --print_config."""


@dataclass(frozen=True)
class Cell:
    """One run of a grid. title: which, in words. values: of its axes. config: what the run would be given alone."""

    title: str
    values: dict[str, Any]
    config: Config


@dataclass(frozen=True)
class Command:
    """What a command line asks for. action: run, help, help_all or print_config. name: the first config's.

    fresh: start the run anew, if there is one. grid: dotted key -> values, for several runs; config is then what they
    have in common, and cells are the runs, in order.
    """

    action: str
    name: str
    config: Config
    fresh: bool = False
    grid: dict[str, list[Any]] = field(default_factory=dict)
    cells: tuple[Cell, ...] = ()


def read_command(argv: list[str]) -> Command:
    """The command in `argv` (without the program's name); none at all asks for help.

    Raises: CommandError.
    """
    options = list(typed_options(argv)) or [("--help", "")]
    action = next((ACTIONS[key] for key, _ in options if key in ACTIONS), "run")
    if action in ("help", "help_all"):
        return Command(action, "", {})
    paths = [find_config(value) for key, value in options if key == "--config"]
    settings = [(key[2:], _value(key[2:], text)) for key, text in options if key not in (*ACTIONS, FRESH, "--config")]
    files: Config = {}
    for path in paths:
        files = overlay(files, read_config(path))
    config = _with_settings(files, settings)
    grid, fresh = axes(config), any(key == FRESH for key, _ in options)
    config.pop("grid", None)
    name = paths[0].stem if paths else "custom"
    if not grid:
        check_config(config)
        return Command(action, name, config, fresh)
    if fresh or config.get("ckpt_path") is not None:
        option = FRESH if fresh else "--ckpt_path"
        raise CommandError(f"{option} goes with one run: give a value for each key of the grid, {', '.join(grid)}")
    return Command(action, name, config, grid=grid, cells=tuple(_cells(files, settings, grid)))


def read_or_answer(argv: list[str]) -> Command | int:
    """The command in `argv`, or an exit code if that is all there is to do: help printed, a mistake named."""
    try:
        command = read_command(argv)
    except CommandError as error:
        return fail(error)
    if command.action == "help":
        print(short_help())
        return 0
    return command


def fail(error: Exception | str) -> int:
    """Say what is wrong in one line on stderr; returns the exit code of user errors."""
    print(f"train.py: error: {' '.join(str(error).split())}", file=sys.stderr)
    return 2


def short_help() -> str:
    """The help that fits a screen."""
    configs = "\n".join(f"  {path.name:<36} {_claim(path)}" for path in sorted(CONFIGS.glob("*.yaml")))
    names = "\n".join(
        fill(" ".join(table), 100, initial_indent=f"  --{slot:<20} ", subsequent_indent=" " * 25)
        for slot, table in SHORT_NAMES.items()
    )
    return HELP.format(configs=configs, names=names)


def _cells(files: Config, settings: list[tuple[str, Any]], grid: Mapping[str, list[Any]]) -> Iterator[Cell]:
    """The runs of a grid, the last axis varying fastest: each as if its values had been typed with the `settings`."""
    typed = [(key, value) for key, value in settings if key.partition(".")[0] != "grid"]
    # a control needs its ticket
    columns = [
        sorted(values, key=lambda value: value is not None) if key == "control" else values
        for key, values in grid.items()
    ]
    total = prod(map(len, columns))
    for number, chosen in enumerate(product(*columns), start=1):
        values = dict(zip(grid, chosen, strict=True))
        title = f"cell {number} of {total}: {', '.join(f'{key} {in_words(value)}' for key, value in values.items())}"
        try:
            config = _with_settings(files, [*typed, *values.items()])
            config.pop("grid", None)
            check_config(config)
        except CommandError as error:
            raise CommandError(f"{title}: {error}") from None
        yield Cell(title, values, config)


def in_words(value: Any) -> str:
    """A value of a config as it may be typed."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _with_settings(files: Config, settings: list[tuple[str, Any]]) -> Config:
    """The config of the files with the options on top, which make up one place."""
    layers = [_layer(key, value) for key, value in _classes_first(settings)]
    check_one_source(layers)
    for layer in layers:
        check_grid(layer)
        if both := [axis for axis in axes(layer) if any(gives(other, axis) for other in layers)]:
            raise CommandError(f"--{both[0]} and --grid.{both[0]}: give one of them")
    return overlay(files, *layers)


def typed_options(argv: list[str]) -> Iterator[tuple[str, str]]:
    """(--key, value) for `--key value` and `--key=value`, in the order typed; the value of flags is empty."""
    words = iter(argv)
    for word in words:
        key, equals, value = word.partition("=")
        key = "--config" if key == "-c" else key
        if key in ACTIONS or word == FRESH:
            yield key, ""
        elif key == FRESH:
            raise CommandError(f"unexpected {word!r}: {FRESH} takes no value")
        elif not key.startswith("--"):
            hint = f"--config {word}" if word.endswith((".yaml", ".yml")) else "options are written --key value"
            raise CommandError(f"unexpected {word!r}: {hint}")
        else:
            value = value if equals else next(words, "--")
            if value.startswith("--"):
                raise CommandError(f"{key} needs a value")
            yield key, value


def _classes_first(settings: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """What names a class goes before the keys of that class, in whatever order they were typed.

    Only lists that are appended to stay in order: `callbacks+=A callbacks.key=1 callbacks+=B callbacks.key=2`, and the
    axes of a grid.
    """
    lists = tuple(key.removesuffix("+") for key, _ in settings if key.endswith("+"))

    def rank(setting: tuple[str, Any]) -> tuple[bool, int]:
        key = setting[0]
        return key not in SHORT_NAMES, 0 if key.startswith(lists) else 1 if key.startswith("grid.") else key.count(".")

    return sorted(settings, key=rank)


def _value(key: str, text: str) -> Any:
    """The value that an option gives; words and numbers stay text until their type is known."""
    if text == "null" or text.startswith(("[", "{")):
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError:
            raise CommandError(f"{key}: {text} is not a YAML list or mapping") from None
    return text


def _layer(key: str, value: Any) -> Config:
    """The config that one option makes: ("data.batch_size", "64") -> {data: {init_args: {batch_size: "64"}}}."""
    if key.startswith("grid."):  # whose keys have dots themselves
        return {"grid": {key.removeprefix("grid."): value}}
    for part in reversed(key.split(".")):
        value = {part: value}
    return expand(value)


def _claim(path: Path) -> str:
    with path.open(encoding="utf-8") as lines:
        return next(lines, "").lstrip("# ").strip()
