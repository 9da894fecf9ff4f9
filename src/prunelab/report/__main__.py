"""`python -m prunelab.report RUN_DIR ...`: the tables of finished runs again, and how the runs compare.

An entry, as train.py is one: unlike the rest of report/ it may import what stands above it.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import Any

from prunelab.experiment.errors import RunError
from prunelab.experiment.records import read_record
from prunelab.experiment.run_dir import LevelDir, RunDir
from prunelab.report.table import compare_table, report_text, run_table


def main(argv: list[str]) -> int:
    """Print the tables of the runs that `argv` names; returns the exit code, 2 for what cannot be read.

    Of a run that is not finished these are the tables of the levels that are.
    """
    parser = argparse.ArgumentParser(
        prog="python -m prunelab.report", description="Print the tables of finished runs again.", allow_abbrev=False
    )
    parser.add_argument(
        "run_dirs", nargs="+", metavar="RUN_DIR", help="the last word that a run printed, or a level_NN directory in it"
    )
    parser.add_argument("--evaluate", action="store_true", help="measure the accuracies of the last checkpoint anew")
    arguments = parser.parse_args(argv)
    try:
        runs = [_read(run_dir) for run_dir in arguments.run_dirs]
        tables = [
            _table(records, run_dir, _evaluate(run_dir, records) if arguments.evaluate else None)
            for run_dir, records in zip(arguments.run_dirs, runs, strict=True)
        ]
    except RunError as error:
        print(f"{parser.prog}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    text = "\n\n\n".join(tables)
    if len(runs) > 1:
        text = f"{compare_table(records[-1] for records in runs)}\n\n{text}"
    _print(text)
    return 0


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # `| head` has seen enough; Python would complain once more when it closes the output
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _table(records: list[dict[str, Any]], run_dir: str, evaluated: dict[str, float] | None = None) -> str:
    return run_table(records[0], run_dir) if _is_level(Path(run_dir)) else report_text(records, run_dir, evaluated)


def _read(run_dir: str) -> list[dict[str, Any]]:
    """The records of a run's finished levels, seen to have all that their tables need."""
    records: list[dict[str, Any]] = []
    levels = [LevelDir(Path(run_dir).resolve())] if _is_level(Path(run_dir)) else RunDir(Path(run_dir)).levels()
    for place, level in enumerate(levels):
        path, record = level.record, read_record(level.record)
        if record is None or level.index != levels[0].index + place:
            break
        try:
            compare_table([record])
            _table([record], run_dir)
        except (KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{path} is damaged, it is no record of a run ({type(error).__name__}: {error})") from error
        records.append(record)
    if not records:
        unfinished = Path(run_dir).is_dir()
        raise RunError(
            f"{run_dir} has no record.json: the run is not finished" if unfinished else f"no run in {run_dir}"
        )
    return records


def _is_level(path: Path) -> bool:
    return re.fullmatch(r"level_\d{2,}", path.resolve().name) is not None


def _evaluate(run_dir: str, records: list[dict[str, Any]]) -> dict[str, float]:
    """Build the run's network and data again from its config, and measure the accuracies of its last checkpoint."""
    if _is_level(Path(run_dir)):
        raise RunError(f"--evaluate measures the last level of a run: give it {Path(run_dir).resolve().parent}")
    if records[-1].get("level", 0) + 1 < records[-1].get("num_levels", 1):
        raise RunError(f"--evaluate measures the last level of a run, and {run_dir} is not finished")
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
