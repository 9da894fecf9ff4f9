"""The command line up to the point where types matter: arguments -> config, and the short help.

Configs go on top of each other in the order given, the options of the command line on top of all of them.
Imports nothing heavy.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

import yaml

from prunelab.config import (
    CONFIGS,
    Config,
    check_config,
    check_one_spelling,
    expand,
    find_config,
    overlay,
    read_config,
)
from prunelab.names import SHORT_NAMES, CommandError

ACTIONS = {"-h": "help", "--help": "help", "--help_all": "help_all", "--print_config": "print_config"}

HELP = """\
Prune at initialisation, then train.

  python train.py --config quickstart.yaml
  python train.py --config synflow_resnet20.yaml --pruning.density 0.01 --model.net resnet56
  python train.py --config snip_resnet20.yaml --config fast_cpu.yaml --pruning.criterion.batch_norm batch

Configs, in configs/ (any other path will do; of several, each goes on top of those before it):
{configs}

Short names (any import path will do as well):
{names}

How much to keep: --pruning.density 0.1, --pruning.sparsity 0.9 or --pruning.compression_ratio 10.
Every key: --help_all.   What a run would use: --print_config."""


@dataclass(frozen=True)
class Command:
    """What a command line asks for. action: run, help, help_all or print_config. name: the first config's."""

    action: str
    name: str
    config: Config


def read_command(argv: list[str]) -> Command:
    """The command in `argv` (without the program's name); none at all asks for help.

    Raises: CommandError.
    """
    options = list(_options(argv)) or [("--help", "")]
    action = next((ACTIONS[key] for key, _ in options if key in ACTIONS), "run")
    if action in ("help", "help_all"):
        return Command(action, "", {})
    paths = [find_config(value) for key, value in options if key == "--config"]
    settings = [(key[2:], value) for key, value in options if key not in ACTIONS and key != "--config"]
    layers = [_layer(key, value) for key, value in _classes_first(settings)]
    check_one_spelling(layers)
    config: Config = {}
    for layer in [*map(read_config, paths), *layers]:
        config = overlay(config, layer)
    check_config(config)
    return Command(action, paths[0].stem if paths else "custom", config)


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


def _options(argv: list[str]) -> Iterator[tuple[str, str]]:
    """(--key, value) for `--key value` and `--key=value`, in the order typed."""
    words = iter(argv)
    for word in words:
        key, equals, value = word.partition("=")
        key = "--config" if key == "-c" else key
        if key in ACTIONS:
            yield key, ""
        elif not key.startswith("--"):
            hint = f"--config {word}" if word.endswith((".yaml", ".yml")) else "options are written --key value"
            raise CommandError(f"unexpected {word!r}: {hint}")
        else:
            value = value if equals else next(words, "--")
            if value.startswith("--"):
                raise CommandError(f"{key} needs a value")
            yield key, value


def _classes_first(settings: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """What names a class goes before the keys of that class, in whatever order they were typed.

    Only lists that are appended to stay in order: `callbacks+=A callbacks.key=1 callbacks+=B callbacks.key=2`.
    """
    lists = tuple(key.removesuffix("+") for key, _ in settings if key.endswith("+"))

    def rank(setting: tuple[str, str]) -> tuple[bool, int]:
        key = setting[0]
        return key not in SHORT_NAMES, 0 if key.startswith(lists) else key.count(".")

    return sorted(settings, key=rank)


def _layer(key: str, text: str) -> Config:
    """The config that one option makes: ("data.batch_size", "64") -> {data: {init_args: {batch_size: "64"}}}."""
    value: Any = text
    if text == "null" or text.startswith(("[", "{")):
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise CommandError(f"{key}: {text} is not a YAML list or mapping") from None
    for part in reversed(key.split(".")):
        value = {part: value}
    return expand(value)


def _claim(path: Path) -> str:
    with path.open(encoding="utf-8") as lines:
        return next(lines, "").lstrip("# ").strip()
