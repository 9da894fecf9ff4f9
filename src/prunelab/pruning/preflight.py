"""The report before the first epoch: what a mask did to the network, so that no GPU hour is wasted on a dead one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from prunelab.pruning.diagnostics import collapsed_layers, count_macs, effective_density, zero_score_share
from prunelab.pruning.errors import PruningError
from prunelab.pruning.masks import Masks
from prunelab.pruning.prunable import unpruned_parameters

# our models say shortcut, torchvision's downsample
_SHORTCUT = re.compile(r"(^|\.)(shortcut|downsample)(\.|$)")


@dataclass(frozen=True)
class Preflight:
    """Densities are kept / prunable weights; MACs are multiply-adds of one example (`diagnostics.count_macs`).

    effective_density is None where paths are not defined (attention), zero_score_share where nothing was scored,
    shortcut_density where the network has no shortcut convolutions, scoring_loss where no batches were used.
    unpruned: (name, number of values, why) of the parameters that masks do not touch.
    """

    density_requested: float
    density: float
    num_kept: int
    num_prunable: int
    num_parameters: int
    layer_densities: dict[str, float]
    layer_sizes: dict[str, int]
    collapsed_layers: list[str]
    effective_density: float | None
    zero_score_share: float | None
    shortcut_density: float | None
    macs_dense: int
    macs_masked: int
    scoring_loss: float | None
    unpruned: list[tuple[str, int, str]]

    def __str__(self) -> str:
        num_unpruned = self.num_parameters - self.num_prunable
        overall = (self.num_kept + num_unpruned) / self.num_parameters
        lines = [
            f"density            {_spellings(self.density)}: {self.num_kept:,} of {self.num_prunable:,} prunable "
            "weights",
            f"over everything    {_spellings(overall)}: {self.num_kept + num_unpruned:,} of {self.num_parameters:,} "
            f"parameters; {num_unpruned:,} are not pruned: {_summary(self.unpruned)}",
            f"effective density  {_optional(self.effective_density)} (kept weights on a kept input-output path)",
            f"dead layers        {len(self.collapsed_layers)} of {len(self.layer_densities)}"
            + (f": {', '.join(self.collapsed_layers)}" if self.collapsed_layers else ""),
            f"zero scores        {_zeros(self.zero_score_share)}",
            f"shortcut density   {_optional(self.shortcut_density)}",
            f"MACs               {self.macs_dense:,} dense, {self.macs_masked:,} under the mask "
            "(theory: a masked network computes its zeros)",
        ]
        if self.scoring_loss is not None:
            lines.append(f"scoring loss       {self.scoring_loss:.4g} before pruning")
        return "\n".join(lines)


def preflight(
    net: nn.Module,
    masks: Masks,
    example_input: Tensor,
    *,
    density_requested: float,
    scores: Mapping[str, Tensor] | None = None,
    scored_masks: Masks | None = None,
    scoring_loss: float | None = None,
    needs_path: bool = True,
) -> Preflight:
    """Measure `masks` on `net`. `scores`, `scored_masks`: of the last round, and what was kept when it was scored.

    Raises: PruningError if no kept path leads from the input to the output, and `needs_path`.
    """
    try:
        effective = effective_density(net, masks, example_input)
    except PruningError:
        effective = None
    if effective == 0 and needs_path:
        dead = collapsed_layers(masks)
        where = f"{', '.join(dead[:5])} kept no weight" if dead else "the kept weights do not connect"
        raise PruningError(
            f"at density {masks.density:.3g} no path leads from the network's input to its output: {where}"
        )
    shortcuts = Masks({name: mask for name, mask in masks.items() if _SHORTCUT.search(name)})
    return Preflight(
        density_requested=density_requested,
        density=masks.density,
        num_kept=masks.num_kept,
        num_prunable=masks.num_weights,
        num_parameters=sum(parameter.numel() for parameter in net.parameters()),
        layer_densities=masks.layer_densities(),
        layer_sizes={name: mask.numel() for name, mask in masks.items()},
        collapsed_layers=collapsed_layers(masks),
        effective_density=effective,
        zero_score_share=None if scores is None else zero_score_share(scores, scored_masks or masks),
        shortcut_density=shortcuts.density if shortcuts else None,
        macs_dense=count_macs(net, example_input),
        macs_masked=count_macs(net, example_input, masks),
        scoring_loss=scoring_loss,
        unpruned=unpruned_parameters(net, masks),
    )


def _optional(value: float | None) -> str:
    return "not defined here" if value is None else f"{value:.6g}"


def _zeros(share: float | None) -> str:
    return "nothing was scored" if share is None else f"{share:.6g} of the weights that the last round scored"


def _spellings(density: float) -> str:
    return f"{density:.6g} (sparsity {1 - density:.4g}, compression ratio {1 / density:.4g})"


def _summary(unpruned: list[tuple[str, int, str]]) -> str:
    """Counts by reason, and by name what a reader might have expected to be pruned."""
    by_reason: dict[str, int] = {}
    for name, size, reason in unpruned:
        matrix = name.rpartition(".")[2] not in ("bias", "weight") or reason == "excluded"
        key = f"{name} ({reason})" if matrix else reason
        by_reason[key] = by_reason.get(key, 0) + size
    return ", ".join(f"{reason} {size:,}" for reason, size in by_reason.items()) or "none"
