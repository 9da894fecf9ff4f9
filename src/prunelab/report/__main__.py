"""`python -m prunelab.report RUN_DIR ...`: the tables of finished runs again, and how the runs compare.

An entry, as train.py is one: unlike the rest of report/ it may import what stands above it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from prunelab.experiment.errors import RunError
from prunelab.experiment.records import read_record
from prunelab.experiment.run_dir import RunDir
from prunelab.report.table import compare_table, run_table


def main(argv: list[str]) -> int:
    """Print the tables of the runs that `argv` names; returns the exit code, 2 for what cannot be read."""
    parser = argparse.ArgumentParser(
        prog="python -m prunelab.report", description="Print the tables of finished runs again.", allow_abbrev=False
    )
    parser.add_argument("run_dirs", nargs="+", metavar="RUN_DIR", help="the last word that a run printed")
    parser.add_argument("--evaluate", action="store_true", help="measure the accuracies of the last checkpoint anew")
    arguments = parser.parse_args(argv)
    try:
        records = [_read(run_dir) for run_dir in arguments.run_dirs]
        if len(records) > 1:
            print(compare_table(records), end="\n\n")
        tables = []
        for run_dir, record in zip(arguments.run_dirs, records, strict=True):
            tables.append(run_table(record, run_dir, _evaluate(run_dir) if arguments.evaluate else None))
        print("\n\n\n".join(tables))
    except RunError as error:
        print(f"{parser.prog}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _read(run_dir: str) -> dict[str, Any]:
    """The record of a run, seen to have all that its table needs."""
    path = RunDir(Path(run_dir)).level(0).record
    record = read_record(path)
    if record is None:
        unfinished = Path(run_dir).is_dir()
        raise RunError(
            f"{run_dir} has no {path.name}: the run is not finished" if unfinished else f"no run in {run_dir}"
        )
    try:
        compare_table([record])
        run_table(record, run_dir)
    except (KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path} is damaged, it is no record of a run ({type(error).__name__}: {error})") from error
    return record


def _evaluate(run_dir: str) -> dict[str, float]:
    """Build the run's network and data again from its config, and measure the accuracies of its last checkpoint."""
    from pytorch_lightning import seed_everything

    from prunelab.cli import USER_ERRORS, build_parser, instantiator, resolve
    from prunelab.experiment.run import evaluate

    try:
        parser = build_parser()
        config = resolve(parser, RunDir(Path(run_dir)).read_config())
        seed_everything(config.seed_everything, verbose=False)  # the validation split is drawn from it
        metrics = evaluate(Path(run_dir), instantiator(parser, config))
    except USER_ERRORS as error:
        raise RunError(str(error)) from error
    return {name: value for name, value in metrics.items() if name.endswith("accuracy")}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
