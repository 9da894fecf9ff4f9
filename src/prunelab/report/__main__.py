"""`python -m prunelab.report RUN_DIR ...`: the tables of finished runs again, and how the runs compare.

With `--results FOLDER` the means, pictures and files of `write_results` of any set of runs, as a sweep ends with them.

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
from prunelab.experiment.run_dir import LevelDir, RunDir, differing_keys, result_keys
from prunelab.names import short_name
from prunelab.report.groups import CRITERION
from prunelab.report.table import compare_table, report_text, run_table
from prunelab.report.tidy import SEED, FinishedCell

EPOCHS = "trainer.max_epochs"


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
    parser.add_argument(
        "--results", metavar="FOLDER", type=Path, help="write CSV, tables with means over seeds, and plots of the runs"
    )
    arguments = parser.parse_args(argv)
    try:
        if arguments.results is not None:
            if arguments.evaluate:
                raise RunError("--results and --evaluate do not go together")
            _print(_results(arguments.run_dirs, arguments.results))
            return 0
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


def _results(run_dirs: list[str], folder: Path) -> str:
    """Write what the runs found into `folder`; the axes are the keys of their configs in which they differ."""
    from prunelab.report.results import write_results  # what draws takes seconds to import

    configs = [RunDir(Path(run_dir)).read_config() for run_dir in run_dirs]
    kept = [result_keys(config) | {"trainer": config["trainer"]} for config in configs]
    keys = {key for config in configs for key in differing_keys(configs[0], config)} - {SEED, f"{CRITERION}.class_path"}
    if (
        len({str(config["trainer"].get("max_epochs")) for config in configs}) > 1
    ):  # a run may be trained on: no key of it
        keys.add(EPOCHS)
    axes = {f"{CRITERION}.class_path": CRITERION}
    axes |= {key: _axis(key) for key in sorted(keys) if _differ_by_themselves(kept, key)} | {SEED: SEED}
    cells = []
    for run_dir, config in zip(run_dirs, kept, strict=True):
        values = {axis: _value(config, key) for key, axis in axes.items()}
        cells.append(FinishedCell(run_dir, values, _finished(run_dir)))
    try:
        return write_results(folder, folder.resolve().name, cells, list(axes.values()))
    except ValueError as error:
        raise RunError(str(error)) from error


def _axis(key: str) -> str:
    return key.replace(".init_args", "").removesuffix(".class_path")


def _differ_by_themselves(configs: list[dict[str, Any]], key: str) -> bool:
    """Whether not only because another class is chosen, which has other arguments."""
    owner, _, argument = key.partition(".init_args.")
    values: dict[Any, set[str]] = {}
    for config in configs:
        chosen = _value(config, f"{owner}.class_path") if argument else None
        values.setdefault(chosen, set()).add(str(_value(config, key)))
    return any(len(of_class) > 1 for of_class in values.values())


def _value(config: dict[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return short_name(_axis(key), value) if value and key.endswith(".class_path") else value


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # `| head` has seen enough; Python would complain once more when it closes the output
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _table(records: list[dict[str, Any]], run_dir: str, evaluated: dict[str, float] | None = None) -> str:
    return run_table(records[0], run_dir) if _is_level(Path(run_dir)) else report_text(records, run_dir, evaluated)


def _read(run_dir: str) -> list[dict[str, Any]]:
    """The records of a run's finished levels, of which there must be one."""
    if records := _finished(run_dir):
        return records
    unfinished = Path(run_dir).is_dir()
    raise RunError(f"{run_dir} has no record.json: the run is not finished" if unfinished else f"no run in {run_dir}")


def _finished(run_dir: str) -> list[dict[str, Any]]:
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
