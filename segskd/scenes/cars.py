"""Draws the cars of a sample scene, from any direction."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from segskd.scenes.parts import (
    CAR,
    Camera,
    Canvas,
    Colour,
    Doubles,
    Light,
    Rng,
    fixed_point,
    pick,
    shade,
    vary,
)

_PAINTS: list[Colour] = [
    (206, 208, 210),
    (150, 154, 158),
    (52, 54, 60),
    (90, 94, 100),
    (150, 32, 34),
    (36, 62, 112),
    (58, 84, 60),
    (86, 100, 62),
    (122, 90, 66),
    (214, 206, 188),
    (190, 150, 50),
]

_RIM = tuple((float(np.cos(a)), float(np.sin(a))) for a in np.arange(12) * (np.pi / 6))
# Beyond this distance, in metres, lamps and bumpers are smaller than a pixel.
_FINE = 45.0

Point = tuple[float, float, float]


@dataclass(frozen=True)
class _Body:
    """The shape of a car from its side. `outline` are points (length from the rear, height) in metres.

    `edges` has a letter for each edge of the outline: b body, r rear window, t roof, w windscreen. `window` is the
    outline of the side windows.
    """

    outline: tuple[tuple[float, float], ...]
    edges: str
    window: tuple[tuple[float, float], ...]
    width: float

    @property
    def length(self) -> float:
        return self.outline[-1][0]


@dataclass(frozen=True)
class _Face:
    """A flat piece of a car, whose colour is that of its `part`. A `fine` one is not drawn in the distance.

    `points` are (length from the rear, metres to the right, height), anticlockwise when seen from outside.
    """

    part: str
    points: tuple[Point, ...]
    fine: bool = False


_BODIES = (
    _Body(
        (
            (0, 0.3),
            (0, 0.8),
            (0.1, 1.0),
            (0.75, 1.04),
            (1.45, 1.43),
            (2.6, 1.45),
            (3.4, 0.98),
            (4.3, 0.8),
            (4.4, 0.3),
        ),
        "bbbrtwbb",
        ((0.95, 1.04), (1.5, 1.36), (2.55, 1.38), (3.15, 1.0)),
        1.78,
    ),
    _Body(
        ((0, 0.3), (0, 0.85), (0.1, 1.0), (0.5, 1.46), (2.4, 1.5), (3.15, 1.0), (3.85, 0.82), (3.95, 0.3)),
        "bbrtwbb",
        ((0.4, 1.03), (0.7, 1.4), (2.3, 1.42), (2.9, 1.02)),
        1.72,
    ),
    _Body(
        ((0, 0.38), (0, 1.0), (0.05, 1.15), (0.35, 1.72), (2.9, 1.78), (3.6, 1.18), (4.5, 1.02), (4.6, 0.38)),
        "bbrtwbb",
        ((0.35, 1.2), (0.6, 1.64), (2.8, 1.68), (3.35, 1.2)),
        1.9,
    ),
    _Body(
        ((0, 0.35), (0, 1.1), (0.04, 2.05), (3.7, 2.1), (4.5, 1.25), (5.0, 1.05), (5.1, 0.35)),
        "brtwbb",
        ((3.0, 1.25), (3.0, 1.9), (3.6, 1.9), (4.25, 1.25)),
        1.95,
    ),
)


class Car:
    """A car on the ground at (x, z). With `turn` 0 it drives away from the camera, with pi towards it."""

    def __init__(self, rng: Rng, x: float, z: float, turn: float) -> None:
        kind = int(rng.choice(len(_BODIES), p=[0.38, 0.27, 0.25, 0.1]))
        self.body = _BODIES[kind]
        self.faces = _FACES[kind]
        self.paint = vary(rng, pick(rng, _PAINTS), 16)
        self.x, self.z = x, z
        self.sin, self.cos = float(np.sin(turn)), float(np.cos(turn))

    def project(self, camera: Camera, local: Iterable[Point]) -> Doubles:
        """The pixels (N, 2) of points (length from the rear, metres to the right, height)."""
        along, across, up = np.array(list(local), float).T
        along -= self.body.length / 2
        x = self.x + across * self.cos + along * self.sin
        z = self.z - across * self.sin + along * self.cos
        return camera.project(x, up, np.maximum(z, 0.8))

    def footprint(self, camera: Camera, grow: float = 0.1) -> Doubles:
        """The ground under the car, enlarged by `grow` metres, as a polygon (4, 2) in pixels."""
        half, end = self.body.width / 2 + grow, self.body.length + grow
        return self.project(camera, [(-grow, -half, 0), (-grow, half, 0), (end, half, 0), (end, -half, 0)])

    def draw(self, canvas: Canvas, camera: Camera, light: Light) -> None:
        """Paints the visible faces: first the wheels, then panels from far to near, then the sides and both ends."""
        wheels, panels, sides = self.faces
        across = (face for panel in (panels[::-1] if self.cos > 0 else panels) for face in panel)
        faces = [face for face in (*wheels, *across, *sides) if self.z < _FINE or not face.fine]
        pixels = self.project(camera, (point for face in faces for point in face.points))
        corners, shapes = pixels.tolist(), fixed_point(pixels)
        colours = self._colours(light)
        first = 0
        for face in faces:
            last = first + len(face.points)
            if face.part == "tyre" or _is_anticlockwise(corners[first:last]):
                canvas.fill(shapes[first:last], colours[face.part], CAR, self.z)
            first = last

    def _colours(self, light: Light) -> dict[str, Colour]:
        # A car that drives towards the camera shows its left flank on the picture's right.
        way = self.cos if abs(self.cos) > 0.5 else -self.sin
        left, right = (shade(self.paint, light.wall(facing)) for facing in (way > 0, way < 0))
        red, green, blue = (int(0.26 * sky + 16) for sky in light.haze)
        return {
            "top": shade(self.paint, 1.16),
            "end": shade(self.paint, light.front * 0.9),
            "bumper": shade(self.paint, 0.5),
            "glass": (red, green, blue),
            "side glass": shade((red, green, blue), 0.8),
            "left": left,
            "right": right,
            "left sill": shade(left, 0.78),
            "right sill": shade(right, 0.78),
            "tyre": (26, 26, 28),
            "wheel": (26, 26, 28),
            "hub": (112, 112, 114),
            "tail lamp": (176, 24, 22),
            "head lamp": (244, 240, 220),
            "plate": (214, 212, 200),
        }


def _panels(body: _Body) -> list[tuple[_Face, ...]]:
    """The strips across the car, from the rear over the roof to the front."""
    half = body.width / 2
    panels: list[tuple[_Face, ...]] = []
    for ((l0, y0), (l1, y1)), kind in zip(pairwise(body.outline), body.edges, strict=True):
        strip = _Face(
            "top" if abs(y1 - y0) < 0.25 else "end",
            ((l0, -half, y0), (l0, half, y0), (l1, half, y1), (l1, -half, y1)),
        )
        panels.append((strip, _pane(strip)) if kind in "rw" else (strip,))
    return panels


def _pane(strip: _Face) -> _Face:
    """The glass in a strip, which has the same shape and is a little smaller."""
    corners = np.array(strip.points)
    middle = corners.mean(axis=0)
    shrunk = (middle + (corners - middle) * 0.84).tolist()
    return _Face("glass", tuple((along, across, up) for along, across, up in shrunk))


def _sides(body: _Body) -> list[_Face]:
    """Both sides with windows and wheels, then rear and front with lamps, bumper and number plate."""
    faces: list[_Face] = []
    half, end = body.width / 2, body.length
    middle = (body.window[1][0] + body.window[2][0]) / 2
    low, high = body.window[0][1], body.window[1][1]
    sill = ((0.05, 0.3), (0.05, 0.5), (end - 0.05, 0.5), (end - 0.05, 0.3))
    pillar = ((middle, low), (middle, high), (middle + 0.09, high), (middle + 0.09, low))
    for name, across in (("left", -half), ("right", half)):
        flat = (
            (name, body.outline),
            (f"{name} sill", sill),
            ("side glass", body.window),
            (f"{name} sill", pillar),
        )
        faces += [_Face(part, _upright(shape, across), part.endswith("sill")) for part, shape in flat]
        for centre in (0.78, end - 0.82):
            faces.append(_Face("wheel", _upright(_wheel(centre, 0.32)[::-1], across)))
            faces.append(_Face("hub", _upright(_wheel(centre, 0.19)[::-1], across), True))
    for lamp, along, way in (("tail lamp", 0.0, 1), ("head lamp", end, -1)):
        boxes = [("bumper", -half, half, 0.3, 0.45), ("plate", -0.26, 0.26, 0.48, 0.6)]
        boxes += [(lamp, c - 0.17, c + 0.17, 0.66, 0.82) for c in (-half + 0.22, half - 0.22)]
        for part, left, right, bottom, top in boxes:
            box = ((along, left, bottom), (along, right, bottom), (along, right, top), (along, left, top))
            faces.append(_Face(part, box[::way], part != lamp))
    return faces


def _tyres(body: _Body) -> list[_Face]:
    """The parts of the wheels below the body, which are visible from all sides."""
    return [
        _Face("tyre", _upright(_wheel(centre, 0.32), across))
        for across in (-0.43 * body.width, 0.43 * body.width)
        for centre in (0.78, body.length - 0.82)
    ]


def _wheel(centre: float, radius: float) -> tuple[tuple[float, float], ...]:
    return tuple((centre + radius * cos, 0.32 + radius * sin) for cos, sin in _RIM)


def _upright(shape: tuple[tuple[float, float], ...], across: float) -> tuple[Point, ...]:
    """A shape (length, height), seen from the left, on the left side of the car or mirrored on the right side."""
    points = tuple((along, across, up) for along, up in shape)
    return points[::-1] if across > 0 else points


def _is_anticlockwise(corners: list[list[float]]) -> bool:
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairwise([*corners, corners[0]])) < 0


_FACES = tuple((_tyres(body), _panels(body), _sides(body)) for body in _BODIES)
