from __future__ import annotations

from prunelab.compaction import CompactionError
from prunelab.pruning import PruningError


def test_whoever_catches_pruning_errors_catches_these() -> None:
    assert issubclass(CompactionError, PruningError)
