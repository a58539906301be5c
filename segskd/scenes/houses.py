"""Draws the houses of a sample scene: boxes along the street with textured fronts."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from segskd.scenes.parts import (
    BUILDING,
    Bytes,
    Camera,
    Canvas,
    Colour,
    Doubles,
    Floats,
    Light,
    Rng,
    bounding_box,
    noise,
    pick,
    shade,
    vary,
)

_WALLS: list[Colour] = [
    (168, 96, 76),
    (142, 78, 66),
    (196, 176, 146),
    (214, 202, 182),
    (176, 150, 120),
    (122, 124, 128),
    (98, 98, 102),
    (158, 158, 156),
    (186, 196, 206),
    (206, 170, 120),
    (120, 134, 112),
    (148, 110, 104),
]
_ROOFS: list[Colour] = [(122, 70, 56), (86, 80, 84), (104, 92, 84), (70, 74, 84)]
_SIGNS: list[Colour] = [
    (176, 44, 40),
    (36, 92, 140),
    (40, 110, 76),
    (216, 176, 60),
    (60, 60, 64),
    (220, 214, 204),
]


@dataclass(frozen=True)
class House:
    """A box beside the street, with lengths in metres. `side` is -1 left or 1 right, `wall` is the x of its front.

    The wall that faces the camera is hidden by the house before it if the house is `joined`.
    """

    side: int
    wall: float
    start: float
    end: float
    height: float
    depth: float
    pitched: bool
    joined: bool


@dataclass(frozen=True)
class _Style:
    colour: Colour
    glass: bool
    brick: bool
    shop: bool
    storey: float
    bay: float
    pane: tuple[float, float]


def draw_house(canvas: Canvas, rng: Rng, camera: Camera, light: Light, house: House) -> None:
    """Paints the roof, the wall along the street and the wall that faces the camera."""
    style = _style(rng)
    if house.pitched:
        _draw_roof(canvas, rng, camera, light, house)
    near, far, wall, top = house.start, house.end, house.wall, house.height
    # Of a wall on the left-hand side, the near end is on the left; on the right-hand side, it is on the right.
    ends = (near, far) if house.side < 0 else (far, near)
    distances = np.array([ends[0], ends[1], ends[1], ends[0]])
    along = camera.project(wall, np.array([top, top, 0, 0]), distances)
    brightness = light.wall(facing_left=house.side > 0)
    _hang(canvas, rng, light, style, (far - near, top), along, distances, brightness)
    if not house.joined:
        _draw_gable(canvas, rng, camera, light, house, style)


def _draw_gable(canvas: Canvas, rng: Rng, camera: Camera, light: Light, house: House, style: _Style) -> None:
    outer = house.wall + house.side * house.depth
    left, right = min(house.wall, outer), max(house.wall, outer)
    top, near = house.height, house.start
    corners = camera.project(np.array([left, right, right, left]), np.array([top, top, 0, 0]), near)
    _hang(canvas, rng, light, style, (house.depth, top), corners, np.full(4, near), light.front)


def _hang(
    canvas: Canvas,
    rng: Rng,
    light: Light,
    style: _Style,
    size: tuple[float, float],
    corners: Doubles,
    distances: Doubles,
    brightness: float,
) -> None:
    """Paints a wall of `size` (width, height) metres between four corners. The texture has about the picture's
    resolution."""
    if bounding_box(corners) is None:
        return
    extent = np.ptp(corners, axis=0)
    if extent.min() < 5:
        # Too slim to show a window.
        canvas.polygon(corners, shade(style.colour, 0.85 * brightness), BUILDING, float(distances.mean()))
        return
    columns, rows = int(np.clip(extent[0], 8, 192)), int(np.clip(extent[1], 12, 192))
    texture = _front(rng, style, light, size, (columns, rows))
    canvas.wall(corners, distances.tolist(), _lit(texture, brightness), BUILDING)


def _draw_roof(canvas: Canvas, rng: Rng, camera: Camera, light: Light, house: House) -> None:
    ridge, rise = house.wall + house.side * house.depth / 2, house.depth * 0.32
    low, high = house.height, house.height + rise
    slope = camera.project(
        np.array([house.wall, ridge, ridge, house.wall]),
        np.array([low, high, high, low]),
        np.array([house.start, house.start, house.end, house.end]),
    )
    tiles = shade(vary(rng, pick(rng, _ROOFS), 18), light.wall(facing_left=house.side > 0))
    canvas.polygon(slope, tiles, BUILDING, house.start)
    far_eave = house.wall + house.side * house.depth
    gable = camera.project(np.array([house.wall, ridge, far_eave]), np.array([low, high, low]), house.start)
    canvas.polygon(gable, shade(tiles, 0.9), BUILDING, house.start)


def _style(rng: Rng) -> _Style:
    colour = vary(rng, pick(rng, _WALLS), 20)
    return _Style(
        colour=colour,
        glass=rng.random() < 0.14,
        brick=rng.random() < 0.5,
        shop=rng.random() < 0.45,
        storey=float(rng.uniform(2.8, 3.6)),
        bay=float(rng.uniform(1.7, 3.2)),
        pane=(float(rng.uniform(0.35, 0.7)), float(rng.uniform(0.45, 0.65))),
    )


def _lit(texture: Bytes, brightness: float) -> Bytes:
    return np.asarray(cv2.convertScaleAbs(texture, alpha=brightness), np.uint8)


def _front(rng: Rng, style: _Style, light: Light, size: tuple[float, float], pixels: tuple[int, int]) -> Bytes:
    """The texture (rows, columns, 3) of a wall of `size` (width, height) metres."""
    (width, height), (columns, rows) = size, pixels
    across = (np.arange(columns, dtype=np.float32) + np.float32(0.5)) * np.float32(width / columns)
    down = (np.arange(rows, dtype=np.float32) + np.float32(0.5)) * np.float32(height / rows)
    up = np.float32(height) - down
    surface = _masonry(rng, style, across, up)
    _put_windows(rng, style, light, surface, across, up)
    if style.shop:
        _put_shop(rng, surface, across, up)
    if rng.random() < 0.5:
        pipe = np.abs(across - np.float32(rng.uniform(0.2, 0.8) * width)) < 0.09
        surface[:, pipe] = surface[:, pipe] * np.float32(0.4) + np.float32(30)
    cornice = up > height - 0.45
    surface[cornice] = surface[cornice] * np.float32(0.8) + np.float32(24)
    return np.asarray(cv2.convertScaleAbs(np.maximum(surface, 0, out=surface)), np.uint8)


def _masonry(rng: Rng, style: _Style, across: Floats, up: Floats) -> Floats:
    """The bare wall, float32 (rows, columns, 3)."""
    rows, columns = len(up), len(across)
    grain = rng.integers(-6, 7, (rows, columns), dtype=np.int8)
    tone = (noise(rng, rows, columns, 48, octaves=3) - np.float32(0.5)) * 40 + grain
    if style.brick and rows > 40:
        tone += _bricks(across, up)
    # Walls are darker at the foot.
    grime = np.minimum(np.float32(0.8) + up * np.float32(0.06), 1)[:, None]
    surface: Floats = np.empty((rows, columns, 3), np.float32)
    for channel, value in enumerate(style.colour):
        surface[..., channel] = (tone + np.float32(value)) * grime
    return surface


def _bricks(across: Floats, up: Floats) -> Floats:
    """Brightness (rows, columns) to add for joints and bricks of different brightness."""
    course = up / np.float32(0.28)
    level = np.floor(course)
    bond = across[None, :] / np.float32(0.6) + (level % 2)[:, None] * np.float32(0.5)
    brick = np.floor(bond)
    joint = (course - level < 0.22)[:, None] | (bond - brick < 0.1)
    mixed = brick * np.float32(0.57) + (level * np.float32(0.43))[:, None]
    return np.asarray((mixed - np.floor(mixed)) * 21 - 14 + joint * np.float32(18), np.float32)


def _put_windows(rng: Rng, style: _Style, light: Light, surface: Floats, across: Floats, up: Floats) -> None:
    """Adds windows with light frames. Each is dark, reflects the sky, or shows a curtain or a lamp."""
    bay, storey = across / np.float32(style.bay), (up - np.float32(0.35)) / np.float32(style.storey)
    column, row = np.floor(bay).astype(int), np.floor(storey).astype(int)
    beside = np.abs(bay - column - np.float32(0.5)) * 2
    above = np.abs(storey - row - np.float32(0.5)) * 2
    wide, tall = (0.94, 0.9) if style.glass else style.pane
    whole = (row >= 0) & ((row + 1) * style.storey + 0.35 < up.max() + 0.5)
    frame = np.ix_((above < tall + 0.09) & whole, beside < wide + 0.12)
    surface[frame] = surface[frame] * np.float32(0.55) + np.float32(84)
    tones = _panes(rng, style, light, (int(row.max()) + 2, int(column.max()) + 1))
    high, broad = (above < tall) & whole, beside < wide
    surface[np.ix_(high, broad)] = tones[np.ix_(row[high], column[broad])]
    surface[np.ix_(high, beside < 0.06)] = 100


def _panes(rng: Rng, style: _Style, light: Light, shape: tuple[int, int]) -> Floats:
    """The colour (rows, columns, 3) of each window."""
    dark = rng.uniform(28, 74, shape)[..., None] * np.array([0.9, 1.0, 1.15])
    sky = np.array(light.haze) * rng.uniform(0.5, 1.0, shape)[..., None]
    curtain = rng.uniform(120, 190, shape)[..., None] * np.array([1.0, 0.97, 0.9])
    lamp = np.array([255, 214, 140]) * rng.uniform(0.8, 1.0, shape)[..., None]
    kind = rng.random(shape)[..., None]
    tones = np.where(kind < (0.85 if style.glass else 0.22), sky, np.where(kind > 0.88, curtain, dark))
    return np.where(rng.random(shape)[..., None] < light.lit, lamp, tones).astype(np.float32)


def _put_shop(rng: Rng, surface: Floats, across: Floats, up: Floats) -> None:
    """Adds shop windows on the ground floor under a coloured sign or a striped awning."""
    sign = np.array(vary(rng, pick(rng, _SIGNS), 20), np.float32)
    unit = float(rng.uniform(2.5, 5.0))
    place = across / np.float32(unit) - np.floor(across / np.float32(unit))
    glass = np.ix_((up > 0.5) & (up < 2.5), np.abs(place - np.float32(0.5)) < 0.42)
    goods = noise(rng, len(up), len(across), 10, octaves=2)[glass][..., None]
    surface[glass] = np.float32(36) + goods * np.array([150, 130, 110], np.float32)
    band = (up >= 2.6) & (up < 3.25)
    surface[band] = sign
    if rng.random() < 0.4:
        stripes = np.floor(across / np.float32(0.5)) % 2 == 0
        surface[np.ix_(band, stripes)] = np.array([228, 224, 216], np.float32)
