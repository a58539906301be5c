"""The exceptions that a user can cause and mend; everything else is a bug. How their messages name a recipe's fields.

A message names a field by a mark, which `config.named` makes from the schema. The mark holds the field's flag and its
label: the command line writes the flag, the page writes the label.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

_MARK = re.compile("⟦([^⟦|⟧]*)\\|([^⟦|⟧]*)⟧")
NO_SPACE = {errno.ENOSPC, errno.EDQUOT}


def mark(flag: str, label: str) -> str:
    """A field's name inside a message, before it is known who reads it."""
    return f"⟦{flag}|{label}⟧"


def in_flags(message: str) -> str:
    """The message as the command line writes it: fields by their flags."""
    return _MARK.sub(r"\1", message)


def in_labels(message: str | UserError) -> str:
    """The message as the page writes it: fields by their labels."""
    return _MARK.sub(r"«\2»", message.template if isinstance(message, UserError) else message)


class UserError(Exception):
    """Bad input, or a machine that can't take the job.

    The message is one line that says what is wrong, where, and how to mend it. The command line prints
    it without a traceback and exits with status 2. `about` is the path of the recipe's field that the error is about,
    such as "data.size"; it is "" for errors about anything else.
    """

    def __init__(self, message: str, about: str = "") -> None:
        super().__init__(message)
        self.about = about

    def __str__(self) -> str:
        return in_flags(self.template)

    @property
    def template(self) -> str:
        """The message with marks for fields."""
        return str(self.args[0])


class OutOfMemory(UserError):
    """The machine has less memory than a job needs; a smaller job may fit."""


class NoRoom(OutOfMemory):
    """The same, found before the job began: both figures are in bytes."""

    def __init__(self, message: str, needed: int, free: int, about: str = "") -> None:
        super().__init__(message, about)
        self.needed = needed
        self.free = free


class DiskError(UserError):
    """A disk is full, or refuses to be written."""


class DataError(UserError):
    """A dataset's files are gone, damaged, or not what its card says."""

    def __init__(self, message: str, about: str = "data.card") -> None:
        super().__init__(message, about)


class Stopped(Exception):
    """A run was asked to stop and has saved its state; exit status 130."""


class EndedByFirstProcess(Exception):
    """One of several processes ends because of what the first one says; exit status 0, without a word."""


class Failed(Exception):
    """A part of what was asked for failed and was written down; one line, exit status 1."""


@contextmanager
def about_field(about: str) -> Iterator[None]:
    """Gives a UserError the path of the field that it is about, unless it has one."""
    try:
        yield
    except UserError as error:
        error.about = error.about or about
        raise


def full_disk(error: BaseException) -> DiskError | None:
    """What to tell a user when `error` means that a disk is full, else None."""
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        where = f"{error.filename}: " if error.filename else ""
        return DiskError(f"{where}{error.strerror}; free some space, then resume the run")
    return None


@dataclass(frozen=True)
class ErrorRecord:
    """An error as a run's event, or a command's JSON, holds it.

    `message` has flags, `template` has marks. `error` is the exception's class. Those of older versions have neither
    `about` nor `template`.
    """

    message: str
    error: str = ""
    about: str = ""
    template: str = ""

    @classmethod
    def of(cls, error: BaseException) -> ErrorRecord:
        if not isinstance(error, UserError):
            return cls(str(error), type(error).__name__)
        template = error.template if error.template != str(error) else ""
        return cls(str(error), type(error).__name__, error.about, template)

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> ErrorRecord:
        """From the fields of an event, of whatever version."""
        return cls(*(str(content.get(name) or "") for name in ("message", "error", "about", "template")))

    def as_dict(self) -> dict[str, str]:
        """Plain data for an event or for JSON, without what is empty."""
        return {name: value for name, value in vars(self).items() if value or name in ("message", "error")}

    @property
    def expected(self) -> bool:
        """Whether it is a UserError of any kind, and no bug."""
        return self.error in {"UserError", *_names_below(UserError)}

    @property
    def in_labels(self) -> str:
        """The message as the page writes it."""
        return in_labels(self.template or self.message)


def _names_below(cls: type[UserError]) -> set[str]:
    return {name for child in cls.__subclasses__() for name in (child.__name__, *_names_below(child))}
