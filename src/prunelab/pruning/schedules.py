"""Density after round k of n, on the way from d0 to d."""

from __future__ import annotations

from typing import Literal

from prunelab.pruning.errors import PruningError

Schedule = Literal["exponential", "linear"]


def density_at(schedule: Schedule, start: float, end: float, round: int, num_rounds: int) -> float:
    """Density to keep after `round` of `num_rounds` (1 <= round <= num_rounds).

    exponential: start * (end / start)^(k/n), the same factor in every round (Tanaka et al. 2020, section 6).
    linear: start + (end - start) * k/n, the same number of weights in every round.
    The last round gives exactly `end`.
    Raises: PruningError for an unknown schedule.
    """
    if schedule not in ("exponential", "linear"):
        raise PruningError(f"unknown schedule {schedule!r}: exponential or linear")
    if round == num_rounds:
        return end
    if schedule == "exponential":
        return start ** (1 - round / num_rounds) * end ** (round / num_rounds)  # as above, for start = 0 too
    return start + (end - start) * round / num_rounds
