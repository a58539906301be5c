"""Tiles: a network predicts a large image piece by piece, and the pieces' logits are blended without seams."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from segskd.config import Size, parse_size
from segskd.data.transforms import SIZE_MULTIPLE, padded_size
from segskd.errors import UserError

LEAST_SIDE = 2 * SIZE_MULTIPLE
OVERLAP_SHARE = 4
# Pixels of the tiles of one batch: four tiles of 512x512.
PIXELS_AT_ONCE = 2**20


@dataclass(frozen=True)
class Tiles:
    """Tiles of `tile` (height, width) pixels that overlap by at least `overlap` pixels. All three are multiples of 32.

    On that grid a network with strides up to 32 computes the inner part of a tile as it does in the whole image.
    """

    tile: Size
    overlap: int

    def cover(self, size: Size) -> bool:
        """Whether a padded image of (height, width) fits into a single tile."""
        return size[0] <= self.tile[0] and size[1] <= self.tile[1]


@dataclass(frozen=True, eq=False)
class Strip:
    """A tile along one axis: pixels [start, stop), and their float32 weights (stop - start,), which fall towards the
    ends."""

    start: int
    stop: int
    weights: Tensor


def choose_tiles(tile: str | None, overlap: int | None) -> Tiles | None:
    """The tiles that --tile and --overlap ask for, None without --tile.

    Sides and overlap are rounded up to multiples of 32. The overlap is a quarter of the shorter side if `overlap` is
    None. Raises UserError when `tile` is no size, or too small for the overlap.
    """
    if tile is None:
        if overlap is not None:
            raise UserError("--overlap needs the size of the tiles: add --tile, such as --tile 512x512")
        return None
    try:
        sides = padded_size(parse_size(tile))
    except ValueError as error:
        raise UserError(f"--tile: {error}") from error
    if min(sides) < LEAST_SIDE:
        raise UserError(
            f"--tile {tile}: tiles of less than {LEAST_SIDE}x{LEAST_SIDE} are too small to overlap: take larger ones"
        )
    most = min(sides) - SIZE_MULTIPLE
    if overlap is not None and not 0 <= overlap <= most:
        raise UserError(f"--overlap {overlap} must lie between 0 and {most} for tiles of {sides[0]}x{sides[1]}")
    return tiles_of(sides, overlap)


def tiles_of(size: Size, overlap: int | None = None) -> Tiles:
    """Tiles of a size, whose sides are rounded up to multiples of 32 and at least LEAST_SIDE.

    If `overlap` is None, it is a quarter of the shorter side.
    """
    height, width = (max(LEAST_SIDE, side) for side in padded_size(size))
    wanted = min(height, width) // OVERLAP_SHARE if overlap is None else overlap
    return Tiles((height, width), -(-wanted // SIZE_MULTIPLE) * SIZE_MULTIPLE)


def strips(length: int, side: int, overlap: int) -> list[Strip]:
    """Covers `length` pixels with as few tiles of `side` pixels as possible that overlap by at least `overlap`.

    The arguments and the places of the tiles are multiples of 32, and the tiles are spread evenly. At each pixel the
    weights of all tiles sum to 1. Where two tiles overlap, one fades linearly into the other.
    """
    side = min(side, length)
    count = 1 + math.ceil((length - side) / (side - overlap)) if length > side else 1
    room = (length - side) // SIZE_MULTIPLE
    starts = [room * number // max(1, count - 1) * SIZE_MULTIPLE for number in range(count)]
    distance = torch.minimum(torch.arange(side) + 0.5, side - torch.arange(side) - 0.5)
    total = torch.zeros(length)
    for start in starts:
        total[start : start + side] += distance
    return [Strip(start, start + side, distance / total[start : start + side]) for start in starts]


def blended(predict: Callable[[Tensor], Tensor], images: Tensor, tiles: Tiles) -> Tensor:
    """Logits float32 (N, K, H, W) of padded images (N, C, H, W), blended from those of tiles.

    `predict` maps tiles (n, C, h, w) to logits (n, K, h, w), on whose device the result is. A batch has PIXELS_AT_ONCE
    pixels, or one tile if that is larger.
    """
    height, width = images.shape[-2:]
    rows, columns = strips(height, tiles.tile[0], tiles.overlap), strips(width, tiles.tile[1], tiles.overlap)
    places = list(product(range(len(images)), rows, columns))
    at_once = max(1, PIXELS_AT_ONCE // (tiles.tile[0] * tiles.tile[1]))
    total: Tensor | None = None
    for first in range(0, len(places), at_once):
        part = places[first : first + at_once]
        logits = predict(torch.stack([images[n, :, y.start : y.stop, x.start : x.stop] for n, y, x in part]))
        if total is None:
            total = logits.new_zeros((len(images), logits.shape[1], height, width), dtype=torch.float32)
        for (n, y, x), own in zip(part, logits, strict=True):
            weights = (y.weights[:, None] * x.weights).to(own.device)
            total[n, :, y.start : y.stop, x.start : x.stop] += own * weights
    assert total is not None, "no images"
    return total
