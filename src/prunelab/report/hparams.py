"""The columns of TensorBoard's hparams tab: the same ones for every run, so that runs can be compared there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunelab.names import short_name

Value = bool | int | float | str


def run_hparams(config: Mapping[str, Any], *, level: int = 0) -> dict[str, Value]:
    """Return column -> value for a level of a resolved config, whose classes have the form {class_path, init_args}.

    A class is one column with its short name and one with its settings as text, so that the columns do not depend
    on which class it is; numbers that experiments vary have columns of their own. None is the text "none".
    How long the run was trained is not among them but in its record: it may be trained on.
    """
    pruning, model, trainer = config["pruning"], config["model"], config["trainer"]
    slots = {
        "criterion": ("pruning.criterion", pruning["criterion"]),
        "net": ("model.net", model["net"]),
        "data": ("data", config["data"]),
        "optimizer": ("model.optimizer", model["optimizer"]),
        "lr_scheduler": ("model.lr_scheduler", model.get("lr_scheduler")),
    }
    columns: dict[str, Any] = {}
    for column, (slot, chosen) in slots.items():
        columns[column] = chosen and short_name(slot, chosen["class_path"])
        columns[f"{column}_settings"] = _text(_settings(chosen))
    criterion, optimizer = _settings(pruning["criterion"]), _settings(model["optimizer"])
    columns |= {
        "rounds": criterion.get("rounds") if pruning.get("rounds") is None else pruning["rounds"],
        "schedule": pruning.get("schedule"),
        "scope": pruning.get("scope"),
        "allocation": pruning.get("allocation"),
        "min_layer_density": pruning.get("min_layer_density"),
        "compact": bool(pruning.get("compact")),
        "lr": optimizer.get("lr"),
        "weight_decay": optimizer.get("weight_decay"),
        "batch_size": _settings(config["data"]).get("batch_size"),
        "precision": trainer.get("precision"),
        "seed": config["seed_everything"],
        "level": level,
        "control": config.get("control"),
    }
    return {key: value if isinstance(value, Value) else str(value).lower() for key, value in columns.items()}


def _settings(chosen: Mapping[str, Any] | None) -> Mapping[str, Any]:
    return (chosen or {}).get("init_args") or {}


def _text(settings: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in settings.items() if value is not None)
