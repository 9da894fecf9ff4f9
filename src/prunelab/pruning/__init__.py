"""Pruning: masks, criteria, selection. torch only; nothing here prints, chooses devices or touches global state."""

from prunelab.pruning.errors import PruningError
from prunelab.pruning.masks import Masks
from prunelab.pruning.prunable import prunable_names
from prunelab.pruning.prune import prune
from prunelab.pruning.scoring import Criterion, Scoring, score
from prunelab.pruning.selection import keep_highest

__all__ = [
    "Criterion",
    "Masks",
    "PruningError",
    "Scoring",
    "keep_highest",
    "prunable_names",
    "prune",
    "score",
]
