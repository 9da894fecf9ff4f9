"""Measurements that are made once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prunelab import __version__
from prunelab.experiment.errors import RunError
from prunelab.experiment.run_dir import write_atomically


class Measured:
    """Each measurement is a JSON file of its own in `folder`, with the key that it belongs to: an interrupted command
    goes on where it was, and several commands may work at the same time. Another version of prunelab measures anew.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, key: Mapping[str, Any], measure: Callable[[], Any]) -> Any:
        """The value at `key`, from its file or from `measure()`, which returns plain values.

        Raises: RunError for a damaged file.
        """
        whole = {**key, "version": __version__}
        text = json.dumps(whole, sort_keys=True)
        path = self._folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
        if path.exists():
            try:
                return json.loads(path.read_text())["value"]
            except (ValueError, KeyError, TypeError) as error:
                raise RunError(f"{path} is damaged: delete it to measure again") from error
        value = measure()
        self._folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({"key": whole, "value": value}, indent=1) + "\n")
        return value
