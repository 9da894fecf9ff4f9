"""What the C library does with memory that a process has freed."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_LARGEST = (1 << 31) - 1
_LARGEST_KEPT = 1 << 28  # bytes; tensors above are rare in a step, and keeping them would cost too much


def keep_freed_memory() -> bool:
    """Keep freed memory for the next allocation instead of giving it back to the system; returns whether it could be.

    A training step on the CPU frees and asks for the same large tensors again and again. By default glibc hands blocks
    of more than 32 MiB, and free memory at the end of its heap, back each time, and the system has to clear every page
    of the next one: in a ReLU of batch 128 x 64 x 32 x 32 that is three quarters of the time. Blocks above 256 MiB
    still go back. The process holds more between its peaks, and a little more at them, as its heap has holes.
    For the whole process: for programs, not for libraries. Linux with glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return (
        mallopt is not None
        and bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT))
        and bool(mallopt(_M_TRIM_THRESHOLD, _LARGEST))
    )
