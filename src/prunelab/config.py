"""Configs before they are typed: find the file, read it, put one on top of another, check what is plain to see.

A config is a dict of what a YAML file says, with every class in the form {class_path, init_args}. Imports nothing
heavy, so that simple mistakes are answered at once; the types are checked by `prunelab.cli`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from prunelab.names import SHORT_NAMES, CommandError, import_path, nearest

Config = dict[str, Any]

CONFIGS = Path(__file__).resolve().parents[2] / "configs"

# how a user may say how much is kept, and which values mean something
DENSITY_SPELLINGS: dict[str, tuple[Callable[[float], bool], str]] = {
    "density": (lambda value: 0 < value <= 1, "a number in (0, 1], such as 0.1 to keep 10 %"),
    "sparsity": (lambda value: 0 <= value < 1, "a number in [0, 1), such as 0.9 to keep 10 %"),
    "compression_ratio": (
        lambda value: 1 <= value < math.inf,
        "a number of at least 1, such as 10 to keep 10 %",
    ),
}

# every way to say how much is kept, or which weights are -> what it takes the place of
_SPELLINGS = tuple(f"pruning.{spelling}" for spelling in DENSITY_SPELLINGS)
SOURCES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(_SPELLINGS, (*_SPELLINGS, "tickets.densities", "tickets.density_per_level")),
    "tickets.densities": (*_SPELLINGS, "tickets.density_per_level", "tickets.levels"),
    "tickets.density_per_level": (*_SPELLINGS, "tickets.densities"),
    "pruning.masks_from": (
        *("pruning.criterion", "pruning.rounds", *_SPELLINGS),
        *("tickets.densities", "tickets.density_per_level", "tickets.levels", "tickets.layer_rates"),
    ),
}

# keys without a dot that a grid may vary; of the others only dotted ones make sense as an axis
PLAIN_AXES = ("control", "data", "seed_everything")

# what a network is told about the data: stays when another network is named
DATA_SHAPE = ("num_classes", "in_channels", "image_size")


def find_config(name: str) -> Path:
    """The config file called `name`: as a path, or in configs/, there also without its ending."""
    for path in (Path(name), CONFIGS / name, CONFIGS / f"{name}.yaml"):
        if path.is_file():
            return path
    known = [path.name for path in sorted(CONFIGS.glob("*.yaml"))]
    raise CommandError(f"no config {name!r} here or in configs/{nearest(Path(name).name, known)}")


def read_config(path: Path) -> Config:
    """The config in a YAML file, its short names expanded."""
    config = read_yaml(path)
    try:
        config = expand(config)
        check_one_source([config])
        check_grid(config)
    except CommandError as error:
        raise CommandError(f"{path}: {error}") from None
    return config


def read_yaml(path: Path) -> Config:
    """What a YAML file of keys says; nothing for an empty one."""
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise CommandError(f"{path}:{line}: {error.problem}") from None
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise CommandError(f"cannot read {path}: {' '.join(str(error).split())}") from None
    if config is None:
        return {}
    if not isinstance(config, dict):
        raise CommandError(f"{path}: expected keys such as `model:`, got {type(config).__name__}")
    return config


def expand(config: Config) -> Config:
    """`config` with its short names replaced: `criterion: snip`, or `{name: snip, rounds: 5}`, becomes
    `{class_path: prunelab.pruning.criteria.Snip, init_args: {rounds: 5}}`."""
    config = deepcopy(config)
    for slot in SHORT_NAMES:
        group, _, key = slot.rpartition(".")
        holder = config.get(group) if group else config
        if isinstance(holder, dict) and holder.get(key) is not None:
            holder[key] = _class_form(slot, holder[key])
    return config


def overlay(base: Config, *layers: Config) -> Config:
    """`layers`, which make up one place, on top of `base`; none of them is changed.

    Dicts are joined key by key, anything else is replaced; `key+` appends to the list that `base` has under `key`.
    A way to say how much is kept replaces the others in `base` (`SOURCES`). Naming another class drops the settings of
    the former one, apart from the data's shape in `model.net` (kept under `former`, for those who accept it), and
    naming another criterion drops `pruning.rounds` too. An axis of the grid goes when a layer gives its key, or another
    way to say how much is kept; the layer's own grid is joined key by key.
    """
    joined = deepcopy(base)
    for layer in layers:
        for axis in _replaced_axes(base, layer):
            joined["grid"].pop(axis, None)
        dropped = [path for source in _sources(layer) for path in SOURCES[source]]
        if _names_another(section(base, "pruning.criterion"), section(layer, "pruning.criterion")):
            dropped.append("pruning.rounds")
        for path in dropped:
            group, _, key = path.rpartition(".")
            section(joined, group).pop(key, None)
    for layer in layers:
        joined = _joined(joined, layer)
    return joined


def _joined(base: Config, layer: Config) -> Config:
    net = section(base, "model.net")
    former = net.get("former", {}) | {
        key: net["init_args"][key] for key in DATA_SHAPE if key in net.get("init_args", {})
    }
    replaced = _names_another(net, section(layer, "model.net"))
    joined: Config = _on_top(base, layer)
    if replaced and former:
        joined["model"]["net"]["former"] = former
    return joined


def _replaced_axes(base: Config, layer: Config) -> list[str]:
    """The axes of `base` that do not go with what `layer` gives or varies."""
    given = [*_sources(layer), *axes(layer)]
    instead = tuple(f"{path}." for source in given for path in SOURCES.get(source, ()) if path != source)
    return [axis for axis in section(base, "grid") if f"{axis}.".startswith(instead) or gives(layer, axis)]


def axes(config: Config) -> dict[str, list[Any]]:
    """The grid of `config`: dotted key -> its values, without the axes that were removed by null."""
    return {axis: values for axis, values in section(config, "grid").items() if values is not None}


def gives(config: Config, key: str) -> bool:
    """Whether `config` has a value for a dotted key. Settings of a class without its name are none for it."""
    found: Any = config
    for part in key.replace(".init_args", "").split("."):
        found = found.get("init_args", found) if isinstance(found, dict) else None
        if not isinstance(found, dict) or part not in found:
            return False
        found = found[part]
    return not isinstance(found, dict) or "class_path" in found or "init_args" not in found


def check_grid(config: Config) -> None:
    """Raise CommandError if the grid of `config` is no mapping of keys that can vary to lists of values."""
    grid = config.get("grid")
    if grid is not None and not isinstance(grid, dict):
        raise CommandError(f"grid: expected keys with lists of values, such as seed_everything: [0, 1], got {grid}")
    for key, values in (grid or {}).items():
        if "." not in str(key) and str(key).removesuffix("+") not in PLAIN_AXES:
            hint = nearest(str(key), PLAIN_AXES) or ";"
            raise CommandError(f"grid: {key} cannot vary{hint} what can: {', '.join(PLAIN_AXES)} and all dotted keys")
        if values is not None and (not isinstance(values, list) or not values):
            raise CommandError(f"grid: {key}: expected a list of values, such as [0, 1], got {values}")


def check_one_source(layers: Iterable[Config]) -> None:
    """Raise CommandError if `layers`, which make up one place, say in more than one way how much to keep."""
    given = dict.fromkeys(source for layer in layers for source in _sources(layer))
    if len(given) > 1:
        keys: dict[str, list[str]] = {}
        for group, _, key in (source.partition(".") for source in given):
            keys.setdefault(group, []).append(key)
        listed = ", ".join(f"{group} has {' and '.join(of_group)}" for group, of_group in keys.items())
        raise CommandError(f"{listed}: give one of them")


def check_config(config: Config) -> None:
    """Raise CommandError for a density, seed or checkpoint that cannot be, as far as can be told without types."""
    check_one_source([config])
    if not (given := _sources(config)):
        raise CommandError(
            f"pruning needs one of {', '.join(DENSITY_SPELLINGS)}, such as --pruning.density 0.1 "
            "(or tickets.densities, tickets.density_per_level, pruning.masks_from)"
        )
    group, _, key = given[0].partition(".")
    if key in DENSITY_SPELLINGS:
        value = config[group][key]
        accepts, wanted = DENSITY_SPELLINGS[key]
        if isinstance(value, bool) or not accepts(_number(value)):
            raise CommandError(f"{given[0]}: expected {wanted}, got {value}")
    seed = str(config.get("seed_everything", 0))
    if not seed.isdecimal() or int(seed) >= 2**32:
        raise CommandError(f"seed_everything: expected a whole number in [0, 2**32), got {seed}")
    checkpoint = config.get("ckpt_path")
    if checkpoint is not None and not Path(str(checkpoint)).is_file():
        raise CommandError(f"ckpt_path: no file {checkpoint}")


def section(config: Mapping[str, Any], path: str) -> Config:
    """The dict at a dotted path, an empty one if there is none."""
    found: Any = config
    for key in path.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, dict) else {}


class _Loader(yaml.SafeLoader):
    """YAML in which a key given twice is an error, not a silent choice of the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if (word := str(key.value)) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{word} is given twice", key.start_mark)
            seen.add(word)
        return super().construct_mapping(node, deep)


def _class_form(slot: str, value: Any) -> Config:
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, dict):
        raise CommandError(f"{slot}: expected a name or a mapping, got {value!r}")
    settings = dict(value)
    name = settings.pop("name", None) or settings.pop("class_path", None)
    form = {"class_path": import_path(slot, str(name))} if name else {}
    if "dict_kwargs" in settings:  # jsonargparse's place for keywords that a signature does not show
        form["dict_kwargs"] = settings.pop("dict_kwargs")
    init_args = settings.pop("init_args", None) or {}
    return form | {"init_args": init_args | settings}


def _on_top(old: Any, new: Any) -> Any:
    if not isinstance(new, dict):
        return new
    if isinstance(old, list) and old and "class_path" not in new:
        return [*old[:-1], _on_top(old[-1], new)]  # `--trainer.callbacks.key` means the last callback
    if isinstance(old, str):
        old = {"class_path": old}
    if not isinstance(old, dict) or _names_another(old, new):
        old = {}
    elif "class_path" in old and not new.keys() & {"class_path", "init_args", "dict_kwargs"}:
        new = {"init_args": new}
    joined = dict(old)
    for key, value in new.items():
        if isinstance(key, str) and key.endswith("+"):
            joined[key[:-1]] = _listed(joined.get(key[:-1])) + _listed(value)
        else:
            joined[key] = _on_top(joined.get(key), value)
    return joined


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _sources(config: Config) -> list[str]:
    """The SOURCES that `config` gives."""
    parts = {source: source.partition(".") for source in SOURCES}
    return [source for source, (group, _, key) in parts.items() if section(config, group).get(key) is not None]


def _names_another(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return "class_path" in new and old.get("class_path", new["class_path"]) != new["class_path"]


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan  # no accepted range holds it
