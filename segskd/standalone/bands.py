"""Reads pictures with all their bands and bits. Packages contain this file, so it needs only NumPy and Pillow."""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, TiffImagePlugin

Pixels = npt.NDArray[Any]
"""(H, W, C): uint8, or float32 from 0 to 1 if the file has more bits or the card sets white."""

MODES = {3: "RGB", 4: "RGBA"}
BLACK_IS_ZERO, RGB, SEPARATE = 1, 2, 2
SAMPLES, BITS, PHOTOMETRIC, PLANAR = 277, 258, 262, 284

# GDAL writes several bands as grey with extra samples. Pillow doesn't know such files, so they are registered here.
for (_order, _end), (_count, _mode), _bits, _last in product(
    ((b"II", "L"), (b"MM", "B")), MODES.items(), (8, 16), (None, 0, 2)
):
    _extra = () if _last is None else (0,) * (_count - 2) + (_last,)
    _raw = _mode if _bits == 8 else f"{_mode};16{_end}"
    cast(Any, TiffImagePlugin.OPEN_INFO)[_order, BLACK_IS_ZERO, (1,), 1, (_bits,) * _count, _extra] = _mode, _raw


class UnfitError(ValueError):
    """A picture can be read, but doesn't match its card. Its message is written after the picture's name."""


class PixelFormat(NamedTuple):
    """Channels of a picture (1, 3 or 4, without the alpha of a grey one) and the bits of each (8, 16 or 32).

    `bands` says that it is a TIFF file of three or four bands, and `stacked` that these aren't declared to be red,
    green and blue.
    """

    channels: int
    bits: int
    bands: bool = False
    stacked: bool = False


def pixel_format(picture: Image.Image) -> PixelFormat:
    """The format of an opened picture, from its header."""
    tags: dict[int, Any] = dict(getattr(picture, "tag_v2", {}))
    count, photometric = tags.get(SAMPLES, 1), tags.get(PHOTOMETRIC)
    if count in MODES and photometric in (BLACK_IS_ZERO, RGB):
        return PixelFormat(count, 16 if max(tags[BITS]) > 8 else 8, bands=True, stacked=photometric == BLACK_IS_ZERO)
    mode = picture.mode
    if mode == "F":
        return PixelFormat(1, 32)
    if mode.startswith("I"):
        return PixelFormat(1, 16)
    channels = 1 if mode in ("1", "L", "LA", "La") else 4 if _has_alpha(picture) else 3
    return PixelFormat(channels, 16 if ";16" in str(cast(Any, picture).tile) else 8)


def read(path: Path, channels: int, white: int | None) -> Pixels:
    """A picture's pixels, upright, as a card with these `channels` and this `white` has them.

    Raises UnfitError for a picture of another kind, and what Pillow raises for one that can't be read.
    """
    return scaled(fitted(read_bands(path), channels), white)


def read_bands(path: Path) -> Pixels:
    """All bands of a file, turned upright: uint8 or uint16 (H, W, C). Raises errors as `read` does."""
    with Image.open(path) as picture:
        kind = pixel_format(picture)
        if kind.channels == 1:
            return _grey(picture)[..., None]
        mode = MODES[kind.channels]
        if kind.bits == 8 and not kind.bands:
            return np.asarray(ImageOps.exif_transpose(picture).convert(mode))
        if kind.bands and dict(cast(Any, picture).tag_v2).get(PLANAR) == SEPARATE:
            raise UnfitError("stores each band separately: save it with interleaved bands")
        raw = str(cast(Any, picture).tile)
    if kind.bits == 8:
        return _unpacked(path, mode)
    big = ";16B" in raw or (";16N" in raw and sys.byteorder == "big")
    # Pillow has no mode for several bands of 16 bits, but can unpack the high and the low bytes separately.
    high, low = (_unpacked(path, f"{mode};16{end}") for end in ("BL" if big else "LB"))
    return np.asarray(high.astype(np.uint16) << 8 | low)


def fitted(pixels: Pixels, channels: int) -> Pixels:
    """The pixels with another number of channels: grey is repeated for 3, and alpha is dropped.

    Raises UnfitError if that is impossible.
    """
    has = pixels.shape[2]
    if channels == 4 and has != 4:
        raise UnfitError(f"has {has} channel{'s' * (has > 1)}, and its card says channels: 4")
    if channels == 3:
        return np.repeat(pixels, 3, axis=2) if has == 1 else pixels[..., :3]
    if channels == 1 and has > 1:
        if (pixels[..., :1] != pixels[..., :3]).any():
            raise UnfitError("has colours, and its card says channels: 1: save it in grey, or say channels: 3")
        return pixels[..., :1]
    return pixels


def scaled(pixels: Pixels, white: int | None) -> Pixels:
    """Pixels of more than 8 bits, or with a `white`, as float32 from 0 to 1; others unchanged.

    Raises UnfitError for a `white` that 8 bits can't hold.
    """
    top = int(np.iinfo(pixels.dtype).max)
    if pixels.dtype == np.uint8 and white in (None, top):
        return pixels
    if pixels.dtype == np.uint8 and white is not None and white > top:
        raise UnfitError(f"has 8 bits, and its card says white: {white}")
    shares: Pixels = pixels.astype(np.float32) / np.float32(white or top)
    return shares.clip(max=1)


def _grey(picture: Image.Image) -> Pixels:
    picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("1", "L", "LA", "La"):
        return np.asarray(picture.convert("L"))
    values = np.asarray(picture)
    if picture.mode == "F" or values.min() < 0 or values.max() >= 1 << 16:
        raise UnfitError("holds values that don't fit into 16 bits: save it with 8 or 16")
    return values.astype(np.uint16)


def _unpacked(path: Path, raw: str) -> Pixels:
    """The bands as the file holds them, without multiplying by alpha. `raw` is Pillow's raw mode."""
    with Image.open(path) as picture:
        own = cast(Any, picture)
        own.tile = [(*tile[:3], raw if isinstance(tile[3], str) else (raw, *tile[3][1:])) for tile in own.tile]
        own._mode = raw.partition(";")[0]
        return np.asarray(ImageOps.exif_transpose(picture))


def _has_alpha(picture: Image.Image) -> bool:
    return picture.mode in ("RGBA", "RGBa", "PA") or "transparency" in picture.info
