"""Lists training images without masks. A run learns from them by what the teacher outputs."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from segskd.config import named
from segskd.data.cards import Card, list_cards
from segskd.data.dataset import IMAGE_SUFFIXES, Pair, has_split, list_split
from segskd.errors import UserError

PREFIX = "unlabelled/"
UNLABELLED = "# without labels"
"""The line in a run's subset.txt below which the images without labels are named."""


class Example(NamedTuple):
    """A training image, with its mask if the run may use it."""

    name: str
    image: Path
    mask: Path | None


def example(pair: Pair, labelled: bool = True) -> Example:
    """A pair as a training image, without its mask unless it is `labelled`."""
    return Example(pair.name, pair.image, pair.mask if labelled else None)


def list_unlabelled(folder: Path) -> list[Example]:
    """Every image below a folder, sorted by name. The names begin with "unlabelled/" and keep their suffix.

    Raises UserError when there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        no_folder = f"{named('data.unlabelled')} {folder} is no folder: name one that holds images"
        raise UserError(no_folder, "data.unlabelled")
    paths = [path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    shown = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not shown:
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise UserError(f"{named('data.unlabelled')} {folder} holds no images ({suffixes})", "data.unlabelled")
    found = [Example(PREFIX + path.relative_to(folder).as_posix(), path, None) for path in shown]
    return sorted(found, key=lambda one: one.name)


def list_further(folder: Path, card: Card, data: Path) -> list[Example]:
    """As `list_unlabelled`, for a run on the dataset of `card`.

    Raises UserError also when the folder holds pairs or validation images of that dataset, or masks of any dataset in
    `data`.
    """
    examples = list_unlabelled(folder)
    others = [entry.card for entry in list_cards(data) if entry.card and entry.card != card]
    own = _files(card, data) | {path for other in others for path in _masks(other, data)}
    shared = [one.image for one in examples if one.image.resolve() in own]
    if shared:
        raise UserError(
            f"{named('data.unlabelled')} {folder} holds files of a dataset ({len(shared)}, such as "
            f"{shared[0].name}), masks or images that have some: name a folder of other images; "
            f"{named('subset.labels')} leaves masks unread",
            "data.unlabelled",
        )
    return examples


def _files(card: Card, data: Path) -> set[Path]:
    """All images and masks of the splits that are on the disk, without training images that have no mask."""
    listings = {name: list_split(card, data, name) for name in card.splits if has_split(card, data, name)}
    pairs = (path for listing in listings.values() for pair in listing.pairs for path in (pair.image, pair.mask))
    not_trained_on = (path for name in listings if name != "train" for path in listings[name].images_without_mask)
    return {path.resolve() for path in (*pairs, *not_trained_on)} | _masks(card, data)


def _masks(card: Card, data: Path) -> set[Path]:
    listings = [list_split(card, data, name) for name in card.splits if has_split(card, data, name)]
    pairs = (pair.mask for listing in listings for pair in listing.pairs)
    without_image = (path for listing in listings for path in listing.masks_without_image)
    return {path.resolve() for path in (*pairs, *without_image)}
