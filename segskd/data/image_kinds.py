"""Works out from images what a card must say of them: channels, white, mean and standard deviation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from segskd.data.pixels import read_pixel_format
from segskd.errors import UserError
from segskd.standalone.bands import PixelFormat, Pixels, UnfitError, fitted, read_bands, scaled

SENSOR_BITS = 12
"""The bits that most sensors of more than 8 bits use of a file's 16."""
SAMPLED = 64
LEAST_STD = 1e-3
_UNREADABLE = (UnfitError, OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def work_out_images(images: Sequence[Path]) -> dict[str, Any]:
    """The fields of a card that depend on its images, without those that have their default.

    `channels` is 1 where all files are grey, and 4 where all have a fourth band whose values vary. `white` is the
    largest value of a 12-bit sensor where all files have 16 bits and no pixel is brighter. `mean` and `std` of images
    that aren't RGB are computed from up to SAMPLED of them. Files that can't be read are skipped; `data check` reports
    them.
    """
    kinds = {path: kind for path in images if (kind := _kind(path))}
    if not kinds:
        return {}
    channels, white = _channels(kinds), _white(kinds)
    fields: dict[str, Any] = {} if white is None else {"white": white}
    if channels == 3:
        return fields
    mean, std = _statistics(list(kinds), channels, white)
    return {"channels": channels, **fields, "mean": mean, "std": std}


def _channels(kinds: dict[Path, PixelFormat]) -> Literal[1, 3, 4]:
    counts = {kind.channels for kind in kinds.values()}
    if counts == {1}:
        return 1
    return 4 if counts == {4} and _varies(pixels[..., 3] for pixels in _readable(kinds)) else 3


def _varies(bands: Iterable[Pixels]) -> bool:
    """Whether the bands hold more than one value. It reads no more of them than it needs to."""
    seen: set[int] = set()
    for band in bands:
        seen |= {int(band.min()), int(band.max())}
        if len(seen) > 1:
            return True
    return False


def _white(kinds: dict[Path, PixelFormat]) -> int | None:
    if {kind.bits for kind in kinds.values()} != {16}:
        return None
    largest = (1 << SENSOR_BITS) - 1
    return largest if all(int(pixels.max()) <= largest for pixels in _readable(kinds)) else None


def _statistics(
    images: Sequence[Path], channels: int, white: int | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, from 0 to 1, over all pixels of up to SAMPLED images."""
    places = np.unique(np.linspace(0, len(images) - 1, SAMPLED).round().astype(int))
    count, total, squares = 0, np.zeros(channels), np.zeros(channels)
    for pixels in _readable(images[place] for place in places):
        fit = scaled(fitted(pixels, channels), white)
        shares = fit.reshape(-1, channels).astype(np.float64) / (255 if fit.dtype == np.uint8 else 1)
        count += len(shares)
        total += shares.sum(0)
        squares += np.square(shares).sum(0)
    mean = total / max(count, 1)
    std = np.sqrt((squares / max(count, 1) - np.square(mean)).clip(LEAST_STD**2))
    return _rounded(mean), _rounded(std)


def _rounded(values: Pixels) -> tuple[float, ...]:
    return tuple(round(float(value), 4) for value in values)


def _readable(images: Iterable[Path]) -> Iterator[Pixels]:
    for path in images:
        try:
            yield read_bands(path)
        except _UNREADABLE:  # `data check` names it and says why
            continue


def _kind(path: Path) -> PixelFormat | None:
    try:
        return read_pixel_format(path)
    except UserError:
        return None
