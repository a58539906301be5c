"""Unpacks archives from others safely: it writes nothing outside the folder, and no more than the archive declares."""

from __future__ import annotations

import lzma
import shutil
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from segskd.callbacks import OnProgress
from segskd.config import named
from segskd.errors import DiskError, UserError

_CHUNK = 1 << 20
_SPARE_BYTES = 64 << 20
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, NotImplementedError)


_DEEPEST, _LONGEST_PART, _LONGEST_PATH = 32, 255, 1024


@dataclass(frozen=True)
class ArchiveLimits:
    """ArchiveLimits of an archive: bytes and files in all, and the largest ratio of unpacked to packed bytes of one
    file.

    The ratio counts only for files of more than `ratio_from_bytes`.
    """

    total_bytes: int = 20 * 10**9
    files: int = 200_000
    ratio: float = 200.0
    ratio_from_bytes: int = 100 * 10**6


@dataclass(frozen=True)
class _Entry:
    path: PurePosixPath
    size: int
    packed: int
    open: Callable[[], IO[bytes] | None]


def unpack(
    archive: Path,
    folder: Path,
    member: str = "",
    progress: OnProgress | None = None,
    limits: ArchiveLimits | None = None,
) -> None:
    """Writes the files of a zip or tar file (plain, gzip, bzip2 or xz) below the path `member` into `folder`.

    The kind of archive is recognised by its content. The paths are written without `member`. `progress` is called with
    the number of bytes that are written and of all bytes. Before anything is written, it raises UserError for a file in
    the archive that is a link, a device or encrypted, or whose path leads outside or isn't valid, for an archive that
    exceeds `limits`, and for a disk that is too full. It also raises UserError for an archive that is damaged, of
    another kind, or empty below `member`.
    """
    try:
        with _entries(archive) as entries:
            selected = _below(entries, PurePosixPath(member))
            if not selected and member:
                raise UserError(f"{archive.name} holds nothing below '{member}': mend the card's archives.member")
            if not selected:
                raise UserError(f"{archive.name} holds no files: pack the dataset's folder and try again")
            if limits is not None:
                _check_limits(archive, selected, limits)
            total = sum(entry.size for entry in selected)
            _check_space(archive, folder, total)
            _write(archive, folder, selected, total, progress)
    except _DAMAGED as error:
        raise UserError(f"{archive.name} is damaged and can't be unpacked ({error}): get it again") from error


@contextmanager
def _entries(archive: Path) -> Iterator[list[_Entry]]:
    """Opens an archive and yields its files, each of them checked. Raises UserError."""
    with archive.open("rb") as file:
        magic = file.read(4)
    # zipfile.is_zipfile is also true for a tar file that ends with a zip file.
    if magic in (b"PK\x03\x04", b"PK\x05\x06"):
        with zipfile.ZipFile(archive) as opened:
            yield [_zip_entry(archive, opened, info) for info in opened.infolist() if not info.is_dir()]
        return
    try:
        tar = tarfile.open(archive)  # noqa: SIM115 - closed below; only an error while opening means "no archive"
    except tarfile.ReadError as error:
        raise UserError(f"{archive.name} is neither a zip nor a tar file: check where it is from") from error
    with tar:
        checked = [_tar_entry(archive, tar, info) for info in tar.getmembers()]
        yield [entry for entry in checked if entry is not None]


def _zip_entry(archive: Path, opened: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Entry:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        raise _refused(archive, info.filename, "is a link or a device")
    if info.flag_bits & 1:
        raise _refused(archive, info.filename, "is encrypted", "pack it without a password")
    path = _safe_path(archive, info.filename)
    return _Entry(path, info.file_size, info.compress_size, lambda: opened.open(info))


def _tar_entry(archive: Path, opened: tarfile.TarFile, info: tarfile.TarInfo) -> _Entry | None:
    path = _safe_path(archive, info.name)
    if info.isdir():
        return None
    if not info.isreg():
        raise _refused(archive, info.name, "is a link or a device")
    return _Entry(path, info.size, info.size, lambda: opened.extractfile(info))


def _safe_path(archive: Path, name: str) -> PurePosixPath:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or PureWindowsPath(name).drive or ".." in path.parts:
        raise _refused(archive, name, "leads outside the dataset's folder")
    if not fit_for_text(name):
        raise _refused(archive, name, "has a control character in its name", "rename it and pack again")
    if (
        len(path.parts) > _DEEPEST
        or len(str(path).encode()) > _LONGEST_PATH
        or any(len(part.encode()) > _LONGEST_PART for part in path.parts)
    ):
        raise _refused(archive, name[:80] + "…", "lies too deep or has too long a name", "rename it and pack again")
    return path


def fit_for_text(name: str) -> bool:
    """Whether a file's name can be written in messages and text files: it has no control characters and no stray
    bytes."""
    return not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name)


def _refused(archive: Path, name: str, why: str, mend: str = "don't trust this archive") -> UserError:
    shown = name if fit_for_text(name) else name.encode("unicode_escape").decode()
    return UserError(f"{archive.name} was not unpacked: its member '{shown}' {why}; {mend}")


def _check_limits(archive: Path, entries: list[_Entry], limits: ArchiveLimits) -> None:
    total = sum(entry.size for entry in entries)
    if len(entries) > limits.files:
        mend = f"at most {limits.files} are allowed: leave out what is neither image nor mask"
        raise UserError(f"{archive.name} was not unpacked: it holds {len(entries)} files, and {mend}")
    if total > limits.total_bytes:
        allowed = f"{limits.total_bytes / 1e9:g} GB are allowed: put the unpacked folder among the datasets instead"
        raise UserError(f"{archive.name} was not unpacked: it holds {total / 1e9:.1f} GB, and {allowed}")
    seen: set[PurePosixPath] = set()
    for entry in entries:
        if entry.path in seen:
            raise _refused(archive, str(entry.path), "is there twice", "pack it again")
        seen.add(entry.path)
        if entry.size > limits.ratio_from_bytes and entry.size > limits.ratio * max(entry.packed, 1):
            raise _refused(archive, str(entry.path), f"unpacks to {entry.size / 1e6:.0f} MB from far fewer bytes")


def _below(entries: list[_Entry], member: PurePosixPath) -> list[_Entry]:
    depth = len(member.parts)
    return [
        replace(entry, path=PurePosixPath(*entry.path.parts[depth:]))
        for entry in entries
        if entry.path.parts[:depth] == member.parts and len(entry.path.parts) > depth
    ]


def _check_space(archive: Path, folder: Path, total: int) -> None:
    free = shutil.disk_usage(folder).free
    if total + _SPARE_BYTES > free:
        raise DiskError(
            f"{archive.name} unpacks to {total / 1e9:.1f} GB, but {folder} has {free / 1e9:.1f} GB free: "
            f"free some space or choose another folder with {named('data.folder')}"
        )


def _write(
    archive: Path,
    folder: Path,
    entries: list[_Entry],
    total: int,
    progress: OnProgress | None,
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
        raise UserError(f"{archive.name} is damaged: its member '{entry.path}' ends early; get it again")
    return copied
