"""The one error that data may raise at a user: one line, what is wrong and how to mend it."""

from __future__ import annotations


class DataError(RuntimeError):
    """Data that is missing, damaged or does not fit the request."""
