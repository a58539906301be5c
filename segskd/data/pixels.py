"""Reads the pixels of image files as their card describes them, and converts them to RGB for display."""

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
from segskd.standalone.bands import PixelFormat, Pixels, UnfitError, fitted, pixel_format, read, scaled

Uint8 = npt.NDArray[np.uint8]
UPLOAD_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "PPM", "GIF")
MAX_PIXELS = 100_000_000

# Pillow compares the size in a file's header with its limit: beyond it, it warns, and beyond twice it, it raises.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
_TOO_LARGE = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error)


def read_image(path: Path, card: Card) -> Pixels:
    """An image (H, W, C) with the card's channels, turned upright: uint8, or float32 from 0 to 1 (see `Card.white`).

    Raises UserError when the file can't be read, when a side exceeds MAX_SIDE or all pixels exceed MAX_PIXELS, and when
    the image doesn't match the card: colours where the card says one channel, or other than four channels where it
    says four.
    """
    try:
        kind = read_pixel_format(path)
        # From such files OpenCV would read a single band, or colours multiplied by their alpha.
        several = kind.bands and (kind.stacked or kind.channels == 4)
        if card.channels != 3 or kind.bits > 8 or several:
            return read(path, card.channels, card.white)
        pixels = cv2.cvtColor(decoded(path, "image", cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        return scaled(pixels.astype(np.uint8, copy=False), card.white)
    except UnfitError as error:
        raise DataError(f"image {path} {error}") from error
    except _DAMAGED as error:
        raise _unreadable("image", path) from error


def read_pixel_format(path: Path) -> PixelFormat:
    """Channels and bits of an image file, from its header. Raises UserError when it is unreadable or too large."""
    try:
        with Image.open(path) as picture:
            _check_size(picture, f"image {path}")
            return pixel_format(picture)
    except _TOO_LARGE as error:
        raise _too_large(f"image {path}", error) from error
    except _DAMAGED as error:
        raise _unreadable("image", path) from error


def read_upload(path: Path, card: Card) -> Pixels:
    """An uploaded picture as `read_image` reads images of the card, turned upright by its EXIF data.

    Transparent colours of 8 bits are laid on white. Raises UserError when it is no picture, damaged, animated, too
    large, or doesn't match the card. The message names the file without its folder.
    """
    try:
        with Image.open(path, formats=UPLOAD_FORMATS) as picture:
            _check_size(picture, f"'{path.name}'")
            # A camera's JPEG may hold a preview as a second picture.
            if getattr(picture, "n_frames", 1) > 1 and picture.format != "MPO":
                raise UserError(f"'{path.name}' is animated or has several pages: upload one picture")
            kind = pixel_format(picture)
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
    """An image that `read_image` returned, as RGB uint8 (H, W, 3) for display, with white as 255.

    A grey channel is repeated; of four bands the first three are shown.
    """
    rgb = fitted(image, 3)
    return rgb if rgb.dtype == np.uint8 else np.rint(rgb * 255).astype(np.uint8)


def decoded(path: Path, what: str, mode: int) -> npt.NDArray[Any]:
    """The file's pixels as OpenCV decodes them in `mode`. The size in the header is checked first.

    `what` is "image" or "mask", for messages. Raises UserError when the file can't be read or is too large.
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
    """The error for a picture of too many pixels; `reason` is Pillow's message, which has their number."""
    match = re.search(r"(\d+) pixels", str(reason))
    size = f"{math.ceil(int(match[1]) / 1e5) / 10:.1f} megapixels" if match else "too many pixels"
    return UserError(f"{called} has {size}, and at most {MAX_PIXELS // 10**6} are read: scale it down")


def _on_white(picture: Image.Image) -> Uint8:
    """RGB (H, W, 3) of a picture of 8 bits, with transparent pixels on white."""
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        opaque = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque)
    return np.asarray(picture.convert("RGB"))
