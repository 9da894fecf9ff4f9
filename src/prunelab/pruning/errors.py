"""The one exception for requests that pruning cannot honour; its message is one line made for the user."""


class PruningError(ValueError):
    """A request that cannot be honoured: a density out of range, a network without prunable weights, ..."""
