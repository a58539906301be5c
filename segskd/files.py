"""Files that come in whole or not at all, and disks that refuse in words."""

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
    """Turns what a disk or its permissions refuse into a UserError that says so."""
    try:
        yield
    except OSError as error:
        if error.errno not in MENDABLE:
            raise
        mend = "make it writable" if error.errno in (*REFUSED, errno.ENOTDIR) else "free some space"
        raise DiskError(f"can't write {place}: {error.strerror}; {mend}, then resume the run") from error


def write_whole(target: Path, content: bytes) -> None:
    """Writes a file beside its place, syncs it, and renames it: whoever reads finds the old one or the new.

    Raises UserError when the disk won't take it; the old file is then still there.
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
