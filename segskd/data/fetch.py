"""Downloads a card's dataset: resumes downloads that broke, compares checksums, and unpacks."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import requests
from filelock import FileLock

from segskd.callbacks import OnActivity
from segskd.config import named
from segskd.data.cards import Archive, Card
from segskd.data.dataset import has_split, list_split
from segskd.data.unpack import unpack
from segskd.errors import DiskError, UserError
from segskd.scenes import dataset as scenes

# Chunks are small, since a broken connection loses the chunk that is being received.
_CHUNK = 1 << 14
_CONNECT_SECONDS, _SILENCE_SECONDS = 15, 60
# A folder below the dataset's own, which exists only until all archives are unpacked.
_WORK = ".fetch"


def fetch(card: Card, data: Path, report: OnActivity | None = None) -> Path:
    """Makes the dataset complete below the folder `data` and returns the dataset's own folder.

    A complete dataset is only reported as "already complete". A download that was cut short is resumed. Raises
    UserError when the card doesn't say how to get the data, when the network fails, when a checksum differs,
    when an archive can't be trusted, and when the disk can't be written.
    """
    on_activity: OnActivity = report or (lambda stage, done, total: None)
    root = card.root(data)
    if not missing(card, data):
        on_activity("already complete", 1, 1)
    elif card.generator == "scenes":
        scenes.generate(root, lambda done, total: on_activity("drawing the sample scenes", done, total))
    elif not card.archives:
        how = card.fetch_help or f"its card names nothing to download; put the files into {root}"
        raise UserError(f"dataset '{card.name}' has to be fetched by hand: {how}")
    else:
        _fetch_under_lock(card, data, on_activity)
    return root


def missing(card: Card, data: Path, every_split: bool = False) -> list[str]:
    """What the dataset lacks, one line for each split; empty when the dataset is complete.

    A split is complete when it has as many pairs as the card's `count`, or one pair if the card has no count. A split
    other than train that is missing entirely is taken to be left out on purpose, unless a download was cut short or
    `every_split` is set.
    """
    if card.generator == "scenes":
        return [] if scenes.is_current(card.root(data)) else ["the scenes are not drawn, or of another version"]
    lacking = []
    every_split = every_split or (card.root(data) / _WORK).exists()
    for name, split in card.splits.items():
        needed = every_split or name == "train" or has_split(card, data, name)
        present = _count_pairs(card, data, name)
        if present < (split.count or 1) and needed:
            lacking.append(f"split '{name}' has {present} images with a mask and needs {split.count or 1}")
    return lacking


def _count_pairs(card: Card, data: Path, split: str) -> int:
    try:
        return len(list_split(card, data, split).pairs)
    except UserError:
        return 0


def _fetch_under_lock(card: Card, data: Path, on_activity: OnActivity) -> None:
    """Fetches all archives under a lock, so that other processes wait for them."""
    root = card.root(data)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(data / f".{card.name}.lock"):
            if missing(card, data):
                _fetch_archives(card, root, on_activity)
    except OSError as error:
        raise DiskError(
            f"can't write dataset '{card.name}' to {root}: {error.strerror or error}; "
            f"free some space there or choose another folder with {named('data.folder')}"
        ) from error
    lacking = missing(card, data, every_split=True)
    if lacking:
        raise UserError(f"'{card.name}' was unpacked to {root}, but {lacking[0]}: mend the card's archives or splits")


def _fetch_archives(card: Card, root: Path, on_activity: OnActivity) -> None:
    work = root / _WORK
    work.mkdir(exist_ok=True)
    for archive in card.archives:
        # An archive that is already unpacked isn't fetched again when a later one failed.
        done = work / f"{archive.sha256 or archive.md5}.done"
        if not done.exists():
            file = _download(archive, work, on_activity)
            _check(archive, file, on_activity)
            _unpack(archive, file, root, on_activity)
            done.touch()
            file.unlink()
    shutil.rmtree(work)


def _download(archive: Archive, work: Path, on_activity: OnActivity) -> Path:
    """Downloads the archive, resuming from the part that is there. The checksum is not compared yet."""
    name = _file_name(archive.url)
    part = work / f"{name}.part"
    try:
        _receive(archive, part, partial(on_activity, f"downloading {name}"))
    except requests.HTTPError as error:
        status = f"{error.response.status_code} {error.response.reason}"
        raise UserError(
            f"can't download {archive.url}: the server answered {status}; try later or mend the card's url"
        ) from error
    except requests.RequestException as error:
        reason = " ".join(str(error).split())
        raise UserError(f"can't download {archive.url}: {reason}; run it again to resume the download") from error
    return part


def _receive(archive: Archive, part: Path, on_bytes: Callable[[int, int | None], None]) -> None:
    """Downloads to `part`. It begins anew when the server can't send only the rest of the same file."""
    have = part.stat().st_size if part.exists() else 0
    headers = _headers(part, have)
    timeout = (_CONNECT_SECONDS, _SILENCE_SECONDS)
    with requests.get(archive.url, headers=headers, stream=True, timeout=timeout) as response:
        if have and response.status_code == requests.codes.requested_range_not_satisfiable:
            # The server has nothing left to send: `part` is the whole file, or part of another file.
            usable = _differing(archive, part) is None
        else:
            response.raise_for_status()
            usable = response.status_code != requests.codes.partial_content or _first_byte(response) == have
            if usable:
                _save(response, part, have, on_bytes)
    if not usable:
        part.unlink()
        _receive(archive, part, on_bytes)


def _headers(part: Path, have: int) -> dict[str, str]:
    # In a compressed transfer, lengths and offsets differ from the file's.
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        tag = _tag_file(part)
        if tag.exists():
            headers["If-Range"] = tag.read_text(encoding="latin-1")
    return headers


def _first_byte(response: requests.Response) -> int | None:
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _save(response: requests.Response, part: Path, have: int, on_bytes: Callable[[int, int | None], None]) -> None:
    """Appends the rest of a file, or writes a whole one, and stores the tag that identifies this version of the
    file."""
    done = have if response.status_code == requests.codes.partial_content else 0
    if done == 0:
        part.unlink(missing_ok=True)
        _keep_tag(response, part)
    length = response.headers.get("Content-Length")
    total = done + int(length) if length else None
    with part.open("ab") as file:
        for chunk in response.iter_content(_CHUNK):
            file.write(chunk)
            done += len(chunk)
            on_bytes(done, total)
    if total is not None and done < total:
        raise requests.ConnectionError(f"the connection ended after {done} of {total} bytes")


def _keep_tag(response: requests.Response, part: Path) -> None:
    tag = response.headers.get("ETag", "")
    if not tag or tag.startswith("W/"):
        tag = response.headers.get("Last-Modified", "")
    if tag:
        _tag_file(part).write_text(tag, encoding="latin-1")
    else:
        _tag_file(part).unlink(missing_ok=True)


def _tag_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.tag")


def _file_name(url: str) -> str:
    name = PurePosixPath(unquote(urlsplit(url).path)).name
    return re.sub(r"[^A-Za-z0-9._-]", "_", name) or "archive"


def _check(archive: Archive, file: Path, on_activity: OnActivity) -> None:
    on_activity(f"checking {_file_name(archive.url)}", 0, None)
    differing = _differing(archive, file)
    if differing is not None:
        file.unlink()
        raise UserError(
            f"{archive.url} doesn't have the {differing} in the card, so the download was deleted: run it again; "
            "if that fails, too, the file has changed: correct the card"
        )


def _differing(archive: Archive, file: Path) -> str | None:
    """The kind of the first checksum that differs from the card's, None when all agree."""
    for name, expected in (("sha256", archive.sha256), ("md5", archive.md5)):
        if expected is not None:
            with file.open("rb") as opened:
                # The checksum detects damage only, so MD5 is enough where nothing else is published.
                digest = hashlib.file_digest(opened, partial(hashlib.new, name, usedforsecurity=False))
            if digest.hexdigest() != expected:
                return name
    return None


def _unpack(archive: Archive, file: Path, root: Path, on_activity: OnActivity) -> None:
    """Unpacks beside the download, then moves all files into place."""
    into = PurePosixPath(archive.into)
    unpacked = root / _WORK / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)
    unpacked.mkdir()
    unpack(file, unpacked, archive.member, partial(on_activity, f"unpacking {_file_name(archive.url)}"))
    (root / into).mkdir(parents=True, exist_ok=True)
    _move_into(unpacked, root / into)


def _move_into(source: Path, target: Path) -> None:
    """Moves the content of `source` into `target`. Existing folders are merged, existing files replaced."""
    for item in sorted(source.iterdir()):
        place = target / item.name
        if item.is_dir() and place.is_dir():
            _move_into(item, place)
        else:
            os.replace(item, place)
