"""Writes files atomically, and turns errors of the disk into messages for the user."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from segskd.errors import DiskError

REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM}
MENDABLE = {errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EFBIG, *REFUSED}


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turns errors of the disk and of permissions within the block into UserErrors; `place` is named in the message."""
    try:
        yield
    except OSError as error:
        if error.errno not in MENDABLE:
            raise
        mend = "make it writable" if error.errno in (*REFUSED, errno.ENOTDIR) else "free some space"
        raise DiskError(f"can't write {place}: {error.strerror}; {mend}, then resume the run") from error


def write_whole(target: Path, content: bytes) -> None:
    """Writes a file atomically: a reader finds the old content or the new one, never a part.

    Raises UserError when the disk is full or can't be written; the old file then remains.
    """
    beside = target.with_name(f".{target.name}.part")
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(beside, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, target)
        except OSError:
            beside.unlink(missing_ok=True)
            raise
