"""The axes of a sweep's grid: what may vary, how it is shown, and the options of train.py that it stands for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prunelab.command_line import in_words
from prunelab.config import DENSITY_SPELLINGS, PLAIN_AXES
from prunelab.names import SHORT_NAMES, CommandError, nearest

EXPONENT, OVERLAY = "compression_exponent", "config"  # axes that are no keys of a config

Axis = tuple[Any, tuple[tuple[str, Any], ...]]  # a value as tables show it, and the options that it stands for


def read_grids(given: Any) -> list[dict[str, list[Axis]]]:
    """The grids whose cells are united, each axis -> its values."""
    grids = given if isinstance(given, list) else [given]
    if not any(grids):
        raise CommandError("grid: is empty; give keys with lists of values, such as pruning.criterion: [synflow, snip]")
    expanded = []
    for grid in grids:
        if not isinstance(grid, dict) or not grid:
            raise CommandError(f"grid: expected keys with lists of values, got {in_words(grid)}")
        expanded.append({str(axis): _axis(str(axis), values) for axis, values in grid.items()})
    return expanded


def _axis(axis: str, values: Any) -> list[Axis]:
    named = isinstance(values, dict) and "." not in axis  # values that have names of their own
    if not values or not (named or isinstance(values, list)):
        raise CommandError(f"grid: {axis}: expected a list of values, such as [0, 1], got {in_words(values)}")
    if named:
        return [(str(name), _bundle(axis, bundle)) for name, bundle in values.items()]
    if axis in (EXPONENT, OVERLAY, *PLAIN_AXES) or "." in axis:
        return [(shown(axis, value), _options(axis, value)) for value in values]
    if not all(isinstance(value, dict) for value in values):
        varied = (*PLAIN_AXES, EXPONENT, OVERLAY)
        dotted = [*SHORT_NAMES, *(f"pruning.{spelling}" for spelling in DENSITY_SPELLINGS)]
        last = {key.rpartition(".")[2]: key for key in (*varied, *dotted)}
        hint = nearest(axis, last)
        for short, key in last.items():
            hint = hint.replace(f"{short}?", f"{key}?")
        raise CommandError(
            f"grid: {axis} cannot vary{hint or ';'} what can: {', '.join(varied)}, all dotted keys, and names of your "
            "own for keys that vary together, {key: value, ...}"
        )
    bundles = [_bundle(axis, value) for value in values]
    return [(" ".join(in_words(value) for _, value in bundle), bundle) for bundle in bundles]


def _bundle(axis: str, keys: Any) -> tuple[tuple[str, Any], ...]:
    """The options of keys that vary together."""
    if not isinstance(keys, dict) or not keys:
        raise CommandError(f"grid: {axis}: expected keys that vary together, {{key: value}}, got {in_words(keys)}")
    return tuple(option for key, value in keys.items() for option in _options(str(key), value))


def _options(key: str, value: Any) -> tuple[tuple[str, Any], ...]:
    """The options that one value of an axis stands for."""
    if key == OVERLAY:
        return tuple((OVERLAY, name) for name in list_of("grid: config", value, str))
    if key == EXPONENT:
        return (("pruning.compression_ratio", 10 ** number(f"grid: {EXPONENT}", value)),)
    if "." not in key and key not in PLAIN_AXES:
        raise CommandError(f"grid: {key} cannot vary; what can: {', '.join(PLAIN_AXES)} and all dotted keys")
    return ((key, value),)


def shown(axis: str, value: Any) -> Any:
    if axis == EXPONENT:
        return number(f"grid: {axis}", value)
    if axis == OVERLAY:
        return "+".join(Path(name).stem for name in list_of("grid: config", value, str))
    return value if isinstance(value, int | float | None) else in_words(value)


def mapping(key: str, given: Any) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise CommandError(f"{key}: expected keys and values, got {in_words(given)}")
    return {str(name): value for name, value in given.items()}


def list_of(key: str, given: Any, kind: type) -> list[Any]:
    values = given if isinstance(given, list) else [] if given is None else [given]
    for value in values:
        if not isinstance(value, kind) or isinstance(value, bool):
            words = {str: "names of files", int: "whole numbers", dict: "keys and values"}[kind]
            raise CommandError(f"{key}: expected {words}, got {in_words(value)}")
    return values


def number(key: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise CommandError(f"{key}: expected a number, got {in_words(value)}") from None
