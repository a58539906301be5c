"""The datasets of the Data tab: a list of them, what each holds, how to download one, and how to add one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import get_args
from urllib.parse import urlsplit

from segskd.callbacks import OnActivity
from segskd.data.adding import Added, add_archive, add_folder, candidate_folders
from segskd.data.cards import Card, CardEntry, list_cards
from segskd.data.check import ProblemKind, check
from segskd.data.dataset import Listing, Pair, has_split, list_split
from segskd.data.fetch import fetch, missing
from segskd.data.pixel_counts import PixelCounts, pixel_counts
from segskd.errors import UserError, in_labels
from segskd.files import write_whole

from .background import Task, Tasks
from .dataset_report import Json, plain_report, report_for_page, without_folder

QUICK_SECONDS = 0.4


@dataclass(frozen=True)
class OpenDataset:
    """A dataset that is on the disk. `version` changes when its files do."""

    place: str
    card: Card
    root: Path
    listings: dict[str, Listing]
    version: str

    def pairs(self, split: str = "train") -> list[Pair]:
        """The split's images with a mask, by name. Raises UserError when there is no such split."""
        if split not in self.listings:
            raise UserError(f"'{self.card.name}' has no split '{split}' here")
        return self.listings[split].pairs


@dataclass(frozen=True)
class Reading:
    """The result of reading every file of a dataset.

    `report` is plain data: images, sizes, pixels by split and class, problems. `pixel_counts` is None if the training
    masks can't be counted; `problem` then says why.
    """

    report: Json
    pixel_counts: PixelCounts | None
    problem: str | None = None


class Datasets:
    """The datasets of this server. Places come from the page, so only those of the server's own list are accepted."""

    def __init__(self, data: Path, cache: Path, tasks: Tasks) -> None:
        self.data = data
        self.cache = cache
        self.tasks = tasks
        self._opened: dict[str, OpenDataset] = {}

    # -- which there are ----------------------------------------------------------------------------

    def tiles(self) -> list[Json]:
        """An entry for each dataset: first the built-in scenes, then the user's own, then others on this server."""
        tiles = [_tile(entry, self.data) for entry in list_cards(self.data)]
        return sorted(tiles, key=lambda tile: (not tile["built_in"], not tile["own"], tile["state"] != "ready"))

    def entry(self, place: object) -> CardEntry:
        """The entry of that place. Raises UserError if this server has no such dataset."""
        for entry in list_cards(self.data):
            if entry.place == place:
                return entry
        raise UserError(f"this server has no dataset {str(place)!r}: choose one from the list")

    def card(self, place: object) -> Card:
        """The card of that place. Raises UserError if this server doesn't have it, or if it is broken."""
        entry = self.entry(place)
        if entry.card is None:
            raise UserError(entry.problem or f"the card {place} can't be read")
        return entry.card

    def folders(self) -> list[str]:
        """Folders below the server's data folder that no card uses yet."""
        return candidate_folders(self.data)

    # -- one of them --------------------------------------------------------------------------------

    def open(self, place: object, reread: bool = False) -> OpenDataset:
        """The dataset's files; with `reread` they are listed again. Raises UserError if they are not on this server."""
        key = str(place)
        if reread or key not in self._opened:
            card = self.card(place)
            here = [split for split in card.splits if split == "train" or has_split(card, self.data, split)]
            listings: dict[str, Listing] = {split: list_split(card, self.data, split) for split in here}
            self._opened[key] = OpenDataset(key, card, card.root(self.data), listings, _version(card, listings))
        return self._opened[key]

    def read(self, opened: OpenDataset) -> Task:
        """The task that reads every file. Its result is a `Reading`. Reports are stored on disk."""

        def work(report: OnActivity) -> Reading:
            found = self._saved_report(opened) or self._check(opened, report)
            try:
                counted = pixel_counts(
                    opened.card,
                    opened.pairs(),
                    self.cache,
                    lambda done, total: report("counting the classes of each mask", done, total),
                )
            except UserError as error:
                return Reading(found, None, without_folder(opened.root, in_labels(error)))
            return Reading(found, counted)

        key = f"read {opened.version}"
        before = self.tasks.get(key)
        return before if before is not None and before.state == "done" else self.tasks.start(key, work)

    def reading(self, opened: OpenDataset) -> Reading | None:
        """The result of `read`, None while it works or if it failed."""
        task = self.tasks.get(f"read {opened.version}")
        return task.result if task is not None and task.state == "done" else None

    def reading_task(self, place: str) -> Task | None:
        """The last task of `read` for the dataset as it was last opened."""
        opened = self._opened.get(place)
        return self.tasks.get(f"read {opened.version}") if opened else None

    def overview(self, place: object) -> Json:
        """Everything that the page shows of a dataset, without pictures. Begins to read a dataset on this server."""
        card = self.card(place)
        base = {
            "place": str(place),
            "name": card.name,
            "title": card.title,
            "licence": card.licence,
            "classes": [{"name": entry.name, "color": list(entry.color)} for entry in card.classes],
            **_state(card, self.data),
        }
        try:
            opened = self.open(place, reread=True)
        except UserError as error:
            return base | {"names": [], "problem": None if base["state"] in ABSENT_STATES else in_labels(error)}
        task = self.read(opened)
        task.wait(QUICK_SECONDS)
        reading = self.reading(opened)
        return base | {
            "version": opened.version,
            "names": [pair.name for pair in opened.pairs()],
            "images": {split: len(listing.pairs) for split, listing in opened.listings.items()},
            "reading": task.as_dict(),
            "found": reading and report_for_page(reading.report),
        }

    def fetch(self, place: object) -> Task:
        """Draws or downloads a dataset. Raises UserError when that can't be done from here."""
        card = self.card(place)
        return self.tasks.start(f"fetch {place}", lambda report: fetch(card, self.data, report) and None)

    # -- new ones -----------------------------------------------------------------------------------

    def add_folder(self, folder: object, name: str, classes: str) -> Task:
        """Adds a folder from the server's own list. Raises UserError for any other."""
        if folder not in self.folders():
            raise UserError("choose a folder from the list")
        place = self.data / str(folder)
        return self._add(
            f"add {folder}",
            lambda report: add_folder(place, self.data, _name(name), _classes(classes), report),
        )

    def add_archive(self, archive: Path, name: str, classes: str) -> Task:
        """Adds an uploaded zip."""
        return self._add(
            f"add {archive.name} {short_digest(str(archive))}",
            lambda report: add_archive(archive, self.data, _name(name), _classes(classes), report),
        )

    def _add(self, key: str, add: Callable[[Callable[[int, int], None]], Added]) -> Task:
        def work(report: OnActivity) -> Json:
            try:
                added = add(lambda done, total: report("unpacking and reading", done, total))
            except UserError as error:
                raise UserError(without_folder(self.data, str(error))) from error
            opened = self.open(str(added.place), reread=True)
            found = self._save_report(opened, plain_report(added.report, opened.root))
            return {
                "place": str(added.place),
                "name": added.card.name,
                "layout": added.layout,
                "classes": added.card.class_names,
                "images": found["images"],
                "problems": found["problems"],
            }

        return self.tasks.start(key, work)

    # -- stored reports -----------------------------------------------------------------------------

    def _check(self, opened: OpenDataset, report: OnActivity) -> Json:
        found = check(opened.card, self.data, lambda done, total: report("reading every image and mask", done, total))
        return self._save_report(opened, plain_report(found, opened.root))

    def _save_report(self, opened: OpenDataset, found: Json) -> Json:
        write_whole(self._file(opened), json.dumps(found).encode())
        return found

    def _saved_report(self, opened: OpenDataset) -> Json | None:
        with suppress(OSError, ValueError):  # not read yet, or damaged
            kept: Json = json.loads(self._file(opened).read_text(encoding="utf-8"))
            return kept
        return None

    def _file(self, opened: OpenDataset) -> Path:
        return self.cache / f"check-{opened.version}.json"


ABSENT_STATES = ("draw", "download", "hand", "broken")
"""States of a dataset that is not on this server, or can't be read."""


def _tile(entry: CardEntry, data: Path) -> Json:
    card = entry.card
    if card is None:
        name = Path(entry.place).stem
        return {"place": entry.place, "name": name, "title": name, "own": entry.own, "built_in": False} | {
            "state": "broken",
            "how": entry.problem,
        }
    return {
        "place": entry.place,
        "name": card.name,
        "title": card.title,
        "own": entry.own,
        "built_in": card.generator is not None,
        "classes": len(card.classes),
        "colors": [list(color) for color in card.palette[:12]],
        **_state(card, data),
    }


def _state(card: Card, data: Path) -> Json:
    """Whether the dataset is on this server ("ready", "incomplete"), else how to get it."""
    lacking = missing(card, data)
    if not lacking:
        return {"state": "ready", "how": None}
    if card.generator is not None:
        return {"state": "draw", "how": "600 small street scenes that SegSKD draws itself, in about half a minute"}
    if card.archives:
        hosts = sorted({urlsplit(archive.url).hostname or archive.url for archive in card.archives})
        return {"state": "download", "how": f"{', '.join(hosts)} ({lacking[0]})"}
    if card.root(data).is_dir() and not card.fetch_help:
        return {"state": "incomplete", "how": lacking[0]}
    return {
        "state": "hand",
        "how": card.fetch_help or f"put its files into the folder {card.folder} of the data folder",
    }


def _version(card: Card, listings: dict[str, Listing]) -> str:
    """Changes if a file is added, deleted or changed, or if checks look for more kinds of problems."""
    digest = hashlib.sha256((card.model_dump_json() + str(get_args(ProblemKind))).encode())
    for split, listing in listings.items():
        digest.update(f"{split} {len(listing.pairs)} {listing.listed_but_missing}".encode())
        unpaired = [*listing.images_without_mask, *listing.masks_without_image]
        for path in [path for pair in listing.pairs for path in pair[1:]] + unpaired:
            stat = path.stat() if path.exists() else path.lstat()  # a link may lead nowhere
            digest.update(f"{path} {stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()[:32]


def short_digest(text: str) -> str:
    """A sha256 that is short enough for a file name."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _name(given: str) -> str | None:
    return given.strip() or None


def _classes(given: str) -> list[str] | None:
    """Names from a line with commas; None for an empty one."""
    names = [name.strip() for name in given.split(",")]
    return [name for name in names if name] or None
