"""`python -m prunelab.paper COMMAND`. An entry, as train.py is one."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import NoReturn

from prunelab.data.errors import DataError
from prunelab.experiment.errors import RunError
from prunelab.memory import keep_freed_memory
from prunelab.models.errors import ModelError
from prunelab.names import SHORT_NAMES, CommandError, nearest
from prunelab.paper.collapse import critical_compression, layer_collapse
from prunelab.paper.conservation import SCORED, conservation
from prunelab.paper.measured import Measured
from prunelab.paper.result import Result, set_another_aside
from prunelab.paper.schedule import schedule
from prunelab.paper.subject import CRITERIA, Subject
from prunelab.paper.training import Training, training_conservation
from prunelab.pruning import PruningError

PROG = "python -m prunelab.paper"
COMMANDS = {
    "layer_collapse": "figure 2: density of each layer over compression, and where layers collapse",
    "critical_compression": "the last compression before a layer collapses, beside the maximal one",
    "conservation": "figures 3 and 4: scores into and out of units, mean score against layer size",
    "training_conservation": "figure 5b: magnitudes rebalance during training",
    "schedule": "figure 7: exponential against linear schedule by number of rounds",
}
SCHEDULES = ("exponential", "linear")
CACHED = ("layer_collapse", "critical_compression", "schedule")  # these go on where they were interrupted
NETWORKS = [name for name, path in SHORT_NAMES["model.net"].items() if path.startswith("prunelab.models.")]
USER_ERRORS = (CommandError, DataError, ModelError, PruningError, RunError)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{PROG}: error: {message}\n")


def main(argv: list[str]) -> int:
    """Measure, print and write what `argv` asks for; returns the exit code: 2 for user errors, 130 when interrupted."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.output.mkdir(parents=True, exist_ok=True)  # before hours of work, not after
        for name, result in _results(arguments):
            path = arguments.output / f"{name}_{arguments.network}"
            title = f"# {name}, {arguments.network}\n\n    {PROG} {shlex.join(argv)}\n\n"
            seeds = ", ".join(map(str, _seeds(arguments)))
            subject = _subject(arguments)
            scoring = "" if name == "training_conservation" else f" {subject.about_scoring()}"
            about = f"{subject.about()}{scoring} Seed: {seeds}.\n\n"
            if kept := set_another_aside(path, title):
                print(f"\n{path}.* were of another command: they are {kept}.* now")
            replace(result, text=title + about + result.text).write(path)
            print(f"\n{result.text}\n\n{path}.csv, .md, .png, .pdf")
    except KeyboardInterrupt:
        then = "goes on" if arguments.command in CACHED else "begins anew"
        print(f"interrupted: the same command {then}", file=sys.stderr)
        return 130
    except USER_ERRORS as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{error.filename or arguments.output}: {error.strerror or error}")
    return 0


def _results(arguments: argparse.Namespace) -> Iterator[tuple[str, Result]]:
    """(name, result) of each figure of a command."""
    subject, command = _subject(arguments), arguments.command
    measured = Measured(arguments.output / "measured")
    if command == "layer_collapse":
        yield command, layer_collapse(subject, arguments.criteria, arguments.exponents, measured, _say)
    elif command == "critical_compression":
        subjects = [replace(subject, seed=seed) for seed in _seeds(arguments)]
        yield command, critical_compression(subjects, arguments.criteria, arguments.tolerance, measured, _say)
    elif command == "conservation":
        units, layers = conservation(subject, arguments.criteria, _say)
        yield "unit_conservation", units
        yield "layer_conservation", layers
    elif command == "training_conservation":
        trainings, epochs = arguments.trainings, arguments.epochs
        yield command, training_conservation(subject, trainings, epochs, arguments.batch_size, _say)
    else:
        kinds, exponents = arguments.schedules, arguments.exponents
        yield command, schedule(subject, kinds, arguments.rounds, exponents, measured, _say)


def _seeds(arguments: argparse.Namespace) -> list[int]:
    return arguments.seeds if arguments.command == "critical_compression" else [arguments.seed]


def _subject(arguments: argparse.Namespace) -> Subject:
    return Subject(
        network=arguments.network,
        num_classes=arguments.num_classes,
        image_size=arguments.image_size,
        seed=_seeds(arguments)[0],
        data=arguments.data,
        data_root=arguments.data_root,
        samples_per_class=arguments.samples_per_class,
    )


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROG,
        description="The figures of the SynFlow paper (arXiv 2006.05467) that need no or little training: CSV, PNG, "
        f"PDF and the numbers. Of {', '.join(CACHED)} finished measurements are kept in OUTPUT/measured: interrupted, "
        "the same command goes on; the others begin anew.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command, figure in COMMANDS.items():
        sub = commands.add_parser(command, help=figure, description=figure, allow_abbrev=False)
        trains = command == "training_conservation"
        _option(
            sub, "--network", type=_one_of(NETWORKS), default="conv6" if trains else "vgg16_bn", help="its short name"
        )
        _option(sub, "--num_classes", type=_count, default=10 if trains else 100)
        _option(sub, "--image_size", type=_count, default=8 if trains else 32)
        if command != "critical_compression":
            _option(sub, "--seed", type=_seed, default=0)
        _option(sub, "--data", type=_one_of(SHORT_NAMES["data"]), default="digits", help="its short name")
        sub.add_argument("--data_root", help="where the data are, if not at their usual place")
        _option(
            sub,
            "--samples_per_class",
            type=_count,
            default=1 if command == "conservation" else 10,
            help="of the scoring batches",
        )
        _option(sub, "--output", type=Path, default=Path("runs/paper"))
        if command in ("layer_collapse", "critical_compression", "conservation"):
            known = SCORED if command == "conservation" else CRITERIA
            _option(sub, "--criteria", nargs="+", type=_one_of(known), default=list(known))
        if command == "layer_collapse":
            _option(sub, "--exponents", nargs="+", type=_exponent, default=[place / 2 for place in range(13)])
        elif command == "critical_compression":
            _option(sub, "--seeds", nargs="+", type=_seed, default=[0, 1, 2])
            _option(sub, "--tolerance", type=_share, default=0.01, help="of the bisection; 0: exact")
        elif command == "schedule":
            _option(sub, "--schedules", nargs="+", type=_one_of(SCHEDULES), default=list(SCHEDULES))
            _option(sub, "--rounds", nargs="+", type=_count, default=[1, 2, 5, 10, 20, 50, 100])
            _option(sub, "--exponents", nargs="+", type=_exponent, default=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
        elif trains:
            sub.add_argument(
                "--trainings",
                nargs="+",
                type=_training,
                default=[Training(0.0005, 0.0), Training(0.01, 0.01), Training(0.02, 0.0, 0.5)],
                metavar="RATE,DECAY[,SCALE]",
                help="learning rate and weight decay of each training, and a factor of its weights at initialisation "
                "(default: 0.0005,0 0.01,0.01 0.02,0,0.5)",
            )
            _option(sub, "--epochs", type=_count, default=40)
            _option(sub, "--batch_size", type=_count, default=32)
    return parser


def _option(parser: argparse.ArgumentParser, name: str, **options: object) -> None:
    """An option whose help ends with its default."""
    default = options["default"]
    words = " ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in default) if isinstance(
        default, Sequence) and not isinstance(default, str) else default  # fmt: skip
    about = f"{options.pop('help', '')} (default: {words})".strip()
    parser.add_argument(name, help=about, **{"metavar": name.removeprefix("--").upper(), **options})  # type: ignore[arg-type]


def _number(text: str, accepts: tuple[float, float], wanted: str, whole: bool = False) -> float:
    try:
        value = int(text) if whole else float(text)
    except ValueError:
        value = inf
    if not accepts[0] <= value <= accepts[1]:
        raise argparse.ArgumentTypeError(f"expected {wanted}, got {text}")
    return value


def _one_of(names: Collection[str]) -> Callable[[str], str]:
    def check(text: str) -> str:
        if text in names:
            return text
        raise argparse.ArgumentTypeError(f"no {text!r}{nearest(text, names) or ';'} there are {', '.join(names)}")

    return check


def _count(text: str) -> int:
    return int(_number(text, (1, 10**9), "a whole number of at least 1", whole=True))


def _seed(text: str) -> int:
    return int(_number(text, (0, 2**32 - 1), "a whole number in [0, 2**32)", whole=True))


def _exponent(text: str) -> float:
    return _number(text, (0, 12), "an exponent in [0, 12]")


def _training(text: str) -> Training:
    wanted = "RATE,DECAY or RATE,DECAY,SCALE, SCALE above 0, such as 0.01,0.001"
    parts, limits = text.split(","), ((1e-12, 1e3), (0, 1), (1e-6, 1e6))
    if len(parts) not in (2, 3):
        raise argparse.ArgumentTypeError(f"expected {wanted}, got {text}")
    return Training(*(_number(part, accepts, wanted) for part, accepts in zip(parts, limits, strict=False)))


def _share(text: str) -> float:
    return _number(text, (0, 1), "a number in [0, 1]")


def _say(text: str) -> None:
    print(text, flush=True)


def _fail(message: str) -> int:
    print(f"{PROG}: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main(sys.argv[1:]))
