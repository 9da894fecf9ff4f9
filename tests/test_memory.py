from __future__ import annotations

import subprocess
import sys

import pytest

STEP = """
import resource, sys, torch
from prunelab.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
x = torch.ones(48 << 18)  # 48 MiB
faults = []
for _ in range(40):  # the heap grows to what the steps need in the first ones
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    y = x + 1
    del y
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sum(faults[-10:]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_freed_memory_is_used_again_without_asking_the_system() -> None:
    """48 MiB are 12,288 pages of 4 KiB: each is a fault where the block went back, none where it was kept."""
    faults = {}
    for mode in ("keep", "return"):
        done = subprocess.run([sys.executable, "-c", STEP, mode], check=True, stdout=subprocess.PIPE, text=True)
        faults[mode] = int(done.stdout)
    assert faults["keep"] < 1000 < 100_000 < faults["return"]
