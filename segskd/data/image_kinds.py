"""Looks at images of unknown kind and works out what a card says of them: channels, white, mean and deviation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from segskd.data.pixels import read_kind
from segskd.errors import UserError
from segskd.standalone.bands import Kind, Pixels, UnfitError, fitted, read_bands, scaled

SENSOR_BITS = 12
"""Most sensors of more than 8 bits fill so many of a file's 16."""
SAMPLED = 64
LEAST_STD = 1e-3
_UNREADABLE = (UnfitError, OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def work_out_images(images: Sequence[Path]) -> dict[str, Any]:
    """The fields of a card that its images decide, without those that stay as they are by default.

    `channels` is 1 where all files are grey, 4 where all have a fourth band that varies, `white` the largest number
    of a 12-bit sensor where no file of 16 bits holds a larger one. Images that aren't RGB get the `mean` and `std` of
    some of them. Files that can't be read are left to `data check`.
    """
    kinds = {path: kind for path in images if (kind := _kind(path))}
    if not kinds:
        return {}
    channels, white = _channels(kinds), _white(kinds)
    found: dict[str, Any] = {} if white is None else {"white": white}
    if channels == 3:
        return found
    mean, std = _statistics(list(kinds), channels, white)
    return {"channels": channels, **found, "mean": mean, "std": std}


def _channels(kinds: dict[Path, Kind]) -> Literal[1, 3, 4]:
    counts = {kind.channels for kind in kinds.values()}
    if counts == {1}:
        return 1
    return 4 if counts == {4} and _varies(pixels[..., 3] for pixels in _readable(kinds)) else 3


def _varies(bands: Iterable[Pixels]) -> bool:
    """Whether a band is not the same everywhere; looks no further than it must."""
    seen: set[int] = set()
    for band in bands:
        seen |= {int(band.min()), int(band.max())}
        if len(seen) > 1:
            return True
    return False


def _white(kinds: dict[Path, Kind]) -> int | None:
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


def _kind(path: Path) -> Kind | None:
    try:
        return read_kind(path)
    except UserError:
        return None
