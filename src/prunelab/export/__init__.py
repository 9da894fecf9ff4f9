"""`python -m prunelab.export RUN_DIR --format ... --output FILE`: what a run found, in one file to use or deploy."""

from prunelab.export.packed import PackedError, load_packed, save_packed

__all__ = ["PackedError", "load_packed", "save_packed"]
