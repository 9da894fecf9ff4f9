"""lightning-bolts 0.7.0 on Lightning 2: it declares Lightning < 2, but misses only one module of it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
import warnings


def load_bolts() -> None:
    """Make `pl_bolts` importable, so that a config may name its classes.

    Puts back `pytorch_lightning.utilities.apply_func` (gone in Lightning 2.0), whose two functions live on elsewhere.
    Importing pl_bolts also puts back numpy.int, .float, .bool and .object.
    Raises: ModuleNotFoundError, with the command that installs it.
    """
    if importlib.util.find_spec("pl_bolts") is None:
        raise ModuleNotFoundError(
            "lightning-bolts is not installed: pip install --no-deps lightning-bolts==0.7.0", name="pl_bolts"
        )
    missing = "pytorch_lightning.utilities.apply_func"
    if missing not in sys.modules and importlib.util.find_spec(missing) is None:
        sys.modules[missing] = _apply_func(missing)
    with warnings.catch_warnings(record=True):  # nearly every class says that it is under review
        importlib.import_module("pl_bolts")


def _apply_func(name: str) -> types.ModuleType:
    from lightning_fabric.utilities import move_data_to_device
    from lightning_utilities.core.apply_func import apply_to_collection

    module = types.ModuleType(name, "What Lightning 1 offered under this name.")
    vars(module).update(apply_to_collection=apply_to_collection, move_data_to_device=move_data_to_device)
    return module
