"""prunelab: pruning at initialisation and lottery tickets in one PyTorch Lightning training loop."""

__version__ = "0.1.0"
