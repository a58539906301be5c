"""Draws persons, trees and poles of a sample scene."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from segskd.scenes.parts import (
    PERSON,
    POLE,
    TREE,
    Camera,
    Canvas,
    Colour,
    Light,
    Rng,
    noise,
    pick,
    shade,
    vary,
)

_CLOTHES: list[Colour] = [
    (66, 68, 74),
    (112, 114, 118),
    (142, 142, 140),
    (46, 52, 70),
    (120, 48, 44),
    (62, 84, 58),
    (176, 162, 138),
    (206, 204, 200),
    (44, 84, 120),
    (178, 120, 50),
]
_SKINS: list[Colour] = [(232, 194, 166), (204, 158, 126), (150, 106, 80), (98, 68, 52)]
_HAIR: list[Colour] = [(42, 34, 30), (92, 66, 44), (168, 132, 84), (126, 124, 122)]
_LEAVES: list[Colour] = [
    (74, 104, 46),
    (92, 118, 56),
    (58, 84, 44),
    (112, 122, 60),
    (166, 116, 44),
    (176, 84, 40),
    (104, 110, 84),
]
_BARK: list[Colour] = [(84, 66, 52), (104, 92, 80), (66, 58, 54)]
_METAL: list[Colour] = [(92, 96, 98), (136, 140, 142), (58, 62, 60), (70, 84, 72), (96, 78, 60)]


def draw_person(canvas: Canvas, rng: Rng, camera: Camera, light: Light, x: float, z: float) -> None:
    """Paints a standing or walking person of 1.1 to 1.9 m."""
    height = float(rng.uniform(1.55, 1.9) if rng.random() < 0.86 else rng.uniform(1.1, 1.4))
    broad = float(rng.uniform(0.2, 0.28)) * height / 1.75
    stride = float(rng.uniform(0.0, 0.22)) * (1 if rng.random() < 0.6 else 0.2)
    top, below = (vary(rng, pick(rng, _CLOTHES), 14) for _ in range(2))
    skin, hair = pick(rng, _SKINS), pick(rng, _HAIR)
    bright = light.front
    # A coat hides the hips and half the legs.
    hem = float(rng.choice([0.46, 0.46, 0.3])) * height

    def part(points: Sequence[tuple[float, float]], colour: Colour) -> None:
        across, up = np.array(points).T
        canvas.polygon(camera.project(x + across, up, z), shade(colour, bright), PERSON, z)

    for way, tone in ((-1, 0.8), (1, 1.0)):
        hip, foot = way * broad * 0.4, way * (stride + broad * 0.35)
        leg = [
            (hip - 0.08, 0.5 * height),
            (hip + 0.08, 0.5 * height),
            (foot + 0.06, 0.02),
            (foot - 0.06, 0.02),
        ]
        part(leg, shade(below, tone))
        part([(foot - 0.08, 0.06), (foot + 0.1, 0.06), (foot + 0.1, 0), (foot - 0.08, 0)], (40, 36, 34))
    for way in (-1, 1):
        hand = way * (broad + 0.04 + stride * 0.5)
        arm = [(way * broad * 0.7, 0.81 * height), (way * broad, 0.8 * height), (hand, 0.46 * height)]
        part([*arm, (hand - way * 0.09, 0.46 * height)], shade(top, 0.86))
    part([(-broad, 0.81 * height), (broad, 0.81 * height), (broad * 0.85, hem), (-broad * 0.85, hem)], top)
    angles = np.arange(10) * (np.pi / 5)
    for radius, rise, colour in ((0.072, 0.925, hair), (0.062, 0.905, skin)):
        head = [(radius * height * 0.8 * np.cos(a), height * (rise + radius * np.sin(a))) for a in angles]
        part(head, colour)
    if rng.random() < 0.3:
        bag = vary(rng, pick(rng, _CLOTHES), 20)
        beside = broad + 0.05
        part(
            [
                (beside, 0.5 * height),
                (beside + 0.2, 0.5 * height),
                (beside + 0.2, 0.3 * height),
                (beside, 0.3 * height),
            ],
            bag,
        )


def draw_tree(canvas: Canvas, rng: Rng, camera: Camera, light: Light, x: float, z: float, height: float) -> None:
    """Paints a trunk with a crown of leaves or with bare branches."""
    thick = max(float(rng.uniform(0.1, 0.22)), 1.1 * z / camera.focal)
    bark = shade(vary(rng, pick(rng, _BARK), 12), light.front)
    crown = height * float(rng.uniform(0.3, 0.45))
    trunk = camera.project(
        x + np.array([-thick, -thick * 0.6, thick * 0.6, thick]),
        np.array([0, height * 0.6, height * 0.6, 0]),
        z,
    )
    canvas.polygon(trunk, bark, TREE, z)
    if rng.random() < 0.12:
        _grow(canvas, rng, camera, bark, (x, height * 0.35, z), (0.0, height * 0.28), thick, 4 if z < 16 else 3)
        return
    leaves = vary(rng, pick(rng, _LEAVES), 16)
    draw_foliage(canvas, rng, camera, light, leaves, (x, height - crown, z), (crown * 0.9, crown))


def draw_foliage(
    canvas: Canvas,
    rng: Rng,
    camera: Camera,
    light: Light,
    colour: Colour,
    centre: tuple[float, float, float],
    radii: tuple[float, float],
) -> None:
    """Paints a clump of leaves with a ragged edge and gaps. `radii` are in metres across and up."""
    z = centre[2]
    (column, row) = camera.project(*centre)
    wide, high = (max(2, int(radius * camera.focal / z)) for radius in radii)
    if wide > 700 or column + wide < 0 or column - wide > canvas.image.shape[1]:
        return
    across = (np.arange(2 * wide, dtype=np.float32) - np.float32(wide - 0.5))[None, :] / np.float32(wide)
    down = (np.arange(2 * high, dtype=np.float32) - np.float32(high - 0.5))[:, None] / np.float32(high)
    lumps = noise(rng, 2 * high, 2 * wide, max(2, wide // 2), octaves=4)
    inside = 1 - across * across - down * down + (lumps - np.float32(0.5)) * np.float32(1.7) > np.float32(0.22)
    speckle = noise(rng, 2 * high, 2 * wide, max(2, wide // 9), octaves=3)
    sun = -down * np.float32(0.22) - across * np.float32(np.sign(light.sun[0]) * 0.16 * light.direct)
    tone = np.float32(0.5) + lumps * np.float32(0.45) + speckle * np.float32(0.62) + sun
    picture = np.clip(np.array(colour, np.float32) * tone[..., None], 0, 255).astype(np.uint8)
    canvas.stamp(inside, picture, int(column) - wide, int(row) - high, TREE, float(z))


def _grow(
    canvas: Canvas,
    rng: Rng,
    camera: Camera,
    bark: Colour,
    base: tuple[float, float, float],
    reach: tuple[float, float],
    thick: float,
    generations: int,
) -> None:
    """Paints a bare branch, which forks `generations` times."""
    x, y, z = base
    tip = (x + reach[0], y + reach[1])
    half = max(thick * 0.6, 0.9 * z / camera.focal)
    branch = camera.project(
        np.array([x - half, x + half, tip[0] + half * 0.6, tip[0] - half * 0.6]),
        np.array([y, y, tip[1], tip[1]]),
        z,
    )
    canvas.polygon(branch, bark, TREE, z)
    if generations == 0:
        return
    for way in (-1.0, 0.0, 1.0):
        turn, scale = way * rng.uniform(0.35, 0.75), rng.uniform(0.6, 0.8)
        cos, sin = float(np.cos(turn) * scale), float(np.sin(turn) * scale)
        onward = (reach[0] * cos + reach[1] * sin, reach[1] * cos - reach[0] * sin)
        _grow(canvas, rng, camera, bark, (*tip, z), onward, thick * 0.6, generations - 1)


def draw_pole(canvas: Canvas, rng: Rng, camera: Camera, light: Light, x: float, z: float, kind: str) -> None:
    """Paints a street lamp, a traffic light, a sign on its post or a bollard. All of it has the class pole."""
    metal = shade(vary(rng, pick(rng, _METAL), 12), light.front)
    half = max(0.07, 1.1 * z / camera.focal)
    height = {"lamp": rng.uniform(5, 8), "signal": 3.4, "sign": rng.uniform(2.2, 2.8), "bollard": 0.95}[kind]

    def part(points: Sequence[tuple[float, float]], colour: Colour) -> None:
        across, up = np.array(points, float).T
        canvas.polygon(camera.project(x + across, up, z), colour, POLE, z)

    part([(-half, 0), (-half, height), (half, height), (half, 0)], metal)
    if kind == "lamp":
        reach = -np.sign(x) * rng.uniform(0.8, 2.2)
        part(
            [(0, height), (reach, height + 0.3), (reach, height + 0.3 + 2 * half), (0, height + 2 * half)],
            metal,
        )
        head = (255, 236, 190) if light.lit > 0.3 else shade(metal, 1.2)
        part(
            [
                (reach, height + 0.2),
                (reach * 1.35, height + 0.2),
                (reach * 1.35, height + 0.45),
                (reach, height + 0.45),
            ],
            head,
        )
    elif kind == "signal":
        part([(-0.22, height - 1.0), (0.22, height - 1.0), (0.22, height), (-0.22, height)], (38, 40, 40))
        bulb, colour = [(0.8, (60, 190, 110)), (0.5, (230, 160, 40)), (0.2, (220, 50, 40))][int(rng.integers(3))]
        part(_disc(0.11, height - bulb), colour)
    elif kind == "sign":
        part(*_plate(rng, height))


def _plate(rng: Rng, height: float) -> tuple[list[tuple[float, float]], Colour]:
    kind = int(rng.integers(4))
    if kind == 0:
        return _disc(0.34, height), (186, 40, 38)
    if kind == 1:
        return [(-0.36, height - 0.3), (0.36, height - 0.3), (0.0, height + 0.35)], (222, 206, 190)
    colour: Colour = (40, 84, 150) if kind == 2 else (214, 214, 208)
    return [(-0.3, height - 0.35), (0.3, height - 0.35), (0.3, height + 0.35), (-0.3, height + 0.35)], colour


def _disc(radius: float, height: float) -> list[tuple[float, float]]:
    angles = np.arange(12) * (np.pi / 6)
    return [(radius * float(np.cos(a)), height + radius * float(np.sin(a))) for a in angles]
