"""Independent streams of random numbers from one seed."""

from __future__ import annotations

from typing import Literal

import numpy as np

Purpose = Literal["split", "order", "augment", "scoring", "reinit", "mask_1", "control", "test"]


def derive_seed(seed: int, purpose: Purpose, epoch: int = 0) -> int:
    """A 64-bit seed that is a pure function of (seed, purpose, epoch).

    Arithmetic such as `seed * 1000 + epoch` would give epoch 1000 of seed 0 the numbers of epoch 0 of seed 1.
    """
    entropy = [seed, int.from_bytes(purpose.encode()), epoch]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])
