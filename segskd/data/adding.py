"""Adds a user's dataset: writes a card for a folder or a zip, and lists the files that can't be used."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import unicodedata
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from pydantic import ValidationError

from segskd.callbacks import OnProgress
from segskd.config import first_problem, named
from segskd.data.cards import PROJECT_CARDS, Card, list_cards, load_card
from segskd.data.check import CheckReport, Problem, check
from segskd.data.dataset import Pair, list_split
from segskd.data.image_kinds import work_out_images
from segskd.data.labels import Labels, given_labels
from segskd.data.layouts import DatasetLayout, SplitName, pictures_below, recognise
from segskd.data.mask_values import Meaning, read_all_values, renamed, work_out
from segskd.data.unpack import ArchiveLimits, fit_for_text, unpack
from segskd.errors import UserError, plural
from segskd.files import write_whole

FEWEST: dict[SplitName, int] = {"train": 2, "val": 1}
_UNUSABLE = ("unreadable", "kind differs", "sizes differ", "unknown values")
_STEPS = 1000
_LONGEST_NAME = 64
_WORK = ".adding-"


@dataclass(frozen=True)
class Added:
    """A dataset that was added: its card, the card's file `place`, the check of its files, and its layout.

    `report` has the problems that `data check` reports for the card, and those of the files that the card leaves out.
    """

    card: Card
    place: Path
    report: CheckReport
    layout: str


def candidate_folders(data: Path) -> list[str]:
    """Names of the folders directly below `data` that no card uses, sorted."""
    named = {Path(entry.card.folder).parts[0] for entry in list_cards(data) if entry.card and entry.card.folder != "."}
    if not data.is_dir():
        return []
    return sorted(
        path.name
        for path in data.iterdir()
        if path.is_dir()
        and path.name not in named
        and not path.name.startswith((".", "__"))
        and fit_for_text(path.name)
    )


def add_folder(
    folder: Path,
    data: Path,
    name: str | None = None,
    class_names: Sequence[str] | None = None,
    report: OnProgress | None = None,
) -> Added:
    """Writes a card for the dataset in `folder`, and reads every file of it.

    The files stay where they are. If the folder doesn't lie below `data`, a link to it is made there. The card's name
    is made from `name` or from the folder's name, and no other card has it. Files that can't be used are left out and
    listed. Raises UserError, and leaves nothing behind, when the layout is unknown, when the masks' values make no
    sense, when fewer than two images to train on or one to validate on are left, or when all pixels of one of
    these splits are ignored.
    """
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: name a folder with images and masks")
    with _adding(data):
        # Links are not followed at first: a folder below `data` may itself be a link to another place.
        place, root = Path(os.path.abspath(folder)), Path(os.path.abspath(data))
        if not place.is_relative_to(root):
            place, root = folder.resolve(), data.resolve()
        if place.is_relative_to(root):
            free = _free_name(name, place.name, _cards_taken(data))
            return _add(data / place.relative_to(root), data, free, class_names, report)
        free = _free_name(name, place.name, _cards_taken(data) | _folders_taken(data))
        link = data / free
        link.symlink_to(place, target_is_directory=True)
        with _undo_on_error(link.unlink):
            return _add(link, data, free, class_names, report)


def add_archive(
    archive: Path,
    data: Path,
    name: str | None = None,
    class_names: Sequence[str] | None = None,
    report: OnProgress | None = None,
    limits: ArchiveLimits | None = None,
) -> Added:
    """Unpacks a zip into a new folder below `data` and adds that folder as `add_folder` does.

    Raises UserError, and leaves nothing behind, also for an archive that exceeds `limits` (by default
    `ArchiveLimits()`) or can't be trusted (see `unpack`).
    """
    if not archive.is_file():
        raise UserError(f"no folder and no file {archive}: name a folder with images and masks, or a zip of one")
    if not zipfile.is_zipfile(archive):
        raise UserError(f"'{archive.name}' is no zip file, or cut short: pack the dataset's folder as a zip")
    with _adding(data):
        free = _free_name(name, archive.stem, _cards_taken(data) | _folders_taken(data))
        place = data / free
        work = Path(tempfile.mkdtemp(prefix=_WORK, dir=data))
        with _undo_on_error(lambda: shutil.rmtree(work)):
            unpack(archive, work, progress=_partial_progress(report, 0.0, 0.3), limits=limits or ArchiveLimits())
            work.chmod(0o755)
            work.rename(place)
        with _undo_on_error(lambda: shutil.rmtree(place)):
            return _add(place, data, free, class_names, _partial_progress(report, 0.3, 1.0))


def _add(folder: Path, data: Path, name: str, class_names: Sequence[str] | None, report: OnProgress | None) -> Added:
    _check_file_names(folder)
    layout = recognise(folder)
    draft = _draft(layout, data, name)
    pairs = _pairs(draft, data)
    meaning = _meaning(layout, pairs, class_names, _partial_progress(report, 0.0, 0.4))
    images = work_out_images([pair.image for pair in pairs])
    draft = _validated({**draft.model_dump(), **vars(meaning), **images}, layout)
    card, checked = _without_unusable(draft, data, _partial_progress(report, 0.4, 1.0))
    checked.problems.extend(_unused(layout, draft, data))
    # Splits that share one list of files report the same files without a partner.
    checked.problems = list(dict.fromkeys(checked.problems))
    place = data / f"{name}.yaml"
    content = card.model_dump(mode="json", exclude_defaults=True)
    if card.channels == 3:  # the default is ImageNet's, but pydantic counts it as set
        content = {field: value for field, value in content.items() if field not in ("mean", "std")}
    if card.values:
        content["values"] = card.values  # JSON would turn these numbers into strings
    write_whole(place, yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode())
    return Added(load_card(place), place, checked, layout.kind)


# -- the card -----------------------------------------------------------------------------------------


def _draft(layout: DatasetLayout, data: Path, name: str) -> Card:
    """The card with two placeholder classes, and without a test split that has no pair."""
    content = {
        "name": name,
        "title": f"{name} ({layout.kind})",
        "folder": layout.root.relative_to(data).as_posix(),
        "classes": [{"name": str(number), "color": (0, 0, 0)} for number in range(2)],
        "splits": layout.splits,
    }
    card = _validated(content, layout)
    if "test" in card.splits and not _split_pairs(card, data, "test"):
        card = card.model_copy(update={"splits": {k: split for k, split in card.splits.items() if k != "test"}})
    return card


def _validated(content: dict[str, Any], layout: DatasetLayout) -> Card:
    try:
        return Card.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{layout.root} can't be added: {first_problem(error)}") from error


def _meaning(
    layout: DatasetLayout, pairs: Sequence[Pair], names: Sequence[str] | None, report: OnProgress | None
) -> Meaning:
    labels = _labels(layout, names)
    if layout.city_ids:
        city = load_card("cityscapes")
        meaning = Meaning(city.classes, values=city.values if layout.city_ids == "label ids" else None)
        return renamed(meaning, labels) if labels else meaning
    files = read_all_values([pair.mask for pair in pairs], report)
    return work_out(files, labels, voc=layout.kind in ("PASCAL VOC", "CVAT segmentation mask"))


def _labels(layout: DatasetLayout, names: Sequence[str] | None) -> Labels | None:
    """The labels of the dataset's own file, renamed by `names` where these are given."""
    if not names:
        return layout.labels
    given = given_labels(names)
    if layout.labels is None or layout.labels.colours is None:
        return given
    if len(given.names) != len(layout.labels.names):
        raise UserError(
            f"{len(given.names)} names for the {len(layout.labels.names)} classes in {layout.labels.source}"
        )
    return Labels(given.names, layout.labels.colours, given.source)


def _without_unusable(card: Card, data: Path, report: OnProgress | None) -> tuple[Card, CheckReport]:
    """The card without the pairs that can't be used, and the check of its files with the problems of those pairs."""
    _check_enough(card, data, [])
    checked = check(card, data, _partial_progress(report, 0.0, 0.6))
    unusable = [problem for problem in checked.problems if problem.kind in _UNUSABLE]
    if unusable:
        card = _leaving_out(card, data, {problem.file for problem in unusable})
        _check_enough(card, data, unusable)
        checked = check(card, data, _partial_progress(report, 0.6, 1.0))
        checked.problems[:0] = unusable
    elif report:
        report(_STEPS, _STEPS)
    for split in FEWEST:
        if not checked.pixels[split].any():
            raise UserError(f"all pixels of the split '{split}' are ignored: check whether these are the masks")
    return card, checked


def _leaving_out(card: Card, data: Path, files: set[str]) -> Card:
    names: dict[str, set[str]] = {}
    for name, split in card.splits.items():
        bad = {pair.name for pair in _split_pairs(card, data, name) if not files.isdisjoint(map(str, pair[1:]))}
        names.setdefault(split.images, set()).update(bad)
    # Splits that divide one list of files leave out the same names before they divide it.
    splits = {
        name: split.model_copy(update={"left_out": tuple(sorted(names[split.images]))})
        for name, split in card.splits.items()
    }
    return card.model_copy(update={"splits": splits})


def _check_enough(card: Card, data: Path, unusable: Sequence[Problem]) -> None:
    for split, needed in FEWEST.items():
        there = len(_split_pairs(card, data, split))
        if there < needed:
            advice = f"add more to {card.root(data)}"
            if unusable:
                advice = f"{plural(len(unusable), 'file')} can't be used, the first: {unusable[0].text}"
            raise UserError(
                f"the split '{split}' has {plural(there, 'image')} with a mask that can be used, and needs "
                f"{needed}: {advice}"
            )


def _unused(layout: DatasetLayout, card: Card, data: Path) -> Iterator[Problem]:
    """Pictures in the folders of images and masks that match no name pattern of the card."""
    if layout.kind == "Cityscapes" or any(split.names for split in card.splits.values()):
        return  # these layouts hold further pictures on purpose
    listings = [list_split(card, data, name) for name in card.splits]
    known = {path for listing in listings for path in (*listing.images_without_mask, *listing.masks_without_image)}
    known |= {path for listing in listings for pair in listing.pairs for path in pair[1:]}
    patterns = {pattern for split in card.splits.values() for pattern in (split.images, split.masks)}
    folders = {card.root(data) / pattern.split("{name}")[0] for pattern in patterns}
    for path in sorted({path for folder in folders for path in pictures_below(folder)} - known):
        text = f"{path} is left out: its name doesn't match the others, or differs from another's in its suffix alone"
        yield Problem("unpaired", str(path), text)


def _pairs(card: Card, data: Path) -> list[Pair]:
    return [pair for split in card.splits for pair in _split_pairs(card, data, split)]


def _split_pairs(card: Card, data: Path, split: str) -> list[Pair]:
    try:
        return list_split(card, data, split).pairs if split in card.splits else []
    except UserError:
        return []  # the caller reports a split without pairs


# -- names, progress and clean-up ---------------------------------------------------------------------


def _check_file_names(folder: Path) -> None:
    for path in pictures_below(folder):
        if not fit_for_text(path.relative_to(folder).as_posix()):
            shown = path.name.encode("unicode_escape", "surrogatepass").decode()
            raise UserError(f"the file '{shown}' has a control character or a stray byte in its name: rename it")


def _free_name(given: str | None, fallback: str, taken: set[str]) -> str:
    """A card's name made from `given` or else `fallback`, with a number at its end when the name is taken."""
    if given is not None and (not given.strip() or re.search(r"[<>/\\:]|\.\.", given) or not fit_for_text(given)):
        shown = given.encode("unicode_escape").decode() if not fit_for_text(given) else given
        raise UserError(f"'{shown}' is no name for a dataset: use letters, digits, '.', '_' and '-'")
    plain = unicodedata.normalize("NFKD", given or fallback).encode("ascii", "ignore").decode()
    base = re.sub(r"[^A-Za-z0-9._-]+", "-", re.sub(r"\.ya?ml$", "", plain)).strip("._-")[:_LONGEST_NAME].rstrip("._-")
    base = base or "dataset"
    names = (base if number == 1 else f"{base}-{number}" for number in count(1))
    return next(name for name in names if name.lower() not in taken)


def _cards_taken(data: Path) -> set[str]:
    """Names of cards in lower case: on some disks A.yaml and a.yaml are the same file."""
    return {*PROJECT_CARDS, *(path.stem.lower() for path in data.glob("*.yaml"))}


def _folders_taken(data: Path) -> set[str]:
    return {path.name.lower() for path in data.iterdir()}


def _partial_progress(report: OnProgress | None, first: float, last: float) -> OnProgress | None:
    """A callback for one part of the work, which reports it as the shares from `first` to `last` of the whole."""
    if report is None:
        return None
    return lambda done, total: report(round(_STEPS * (first + (last - first) * done / max(total, 1))), _STEPS)


@contextmanager
def _undo_on_error(undo: Callable[[], None]) -> Iterator[None]:
    """Calls `undo` when the block fails, also when Ctrl-C ends it."""
    try:
        yield
    except BaseException:
        undo()
        raise


@contextmanager
def _adding(data: Path) -> Iterator[None]:
    """Holds a lock so that one dataset is added at a time, removes what a killed process left, and explains disk
    errors."""
    try:
        data.mkdir(parents=True, exist_ok=True)
        with FileLock(data / ".adding.lock", timeout=0):
            for left in data.glob(f"{_WORK}*"):
                shutil.rmtree(left)
            yield
    except Timeout as error:
        raise UserError(f"another dataset is being added to {data} right now: wait until it is done") from error
    except OSError as error:
        raise UserError(
            f"can't add a dataset to {data}: {error.strerror or error}; mend that or choose another folder with "
            f"{named('data.folder')}"
        ) from error
