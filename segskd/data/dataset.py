"""The pairs of images and masks that a card names, and masks as `uint8` arrays whose values have been checked."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from segskd.config import named
from segskd.data.cards import OTHER, UNKNOWN, Card, Split, packed_rgb
from segskd.data.pixels import Uint8, decoded
from segskd.errors import DataError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}


class Pair(NamedTuple):
    """An image and its mask. `name` is the part that their paths have in common."""

    name: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class Listing:
    """The files of a split: complete pairs, and files whose partner is missing, each sorted by name."""

    pairs: list[Pair]
    images_without_mask: list[Path]
    masks_without_image: list[Path]
    listed_but_missing: list[str]


def list_split(card: Card, data: Path, split_name: str) -> Listing:
    """Every image and mask of a split, in the same order on every machine.

    Raises UserError when the dataset's folder is not there or holds no image of this split.
    """
    split = card.split(split_name)
    root = card.root(data)
    if not root.is_dir():
        raise DataError(
            f"no folder {root} for dataset '{card.name}': run 'python -m segskd data fetch {card.name}', "
            f"or say where datasets lie with {named('data.folder')}",
        )
    images = _matching(root, split.images)
    masks = _matching(root, split.masks)
    listed = _listed_names(root, split, images.keys() | masks.keys())
    if listed is not None:
        images = {name: path for name, path in images.items() if name in listed}
        masks = {name: path for name, path in masks.items() if name in listed}
    for name in split.left_out:
        images.pop(name, None)
        masks.pop(name, None)
    if not images:
        raise DataError(
            f"split '{split_name}' of '{card.name}' has no images: nothing matches {root / split.images}", "data.card"
        )
    both = _share(sorted(images.keys() & masks.keys()), split)
    return Listing(
        pairs=[Pair(name, images[name], masks[name]) for name in both],
        images_without_mask=[images[name] for name in sorted(images.keys() - masks.keys())],
        masks_without_image=[masks[name] for name in sorted(masks.keys() - images.keys())],
        listed_but_missing=sorted((listed or set()) - images.keys() - set(split.left_out)),
    )


def list_pairs(card: Card, data: Path, split_name: str) -> list[Pair]:
    """The pairs of a split, sorted by name. Files without a partner are skipped; `data check` reports them.

    Raises UserError when there is no pair.
    """
    listing = list_split(card, data, split_name)
    if not listing.pairs:
        raise DataError(
            f"no image of split '{split_name}' of '{card.name}' has a mask: "
            f"'python -m segskd data check {card.name}' lists the files"
        )
    return listing.pairs


def has_split(card: Card, data: Path, split_name: str) -> bool:
    """Whether the card names the split and its images are on this disk."""
    if split_name not in card.splits:
        return False
    return bool(_matching(card.root(data), card.split(split_name).images))


def hash_order(names: Sequence[str], seed: object) -> list[str]:
    """`names` in an order drawn from `seed` that is the same on every machine and in every Python."""

    def key(name: str) -> bytes:
        return hashlib.sha256(f"{seed}/{name}".encode()).digest()

    return sorted(names, key=key)


def read_mask(path: Path, card: Card) -> Uint8:
    """A mask as uint8 (H, W), whose values are 0 … C-1 and the card's ignore index.

    Raises UserError when the file can't be read or holds a value that the card doesn't know.
    """
    decoded = decode_mask(path, card)
    if (decoded == UNKNOWN).any():
        values = describe_unknown(path, card, decoded)
        raise DataError(
            f"mask {path} has {values}, which card '{card.name}' doesn't know: add them to the card or mend the mask"
        )
    return decoded.astype(np.uint8)


def decode_mask(path: Path, card: Card) -> npt.NDArray[np.int16]:
    """A mask as int16 (H, W) like `read_mask`, but UNKNOWN where the card doesn't know the file's value."""
    raw = _read_raw(path, card)
    if card.mask_format == "color":
        return card.colour_table[packed_rgb(raw)]
    clipped = np.where((raw < 0) | (raw >= OTHER), OTHER, raw).astype(np.intp)
    return card.value_table[clipped]


def describe_unknown(path: Path, card: Card, decoded: npt.NDArray[np.int16]) -> str:
    """The file's own values at the pixels that decoded to UNKNOWN, for a message."""
    raw = _read_raw(path, card)[decoded == UNKNOWN]
    kinds = np.unique(raw.reshape(len(raw), -1), axis=0)
    shown = ", ".join("#" + bytes(v.tolist()).hex() if len(v) == 3 else str(v[0]) for v in kinds[:5])
    more = f" and {len(kinds) - 5} more" if len(kinds) > 5 else ""
    return f"value{'s' if len(kinds) > 1 else ''} {shown}{more}"


def read_unchanged(path: Path) -> npt.NDArray[Any]:
    """A mask file as OpenCV decodes it: (H, W), or BGR(A) (H, W, C), also for a palette PNG.

    Raises UserError when it can't be read.
    """
    return decoded(path, "mask", cv2.IMREAD_UNCHANGED)


def _read_raw(path: Path, card: Card) -> npt.NDArray[Any]:
    """The file's values: (H, W) for index masks, RGB (H, W, 3) for colour masks."""
    decoded = read_unchanged(path)
    if card.mask_format == "color":
        if decoded.ndim != 3 or decoded.dtype != np.uint8:
            raise DataError(f"mask {path} is no 8-bit colour picture, but card '{card.name}' says mask_format: color")
        return cv2.cvtColor(decoded[..., :3], cv2.COLOR_BGR2RGB)
    if decoded.ndim == 3:
        return _palette_indices(path, card)
    return decoded


def _palette_indices(path: Path, card: Card) -> npt.NDArray[Any]:
    """The values (H, W) of a palette PNG, for which OpenCV returns colours."""
    with Image.open(path) as image:
        if image.mode == "P":
            return np.asarray(image)
        channels = np.asarray(image.convert("RGB"))
    if (channels == channels[..., :1]).all():
        return channels[..., 0]
    raise DataError(f"mask {path} holds colours, but card '{card.name}' says mask_format: index")


def _matching(root: Path, pattern: str) -> dict[str, Path]:
    """Files below `root` that match the pattern, by the part that stands for {name}."""
    before, after = pattern.split("{name}")
    regex = re.compile(_regex(before) + "(?P<name>.+?)" + _ending(after) + r"\Z")
    fixed = Path(before.split("*")[0] + "x").parent
    paths: dict[str, Path] = {}
    for path in sorted((root / fixed).rglob("*")):
        if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith("."):
            continue
        match = regex.match(path.relative_to(root).as_posix())
        if match:
            paths.setdefault(match["name"], path)
    return paths


def _regex(part: str) -> str:
    return "[^/]*".join(re.escape(piece) for piece in part.split("*"))


def _ending(part: str) -> str:
    """As `_regex`, but `.*` at the end is a single suffix, so that a name may contain dots."""
    return _regex(part.removesuffix(".*")) + r"\.[^./]+" if part.endswith(".*") else _regex(part)


def _listed_names(root: Path, split: Split, known: Collection[str]) -> set[str] | None:
    """The names in the split's list. A line that isn't itself a name is cut at its first space."""
    if split.names is None:
        return None
    path = root / split.names
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except OSError as error:
        raise DataError(f"can't read the split's list of names {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"the split's list of names {path} is no UTF-8 text: save it as UTF-8") from error
    return {line if line in known else line.split()[0] for line in lines if line and not line.startswith("#")}


def _share(names: list[str], split: Split) -> list[str]:
    if split.share is None:
        return names
    first, last = (round(part * len(names)) for part in split.share)
    return sorted(hash_order(names, "share")[first:last])
