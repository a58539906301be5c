"""A cache of figures that take long to compute from files. A figure is computed anew when one of its files changes."""

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
# What numpy raises for a file that is missing, cut short, no archive or another archive.
DAMAGED = (OSError, EOFError, ValueError, TypeError, LookupError, RuntimeError, zipfile.BadZipFile, zlib.error)


def cache_folder(runs: Path) -> Path:
    """The folder of cached figures below the folder of runs. Deleting it costs nothing but the time to fill it
    again."""
    return runs / ".cache"


def cached(
    folder: Path, kind: str, inputs: Sequence[str], files: Sequence[Path], compute: Callable[[], Arrays]
) -> Arrays:
    """The arrays that `compute` returns, or those in `folder` if they were computed before from the same input.

    The input is the same while `inputs` and the paths, sizes and modification times of `files` are. A damaged file in
    the cache is computed anew. A process waits while another one computes the same arrays. Raises UserError when one
    of `files` is gone, or `folder` can't be written.
    """
    target = folder / f"{kind}-{_digest([*inputs, *map(str, files)])[:32]}.npz"
    key = _digest([stamp(file) for file in files])
    arrays = _read(target, key)
    if arrays is None:
        with _locked(target):
            arrays = _read(target, key)
            if arrays is None:
                arrays = compute()
                _write(target, key, arrays)
    return arrays


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
def _locked(place: Path) -> Iterator[None]:
    lock = filelock.FileLock(place.with_suffix(".lock"))
    with writing(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def stamp(file: Path) -> str:
    """The file's size and modification time, as text. Raises UserError when the file is gone."""
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
