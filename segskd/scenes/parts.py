"""The tools that draw sample scenes: camera, canvas, light and noise.

Scenes are drawn at twice their final size, from far to near. Coordinates are metres in the street: x to the right of
the centre line, y above the ground, z ahead of the camera.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

SKY, BUILDING, ROAD, MARKING, PAVEMENT, TREE, POLE, CAR, PERSON = range(9)
IGNORED = 255

CANVAS_HEIGHT, CANVAS_WIDTH = 384, 512
FAR = 400.0
_SUBPIXEL_BITS = 4

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Colour = tuple[int, int, int]
Rng = np.random.Generator


def shade(colour: Sequence[int], factor: float) -> Colour:
    """The colour, RGB 0-255, made darker (factor < 1) or lighter."""
    red, green, blue = (min(255, max(0, int(channel * factor))) for channel in colour)
    return red, green, blue


def vary(rng: Rng, colour: Sequence[int], by: int) -> Colour:
    """The colour, randomly changed: its brightness by up to `by`, and each channel by up to a third of that."""
    common = int(rng.integers(-by, by + 1))
    red, green, blue = (min(255, max(0, c + common + int(rng.integers(-by // 3, by // 3 + 1)))) for c in colour)
    return red, green, blue


def pick(rng: Rng, colours: Sequence[Colour]) -> Colour:
    """One of the colours, at random."""
    return colours[int(rng.integers(len(colours)))]


def noise(rng: Rng, height: int, width: int, cell: int, octaves: int = 1) -> Floats:
    """Smooth noise float32 (height, width) in [0, 1], whose largest patches are `cell` pixels wide.

    Each further octave adds patches of half the size with half the weight, down to two pixels.
    """
    total: Floats = np.zeros((height, width), np.float32)
    weight, sum_of_weights = 1.0, 0.0
    for _ in range(octaves):
        shape = (height // cell + 2, width // cell + 2)
        grid = rng.integers(0, 256, shape, dtype=np.uint8)
        smooth = cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
        total += np.float32(weight / 255) * smooth
        sum_of_weights += weight
        if cell <= 2:
            break
        weight, cell = weight / 2, cell // 2
    return total / np.float32(sum_of_weights)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera above a flat street that curves. Lengths are in metres, focal and centre in pixels."""

    focal: float
    centre: float
    horizon: float
    height: float
    side: float
    curve: float
    roll: float

    def project(self, x: float | Doubles, y: float | Doubles, z: float | Doubles) -> Doubles:
        """Points (N, 2) on the canvas, as column and row, of points in the street, whose z must be above 0."""
        column = self.focal * (x - self.side + self.curve * z * z) / z
        row = self.focal * (self.height - y) / z
        across = self.centre + column - self.roll * row
        points: Doubles = np.empty((*np.shape(across), 2))
        points[..., 0] = across
        points[..., 1] = self.horizon + row + self.roll * column
        return points

    def ground(self, first: int) -> tuple[Floats, Floats]:
        """x and z of the ground at each pixel from row `first` down. z is at most FAR, also above the horizon."""
        columns = np.arange(CANVAS_WIDTH, dtype=np.float32)[None, :] - np.float32(self.centre)
        rows = np.arange(first, CANVAS_HEIGHT, dtype=np.float32)[:, None] - np.float32(self.horizon)
        level = rows - np.float32(self.roll) * columns
        across = columns + np.float32(self.roll) * rows
        z = np.float32(self.focal * self.height) / np.maximum(level, np.float32(1e-3))
        z = np.minimum(z, np.float32(FAR))
        x = across * z / np.float32(self.focal) + np.float32(self.side) - np.float32(self.curve) * z * z
        return np.asarray(x, np.float32), np.asarray(z, np.float32)


@dataclass(frozen=True)
class Light:
    """Time of day and weather.

    `sun` is the direction of shadows: metres to the right and ahead for each metre of height. `direct` is the share of
    the light that casts shadows, from 0 for an overcast sky to 1. `gain` multiplies the channels of the photograph.
    `zenith` and `haze` are the sky's colours. `fog` is the loss of contrast per metre. `lit` is the share of lit
    windows.
    """

    sun: tuple[float, float]
    direct: float
    gain: tuple[float, float, float]
    zenith: Colour
    haze: Colour
    clouds: float
    fog: float
    lit: float

    def wall(self, facing_left: bool) -> float:
        """The brightness of a wall along the street that faces left or right."""
        towards = self.sun[0] if facing_left else -self.sun[0]
        return 0.92 + self.direct * (0.22 if towards > 0 else -0.3)

    @property
    def front(self) -> float:
        """The brightness of surfaces that face the camera."""
        return 0.92 + self.direct * (0.15 if self.sun[1] > 0 else -0.25)


@dataclass
class Canvas:
    """The picture that is painted, with the class and the distance of each pixel."""

    image: Bytes = field(default_factory=lambda: np.zeros((CANVAS_HEIGHT, CANVAS_WIDTH, 3), np.uint8))
    mask: Bytes = field(default_factory=lambda: np.zeros((CANVAS_HEIGHT, CANVAS_WIDTH), np.uint8))
    depth: Floats = field(default_factory=lambda: np.full((CANVAS_HEIGHT, CANVAS_WIDTH), FAR, np.float32))

    def polygon(self, points: Doubles, colour: Sequence[int], label: int, depth: float) -> None:
        """Fills the polygon (N, 2) with one colour, one class `label` and one `depth`."""
        self.fill(fixed_point(points), colour, label, depth)

    def fill(self, shape: NDArray[np.int32], colour: Sequence[int], label: int, depth: float) -> None:
        """As `polygon`, for a polygon that `fixed_point` has converted."""
        cv2.fillPoly(self.image, [shape], [int(c) for c in colour], cv2.LINE_8, _SUBPIXEL_BITS)
        cv2.fillPoly(self.mask, [shape], label, cv2.LINE_8, _SUBPIXEL_BITS)
        cv2.fillPoly(self.depth, [shape], depth, cv2.LINE_8, _SUBPIXEL_BITS)

    def wall(self, corners: Doubles, depths: Sequence[float], texture: Bytes, label: int) -> None:
        """Paints the texture (h, w, 3) onto a flat quadrangle (4, 2).

        Corners and their distances are in the order top left, top right, bottom right, bottom left.
        """
        box = bounding_box(corners)
        if box is None:
            return
        left, top, right, bottom = box
        height, width = texture.shape[:2]
        source = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
        matrix = cv2.getPerspectiveTransform(source, (corners - (left, top)).astype(np.float32))
        size = (right - left, bottom - top)
        picture = cv2.warpPerspective(texture, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        inside: Bytes = np.zeros((size[1], size[0]), np.uint8)
        cv2.fillPoly(inside, [fixed_point(corners - (left, top))], 1, cv2.LINE_8, _SUBPIXEL_BITS)
        self.stamp(inside > 0, np.asarray(picture, np.uint8), left, top, label, _plane(corners, depths, box))

    def stamp(
        self,
        inside: NDArray[np.bool_],
        picture: Bytes,
        left: int,
        top: int,
        label: int,
        depth: float | Floats,
    ) -> None:
        """Copies the picture (h, w, 3) where `inside` (h, w) is true, with its corner at (left, top).

        Parts outside the canvas are cut off.
        """
        height, width = inside.shape
        y0, y1 = max(0, top), min(CANVAS_HEIGHT, top + height)
        x0, x1 = max(0, left), min(CANVAS_WIDTH, left + width)
        if y0 >= y1 or x0 >= x1:
            return
        part = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
        here = inside[part]
        np.copyto(self.image[y0:y1, x0:x1], picture[part], where=here[..., None])
        self.mask[y0:y1, x0:x1][here] = label
        np.copyto(self.depth[y0:y1, x0:x1], depth if isinstance(depth, float) else depth[part], where=here)


def fixed_point(points: Doubles) -> NDArray[np.int32]:
    """Points as OpenCV's fixed-point numbers. Points far outside the canvas are moved closer to it."""
    near = np.minimum(np.maximum(points, -1500), 2000)
    return np.asarray(np.rint(near * (1 << _SUBPIXEL_BITS)), np.int32)


def fill_ground(target: Bytes, points: Doubles, value: int) -> None:
    """Fills the polygon (N, 2) in an array of the canvas's size."""
    cv2.fillPoly(target, [fixed_point(points)], value, cv2.LINE_8, _SUBPIXEL_BITS)


def bounding_box(corners: Doubles) -> tuple[int, int, int, int] | None:
    """The part (left, top, right, bottom) of the canvas that a shape may touch, None if it lies outside."""
    left, top = np.floor(corners.min(axis=0)).astype(int)
    right, bottom = np.ceil(corners.max(axis=0)).astype(int) + 1
    left, top = max(0, int(left)), max(0, int(top))
    right, bottom = min(CANVAS_WIDTH, int(right)), min(CANVAS_HEIGHT, int(bottom))
    return (left, top, right, bottom) if left < right and top < bottom else None


def _plane(corners: Doubles, depths: Sequence[float], box: tuple[int, int, int, int]) -> Floats:
    """The distance of each pixel in the box. On a flat surface its inverse is linear in column and row."""
    left, top, right, bottom = box
    (x0, y0, w0), (x1, y1, w1), _, (x3, y3, w3) = np.column_stack([corners, 1 / np.asarray(depths)]).tolist()
    # A wall seen edge-on has no area to spread the distances over.
    area = (x1 - x0) * (y3 - y0) - (x3 - x0) * (y1 - y0) or 1.0
    a = ((w1 - w0) * (y3 - y0) - (w3 - w0) * (y1 - y0)) / area
    b = ((x1 - x0) * (w3 - w0) - (x3 - x0) * (w1 - w0)) / area
    c = w0 - a * x0 - b * y0
    columns = np.arange(left, right, dtype=np.float32)[None, :]
    rows = np.arange(top, bottom, dtype=np.float32)[:, None]
    inverse = np.float32(a) * columns + np.float32(b) * rows + np.float32(c)
    return np.asarray(np.float32(1) / np.maximum(inverse, np.float32(1 / FAR)), np.float32)
