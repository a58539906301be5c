"""The one exception for what a user can cause and a user can mend; everything else is a bug."""


class UserError(Exception):
    """Bad input, or a machine that can't take the job.

    The message is one line that says what is wrong, where, and how to mend it. The command line prints
    it without a traceback and exits with status 2.
    """


class NoRoom(UserError):
    """The machine has less memory than a job needs, both in bytes; a smaller job may fit."""

    def __init__(self, message: str, needed: int, free: int) -> None:
        super().__init__(message)
        self.needed = needed
        self.free = free


class Stopped(Exception):
    """A run was asked to stop and has saved its state; exit status 130."""


class Echoed(Exception):
    """One of several processes ends because of what the first one says; exit status 0, without a word."""


class Failed(Exception):
    """A part of what was asked for failed and was written down; one line, exit status 1."""
