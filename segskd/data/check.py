"""Reads every file of a dataset and lists the problems, by file name."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from segskd.callbacks import OnProgress
from segskd.data.cards import UNKNOWN, Card
from segskd.data.dataset import Pair, decode_mask, describe_unknown, has_split, list_split
from segskd.data.mask_values import MOST_16
from segskd.data.pixels import read_image, read_pixel_format
from segskd.errors import UserError, plural
from segskd.standalone.bands import Pixels, UnfitError

ProblemKind = Literal[
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
CUT_OFF = 0.01
"""The largest share of an image's pixels that may be brighter than the card's white, such as lamps or dead pixels."""
THIN = 8
"""The number of classes without inner pixels from which masks are taken to have soft edges. Thin objects make fewer."""


@dataclass(frozen=True)
class Problem:
    """One problem. `file` is the image or the mask, or else the name of the class, the split or the card."""

    kind: ProblemKind
    file: str
    text: str


@dataclass
class CheckReport:
    """The result of a check: pixels of each class by split, sizes and kinds of the images, and every problem.

    `kinds` counts images by channels and bits. `bits` lists images by the bits of a channel.
    """

    card: Card
    images: dict[str, int] = field(default_factory=dict)
    pixels: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    inner: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    """Of `pixels`, those whose four neighbours have the same class."""
    sizes: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    bits: dict[int, list[Path]] = field(default_factory=dict)
    first: dict[bytes, tuple[str, Path]] = field(default_factory=dict)
    """Split and path of the first image that has certain pixels, by the digest of these pixels."""
    problems: list[Problem] = field(default_factory=list)

    def add(self, kind: ProblemKind, file: Path | str, text: str) -> None:
        self.problems.append(Problem(kind, str(file), text))

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON. Pixels of a class are given as a share of all pixels that aren't ignored."""
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


def check(card: Card, data: Path, progress: OnProgress | None = None) -> CheckReport:
    """Reads every image and mask of every split that is on the disk.

    `progress` is called with the number of pairs that are read and of all pairs. Raises UserError when the dataset, or
    its train split, is missing.
    """
    report = CheckReport(card)
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


def _check_pair(report: CheckReport, split: str, pair: Pair) -> None:
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
    """How often each class occurs in `values`: int64 (C,)."""
    classes = values[(values >= 0) & (values < len(card.classes))]
    return np.bincount(classes, minlength=len(card.classes)).astype(np.int64, copy=False)


def _check_white(report: CheckReport, image: Path) -> None:
    """Reports an image of which more than CUT_OFF of the pixels are brighter than the card's `white`."""
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


def _check_seen(report: CheckReport, split: str, path: Path, image: Pixels) -> None:
    """Reports an image that another split has, too: a score on images that were trained on means nothing.

    Pictures of a single colour are skipped, since they are equal wherever they come from.
    """
    if (image == image[0, 0]).all():
        return
    digest = blake2b(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes(), digest_size=16).digest()
    other, first = report.first.setdefault(digest, (split, path))
    if other != split:
        text = f"image {path} of split '{split}' has the same pixels as {first} of split '{other}'"
        report.add("in two splits", path, text)


def _note_kind(report: CheckReport, image: Path) -> None:
    channels, bits = read_pixel_format(image)[:2]
    report.kinds[f"{plural(channels, 'channel')} of {bits} bits"] += 1
    report.bits.setdefault(bits, []).append(image)


def _check_bits(report: CheckReport) -> None:
    """Reports the rarer of 8-bit and 16-bit images: they may have been saved with the wrong depth."""
    few, *many = sorted(report.bits, key=lambda bits: len(report.bits[bits]))[-2:] or [0]
    for path in report.bits[few] if many else []:
        report.add("bits differ", path, f"image {path} has {few} bits a channel, and most others have {many[0]}")


def _check_edges(report: CheckReport) -> None:
    """Reports masks whose classes are mostly edges between other classes: they were resized or drawn with soft
    edges."""
    card, none = report.card, np.zeros(len(report.card.classes), dtype=np.int64)
    pixels, inner = sum(report.pixels.values(), none), sum(report.inner.values(), none)
    thin = int(((pixels > 0) & (inner == 0)).sum())
    if thin >= THIN:
        text = (
            f"{thin} of {len(card.classes)} classes have no pixel whose four neighbours are of that class: the masks "
            "look resized or drawn with soft edges; save them with hard edges, and add them anew"
        )
        report.add("soft edges", card.name, text)


def _check_whole(path: Path) -> None:
    """Raises UserError for a picture that is cut short: OpenCV silently fills the missing part of a JPEG."""
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"image {path} is damaged: {error}; replace or remove it") from error


def _check_split(report: CheckReport, split: str) -> None:
    expected = report.card.split(split).count
    if expected is not None and report.images[split] != expected:
        text = f"split '{split}' has {report.images[split]} images, and the card says {expected}"
        report.add("incomplete", split, text)
    for name, pixels in zip(report.card.class_names, report.pixels[split], strict=True):
        if pixels == 0:
            report.add("empty class", name, f"class '{name}' has no pixel in split '{split}'")
