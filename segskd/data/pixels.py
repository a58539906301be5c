"""Pixels of image files: read as their card has them, and turned into RGB for looking at."""

from __future__ import annotations

import math
import re
import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from segskd.config import MAX_SIDE
from segskd.data.cards import Card
from segskd.errors import DataError, UserError
from segskd.standalone.bands import Kind, Pixels, UnfitError, fitted, kind_of, read, scaled

Uint8 = npt.NDArray[np.uint8]
UPLOAD_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "PPM", "GIF")
MAX_PIXELS = 100_000_000

# Pillow looks at the header's size as it opens a file: beyond its limit it warns, beyond twice that it raises.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
_TOO_LARGE = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error)


def read_image(path: Path, card: Card) -> Pixels:
    """An image (H, W, C) with the card's channels, upright: uint8, or float32 from 0 to 1 (see `Card.white`).

    Raises UserError when the file can't be read, has more than MAX_SIDE pixels a side or MAX_PIXELS in all, or is
    of another kind than the card's: colours where it says one channel, other than four where it says four.
    """
    try:
        kind = read_kind(path)
        # Of these OpenCV would read one band alone, or colours with their alpha multiplied in.
        several = kind.bands and (kind.stacked or kind.channels == 4)
        if card.channels != 3 or kind.bits > 8 or several:
            return read(path, card.channels, card.white)
        pixels = cv2.cvtColor(decoded(path, "image", cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        return scaled(pixels.astype(np.uint8, copy=False), card.white)
    except UnfitError as error:
        raise DataError(f"image {path} {error}") from error
    except _DAMAGED as error:
        raise _unreadable("image", path) from error


def read_kind(path: Path) -> Kind:
    """Channels and bits of an image file, by its header. Raises UserError for one that's unreadable or too large."""
    try:
        with Image.open(path) as picture:
            _check_size(picture, f"image {path}")
            return kind_of(picture)
    except _TOO_LARGE as error:
        raise _too_large(f"image {path}", error) from error
    except _DAMAGED as error:
        raise _unreadable("image", path) from error


def read_upload(path: Path, card: Card) -> Pixels:
    """A single picture that somebody handed in, as `read_image` reads those of the card, upright by its EXIF data.

    Of colours with 8 bits, transparency is laid on white. Raises UserError, which calls the file by its name without
    its folder, when it is no picture, damaged, animated, too large or of another kind than the card's.
    """
    try:
        with Image.open(path, formats=UPLOAD_FORMATS) as picture:
            _check_size(picture, f"'{path.name}'")
            # A camera's JPEG may hold a preview as a second picture.
            if getattr(picture, "n_frames", 1) > 1 and picture.format != "MPO":
                raise UserError(f"'{path.name}' is animated or has several pages: upload one picture")
            kind = kind_of(picture)
            picture.load()
            if card.channels < 4 and kind.bits == 8 and not kind.stacked:
                return scaled(fitted(_on_white(ImageOps.exif_transpose(picture)), card.channels), card.white)
        return read(path, card.channels, card.white)
    except _TOO_LARGE as error:
        raise _too_large(f"'{path.name}'", error) from error
    except UnidentifiedImageError as error:
        raise UserError(f"'{path.name}' is no picture: upload a PNG, JPEG, WebP, TIFF or BMP file") from error
    except UnfitError as error:
        raise UserError(f"'{path.name}' {error}") from error
    except _DAMAGED as error:
        reason = " ".join(str(error).split())
        raise UserError(f"'{path.name}' is damaged or cut short ({reason}): upload it again") from error


def displayed(image: Pixels) -> Uint8:
    """What `read_image` gave, as RGB uint8 (H, W, 3) for looking at.

    Grey is repeated, of four bands the first three are shown, and white is 255.
    """
    rgb = fitted(image, 3)
    return rgb if rgb.dtype == np.uint8 else np.rint(rgb * 255).astype(np.uint8)


def decoded(path: Path, what: str, mode: int) -> npt.NDArray[Any]:
    """The file's pixels as OpenCV has them, decoded only after its header has told an acceptable size.

    Raises UserError.
    """
    try:
        with Image.open(path) as picture:
            _check_size(picture, f"{what} {path}")
        pixels = cv2.imread(str(path), mode)
    except _TOO_LARGE as error:
        raise _too_large(f"{what} {path}", error) from error
    except (*_DAMAGED, cv2.error) as error:
        raise _unreadable(what, path) from error
    if pixels is None:
        raise _unreadable(what, path)
    return pixels


def _unreadable(what: str, path: Path) -> UserError:
    return DataError(f"can't read {what} {path}: replace or remove it ('data check' finds all such files)")


def _check_size(picture: Image.Image, called: str) -> None:
    width, height = picture.size
    if max(width, height) > MAX_SIDE:
        raise UserError(f"{called} is {height}x{width}, and no side may exceed {MAX_SIDE} pixels: scale it down")
    if width * height > MAX_PIXELS:
        raise _too_large(called, f"({width * height} pixels)")


def _too_large(called: str, reason: object) -> UserError:
    """From Pillow's message, which has the number of pixels in brackets."""
    found = re.search(r"(\d+) pixels", str(reason))
    size = f"{math.ceil(int(found[1]) / 1e5) / 10:.1f} megapixels" if found else "too many pixels"
    return UserError(f"{called} has {size}, and at most {MAX_PIXELS // 10**6} are read: scale it down")


def _on_white(picture: Image.Image) -> Uint8:
    """RGB of a picture of 8 bits, its transparency laid on white."""
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        opaque = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque)
    return np.asarray(picture.convert("RGB"))
