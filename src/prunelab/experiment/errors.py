"""The one exception for runs that cannot be done as asked; its message is one line made for the user."""


class RunError(RuntimeError):
    """A run that cannot be started, resumed or read: an unwritable directory, a damaged checkpoint, ..."""
