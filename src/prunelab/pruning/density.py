"""One density, three spellings: inside prunelab only `density` in (0, 1] exists."""

from __future__ import annotations

from decimal import Decimal

from prunelab.pruning.errors import PruningError


def check_density(density: float, *, zero_allowed: bool = False) -> float:
    """Raises: PruningError unless density is a number in (0, 1]."""
    if not isinstance(density, int | float) or isinstance(density, bool):
        raise PruningError(f"density must be a number in (0, 1], got {density!r}")
    if not (0 < density <= 1 or (zero_allowed and density == 0)):
        raise PruningError(f"density must be in (0, 1] (kept / prunable weights), got {density}")
    return density


def density_from(
    density: float | None = None, sparsity: float | None = None, compression_ratio: float | None = None
) -> float:
    """The density of exactly one spelling: density, 1 - sparsity, or 1 / compression_ratio.

    Reckoned in decimals, so that sparsity .95, density .05 and compression ratio 20 are the same number.
    Raises: PruningError unless exactly one is given, or if it is out of range.
    """
    spellings = {"density": density, "sparsity": sparsity, "compression_ratio": compression_ratio}
    given = {name: value for name, value in spellings.items() if value is not None}
    if len(given) != 1:
        found = " and ".join(given) if given else "none of them"
        raise PruningError(f"give exactly one of density, sparsity and compression_ratio, got {found}")
    name, value = next(iter(given.items()))
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise PruningError(f"{name} must be a number, got {value!r}")
    if name == "sparsity":
        if not 0 <= value < 1:
            raise PruningError(f"sparsity must be in [0, 1) (1 - density), got {value}")
        return float(1 - Decimal(repr(value)))
    if name == "compression_ratio":
        if not 1 <= value < float("inf"):
            raise PruningError(f"compression_ratio must be at least 1 (1 / density), got {value}")
        return float(1 / Decimal(repr(value)))
    return float(check_density(value))
