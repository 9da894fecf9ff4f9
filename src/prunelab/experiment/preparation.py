"""What a level starts from: its checkpoint, its weights, and what its pruning builds on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn

from prunelab.data.seeds import derive_seed
from prunelab.experiment.controls import Corrupted, Inverted, random_masks, shuffled_masks
from prunelab.experiment.errors import RunError
from prunelab.experiment.job import Job, say
from prunelab.experiment.levels import density_of_whole
from prunelab.experiment.run_dir import spelled_density
from prunelab.experiment.tickets import find_masks, find_weights, masks_of, start_weights
from prunelab.pruning import Masks, PruningError, prunable_names
from prunelab.pruning.allocation import round_half_up
from prunelab.training import Classifier, PruningAtInit
from prunelab.training.compacting import KEY, in_full
from prunelab.training.finding import load_masks
from prunelab.training.network import find_network
from prunelab.training.resume import read_checkpoint
from prunelab.training.rewind import Checkpoint, Rewind, start_checkpoint
from prunelab.training.ticket import Ticket

_STARTS: dict[Rewind, str] = {
    "weights": "rewound to step {step}",
    "learning_rate": "weights of level {before}, learning rate rewound to step {step}",
    "finetune": "weights of level {before}, from step {step} at the last learning rate",
}


def set_budget(job: Job, index: int, model: Classifier, pruning: PruningAtInit) -> None:
    """How dense the level is."""
    if pruning.masks_from is not None:
        return
    pruning.density = job.densities[index] if job.prunes(index) else 1.0
    net = find_network(model, pruning.net)
    parameters = dict(net.named_parameters())
    sizes = {name: parameters[name].numel() for name in prunable_names(net, pruning.include, pruning.exclude)}
    _check_last(job, sum(sizes.values()))
    allocations = job.tickets.layer_allocations(spelled_density(job.config), sizes)
    if allocations is None:
        return
    if pruning.allocation is not None or pruning.min_layer_density:
        raise RunError("tickets.layer_rates says how dense each layer is: no allocation, no min_layer_density")
    if job.prunes(index):
        pruning.allocation = allocations[index - job.num_dense]
        pruning.density = density_of_whole(pruning.allocation, sizes)


def _check_last(job: Job, num_weights: int) -> None:
    """Raises: PruningError, before anything is trained, if the last level would keep no weight."""
    last = job.densities[-1]
    if last is not None and round_half_up(last, num_weights) == 0:
        raise PruningError(f"density {last:.3g} of {num_weights} prunable weights keeps none, at the last level")


def build_on(job: Job, index: int, model: Classifier, pruning: PruningAtInit) -> Checkpoint | None:
    """What a level that begins takes from elsewhere: weights, masks, the level before, the ticket of a control.

    Returns the checkpoint that it starts from, None if it starts like any training. Every process makes it by itself.
    """
    rewind, end = _points_before(job, index) if index > 0 else ({}, {})
    how = job.rewind if index > 0 else None
    start = None if how is None else start_checkpoint(rewind, end, how)
    if job.control == "reinit":
        model.load_state_dict(_drawn_anew(job, "reinit"))
        pruning.weights_from = None  # or they would be loaded over what was drawn
    elif pruning.weights_from is not None:
        pruning.weights_from = str(find_weights(pruning.weights_from))
    if pruning.masks_from is not None:
        path = find_masks(pruning.masks_from)
        pruning.given = load_masks(str(path))
        say(f"masks from {path}", flush=True)
    if job.prunes(index):
        pruning.ticket = _ticket(job, index, pruning, rewind, end)
        if start is not None:
            pruning.ticket = replace(pruning.ticket, start=_of_network(pruning.net)(start["state_dict"]))
        if job.control and pruning.masks_from is None:
            _apply_control(job, index, find_network(model, pruning.net), pruning)
    if how is not None and start is not None:
        say(f"level {index}: {_STARTS[how].format(before=index - 1, step=start['global_step'])}", flush=True)
    return start


def _points_before(job: Job, index: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The rewind point, and the end of the level before, of the full network."""
    first, before = job.ticket_dir.level(0), job.level_before(index)
    points = (_read(job, first.rewind_checkpoint), first), (_read(job, before.last_checkpoint), before)
    rewind, end = (in_full(point, start_weights(level)) if KEY in point else point for point, level in points)
    return rewind, end


def _ticket(job: Job, index: int, pruning: PruningAtInit, rewind: dict[str, Any], end: dict[str, Any]) -> Ticket:
    own, asked = _of_network(pruning.net), job.tickets
    mask_1 = "rewind" if job.control == "reinit" else asked.mask_1  # that control has drawn its weights
    fresh = own(_drawn_anew(job, "mask_1")) if mask_1 == "reinit" else None
    ticket = Ticket(mask_1=mask_1, keep_sign=asked.keep_sign, mask_0=asked.mask_0, fresh=fresh)
    if index == 0:
        return ticket
    return replace(
        ticket,
        masks=masks_of(job.level_before(index)),
        weights=own(end["state_dict"]),
        initial=own(rewind["state_dict"]),
    )


def _drawn_anew(job: Job, purpose: Literal["reinit", "mask_1"]) -> dict[str, Tensor]:
    """Weights from the distribution of the run's own, and from other draws."""
    with isolate_rng():
        torch.manual_seed(derive_seed(job.seed, purpose) % 2**32)
        return job.instantiate()[1].state_dict()


def _apply_control(job: Job, index: int, net: nn.Module, pruning: PruningAtInit) -> None:
    """Change the one thing that the control changes."""
    masks = masks_of(job.ticket_dir.level(index))
    if pruning.criterion is None:
        raise RunError(f"control {job.control} needs a criterion: its ticket has masks from elsewhere")
    criterion: Any = pruning.criterion  # the wrappers have what a criterion has, but not by their class
    if job.control == "invert":
        criterion = Inverted(criterion)
        pruning.allocation, pruning.density = masks.layer_densities(), masks.density
    elif job.control in ("corrupt_labels", "corrupt_pixels"):
        what: Any = job.control.removeprefix("corrupt_")
        criterion = Corrupted(criterion, what, derive_seed(job.seed, "control"))
    else:
        # with weights from the level before, what that level pruned is 0
        goes_on = index > 0 and job.tickets.rewind != "weights"
        within = masks_of(job.level_before(index)) if goes_on else Masks.dense(net, masks)
        generator = torch.Generator().manual_seed(derive_seed(job.seed, "control", index))
        draw = {"random": random_masks, "shuffle": shuffled_masks}.get(job.control or "")
        pruning.given = draw(masks, within, generator) if draw else masks
    pruning.criterion = criterion


def _of_network(path: str) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
    """What picks the network's part out of the state dict of the LightningModule that holds it at `path`."""
    dotted = f"{path}." if path else ""

    def own(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name.removeprefix(dotted): value for name, value in state.items() if name.startswith(dotted)}

    return own


def _read(job: Job, path: Path) -> dict[str, Any]:
    content = read_checkpoint(path)
    if content is None:
        whose = "the ticket's command, without --control, with " if job.control else ""
        raise RunError(f"{path} is missing or damaged: {whose}--fresh starts anew")
    return content
