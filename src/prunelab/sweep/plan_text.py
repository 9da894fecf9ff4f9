"""`--plan`: what a sweep would run, how many, and how long by the runs so far."""

from __future__ import annotations

from collections.abc import Sequence

from prunelab.sweep.display import in_words
from prunelab.sweep.file import Sweep
from prunelab.sweep.plan import PlannedCell, command_of, seconds_by_kind, seconds_left, seconds_of
from prunelab.sweep.states import begun


def plan_text(sweep: Sweep, cells: Sequence[PlannedCell], output_dir: str, threads: int, slots: int) -> str:
    """Every cell with its state and its command, under a summary."""
    lines, durations, left = [], [], []
    for planned in cells:
        if (records := planned.records()) is not None:
            state = "done"
            durations.append((planned, seconds_of(records)))
        else:
            state = "goes on" if begun(planned.run_dir) else "to run"
            left.append(planned)
        lines += [f"{state:<8} {planned.title}", f"         {command_of(planned.cell, output_dir, threads)}"]
    seconds = seconds_left([(cell, 0.0) for cell in left], seconds_by_kind(durations), slots)
    at_a_time = "one at a time" if slots == 1 else f"{slots} at a time"
    if not left:
        time = "nothing is left to run"
    elif seconds is None:
        time = "how long is unknown: no run of some kind (network, data, training) has finished yet"
    else:
        time = f"about {in_words(seconds)} {at_a_time}, by the finished runs of the same network, data and training"
    summary = f"{len(cells)} cells in {output_dir}: {len(cells) - len(left)} done, {len(left)} to run; {time}"
    return "\n".join([sweep.claim, *lines, "", summary])
