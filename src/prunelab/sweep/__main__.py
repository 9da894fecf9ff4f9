"""`python -m prunelab.sweep --config FILE`: run what is missing of a sweep, and show what it found."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from prunelab.command_line import typed_options
from prunelab.config import PLAIN_AXES
from prunelab.names import CommandError, nearest
from prunelab.sweep.file import SWEEPS, Sweep, find_sweep, read_sweep

PROGRAM = "prunelab.sweep"
ENGINES = ("auto", "ray", "local")


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise CommandError(message)


def main(argv: list[str]) -> int:
    """Do what the command line `argv` asks for; returns the exit code, 2 for what cannot be meant as written."""
    try:
        parser = _parser()
        asked, rest = parser.parse_known_args(argv)
        if len(asked.config) > 1:
            raise CommandError("--config: give one sweep; configs go into its base, or an axis called config")
        sweep = read_sweep(find_sweep(asked.config[0]), _overrides(parser, rest), asked.repeats)
        if asked.engine == "auto":
            asked.engine = "ray" if importlib.util.find_spec("ray") else "local"
        _check(asked)
        return _do(asked, sweep)
    except CommandError as error:
        return fail(error)
    except KeyboardInterrupt:  # before there was a run
        return 130


def fail(error: Exception) -> int:
    print(f"{PROGRAM}: error: {' '.join(str(error).split())}", file=sys.stderr)
    return 2


def _do(asked: argparse.Namespace, sweep: Sweep) -> int:
    from prunelab.experiment.errors import RunError
    from prunelab.sweep.drive import Driver
    from prunelab.sweep.local import Engine, LocalEngine
    from prunelab.sweep.plan import plan
    from prunelab.sweep.plan_text import plan_text

    folder = Path(asked.output_dir) / "sweeps" / sweep.name

    def make_engine(most: int) -> Engine:
        errors = (folder / "logs" / "servers.log").absolute()
        if asked.engine == "local":
            return LocalEngine(min(_slots(asked), most), errors)
        from prunelab.sweep.on_ray import RayEngine

        slots = None if asked.slots is None else min(asked.slots, most)
        if asked.address is None:
            slots = min(_slots(asked), most)
        return RayEngine(slots, asked.threads, errors, asked.address, asked.gpus)

    try:
        if asked.address is not None:
            from prunelab.sweep.on_ray import check_reachable

            check_reachable(asked.address)
        cells = plan(sweep, asked.output_dir)
        if asked.plan:
            print(plan_text(sweep, cells, asked.output_dir, asked.threads, _slots(asked)))
            return 0
        return Driver(sweep, cells, folder, asked.threads, asked.output_dir).run(make_engine)
    except (RunError, OSError) as error:
        return fail(error)


def _slots(asked: argparse.Namespace) -> int:
    """How many runs at a time on this machine; a cluster that is not asked yet counts as one."""
    if asked.slots is not None or asked.engine == "local" or asked.address is not None:
        return asked.slots or 1
    from prunelab.sweep.local import visible_gpus
    from prunelab.sweep.on_ray import num_processors

    slots, share = num_processors() // asked.threads, 1.0 if asked.gpus is None else asked.gpus
    if (gpus := len(visible_gpus())) and share:
        slots = min(slots, int(gpus / share + 1e-9))
    return max(1, slots)


def _parser() -> Parser:
    parser = Parser(
        prog=f"python -m {PROGRAM}",
        description="Run what is missing of a sweep, in parallel, and show what it found. The same command goes on.",
        epilog="--KEY VALUE, as for train.py, goes to all runs, whose results get a folder of their own: "
        "--trainer.max_epochs 5.",
        allow_abbrev=False,
    )
    known = ", ".join(path.name for path in sorted(SWEEPS.glob("*.yaml")))
    parser.add_argument(
        "--config", required=True, action="append", metavar="FILE", help=f"a sweep, as a path or in sweeps/: {known}"
    )
    parser.add_argument("--plan", action="store_true", help="only show what would run, how many, how long")
    parser.add_argument("--output_dir", default="runs", help="of all runs (default: runs); results: its sweeps/NAME")
    parser.add_argument("--repeats", type=_whole, help="seeds 0, 1, ..., so many, instead of the file's")
    parser.add_argument("--slots", type=_whole, help="runs at a time (default: with Ray as many as fit, otherwise 1)")
    parser.add_argument("--threads", type=_whole, default=1, help="CPU threads of each run (default: 1)")
    parser.add_argument("--engine", choices=ENGINES, default="auto", help="auto: Ray where it is installed")
    parser.add_argument("--address", help="of a Ray cluster: HOST:PORT, or auto")
    parser.add_argument("--gpus", type=_share, help="of each run (default: 1 where Ray finds any)")
    return parser


def _check(asked: argparse.Namespace) -> None:
    if asked.engine == "ray" and importlib.util.find_spec("ray") is None:
        raise CommandError("--engine ray needs Ray: pip install 'prunelab[sweep]'")
    if asked.engine == "local":
        for option in ("address", "gpus"):
            if getattr(asked, option) is not None:
                raise CommandError(f"--{option} needs Ray: pip install 'prunelab[sweep]', and no --engine local")


def _overrides(parser: argparse.ArgumentParser, words: Sequence[str]) -> list[tuple[str, str]]:
    """Keys and values of train.py among the words that are no options of the sweep."""
    found = [(key.removeprefix("--"), value) for key, value in typed_options(list(words))]
    for key, _ in found:
        if "." not in key and key not in PLAIN_AXES:
            own = [option for action in parser._actions for option in action.option_strings]
            hint = nearest(f"--{key}", own) or "; --help lists the options"
            raise CommandError(f"unknown option --{key}{hint}")
    return found


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text}")
    return int(text)


def _share(text: str) -> float:
    try:
        if (share := float(text)) >= 0:
            return share
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"expected a number of at least 0, got {text}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
