"""The exceptions that a user can cause and put right. Every other exception is a bug.

A message names a field of a recipe by a mark, which `config.named` makes from the schema. The mark holds the field's
flag and its label. The command line writes the flag, and the page writes the label.
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
    """The mark that stands for a field's name in a message."""
    return f"⟦{flag}|{label}⟧"


def in_flags(message: str) -> str:
    """The message as the command line writes it: fields by their flags."""
    return _MARK.sub(r"\1", message)


def in_labels(message: str | UserError) -> str:
    """The message as the page writes it: fields by their labels."""
    return _MARK.sub(r"«\2»", message.template if isinstance(message, UserError) else message)


def plural(count: int, word: str) -> str:
    """The count and the word, with an s unless the count is one: "1 image", "2 images"."""
    return f"{count} {word}{'s' * (count != 1)}"


class UserError(Exception):
    """Bad input, or a machine that is too small for the job.

    The message is one line that says what is wrong, where, and how to put it right. The command line prints it
    without a traceback and exits with status 2. `about` is the path of the recipe's field that caused the error, such
    as "data.size"; it is "" if no field did.
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
    """Too little memory, found before the job began. Both figures are in bytes."""

    def __init__(self, message: str, needed: int, free: int, about: str = "") -> None:
        super().__init__(message, about)
        self.needed = needed
        self.free = free


class DiskError(UserError):
    """A disk is full or can't be written."""


class DataError(UserError):
    """A dataset's files are missing, damaged, or not what its card says."""

    def __init__(self, message: str, about: str = "data.card") -> None:
        super().__init__(message, about)


class Stopped(Exception):
    """A run was asked to stop and has saved its state; exit status 130."""


class EndedByFirstProcess(Exception):
    """A process of a run ends because the first process has reported why; exit status 0, no message."""


class Failed(Exception):
    """A part of the work failed, and its error was recorded; one line, exit status 1."""


@contextmanager
def about_field(about: str) -> Iterator[None]:
    """Gives a UserError the path of the field that caused it, unless it has one."""
    try:
        yield
    except UserError as error:
        error.about = error.about or about
        raise


def full_disk(error: BaseException) -> DiskError | None:
    """The error for the user if `error` means that a disk is full, else None."""
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        where = f"{error.filename}: " if error.filename else ""
        return DiskError(f"{where}{error.strerror}; free some space, then resume the run")
    return None


@dataclass(frozen=True)
class ErrorRecord:
    """An error in a run's event or in a command's JSON.

    In `message` fields are named by their flags, in `template` by marks. `error` is the name of the exception's class.
    Records of older versions have no `about` and no `template`.
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
        """From the fields of an event of any version."""
        return cls(*(str(content.get(name) or "") for name in ("message", "error", "about", "template")))

    def as_dict(self) -> dict[str, str]:
        """Plain data for an event or for JSON, without empty values."""
        return {name: value for name, value in vars(self).items() if value or name in ("message", "error")}

    @property
    def expected(self) -> bool:
        """Whether it is a UserError of any kind, not a bug."""
        return self.error in {"UserError", *_names_below(UserError)}

    @property
    def in_labels(self) -> str:
        """The message as the page writes it."""
        return in_labels(self.template or self.message)


def _names_below(cls: type[UserError]) -> set[str]:
    return {name for child in cls.__subclasses__() for name in (child.__name__, *_names_below(child))}
