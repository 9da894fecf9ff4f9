from __future__ import annotations

from prunelab.pruning import PruningError


def test_is_a_value_error() -> None:
    assert issubclass(PruningError, ValueError)
