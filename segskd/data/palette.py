"""Colours of classes: some that colour-blind people can distinguish, and those of PASCAL VOC."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from segskd.data.cards import Colour

Floats = npt.NDArray[np.float64]

# Okabe and Ito, "Color Universal Design", 2008.
OKABE_ITO: tuple[Colour, ...] = (
    (0, 0, 0),
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
# Machado, Oliveira and Fernandes 2009, severity 1.0: what linear RGB looks like without one kind of cone.
_VISIONS: Floats = np.array(
    [
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    ]
)
# IEC 61966-2-1: linear sRGB to XYZ, each row divided by the white point D65.
_TO_XYZ: Floats = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
) / np.array([[0.95047], [1.0], [1.08883]])
_STEP = 17
MOST = 254


def distinct_colours(count: int) -> list[Colour]:
    """The first `count` (at most 254) of a fixed list of colours, which begins with the eight of Okabe and Ito.

    Each further colour is the one, among all RGB colours on a grid of 16 levels, that is farthest from the nearest
    colour before it. The distance of two colours is the smallest of their Euclidean distances in CIELAB in normal,
    protan, deutan and tritan vision.
    """
    return _order()[:count]


def colour_distances(first: npt.ArrayLike, second: npt.ArrayLike) -> Floats:
    """Distances (N, M) in CIELAB of RGB colours 0-255 (N, 3) and (M, 3): the smallest over the four kinds of vision."""
    return _worst_distances(_lab_of_visions(first), _lab_of_visions(second))


def voc_colours(count: int) -> list[Colour]:
    """The first `count` colours of PASCAL VOC's colour map: the bits of the class's number, spread over R, G and B."""
    colours = []
    for number in range(count):
        channels = [0, 0, 0]
        for place in range(8):
            for channel in range(3):
                channels[channel] |= (number >> (3 * place + channel) & 1) << (7 - place)
        colours.append((channels[0], channels[1], channels[2]))
    return colours


@cache
def _order() -> list[Colour]:
    levels = np.arange(0, 256, _STEP)
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    colours = list(OKABE_ITO)
    lab = _lab_of_visions(grid)
    nearest = _worst_distances(lab, _lab_of_visions(colours)).min(axis=1)
    while len(colours) < MOST:
        # Rounded, so that other rounding errors of another machine don't lead to another colour.
        best = int(np.round(nearest, 6).argmax())
        red, green, blue = grid[best].tolist()
        colours.append((red, green, blue))
        nearest = np.minimum(nearest, _worst_distances(lab, lab[:, best : best + 1])[:, 0])
    return colours


def _worst_distances(first: Floats, second: Floats) -> Floats:
    least: Floats = np.linalg.norm(first[:, :, None] - second[:, None], axis=-1).min(axis=0)
    return least


def _lab_of_visions(colours: npt.ArrayLike) -> Floats:
    """CIELAB (4, N, 3) of RGB colours 0-255 (N, 3), as seen by each kind of vision."""
    encoded: npt.NDArray[Any] = np.asarray(colours, dtype=np.float64) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    seen = np.einsum("vij,nj->vni", _VISIONS, linear).clip(0, 1)
    xyz = np.einsum("ij,vnj->vni", _TO_XYZ, seen)
    root = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = np.moveaxis(root, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)
