"""Reads every file of a dataset and lists what is wrong with it, by file name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from segskd.data.cards import UNKNOWN, Card
from segskd.data.dataset import Pair, decode_mask, describe_unknown, has_split, list_split
from segskd.data.mask_values import MOST_16
from segskd.data.pixels import read_image, read_kind
from segskd.errors import UserError
from segskd.standalone.bands import Pixels, UnfitError

Kind = Literal[
    "unpaired",
    "unreadable",
    "kind differs",
    "bits differ",
    "brighter than white",
    "sizes differ",
    "unknown values",
    "in two splits",
    "soft edges",
    "incomplete",
    "empty class",
]
Progress = Callable[[int, int], None]
CUT_OFF = 0.01
"""Share of an image's pixels that may be brighter than the card's white: lamps, and what is amiss in a sensor."""
THIN = 8
"""Classes without a pixel in the middle of four of its own, as many as thin things alone don't make."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong; `file` is the image or mask, the class's name, or what all masks belong to."""

    kind: Kind
    file: str
    text: str


@dataclass
class Report:
    """What a check found: pixels of each class by split, how the images are, and every problem.

    `kinds` counts images by channels and bits, `bits` lists them by the bits of a channel.
    """

    card: Card
    images: dict[str, int] = field(default_factory=dict)
    pixels: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    inner: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    """Of `pixels` those that lie between four of their own class."""
    sizes: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    bits: dict[int, list[Path]] = field(default_factory=dict)
    first: dict[bytes, tuple[str, Path]] = field(default_factory=dict)
    """Where pixels were seen first, by their digest: split and image."""
    problems: list[Problem] = field(default_factory=list)

    def add(self, kind: Kind, file: Path | str, text: str) -> None:
        self.problems.append(Problem(kind, str(file), text))

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; pixels are shares of all that count."""
        shares = {split: counts / max(counts.sum(), 1) for split, counts in self.pixels.items()}
        return {
            "card": self.card.name,
            "images": self.images,
            "sizes": dict(self.sizes),
            "kinds": dict(self.kinds),
            "class_shares": {
                split: dict(zip(self.card.class_names, own.tolist(), strict=True)) for split, own in shares.items()
            },
            "problems": [vars(problem) for problem in self.problems],
        }


def check(card: Card, data: Path, progress: Progress | None = None) -> Report:
    """Reads every image and mask of every split that is on the disk.

    Raises UserError when the dataset, or its train split, is not there at all.
    """
    report = Report(card)
    splits = [split for split in card.splits if split == "train" or has_split(card, data, split)]
    listings = {split: list_split(card, data, split) for split in splits}
    total, done = sum(len(listing.pairs) for listing in listings.values()), 0
    for split, listing in listings.items():
        report.pixels[split] = np.zeros(len(card.classes), dtype=np.int64)
        report.inner[split] = np.zeros(len(card.classes), dtype=np.int64)
        report.images[split] = len(listing.pairs)
        for path in listing.images_without_mask:
            report.add("unpaired", path, f"image {path} has no mask")
        for path in listing.masks_without_image:
            report.add("unpaired", path, f"mask {path} has no image")
        for name in listing.listed_but_missing:
            report.add("unpaired", name, f"'{name}' is listed in {card.split(split).names} but has no image")
        for pair in listing.pairs:
            _check_pair(report, split, pair)
            done += 1
            if progress:
                progress(done, total)
        _check_split(report, split)
    _check_bits(report)
    _check_edges(report)
    return report


def _check_pair(report: Report, split: str, pair: Pair) -> None:
    try:
        image = read_image(pair.image, report.card)
        _check_whole(pair.image)
        mask = decode_mask(pair.mask, report.card)
    except UserError as error:
        broken = pair.mask if str(pair.mask) in str(error) else pair.image
        report.add("kind differs" if isinstance(error.__cause__, UnfitError) else "unreadable", broken, str(error))
        return
    _note_kind(report, pair.image)
    _check_seen(report, split, pair.image, image)
    _check_white(report, pair.image)
    report.sizes[f"{image.shape[0]}x{image.shape[1]}"] += 1
    if image.shape[:2] != mask.shape:
        sizes = f"{image.shape[0]}x{image.shape[1]} and {mask.shape[0]}x{mask.shape[1]}"
        report.add("sizes differ", pair.mask, f"{pair.image} and its mask {pair.mask} differ in size: {sizes}")
    if (mask == UNKNOWN).any():
        values = describe_unknown(pair.mask, report.card, mask)
        report.add("unknown values", pair.mask, f"mask {pair.mask} has {values}, unknown to the card")
    middle = mask[1:-1, 1:-1]
    sides = (mask[:-2, 1:-1], mask[2:, 1:-1], mask[1:-1, :-2], mask[1:-1, 2:])
    report.pixels[split] += _counts(mask, report.card)
    report.inner[split] += _counts(middle[np.logical_and.reduce([middle == side for side in sides])], report.card)


def _counts(values: npt.NDArray[Any], card: Card) -> npt.NDArray[np.int64]:
    """How often each class is among the values."""
    classes = values[(values >= 0) & (values < len(card.classes))]
    return np.bincount(classes, minlength=len(card.classes)).astype(np.int64, copy=False)


def _check_white(report: Report, image: Path) -> None:
    """Whether the card's own `white` cuts off more than single pixels."""
    white = report.card.white
    if white is None:
        return
    pixels = read_image(image, report.card.model_copy(update={"white": None}))
    values = pixels if pixels.dtype == np.uint8 else np.rint(pixels * MOST_16)
    share = float((values > white).any(axis=-1).mean())
    if share > CUT_OFF:
        most = f"{white} (up to {values.max():.0f})"
        text = f"{100 * share:.3g} % of image {image} is brighter than the card's white, {most}"
        report.add("brighter than white", image, text)


def _check_seen(report: Report, split: str, path: Path, image: Pixels) -> None:
    """Whether another split has the same pixels: figures on images that were trained on say nothing.

    Pictures of one colour are alike wherever they come from.
    """
    if (image == image[0, 0]).all():
        return
    digest = blake2b(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes(), digest_size=16).digest()
    other, first = report.first.setdefault(digest, (split, path))
    if other != split:
        text = f"image {path} of split '{split}' has the same pixels as {first} of split '{other}'"
        report.add("in two splits", path, text)


def _note_kind(report: Report, image: Path) -> None:
    channels, bits = read_kind(image)[:2]
    report.kinds[f"{channels} channel{'s' * (channels > 1)} of {bits} bits"] += 1
    report.bits.setdefault(bits, []).append(image)


def _check_bits(report: Report) -> None:
    """Fewer files of 8 bits among more of 16, or the other way: one of both may have been saved by mistake."""
    few, *many = sorted(report.bits, key=lambda bits: len(report.bits[bits]))[-2:] or [0]
    for path in report.bits[few] if many else []:
        report.add("bits differ", path, f"image {path} has {few} bits a channel, and most others have {many[0]}")


def _check_edges(report: Report) -> None:
    """Whether classes are nothing but edges between others: masks that were resized or drawn with soft edges."""
    card, none = report.card, np.zeros(len(report.card.classes), dtype=np.int64)
    pixels, inner = sum(report.pixels.values(), none), sum(report.inner.values(), none)
    thin = int(((pixels > 0) & (inner == 0)).sum())
    if thin >= THIN:
        text = (
            f"{thin} of {len(card.classes)} classes have no pixel between four of their own: masks look resized, or "
            "drawn with soft edges; save them with hard edges, and add them anew"
        )
        report.add("soft edges", card.name, text)


def _check_whole(path: Path) -> None:
    """Raises UserError for a picture that is cut short: OpenCV fills what is missing of a JPEG and says nothing."""
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"image {path} is damaged: {error}; replace or remove it") from error


def _check_split(report: Report, split: str) -> None:
    expected = report.card.split(split).count
    if expected is not None and report.images[split] != expected:
        text = f"split '{split}' has {report.images[split]} images, and the card says {expected}"
        report.add("incomplete", split, text)
    for name, pixels in zip(report.card.class_names, report.pixels[split], strict=True):
        if pixels == 0:
            report.add("empty class", name, f"class '{name}' has no pixel in split '{split}'")
