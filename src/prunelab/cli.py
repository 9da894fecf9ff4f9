"""The command line from where types matter: config -> typed, resolved config -> run.

jsonargparse, through Lightning's parser, knows the keys and types of Trainer, Classifier, PruningAtInit and of every
class that a config names; an error is one line on stderr and exit code 2.
"""

from __future__ import annotations

import errno
import json
from argparse import ArgumentError
from collections.abc import Iterator
from copy import deepcopy
from inspect import signature
from typing import Any

import yaml
from jsonargparse import Namespace
from pytorch_lightning import LightningDataModule, Trainer
from pytorch_lightning.cli import LightningArgumentParser
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch.distributed import DistError

from prunelab.command_line import FRESH, Command, fail, in_words, read_or_answer, short_help
from prunelab.compat.bolts import load_bolts
from prunelab.config import Config, section
from prunelab.data.errors import DataError
from prunelab.experiment.controls import Control
from prunelab.experiment.errors import RunError
from prunelab.experiment.grid import Cell, run_grid
from prunelab.experiment.levels import Tickets
from prunelab.experiment.lock import HeldError
from prunelab.experiment.run import Instantiate, run
from prunelab.launcher import let_the_first_speak
from prunelab.messages import explain, keys_of
from prunelab.models.errors import ModelError
from prunelab.names import SHORT_NAMES, CommandError
from prunelab.pruning.errors import PruningError
from prunelab.training import Classifier, PruningAtInit

USER_ERRORS = (CommandError, PruningError, DataError, ModelError, RunError, MisconfigurationException)
# a number of batches, or a share of them: which one is meant is in the type
BATCHES_OR_SHARE = (
    *("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches"),
    *("overfit_batches", "val_check_interval"),
)
MIXED = ("16-mixed", "bf16-mixed", "16", "bf16")
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)


def main(argv: list[str], held: int = 2) -> int:
    """Do what the command line `argv` (without the program's name) asks for; returns the exit code."""
    command = read_or_answer(argv)
    return run_command(command, held) if isinstance(command, Command) else command


def run_command(command: Command, held: int = 2) -> int:
    """Do what `command` asks for; returns the exit code: 2 for the user's errors, 130 when interrupted.

    held: the exit code while another process works in the run's directory, for those who would wait for it.
    """
    try:
        if command.action == "help_all":
            print(_long_help())
            return 0
        parser = build_parser()
        if command.action == "print_config":
            print(parser.dump(resolve(parser, command.config), skip_unset=False), end="")
            print(yaml.safe_dump({"grid": command.grid}, sort_keys=False) if command.grid else "", end="")
            return 0
        if command.cells:
            return _run_grid(command, parser)
        return _run(command, parser, resolve(parser, command.config))
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        let_the_first_speak()
        if isinstance(error, USER_ERRORS):
            code = _fail(error, str(error))
            return held if isinstance(error, HeldError) else code
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            return _fail(error, f"{error.filename or 'output_dir'}: {error.strerror}")
        if isinstance(error, DistError) or "gloo/transport" in str(error):
            error.add_note("Another process of this run may have died, see above. The same command goes on.")
        raise


def build_parser() -> LightningArgumentParser:
    """The parser of a resolved config."""
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_argument("--seed_everything", type=int, default=0)
    parser.add_argument("--output_dir", type=str, default="runs")
    parser.add_argument("--ckpt_path", type=str | None, default=None)
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.add_lightning_class_args(Classifier, "model")
    parser.add_argument("--data", type=LightningDataModule, required=True)
    # loss and batches are Python objects, for scripts
    parser.add_class_arguments(PruningAtInit, "pruning", skip={"loss", "batches"}, sub_configs=True)
    parser.add_class_arguments(Tickets, "tickets", instantiate=False)
    parser.add_argument("--control", type=Control | None, default=None)
    return parser


def resolve(parser: LightningArgumentParser, config: Config) -> Namespace:
    """`config` typed and completed with all defaults.

    Raises: CommandError for whatever has no place or the wrong type.
    """
    config = deepcopy(config)
    _keep_data_shape(section(config, "model.net"))
    if any(text.startswith("pl_bolts.") for text in _texts(config)):
        try:
            load_bolts()
        except ModuleNotFoundError as error:
            raise CommandError(str(error)) from None
    try:
        resolved = parser.parse_object(deepcopy(config))
    except ArgumentError as error:
        raise CommandError(explain(str(error), config, [*parser.get_defaults().keys(), "grid"])) from None
    _check_clipping(resolved)
    # of `int | float` the parser takes what comes first, and what that is depends on who has imported typing before
    for key in BATCHES_OR_SHARE:
        if isinstance(typed := section(config, "trainer").get(key), int | float):
            resolved.trainer[key] = typed
    return resolved


def _fail(error: Exception, message: str) -> int:
    """Say what is wrong, after the cell of the grid that it is noted to be in."""
    return fail(": ".join([*getattr(error, "__notes__", ()), message]))


def _run_grid(command: Command, parser: LightningArgumentParser) -> int:
    """Run all cells, which are resolved before the first one runs: a mistake in any of them is found at once."""
    cells = []
    for cell in command.cells:
        try:
            config = resolve(parser, cell.config)
        except CommandError as error:
            raise CommandError(f"{cell.title}: {error}") from None
        plain, output_dir, _ = plain_values(parser, config)
        values = {
            key: value if isinstance(value, int | float | None) else in_words(value)
            for key, value in cell.values.items()
        }
        cells.append(Cell(cell.title, values, plain, instantiator(parser, config)))
    return run_grid(command.name, cells, output_dir)


def plain_values(parser: LightningArgumentParser, config: Namespace) -> tuple[Config, str, str | None]:
    """The values that a run is made of, and beside them output_dir and ckpt_path."""
    plain = json.loads(parser.dump(config, format="json", skip_unset=False))
    return plain, plain.pop("output_dir"), plain.pop("ckpt_path")


def _run(command: Command, parser: LightningArgumentParser, config: Namespace) -> int:
    plain, output_dir, ckpt_path = plain_values(parser, config)
    objects = instantiator(parser, config)
    return run(
        name=command.name,
        config=plain,
        instantiate=objects,
        output_dir=output_dir,
        ckpt_path=ckpt_path,
        fresh=command.fresh,
    )


def instantiator(parser: LightningArgumentParser, config: Namespace) -> Instantiate:
    """What makes fresh objects of a resolved config: Trainer arguments, module, data module, pruning callback."""

    def instantiate() -> tuple[dict[str, Any], Classifier, LightningDataModule, PruningAtInit]:
        built = parser.instantiate(config)
        return vars(built.trainer), built.model, built.data, built.pruning

    return instantiate


def _keep_data_shape(net: Config) -> None:
    """Give a network that replaced another what that one was told about the data, as far as it takes it."""
    if former := net.pop("former", None):
        accepted = keys_of(net["class_path"])
        net["init_args"] = {key: former[key] for key in former if key in accepted} | net["init_args"]


def _check_clipping(config: Namespace) -> None:
    """Raise CommandError for what Lightning would refuse in the first step: gradients that a fused optimizer is to
    unscale itself cannot be clipped before; it refuses them without scaling, in bfloat16, too."""
    fused = config.model.optimizer.get("init_args", {}).get("fused")
    if fused and config.trainer.gradient_clip_val and str(config.trainer.precision) in MIXED:
        raise CommandError(
            f"model.optimizer.fused: not with trainer.gradient_clip_val under trainer.precision "
            f"{config.trainer.precision}: give --model.optimizer.fused false, or one of the others"
        )


def _texts(value: Any) -> Iterator[str]:
    """All strings in a config, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _long_help() -> str:
    """The short help, every key with its type and default, and the keys of whatever has a short name."""
    defaults = build_parser().get_defaults()
    top = (f"  --{key} = {value}" for key, value in defaults.items() if "." not in key)
    lines = [short_help(), "", *top, "  --grid.KEY = [VALUE, ...]", f"  {FRESH}"]
    groups = {"model": Classifier, "pruning": PruningAtInit, "tickets": Tickets, "trainer": Trainer}
    for group, target in groups.items():
        parameters = signature(target, eval_str=True).parameters.values()
        lines += ["", *(f"  --{group}.{parameter}" for parameter in parameters)]
    for slot, table in SHORT_NAMES.items():
        lines.append(f"\n  --{slot}.KEY, by short name")
        ours = {short: path for short, path in table.items() if not path.startswith("pl_bolts.")}
        lines += [f"    {short:<16} {' '.join(keys_of(path))}" for short, path in ours.items()]
    return "\n".join(lines)
