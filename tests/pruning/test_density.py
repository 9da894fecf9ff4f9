from __future__ import annotations

from typing import Any

import pytest

from prunelab.pruning import PruningError
from prunelab.pruning.density import check_density, density_from


@pytest.mark.parametrize(
    ("density", "sparsity", "ratio"),
    [(0.1, 0.9, 10), (0.05, 0.95, 20), (0.01, 0.99, 100), (1.0, 0, 1), (0.4, 0.6, 2.5)],
)
def test_three_spellings_are_one_number(density: float, sparsity: float, ratio: float) -> None:
    assert density_from(density=density) == density_from(sparsity=sparsity) == density_from(compression_ratio=ratio)


@pytest.mark.parametrize("given", [{}, {"density": 0.1, "sparsity": 0.9}, {"sparsity": 0.5, "compression_ratio": 2}])
def test_exactly_one_spelling(given: dict[str, float]) -> None:
    with pytest.raises(PruningError, match="exactly one"):
        density_from(**given)


@pytest.mark.parametrize(
    "given",
    [
        *({"density": value} for value in (0, -0.1, 1.5, float("nan"), float("inf"), "10%", True)),
        *({"sparsity": value} for value in (1, -0.1, 1.5, float("nan"), "90")),
        *({"compression_ratio": value} for value in (0, 0.5, float("nan"), float("inf"), "10x", False)),
    ],
)
def test_refuses_what_is_no_density(given: dict[str, Any]) -> None:
    with pytest.raises(PruningError) as caught:
        density_from(**given)
    assert "\n" not in str(caught.value)
    assert next(iter(given)) in str(caught.value)


def test_zero_only_where_it_is_allowed() -> None:
    assert check_density(0.0, zero_allowed=True) == 0
    with pytest.raises(PruningError):
        check_density(0.0)
