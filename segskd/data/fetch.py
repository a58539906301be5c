"""Brings a card's dataset to this machine: downloads that resume, checksums, careful unpacking."""

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

from segskd.config import named
from segskd.data.cards import Archive, Card
from segskd.data.dataset import has_split, list_split
from segskd.data.unpack import unpack
from segskd.errors import DiskError, UserError
from segskd.scenes import dataset as scenes

# What is being done, how far it is, and of how much if that is known (bytes or images).
Report = Callable[[str, int, int | None], None]

# When a connection breaks, the chunk that was on its way is lost, so chunks are small.
_CHUNK = 1 << 14
_CONNECT_SECONDS, _SILENCE_SECONDS = 15, 60
# Below the dataset's own folder; it is there only until all archives are in place.
_WORK = ".fetch"


def fetch(card: Card, data: Path, report: Report | None = None) -> Path:
    """Make the dataset complete below the folder `data` and return its own folder.

    Does nothing but report "already complete" when it is. A download that was cut short goes on where it
    stopped. Raises UserError when the card says no way to get the data, and for a network that fails, a
    checksum that differs, an archive that can't be trusted and a disk that can't be written.
    """
    say: Report = report or (lambda stage, done, total: None)
    root = card.root(data)
    if not missing(card, data):
        say("already complete", 1, 1)
    elif card.generator == "scenes":
        scenes.generate(root, lambda done, total: say("drawing the sample scenes", done, total))
    elif not card.archives:
        how = card.fetch_help or f"its card names nothing to download; put the files into {root}"
        raise UserError(f"dataset '{card.name}' has to be fetched by hand: {how}")
    else:
        _fetch_locked(card, data, say)
    return root


def missing(card: Card, data: Path, every_split: bool = False) -> list[str]:
    """What the dataset lacks, one line a split; empty when it is complete.

    A split is complete when it has the card's `count` of image and mask pairs, or one pair if the card has no
    count. A split other than train that isn't there at all was left out on purpose, unless a fetch was cut
    short or `every_split` is asked for.
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


def _fetch_locked(card: Card, data: Path, say: Report) -> None:
    """Fetch all archives while every other process that wants the same waits."""
    root = card.root(data)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(data / f".{card.name}.lock"):
            if missing(card, data):
                _fetch_archives(card, root, say)
    except OSError as error:
        raise DiskError(
            f"can't write dataset '{card.name}' to {root}: {error.strerror or error}; "
            f"free some space there or choose another folder with {named('data.folder')}"
        ) from error
    lacking = missing(card, data, every_split=True)
    if lacking:
        raise UserError(f"'{card.name}' was unpacked to {root}, but {lacking[0]}: mend the card's archives or splits")


def _fetch_archives(card: Card, root: Path, say: Report) -> None:
    work = root / _WORK
    work.mkdir(exist_ok=True)
    for archive in card.archives:
        # An archive that is in place already isn't fetched again when a later one failed.
        done = work / f"{archive.sha256 or archive.md5}.done"
        if not done.exists():
            file = _download(archive, work, say)
            _check(archive, file, say)
            _unpack(archive, file, root, say)
            done.touch()
            file.unlink()
    shutil.rmtree(work)


def _download(archive: Archive, work: Path, say: Report) -> Path:
    """The archive's file, going on with the part that is there; not yet checked."""
    name = _file_name(archive.url)
    part = work / f"{name}.part"
    try:
        _receive(archive, part, partial(say, f"downloading {name}"))
    except requests.HTTPError as error:
        status = f"{error.response.status_code} {error.response.reason}"
        raise UserError(
            f"can't download {archive.url}: the server answered {status}; try later or mend the card's url"
        ) from error
    except requests.RequestException as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"can't download {archive.url}: {reason}; run it again and it goes on where it stopped"
        ) from error
    return part


def _receive(archive: Archive, part: Path, tell: Callable[[int, int | None], None]) -> None:
    """Download to `part`; starts again when the server can't send just the rest of the same file."""
    have = part.stat().st_size if part.exists() else 0
    headers = _headers(part, have)
    timeout = (_CONNECT_SECONDS, _SILENCE_SECONDS)
    with requests.get(archive.url, headers=headers, stream=True, timeout=timeout) as response:
        if have and response.status_code == requests.codes.requested_range_not_satisfiable:
            # Nothing is left to send: the part is the whole file, or it belongs to another one.
            usable = _differing(archive, part) is None
        else:
            response.raise_for_status()
            usable = response.status_code != requests.codes.partial_content or _first_byte(response) == have
            if usable:
                _save(response, part, have, tell)
    if not usable:
        part.unlink()
        _receive(archive, part, tell)


def _headers(part: Path, have: int) -> dict[str, str]:
    # Compressed transfers have other lengths and offsets than the file.
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


def _save(response: requests.Response, part: Path, have: int, tell: Callable[[int, int | None], None]) -> None:
    """Append the rest of a file, or write a whole one; keeps what identifies this version of it."""
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
            tell(done, total)
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


def _check(archive: Archive, file: Path, say: Report) -> None:
    say(f"checking {_file_name(archive.url)}", 0, None)
    differing = _differing(archive, file)
    if differing is not None:
        file.unlink()
        raise UserError(
            f"{archive.url} doesn't have the {differing} in the card, so the download was deleted: run it again, "
            "and if that ends alike, the file has changed and the card has to follow"
        )


def _differing(archive: Archive, file: Path) -> str | None:
    """The name of a checksum that the file doesn't have; None when all are as the card says."""
    for name, expected in (("sha256", archive.sha256), ("md5", archive.md5)):
        if expected is not None:
            with file.open("rb") as opened:
                # A checksum against damage, so MD5 will do where only MD5 is published.
                found = hashlib.file_digest(opened, partial(hashlib.new, name, usedforsecurity=False))
            if found.hexdigest() != expected:
                return name
    return None


def _unpack(archive: Archive, file: Path, root: Path, say: Report) -> None:
    """Unpack beside the download, then move all into place."""
    into = PurePosixPath(archive.into)
    fresh = root / _WORK / "unpacked"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    unpack(file, fresh, archive.member, partial(say, f"unpacking {_file_name(archive.url)}"))
    (root / into).mkdir(parents=True, exist_ok=True)
    _move_into(fresh, root / into)


def _move_into(source: Path, target: Path) -> None:
    """Move what `source` holds into `target`; folders that are there already are merged, files replaced."""
    for item in sorted(source.iterdir()):
        place = target / item.name
        if item.is_dir() and place.is_dir():
            _move_into(item, place)
        else:
            os.replace(item, place)
