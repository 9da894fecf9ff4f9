"""What a level starts from: its checkpoint, its weights, and what its pruning builds on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn

from prunelab.data.seeds import derive_seed
from prunelab.experiment.controls import Corrupted, Inverted, random_masks, shuffled_masks
from prunelab.experiment.errors import RunError
from prunelab.experiment.job import Job, is_first_process, say
from prunelab.experiment.levels import density_of_whole
from prunelab.experiment.run_dir import spelled_density
from prunelab.experiment.tickets import find_masks, find_weights
from prunelab.pruning import Masks, prunable_names
from prunelab.training import Classifier, PruningAtInit
from prunelab.training.network import find_network
from prunelab.training.pruning_at_init import Ticket, load_masks
from prunelab.training.resume import AtomicCheckpointIO, read_checkpoint
from prunelab.training.rewind import start_checkpoint


def set_budget(job: Job, index: int, model: Classifier, pruning: PruningAtInit) -> None:
    """How dense the level is."""
    if pruning.masks_from is not None:
        return
    pruning.density = job.densities[index] if job.prunes(index) else 1.0
    net = find_network(model, pruning.net)
    parameters = dict(net.named_parameters())
    sizes = {name: parameters[name].numel() for name in prunable_names(net, pruning.include, pruning.exclude)}
    allocations = job.tickets.layer_allocations(spelled_density(job.config), sizes)
    if allocations is not None and job.prunes(index):
        pruning.allocation = allocations[index - job.num_dense]
        pruning.density = density_of_whole(pruning.allocation, sizes)


def build_on(job: Job, index: int, model: Classifier, pruning: PruningAtInit) -> None:
    """What a level that begins takes from elsewhere: weights, masks, the level before, the ticket of a control."""
    if job.control == "reinit":
        model.load_state_dict(_drawn_anew(job))
        pruning.weights_from = None  # or they would be loaded over what was drawn
    elif pruning.weights_from is not None:
        pruning.weights_from = str(find_weights(pruning.weights_from))
    if pruning.masks_from is not None:
        pruning.given = load_masks(str(find_masks(pruning.masks_from)))
    if job.prunes(index):
        pruning.ticket = _ticket(job, index, pruning)
        if job.control and pruning.masks_from is None:
            _apply_control(job, index, find_network(model, pruning.net), pruning)


def write_start(job: Job, index: int) -> tuple[Path | None, int]:
    """The checkpoint that a level starts from and its optimizer step; (None, 0) if it starts like any training."""
    if index == 0 or job.control == "reinit" or _starts_unpruned(job):
        return None, 0
    mode = "learning_rate" if job.control == "dense" else job.tickets.rewind
    rewind = _read(job.ticket_dir.level(0).rewind_checkpoint)
    start = start_checkpoint(rewind, _read(job.level_before(index).last_checkpoint), mode)
    path = job.run_dir.level(index).start_checkpoint
    if is_first_process():  # the others read it after Lightning's barrier in `fit`
        AtomicCheckpointIO().save_checkpoint(start, path)
    say(f"level {index}: from step {start['global_step']}, rewind: {mode}", flush=True)
    return path, start["global_step"]


def _starts_unpruned(job: Job) -> bool:
    """Whether a control starts from the initialisation, as the ticket's rewind point is pruned already.

    Raises: RunError if that rewind point lies inside the training, where the pruned weights have no values.
    """
    if job.control in (None, "dense") or job.num_dense or job.tickets.rewind != "weights":
        return False
    if str(job.tickets.rewind_step).rstrip("itep") != "0":
        raise RunError(
            f"control {job.control}: the ticket was pruned before its rewind point, which lacks the weights that the "
            "control would keep; there is only one with tickets.dense_first true or tickets.rewind_step 0"
        )
    return True


def _ticket(job: Job, index: int, pruning: PruningAtInit) -> Ticket:
    own, asked = _of_network(pruning.net), job.tickets
    fresh = own(_drawn_anew(job)) if asked.mask_1 == "reinit" else None
    ticket = Ticket(mask_1=asked.mask_1, keep_sign=asked.keep_sign, mask_0=asked.mask_0, fresh=fresh)
    if index == 0:
        return ticket
    before = job.level_before(index)
    return replace(
        ticket,
        masks=Masks.load(before.masks),
        weights=own(_read(before.last_checkpoint)["state_dict"]),
        initial=own(_read(job.ticket_dir.level(0).rewind_checkpoint)["state_dict"]),
    )


def _drawn_anew(job: Job) -> dict[str, Tensor]:
    """Weights from the distribution of the run's own, and from other draws."""
    with isolate_rng():
        torch.manual_seed(derive_seed(job.seed, "reinit") % 2**32)
        return job.instantiate()[1].state_dict()


def _apply_control(job: Job, index: int, net: nn.Module, pruning: PruningAtInit) -> None:
    """Change the one thing that the control changes."""
    masks = Masks.load(job.ticket_dir.level(index).masks)
    if pruning.criterion is None:
        raise RunError(f"control {job.control} needs a criterion: its ticket has masks from elsewhere")
    changed: Any  # has what a criterion has, but not by its class
    if job.control == "invert":
        changed = Inverted(pruning.criterion)
        pruning.criterion = changed
        pruning.allocation, pruning.density = masks.layer_densities(), masks.density
    elif job.control in ("corrupt_labels", "corrupt_pixels"):
        what: Any = job.control.removeprefix("corrupt_")
        changed = Corrupted(pruning.criterion, what, derive_seed(job.seed, "control"))
        pruning.criterion = changed
    else:
        # with weights from the level before, what that level pruned is 0
        goes_on = index > 0 and job.tickets.rewind != "weights"
        within = Masks.load(job.level_before(index).masks) if goes_on else Masks.dense(net, masks)
        generator = torch.Generator().manual_seed(derive_seed(job.seed, "control", index))
        draw = {"random": random_masks, "shuffle": shuffled_masks}.get(job.control or "")
        pruning.given = draw(masks, within, generator) if draw else masks


def _of_network(path: str) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
    """What picks the network's part out of the state dict of the LightningModule that holds it at `path`."""
    dotted = f"{path}." if path else ""

    def own(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name.removeprefix(dotted): value for name, value in state.items() if name.startswith(dotted)}

    return own


def _read(path: Path) -> dict[str, Any]:
    content = read_checkpoint(path)
    if content is None:
        raise RunError(f"{path} is missing or damaged: --fresh starts anew")
    return content
