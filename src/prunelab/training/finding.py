"""Masks for a network, from scores or from elsewhere, and what they do to it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_lightning import Trainer
from torch import Tensor, nn

from prunelab.pruning import Criterion, Masks, PruningError, Scoring, prune
from prunelab.pruning.gradients import scoring_loss
from prunelab.pruning.preflight import Preflight, preflight
from prunelab.pruning.scoring import Batch, Loss
from prunelab.pruning.transfer import transferred
from prunelab.training.network import like_weights
from prunelab.training.scoring_data import scoring_batches

SAMPLES_PER_CLASS = 10

OnRound = Callable[[int, int, float, Mapping[str, Tensor], Masks], None]


@dataclass(frozen=True)
class Found:
    """scores: of the last round, empty if nothing was scored."""

    masks: Masks
    report: Preflight
    scores: Mapping[str, Tensor]


def find_masks(
    net: nn.Module,
    criterion: Criterion,
    *,
    density: float,
    example_input: Tensor,
    masks: Masks,
    batches: Sequence[Batch],
    rounds: int | None,
    loss: Loss,
    on_round: OnRound,
    needs_path: bool,
    **settings: Any,
) -> Found:
    """What `prune` keeps of `masks`, by the scores of `criterion`; the network is unchanged.

    on_round(index, num_rounds, density, scores, masks): called after each round. needs_path: whether masks that leave
    no path from input to output are an error. Further keywords: those of `prune`.
    Raises: PruningError as `prune` does, and for masks without a path.
    """
    num_rounds = criterion.rounds if rounds is None else rounds
    last_scores: Mapping[str, Tensor] | None = None
    scored = kept = masks  # scored: what the last round had to choose from

    def after_round(index: int, density: float, scores: Mapping[str, Tensor], chosen: Masks) -> None:
        nonlocal last_scores, scored, kept
        last_scores, scored, kept = scores, masks if criterion.revives else kept, chosen
        on_round(index, num_rounds, density, scores, chosen)

    found = prune(
        net,
        criterion,
        density=density,
        example_input=example_input,
        masks=masks,
        batches=batches,
        rounds=rounds,
        loss=loss,
        on_round=after_round,
        **settings,
    )
    loss_before = None
    if batches:
        scoring = Scoring(net, masks, example_input, batches=batches, loss=loss)
        loss_before = scoring_loss(scoring, batch_norm=getattr(criterion, "batch_norm", "running"))
    report = preflight(
        net,
        found,
        example_input,
        density_requested=density,
        scores=last_scores,
        scored_masks=scored,
        scoring_loss=loss_before,
        needs_path=needs_path,
    )
    return Found(found, report, last_scores or {})


def take_masks(net: nn.Module, given: Masks, names: Iterable[str], example_input: Tensor, *, needs_path: bool) -> Found:
    """The masks `given` from elsewhere, for the prunable parameters `names` of `net`.

    Raises: PruningError if they do not fit (`transferred`), or leave no path from input to output and `needs_path`.
    """
    masks = transferred(given, net, names)
    report = preflight(net, masks, example_input, density_requested=masks.density, needs_path=needs_path)
    return Found(masks, report, {})


def load_masks(path: str) -> Masks:
    """Raises: PruningError if the file is missing or holds no masks."""
    try:
        return Masks.load(path)
    except OSError as error:
        raise PruningError(f"masks_from: there is no masks file {path}") from error


def batches_for(
    criterion: Criterion,
    trainer: Trainer,
    given: Sequence[Batch] | None,
    samples_per_class: int | None,
    net: nn.Module,
    example_input: Tensor,
) -> list[Batch]:
    """What `criterion` scores `net` with, (inputs, labels) like its weights; empty if it scores without data.

    samples_per_class: None means `SAMPLES_PER_CLASS`. Raises: as `scoring_batches`.
    """
    if not criterion.needs_batches:
        return []
    samples = SAMPLES_PER_CLASS if samples_per_class is None else samples_per_class
    found = scoring_batches(trainer, given, samples, net, example_input)
    return [tuple(like_weights(part, net) for part in batch[:2]) for batch in found]


def judge(report: Preflight, *, fail: bool) -> None:
    """Warn of layers that keep no weight, and of a network without any path from input to output.

    Raises: PruningError for such layers if they are to `fail`.
    """
    if report.effective_density == 0:
        warnings.warn("no path leads from input to output: only what lies behind the break can learn", stacklevel=2)
    if not report.collapsed_layers:
        return
    message = f"layer collapse: {', '.join(report.collapsed_layers)} kept no weight"
    if fail:
        raise PruningError(message)
    warnings.warn(message, stacklevel=2)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for all that decides about masks, in every process of every run.

    Launchers give each of n processes an n-th of the cores, and another number of threads adds up in another order, in
    float64 too: the last bits of the scores differ, and with them, where two are nearly equal, the masks. One is the
    number that every process has a core for.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
