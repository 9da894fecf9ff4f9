"""What stands in the way of a compaction."""

from __future__ import annotations

from prunelab.pruning import PruningError


class CompactionError(PruningError):
    """A network cannot be made smaller, or a file does not go with it; the message is one line that says why."""
