"""One line for what the typed parser (jsonargparse) objects to, in the words of the config."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Iterable

from jsonargparse import ArgumentParser

from prunelab.config import Config, section
from prunelab.names import SHORT_NAMES, nearest, short_name

_VALUE = r"(.*?)(?:\. Got value|\n|$)"


def explain(message: str, config: Config, keys: Iterable[str]) -> str:
    """One line for `message`, which was raised about `config` by a parser with the dotted `keys`."""
    place = ".".join(dict.fromkeys(re.findall(r'Parser key "([^"]+)"', message)))
    if found := re.search(r"(?:Group '([\w.]+)' does not accept o|O)ption '([^']+)'", message):
        return _unknown_key(_joined(place, found[1], found[2]), config, keys)
    if found := re.search(r"following arguments are required: ([^\n]*)", message):
        return "missing: " + ", ".join(_joined(place, key) for key in found[1].split(", "))
    if found := re.search(r"Problem with given class_path '(.*?)':\s*+(?!Parser key)([^\n]*)", message):
        return f"{place}: cannot import {found[1]}: {found[2]}"
    if found := re.search(r"Unable to load config '(.*?)'", message):
        return f"{place}: expected a mapping, got {found[1]}"
    if found := re.search(r"Import path (\S+) does not implement protocol Criterion", message):
        return f"{place}: {found[1]} is no criterion: it needs __call__(self, scoring: Scoring) -> dict[str, Tensor]"
    if found := re.search(rf"Expected an? (.*?)\. Got value: {_VALUE}", message):
        return f"{place}: expected {_types(found[1], found[2])}"
    # of a union inside a union the inner one is meant: its types come last, its value first
    if (types := re.findall(r"Subtypes: \[(.*)\]\n", message)) and (
        found := re.search(f"Given value: {_VALUE}", message)
    ):
        return f"{place}: expected {_types(types[-1], found[1])}"
    text = " ".join(re.sub(r'Parser key "[^"]+":', "", message).split())
    return f"{place}: {text}" if place else text


def keys_of(class_path: str) -> list[str]:
    """The keys that a config may give to the class or builder function at an import path; [] if there is none."""
    try:
        target = pkgutil.resolve_name(class_path)
        parser = ArgumentParser()
        add = parser.add_class_arguments if isinstance(target, type) else parser.add_function_arguments
        return [key for key in add(target, fail_untyped=False) if key not in ("params", "optimizer")]
    except (ImportError, AttributeError, ValueError):
        return []


def _unknown_key(key: str, config: Config, keys: Iterable[str]) -> str:
    group, _, last = key.rpartition(".")
    class_paths = {slot: path for slot in SHORT_NAMES if (path := section(config, slot).get("class_path"))}
    if group in class_paths:
        accepted = keys_of(class_paths[group])
        takes = f"{short_name(group, class_paths[group])} takes {', '.join(accepted) or 'no keys'}"
        return f"unknown key {key}{nearest(last, accepted, prefix=f'{group}.') or ';'} {takes}"
    inner = [f"{slot}.{inner}" for slot, path in class_paths.items() for inner in keys_of(path)]
    return f"unknown key {key}{_nearest_key(key, [*keys, *inner]) or '; --help_all lists all keys'}"


def _nearest_key(key: str, keys: list[str]) -> str:
    """A hint at a similar key of the same group, or else the same key of another group, or else any similar key."""
    group, dot, last = key.rpartition(".")
    siblings = [known.rpartition(".")[2] for known in keys if known.rpartition(".")[0] == group]
    namesakes = [known for known in keys if known.rpartition(".")[2] == last]
    hint = nearest(last, siblings, prefix=group + dot) or nearest(key, namesakes, cutoff=0)
    return hint or nearest(key, [] if siblings else keys)


def _types(types: str, value: str) -> str:
    words = re.sub(r"(?:\w+\.)+(\w+)", r"\1", re.sub(r"<class '(.*?)'>", r"\1", types)).replace("NoneType", "null")
    if "Literal[" in words:
        choices = list(dict.fromkeys(re.findall(r"'([^']+)'", words)))
        return f"one of {', '.join(choices)}; got {value}{nearest(value, choices)}"
    alternatives = re.split(r", (?![^\[]*\])", words)  # not at the commas in dict[str, float]
    return f"{' or '.join(alternatives)}, got {value}"


def _joined(*parts: str | None) -> str:
    return ".".join(part for part in parts if part)
