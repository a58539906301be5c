"""Unpacks archives that somebody else made: nothing is written outside the folder, or beyond what was declared."""

from __future__ import annotations

import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from segskd.errors import UserError

_CHUNK = 1 << 20
_SPARE_BYTES = 64 << 20
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, NotImplementedError)


@dataclass(frozen=True)
class _Entry:
    path: PurePosixPath
    size: int
    open: Callable[[], IO[bytes] | None]


def unpack(archive: Path, folder: Path, member: str = "", progress: Callable[[int, int], None] | None = None) -> None:
    """Write what a zip or tar file (plain, gzip, bzip2 or xz) holds below `member` into `folder`.

    The kind is told by content, not by name. `member` itself is dropped from the paths. `progress` is called
    with the bytes written and their total. Raises UserError, before anything is written, for a member that is
    a link or a device or whose path leads outside, and when the disk is too full; and for a file that is
    damaged, of another kind, or has nothing below `member`.
    """
    try:
        with _entries(archive) as entries:
            kept = _below(entries, PurePosixPath(member))
            if not kept:
                raise UserError(f"{archive.name} holds nothing below '{member}': mend the card's archives.member")
            total = sum(entry.size for entry in kept)
            _check_space(archive, folder, total)
            _write(archive, folder, kept, total, progress)
    except _DAMAGED as error:
        raise UserError(f"{archive.name} is damaged and can't be unpacked ({error}): fetch it again") from error


@contextmanager
def _entries(archive: Path) -> Iterator[list[_Entry]]:
    """The files in an archive, all of them checked."""
    with archive.open("rb") as file:
        magic = file.read(4)
    # zipfile.is_zipfile would take a tar file that ends with a zip file for one.
    if magic in (b"PK\x03\x04", b"PK\x05\x06"):
        with zipfile.ZipFile(archive) as opened:
            yield [_zip_entry(archive, opened, info) for info in opened.infolist() if not info.is_dir()]
        return
    try:
        tar = tarfile.open(archive)  # noqa: SIM115 - closed below; only failure to open means "no archive"
    except tarfile.ReadError as error:
        raise UserError(f"{archive.name} is neither a zip nor a tar file: mend the card's archives.url") from error
    with tar:
        checked = [_tar_entry(archive, tar, info) for info in tar.getmembers()]
        yield [entry for entry in checked if entry is not None]


def _zip_entry(archive: Path, opened: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Entry:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        raise _refused(archive, info.filename, "is a link or a device")
    if info.flag_bits & 1:
        raise _refused(archive, info.filename, "is encrypted")
    return _Entry(_safe_path(archive, info.filename), info.file_size, lambda: opened.open(info))


def _tar_entry(archive: Path, opened: tarfile.TarFile, info: tarfile.TarInfo) -> _Entry | None:
    path = _safe_path(archive, info.name)
    if info.isdir():
        return None
    if not info.isreg():
        raise _refused(archive, info.name, "is a link or a device")
    return _Entry(path, info.size, lambda: opened.extractfile(info))


def _safe_path(archive: Path, name: str) -> PurePosixPath:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or PureWindowsPath(name).drive or ".." in path.parts:
        raise _refused(archive, name, "leads outside the dataset's folder")
    return path


def _refused(archive: Path, name: str, why: str) -> UserError:
    return UserError(f"{archive.name} was not unpacked: its member '{name}' {why}; don't trust this archive")


def _below(entries: list[_Entry], member: PurePosixPath) -> list[_Entry]:
    depth = len(member.parts)
    return [
        _Entry(PurePosixPath(*entry.path.parts[depth:]), entry.size, entry.open)
        for entry in entries
        if entry.path.parts[:depth] == member.parts and len(entry.path.parts) > depth
    ]


def _check_space(archive: Path, folder: Path, total: int) -> None:
    free = shutil.disk_usage(folder).free
    if total + _SPARE_BYTES > free:
        raise UserError(
            f"{archive.name} unpacks to {total / 1e9:.1f} GB, but {folder} has {free / 1e9:.1f} GB free: "
            "free some space or choose another folder with --data"
        )


def _write(
    archive: Path,
    folder: Path,
    entries: list[_Entry],
    total: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    written = 0
    for entry in entries:
        target = folder / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        source = entry.open()
        if source is None:
            raise _refused(archive, str(entry.path), "has no content")
        with source, target.open("wb") as file:
            written += _copy(archive, entry, source, file)
        if progress is not None:
            progress(written, total)


def _copy(archive: Path, entry: _Entry, source: IO[bytes], target: IO[bytes]) -> int:
    copied = 0
    while chunk := source.read(_CHUNK):
        copied += len(chunk)
        if copied > entry.size:
            raise _refused(archive, str(entry.path), f"is bigger than the {entry.size} bytes it declares")
        target.write(chunk)
    if copied < entry.size:
        raise UserError(f"{archive.name} is damaged: its member '{entry.path}' ends early; fetch it again")
    return copied
