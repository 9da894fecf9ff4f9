"""One run: from its config to its records. Interrupted, the same call goes on; finished, it shows the table."""

from __future__ import annotations

import math
import pkgutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prunelab.data.errors import DataError
from prunelab.experiment.errors import RunError
from prunelab.experiment.job import Config, Instantiate, Job, is_first_process, say
from prunelab.experiment.level_record import measured
from prunelab.experiment.levels import Tickets
from prunelab.experiment.lock import held
from prunelab.experiment.records import read_record, write_record
from prunelab.experiment.run_dir import RunDir, spelled_density, tickets_of
from prunelab.experiment.train_level import train_level
from prunelab.experiment.trainer import measuring_trainer, quiet_libraries
from prunelab.launcher import end_with_launcher, is_started_again, starting_others
from prunelab.pruning import PruningError
from prunelab.report.levels import write_summary
from prunelab.report.table import report_text
from prunelab.training.compacting import shrink_as_in
from prunelab.training.interruption import exit_code_on_signals
from prunelab.training.resume import read_checkpoint
from prunelab.training.rewind import parse_step


def run(
    name: str,
    config: Config,
    instantiate: Instantiate,
    output_dir: str,
    ckpt_path: str | None = None,
    fresh: bool = False,
) -> int:
    """Prune, train and test what `config` says, in the directory that its values name; returns the exit code.

    name: of the config, first word of the directory's name. instantiate: makes fresh Trainer arguments, module, data
    module and pruning callback. ckpt_path: a checkpoint of this config to go on from, instead of the run's own.
    fresh: begin anew; what the directory holds is kept under another name.
    Raises: RunError for a directory, checkpoint or network that does not go with the config, or a directory that
    another process works in; SystemExit with 128 + its number when a signal ends the training.
    """
    end_with_launcher()
    job = make_job(name, config, instantiate, output_dir)
    if ckpt_path is not None and len(job.densities) > 1:
        raise RunError("--ckpt_path goes with runs of one level: a run with levels finds its own checkpoints")
    run_dir = job.run_dir
    # a launcher that starts the command again, --fresh and all, goes on with what its first attempt began
    fresh = fresh and not is_started_again()
    kept = _set_aside(run_dir) if fresh and is_first_process() and run_dir.path.exists() else None
    is_new = not run_dir.path.exists()
    for sibling, keys in run_dir.unfinished_siblings(config) if is_new else []:
        say(f"not the unfinished run {sibling.name}, which differs in {', '.join(keys)}")
    with exit_code_on_signals(), quiet_libraries(), starting_others():
        # what is there may be what the first process is about to set aside
        if (records := None if fresh else finished_records(job)) is not None:
            trains_on = not job.tickets.has_levels and not job.control and records[0]["max_epochs"] != -1
            more = f" (--trainer.max_epochs above {records[0]['max_epochs']} trains on)" if trains_on else ""
            say(f"finished earlier, nothing to do{more}")
        else:
            with _locked(run_dir):
                try:
                    records = [
                        _record(job, index, ckpt_path, anew=fresh and index == job.indices[0]) for index in job.indices
                    ]
                except Exception as error:
                    refused = isinstance(error, PruningError | DataError | RunError) or not run_dir.config.exists()
                    # a directory without a result would only be in the way
                    if is_new and refused and is_first_process():
                        run_dir.remove_unstarted()
                        if kept is not None:
                            kept.rename(run_dir.path)
                    raise
    say(f"\n{report_text(records, str(run_dir.path))}")
    return 0


def evaluate(run_dir: Path, instantiate: Instantiate) -> dict[str, float]:
    """Accuracies of the last level's last checkpoint, measured anew. Raises: RunError if it cannot be read."""
    levels = RunDir(run_dir).levels()
    checkpoint = (levels[-1] if levels else RunDir(run_dir).level(0)).last_checkpoint
    content = read_checkpoint(checkpoint)
    if content is None:
        raise RunError(f"{checkpoint} is missing or damaged")
    with quiet_libraries():
        arguments, model, data, _ = instantiate()
        shrink_as_in(model, content)
        model.load_state_dict(content["state_dict"])
        data.setup("fit")  # validation alone would not know the split
        seed = RunDir(run_dir).read_config().get("seed_everything", 0)
        return measured(measuring_trainer(arguments), model, data, seed, validate=bool(data.val_dataloader()))


def make_job(name: str, config: Config, instantiate: Instantiate, output_dir: str) -> Job:
    """What the levels of a run share.

    Raises: RunError for values that do not go together, and for a control whose ticket is not finished.
    """
    trainer = config["trainer"]
    epochs = trainer.get("max_epochs")
    if epochs is not None and epochs < -1:
        raise RunError(f"trainer.max_epochs: a number of epochs, or -1 for no limit, not {epochs}")
    is_endless = epochs is None or (epochs == -1 and trainer.get("max_time") is None)
    if is_endless and trainer.get("max_steps", -1) == -1:
        raise RunError("say how long to train: --trainer.max_epochs or --trainer.max_steps")
    tickets, control = tickets_of(config), config.get("control")
    densities: list[float | None] = [None]
    num_dense = 0
    if config["pruning"].get("masks_from") is None:
        num_dense = _num_dense(tickets, config)
        densities = [*[1.0] * num_dense, *tickets.pruned_densities(spelled_density(config))]
    elif tickets.has_levels or control not in (None, "reinit"):
        raise RunError("pruning.masks_from brings one mask: there are no levels, and no control but reinit")
    if config["trainer"].get("max_time") is not None and len(densities) > 1:
        raise RunError("trainer.max_time would end levels by the clock: give max_epochs or max_steps for each level")
    run_dir = RunDir.of(output_dir, name, config)
    ticket_dir = run_dir
    if control is not None:
        ticket_dir = RunDir.of(output_dir, name, {**config, "control": None})
        found = [read_record(ticket_dir.level(index).record) for index in range(len(densities))]
        if any(record is None for record in found):
            raise RunError(
                f"control {control} needs the finished ticket {ticket_dir.path}: run the same command without --control"
            )
        asked, trained = config["trainer"].get("max_epochs"), found[-1] and found[-1]["max_epochs"]
        if asked is not None and asked != trained:
            raise RunError(f"control {control}: its ticket was trained with --trainer.max_epochs {trained}")
    if tickets.mask_1 != "rewind" and len(densities) > 1 and (num_dense == 0 or tickets.rewind != "weights"):
        raise RunError(
            f"tickets.mask_1 {tickets.mask_1} is about the weights of an unpruned rewind point: it needs "
            "tickets.dense_first true and tickets.rewind weights"
        )
    if config["pruning"].get("compact") and (tickets.mask_1, tickets.keep_sign, tickets.mask_0) != (
        "rewind",
        False,
        "zero",
    ):
        raise RunError(
            "pruning.compact goes with tickets.mask_1 rewind, keep_sign false and mask_0 zero: pruned weights that are "
            "not 0 have a part in the function"
        )
    return Job(name, config, instantiate, run_dir, ticket_dir, tickets, densities, num_dense)


def _num_dense(tickets: Tickets, config: Config) -> int:
    """1 if a dense level comes before the pruned ones, otherwise 0."""
    if not tickets.has_levels:
        if tickets.dense_first:
            raise RunError("tickets.dense_first: say how many levels follow, --tickets.levels 1")
        if parse_step(tickets.rewind_step, steps_per_epoch=1) or tickets.rewind != "weights":
            raise RunError("tickets.rewind and rewind_step: there are no levels that rewind, --tickets.levels 1")
        return 0
    if tickets.dense_first is not None:
        return int(tickets.dense_first)
    criterion = pkgutil.resolve_name(config["pruning"]["criterion"]["class_path"])
    return int(getattr(criterion, "scores_trained_weights", False))


def _set_aside(run_dir: RunDir) -> Path:
    with _locked(run_dir):
        kept = run_dir.set_aside()
    say(f"what was there is kept as {kept}")
    return kept


@contextmanager
def _locked(run_dir: RunDir) -> Iterator[None]:
    """The directory is this process's; of several processes of one run the first holds it for all."""
    if not is_first_process():
        yield
        return
    run_dir.make()
    with held(run_dir.lock):
        yield


def finished_records(job: Job) -> list[dict[str, Any]] | None:
    """The records of a run that is finished; None if there is something left to do.

    Raises: RunError if it has trained more epochs than are asked for.
    """
    found = [read_record(job.run_dir.level(index).record) for index in job.indices]
    records = [record for record in found if record is not None]
    if len(records) < len(found):
        return None
    if len(records) == 1:
        if _wants_more(records[0], job.config):
            return None
        asked = job.config["trainer"].get("max_epochs")
        if asked is not None and _limit(asked) < records[0]["epochs"]:
            raise RunError(
                f"{job.run_dir.path} has already trained {records[0]['epochs']} epochs, more than the {asked} asked "
                "for: give another --output_dir"
            )
    return records


def _record(job: Job, index: int, ckpt_path: str | None, *, anew: bool) -> dict[str, Any]:
    """The record of a level, which is trained if it has none. anew: or if what is there is of a former run."""
    level = job.run_dir.level(index)
    record = None if anew else read_record(level.record)
    if record is None or _has_lost_its_end(job, index) or (len(job.indices) == 1 and _wants_more(record, job.config)):
        try:
            record = train_level(job, index, ckpt_path, anew)
        except PruningError as error:
            if index == job.indices[0]:
                raise
            finished = f"the levels before it are finished, python -m prunelab.report {job.run_dir.path} shows them"
            raise RunError(f"level {index}: {error}; {finished}") from error
        if is_first_process():
            if len(job.indices) > 1:
                before = [read_record(job.run_dir.level(done).record) for done in job.indices if done < index]
                write_summary(job.run_dir.summary, [done for done in before if done is not None] + [record])
            write_record(level.record, record)  # at the end: a level that has one is never looked at again
    return record


def _has_lost_its_end(job: Job, index: int) -> bool:
    """Whether the next level, still to be trained, needs the last checkpoint of a finished level that is damaged."""
    if index + 1 not in job.indices or job.run_dir.level(index + 1).record.exists():
        return False
    return read_checkpoint(job.run_dir.level(index).last_checkpoint) is None


def _wants_more(record: Mapping[str, Any], config: Config) -> bool:
    """Whether a run of one level is asked for more epochs than it was asked for before, or ran out of its max_time."""
    asked = config["trainer"].get("max_epochs")
    if asked is None:
        return False
    wanted = _limit(asked)
    return wanted > _limit(record["max_epochs"]) or (record["out_of_time"] and wanted > record["epochs"])


def _limit(max_epochs: int) -> float:
    return math.inf if max_epochs == -1 else max_epochs
