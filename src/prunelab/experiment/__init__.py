"""Experiments: a run from its config to its record, in a directory that is named by its values."""
