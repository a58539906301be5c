"""Draws the background of a sample scene: sky, skyline, road, markings and pavement."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from segskd.scenes.parts import (
    BUILDING,
    CANVAS_HEIGHT,
    CANVAS_WIDTH,
    FAR,
    MARKING,
    PAVEMENT,
    ROAD,
    TREE,
    Bytes,
    Camera,
    Canvas,
    Colour,
    Doubles,
    Floats,
    Light,
    Rng,
    fill_ground,
    noise,
    pick,
    shade,
    vary,
)

_ASPHALT: list[Colour] = [(92, 92, 96), (78, 80, 86), (112, 110, 108), (104, 98, 94), (124, 122, 120)]
_PAVING: list[Colour] = [
    (150, 146, 140),
    (128, 126, 126),
    (164, 140, 126),
    (104, 104, 106),
    (172, 166, 152),
    (146, 118, 106),
]
_SKYLINE: list[Colour] = [(142, 146, 156), (120, 128, 140), (164, 158, 152), (134, 124, 122)]


@dataclass(frozen=True)
class Crossroad:
    """A side street between two distances in metres. `side` is -1 on the left, 1 on the right."""

    side: int
    start: float
    end: float


@dataclass(frozen=True)
class Road:
    """The street's cross section in metres from the centre line, its zebra crossing and its side streets."""

    left: float
    right: float
    lane: float
    lanes_left: int
    lanes_right: int
    zebra: float | None
    crossroads: tuple[Crossroad, ...]


def paint_sky(canvas: Canvas, rng: Rng, camera: Camera, light: Light) -> None:
    """Paints a gradient from zenith to haze, and clouds."""
    # Nothing in the sky is sharp, so half the canvas's resolution will do.
    height, width = min(CANVAS_HEIGHT, int(camera.horizon) + 24) // 2, CANVAS_WIDTH // 2
    rows = np.arange(height, dtype=np.float32) * np.float32(2 / camera.horizon)
    down = np.minimum(rows, 1)[:, None, None]
    top, low = np.array(light.zenith, np.float32), np.array(light.haze, np.float32)
    sky = top * (1 - down) + low * down + np.zeros((height, width, 1), np.float32)
    shape = noise(rng, 2 * height, width, 64, octaves=5)[::2]
    cover = np.clip((shape - np.float32(0.72 - 0.42 * light.clouds)) * 6, 0, 1)[..., None]
    cloud = low * np.float32(0.55) + np.float32(110) + (shape[..., None] - np.float32(0.5)) * 90
    sky += cover * np.float32(0.85) * (np.minimum(cloud, 255) - sky) * np.float32(min(1.0, light.clouds * 2))
    small = np.clip(sky, 0, 255).astype(np.uint8)
    canvas.image[: 2 * height] = cv2.resize(small, (2 * width, 2 * height), interpolation=cv2.INTER_LINEAR)


def paint_skyline(canvas: Canvas, rng: Rng, camera: Camera, light: Light) -> None:
    """Paints distant houses and woods along the whole horizon."""
    for distance, height in ((260.0, 26.0), (170.0, 13.0)):
        column = -40.0
        while column < CANVAS_WIDTH + 40:
            width = float(rng.uniform(14, 60))
            rise = float(rng.uniform(0.25, 1.0)) * height * camera.focal / distance
            base = camera.horizon + camera.roll * (column - camera.centre)
            if rng.random() < 0.45:
                _paint_wood(canvas, rng, (column, base, width, rise * 0.7), distance)
            else:
                box = [(column, base - rise), (column + width, base - rise), (column + width, base + 8)]
                corners = np.array([*box, (column, base + 8)])
                colour = shade(vary(rng, pick(rng, _SKYLINE), 24), light.front)
                canvas.polygon(corners, colour, BUILDING, distance)
                _paint_far_windows(canvas, rng, corners, colour)
            column += width * float(rng.uniform(0.6, 1.1))


def _paint_far_windows(canvas: Canvas, rng: Rng, corners: Doubles, colour: Colour) -> None:
    pane = shade(colour, float(rng.uniform(0.7, 0.9)))
    left, top, right, bottom = (int(edge) for edge in (*corners[0], *corners[2]))
    for row in range(top + 4, bottom - 8, 7):
        for column in range(left + 3, right - 3, 6):
            cv2.rectangle(canvas.image, (column, row), (column + 2, row + 2), pane, cv2.FILLED)


def _paint_wood(canvas: Canvas, rng: Rng, place: tuple[float, float, float, float], distance: float) -> None:
    column, base, width, rise = place
    green = vary(rng, (74, 92, 60), 16)
    steps = np.linspace(0, 1, 12)
    crest = rise * np.sqrt(np.clip(1 - (2 * steps - 1) ** 2, 0, 1)) * rng.uniform(0.75, 1.0, 12)
    outline = np.stack([column + width * 1.3 * steps, base - crest], axis=-1)
    foot = np.array([(column + width * 1.3, base + 8), (column, base + 8)])
    canvas.polygon(np.concatenate([outline, foot]), green, TREE, distance)


def paint_ground(canvas: Canvas, rng: Rng, camera: Camera, light: Light, road: Road) -> None:
    """Paints road, kerb, pavement and road markings, and fills image, mask and depth of the canvas."""
    first = max(0, int(camera.horizon - abs(camera.roll) * CANVAS_WIDTH / 2) - 1)
    x, z = camera.ground(first)
    on_road = _on_road(x, z, road)
    paint = on_road & _markings(rng, x, z, road)
    surface = _surface(rng, x, z, on_road, road)
    if rng.random() < 0.22:
        _put_puddles(rng, x, z, surface, light.haze)
    if rng.random() < 0.3:
        _put_guide_strip(rng, x, surface, ~on_road, road)
    kerb = ~on_road & _on_road(x, z, road, margin=0.22)
    surface[kerb] = surface[kerb] * np.float32(0.5) + np.float32(rng.uniform(60, 100))
    _put_paint(rng, x, z, surface, paint)
    seen = (z < FAR).view(np.uint8)
    labels = np.where(paint, np.uint8(MARKING), np.where(on_road, np.uint8(ROAD), np.uint8(PAVEMENT)))
    cv2.copyTo(cv2.convertScaleAbs(np.maximum(surface, 0, out=surface)), seen, canvas.image[first:])
    cv2.copyTo(labels, seen, canvas.mask[first:])
    cv2.copyTo(z, seen, canvas.depth[first:])


def cast_shadows(canvas: Canvas, light: Light, casts: list[Doubles], soft: list[Doubles]) -> None:
    """Darkens the ground in the polygons `casts`, the sun's shadows, and `soft`, the dim shadows right under things."""
    sunlit: Bytes = np.zeros((CANVAS_HEIGHT, CANVAS_WIDTH), np.uint8)
    for shape in casts:
        fill_ground(sunlit, shape, 255)
    contact = np.zeros_like(sunlit)
    for shape in soft:
        fill_ground(contact, shape, 255)
    ground = (canvas.mask == ROAD) | (canvas.mask == MARKING) | (canvas.mask == PAVEMENT)
    below = slice(int(ground.any(axis=1).argmax()), None)
    dark = cv2.blur(sunlit[below], (5, 5)).astype(np.float32) * np.float32(0.62 * light.direct / 255)
    under = cv2.blur(contact[below], (7, 5)).astype(np.float32) * np.float32(0.5 / 255)
    keep = (1 - dark) * (1 - under) * ground[below] + ~ground[below]
    # Shadows are lit by the sky, so they turn blue.
    for channel, tint in enumerate((-0.06, -0.02, 0.08)):
        plane = canvas.image[below, :, channel]
        plane[:] = np.minimum(plane * keep * (1 + np.float32(tint) * dark), 255).astype(np.uint8)


def _on_road(x: Floats, z: Floats, road: Road, margin: float = 0.0) -> NDArray[np.bool_]:
    inside = (x > road.left - margin) & (x < road.right + margin)
    for cross in road.crossroads:
        here = (z > cross.start - margin) & (z < cross.end + margin)
        inside |= here & (x * cross.side > 0)
    return inside


def _tiled(rng: Rng, x: Floats, z: Floats, scale: float) -> Floats:
    """Noise in [0, 1] on the ground, whose patches are about `scale` metres wide."""
    tile = (noise(rng, 128, 128, 16, octaves=4) * 255).astype(np.uint8)
    step = np.float32(12 / scale)
    laid = cv2.remap(tile, x * step, z * step, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    return np.asarray(laid * np.float32(1 / 255), np.float32)


def _surface(rng: Rng, x: Floats, z: Floats, on_road: NDArray[np.bool_], road: Road) -> Floats:
    """Asphalt and paving without paint, float32 (h, w, 3)."""
    asphalt = vary(rng, pick(rng, _ASPHALT), 14)
    # A pavement in the road's colour differs from it only by kerb, joints and place.
    paving = vary(rng, asphalt, 8) if rng.random() < 0.25 else vary(rng, pick(rng, _PAVING), 14)
    fade = np.float32(1) / (1 + z * np.float32(0.06))
    tone = np.where(on_road, _asphalt(rng, x, z, fade, road), _paving(rng, x, z, fade))
    surface: Floats = np.empty((*z.shape, 3), np.float32)
    for channel in range(3):
        flat = np.where(on_road, np.float32(asphalt[channel]), np.float32(paving[channel]))
        surface[..., channel] = flat + tone
    return surface


def _asphalt(rng: Rng, x: Floats, z: Floats, fade: Floats, road: Road) -> Floats:
    """Brightness to add to asphalt: grain, stains, worn tracks and mended patches."""
    grain = rng.integers(-15, 16, x.shape, dtype=np.int8) * fade
    stains = (_tiled(rng, x, z * np.float32(0.4), 2.5) - np.float32(0.5)) * np.float32(rng.uniform(15, 50))
    rut = x * np.float32(2 / road.lane)
    rut -= np.floor(rut)
    tone = grain + stains + (1 - 8 * rut * (1 - rut)) * np.float32(rng.uniform(0, 8))
    for _ in range(int(rng.integers(0, 4))):
        centre, start = float(rng.uniform(road.left, road.right)), float(rng.uniform(4, 30))
        patch = (np.abs(x - centre) < rng.uniform(0.4, 1.4)) & (z > start) & (z < start + rng.uniform(1, 9))
        tone[patch] += np.float32(rng.uniform(-26, 20))
    return np.asarray(tone, np.float32)


def _paving(rng: Rng, x: Floats, z: Floats, fade: Floats) -> Floats:
    """Brightness to add to paving: grain, stains, different slabs and the joints between them."""
    grain = rng.integers(-12, 13, x.shape, dtype=np.int8) * fade
    stains = (_tiled(rng, x, z, 2.0) - np.float32(0.5)) * 34
    slab = np.float32(rng.choice([0.4, 0.6, 0.9]))
    across, along = x / slab, z / slab
    column, row = np.floor(across), np.floor(along)
    mixed = column * np.float32(0.37) + row * np.float32(0.71)
    tone = (mixed - np.floor(mixed) - np.float32(0.5)) * 24
    joint = (across - column < 0.07) | (along - row < 0.07)
    return np.asarray(grain + stains + (tone - joint * np.float32(26)) * fade, np.float32)


def _put_paint(rng: Rng, x: Floats, z: Floats, surface: Floats, paint: NDArray[np.bool_]) -> None:
    """Adds white or yellow paint, which is worn in places."""
    worn = (_tiled(rng, x, z, 1.3)[paint] * np.float32(rng.uniform(0.05, 0.6)))[:, None]
    colour = np.array((236, 234, 226) if rng.random() < 0.85 else (226, 188, 84), np.float32)
    surface[paint] = colour * (1 - worn) + surface[paint] * worn


def _put_puddles(rng: Rng, x: Floats, z: Floats, surface: Floats, haze: Colour) -> None:
    """Adds puddles that reflect the sky. They are as bright as markings, but have another shape."""
    water = np.clip(_tiled(rng, x, z * np.float32(0.5), 6.0) * 14 - np.float32(8.2), 0, 1)[..., None]
    surface += (np.array(haze, np.float32) * np.float32(0.9) - surface) * water * np.float32(0.75)


def _put_guide_strip(rng: Rng, x: Floats, surface: Floats, paved: NDArray[np.bool_], road: Road) -> None:
    """Adds a pale strip of tiles for the blind along the kerb. It looks like a marking, but is pavement."""
    away = np.maximum(road.left - x, x - road.right)
    strip = np.abs(away - np.float32(rng.uniform(0.6, 1.2))) < np.float32(rng.uniform(0.1, 0.2))
    strip &= paved
    surface[strip] = surface[strip] * np.float32(0.3) + np.array((160, 154, 134), np.float32)


def _markings(rng: Rng, x: Floats, z: Floats, road: Road) -> NDArray[np.bool_]:
    """Lines between lanes, edge lines and the zebra crossing; at junctions the lines stop."""
    dash = float(rng.choice([3.0, 4.5, 6.0]))
    dashed = (z + float(rng.uniform(0, 9))) % (2 * dash) < dash
    # Far lines are drawn wider than they are, as a camera's own blur shows them.
    half = np.float32(0.07) + z * np.float32(0.0011)
    lines = np.abs(x) < half
    if rng.random() < 0.5:
        lines &= dashed
    for lane in range(1 - road.lanes_left, road.lanes_right):
        if lane != 0:
            lines |= (np.abs(x - np.float32(lane * road.lane)) < half) & dashed
    for edge in (road.left + 0.35, road.right - 0.35):
        if rng.random() < 0.6:
            lines |= np.abs(x - np.float32(edge)) < half
    for cross in road.crossroads:
        lines &= ~((z > cross.start) & (z < cross.end))
    if road.zebra is not None:
        lines &= ~((z > road.zebra - 2.5) & (z < road.zebra + 4))
        stripes = (z > road.zebra) & (z < road.zebra + 3) & (x % 1.1 < 0.55)
        stop = (z > road.zebra - 1.8) & (z < road.zebra - 1.3) & (x > 0)
        lines |= stripes | stop
    return lines
