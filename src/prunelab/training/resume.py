"""What a run needs to be resumed bit for bit: checkpoints that are whole or not there, and the random state."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.plugins.io import TorchCheckpointIO


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write beside the target, flush to the disk, rename: whenever the process dies, one whole file is there.

    A `last.ckpt` that is replaced stays as `previous.ckpt`, to fall back to if the disk damages the new one.
    Raises: OSError with the path, should the disk be full or the like.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f"{target.name}.tmp")  # one name: what a killed process left is overwritten
        try:
            _write(checkpoint, temporary)
            if target.name == "last.ckpt" and target.exists():
                target.replace(target.with_name("previous.ckpt"))
            temporary.replace(target)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(target)) from error
        finally:
            temporary.unlink(missing_ok=True)


def _write(checkpoint: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch hides the disk's error behind its own
                raise error.__context__ from error
            raise
        file.flush()
        os.fsync(file.fileno())


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """The checkpoint in `path`, on the CPU; None if it is damaged or something else."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # reading noise fails in any way: OSError, RuntimeError, IndexError, UnicodeDecodeError, ...
        return None
    return content if isinstance(content, dict) and "state_dict" in content else None


class SaveRandomState(Callback):
    """Carry the state of all random generators in the checkpoint: dropout and the like go on where they were."""

    def __init__(self) -> None:
        self._restored: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        version, keys, gauss = random.getstate()
        kind, numbers, *position = np.random.get_state(legacy=True)
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "python": [version, list(keys), gauss],
            "numpy": [kind, numbers.tolist(), *position],  # type: ignore[union-attr]
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._restored is None:
            return
        state, self._restored = self._restored, None
        torch.set_rng_state(state["torch"])
        for device, cuda_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(cuda_state, device)
        version, keys, gauss = state["python"]
        random.setstate((version, tuple(keys), gauss))
        kind, numbers, *position = state["numpy"]
        np.random.set_state((kind, np.array(numbers, dtype=np.uint32), *position))
