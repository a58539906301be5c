"""Kept figures: what was costly to find out about some files, beside the runs, until one of the files changes."""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import numpy.typing as npt

from segskd.errors import DataError
from segskd.files import write_whole, writing

Arrays = Mapping[str, npt.NDArray[Any]]
KEY = "key"
# What numpy raises for a file that is not there, cut short, no archive, or another archive.
DAMAGED = (OSError, EOFError, ValueError, TypeError, LookupError, RuntimeError, zipfile.BadZipFile, zlib.error)


def cache_folder(runs: Path) -> Path:
    """Where kept figures lie, below the folder of the runs; whoever deletes it loses time and nothing else."""
    return runs / ".cache"


def kept(folder: Path, kind: str, about: Sequence[str], files: Sequence[Path], find: Callable[[], Arrays]) -> Arrays:
    """The arrays that `find` gives, read from `folder` when they were found before.

    They hold as long as `about`, and the paths, sizes and times of change of `files`, are the same. A file
    of them that is damaged is found anew. Who asks while another process finds out waits for it.
    Raises UserError when one of the files is gone, or `folder` can't be written.
    """
    place = folder / f"{kind}-{_digest([*about, *map(str, files)])[:32]}.npz"
    key = _digest([stamp(file) for file in files])
    found = _read(place, key)
    if found is None:
        with _alone(place):
            found = _read(place, key)
            if found is None:
                found = find()
                _write(place, key, found)
    return found


def _read(place: Path, key: str) -> Arrays | None:
    try:
        with np.load(io.BytesIO(place.read_bytes()), allow_pickle=False) as content:
            arrays = dict(content)
        return arrays if arrays.pop(KEY).item() == key else None
    except DAMAGED:
        return None


def _write(place: Path, key: str, arrays: Arrays) -> None:
    content: dict[str, Any] = {**arrays, KEY: np.array(key)}
    buffer = io.BytesIO()
    np.savez(buffer, **content)
    write_whole(place, buffer.getvalue())


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    lock = filelock.FileLock(place.with_suffix(".lock"))
    with writing(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def stamp(file: Path) -> str:
    """Another one whenever the file changes: its size and time of change. Raises UserError when it is gone."""
    try:
        stat = file.stat()
    except OSError as error:
        raise DataError(f"can't read {file}: {error.strerror}; put it back, or run 'data check'") from error
    return f"{stat.st_size} {stat.st_mtime_ns}"


def _digest(parts: Sequence[str]) -> str:
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part.encode(errors="surrogateescape") + b"\0")
    return sha.hexdigest()
