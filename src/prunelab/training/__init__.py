"""Training: one LightningModule, and callbacks that prune it, keep it pruned and make it resumable."""

from prunelab.training.classifier import Classifier
from prunelab.training.keep_pruned import KeepPruned
from prunelab.training.pruning_at_init import PruningAtInit

__all__ = ["Classifier", "KeepPruned", "PruningAtInit"]
