"""Chooses at random what stands where in a sample scene: weather, road, houses, traffic and people."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from segskd.scenes.cars import Car
from segskd.scenes.ground import Crossroad, Road
from segskd.scenes.houses import House, draw_house
from segskd.scenes.parts import CANVAS_HEIGHT, CANVAS_WIDTH, Camera, Canvas, Doubles, Light, Rng, vary
from segskd.scenes.things import draw_foliage, draw_person, draw_pole, draw_tree

_NOON = Light((0.5, 0.4), 0.85, (1.16, 1.15, 1.11), (84, 138, 208), (196, 216, 232), 0.45, 0.0012, 0.0)
_OVERCAST = Light((0.2, 0.2), 0.12, (1.05, 1.08, 1.1), (176, 184, 194), (208, 212, 216), 0.9, 0.003, 0.05)
_GOLDEN = Light((1.3, 0.8), 0.9, (1.2, 1.05, 0.86), (116, 150, 194), (250, 214, 164), 0.4, 0.002, 0.1)
_DUSK = Light((0.8, -0.6), 0.1, (0.78, 0.72, 0.86), (74, 88, 138), (232, 164, 138), 0.5, 0.0025, 0.5)
_FOG = Light((0.2, 0.2), 0.03, (0.95, 0.97, 0.98), (196, 200, 202), (206, 208, 208), 0.3, 0.018, 0.12)
_HAZE = Light((0.9, -0.7), 0.6, (1.14, 1.12, 1.05), (150, 180, 206), (222, 222, 212), 0.3, 0.006, 0.0)
_WEATHER = ((_NOON, 0.34), (_OVERCAST, 0.2), (_GOLDEN, 0.17), (_DUSK, 0.1), (_FOG, 0.07), (_HAZE, 0.12))


_CIRCLE = np.array([(np.cos(a), np.sin(a)) for a in np.arange(10) * (np.pi / 5)]).T

Painter = partial[None]


@dataclass(frozen=True)
class Street:
    """The street of a scene. `walk_left` and `walk_right` are x of the house fronts."""

    camera: Camera
    light: Light
    road: Road
    houses: tuple[House, ...]
    walk_left: float
    walk_right: float

    def walk(self, side: int) -> tuple[float, float]:
        """x of the kerb and of the house fronts on a side, which is -1 left or 1 right."""
        return (self.road.left, self.walk_left) if side < 0 else (self.road.right, self.walk_right)

    def crossroad(self, side: int) -> Crossroad | None:
        return next((c for c in self.road.crossroads if c.side == side), None)

    def is_crossroad(self, side: int, z: float) -> bool:
        cross = self.crossroad(side)
        return cross is not None and cross.start - 1 < z < cross.end + 1


def lay_out(rng: Rng) -> Street:
    """Chooses a street at random."""
    light = _light(rng)
    lane = float(rng.uniform(2.9, 3.5))
    left, right = (int(n) for n in rng.choice([1, 1, 2], 2))
    parking = [2.3 if rng.random() < 0.6 else 0.0 for _ in range(2)]
    crossroads = []
    for side in (-1, 1):
        if rng.random() < 0.4:
            start = float(rng.uniform(14, 45))
            crossroads.append(Crossroad(side, start, start + float(rng.uniform(7, 11))))
    zebra = float(rng.uniform(7, 26)) if rng.random() < 0.35 else None
    if zebra is not None and crossroads:
        zebra = max(6.0, crossroads[0].start - 4.5)
    road = Road(-left * lane - parking[0], right * lane + parking[1], lane, left, right, zebra, tuple(crossroads))
    walk_left, walk_right = road.left - float(rng.uniform(2.2, 6)), road.right + float(rng.uniform(2.2, 6))
    camera = _camera(rng, road)
    houses = [*_row(rng, -1, walk_left, road), *_row(rng, 1, walk_right, road)]
    return Street(camera, light, road, tuple(houses), walk_left, walk_right)


def furnish(canvas: Canvas, rng: Rng, street: Street) -> Furniture:
    """Puts houses, traffic, trees, poles and people into the street. It paints nothing yet."""
    stage = Furniture(canvas, rng, street)
    stage.place_houses()
    stage.place_traffic()
    for side in (-1, 1):
        stage.place_parked(side)
        stage.place_trees(side)
        stage.place_poles(side)
    stage.place_people()
    return stage


def _light(rng: Rng) -> Light:
    kinds = [light for light, _ in _WEATHER]
    light = kinds[int(rng.choice(len(kinds), p=[weight for _, weight in _WEATHER]))]
    side = 1.0 if rng.random() < 0.5 else -1.0
    reach = float(rng.uniform(0.6, 1.3))
    exposure = float(rng.uniform(0.82, 1.12))
    red, green, blue = (gain * exposure * float(rng.uniform(0.97, 1.03)) for gain in light.gain)
    return Light(
        sun=(light.sun[0] * side * reach, light.sun[1] * float(rng.uniform(-1.2, 1.2))),
        direct=light.direct * float(rng.uniform(0.7, 1.0)),
        gain=(red, green, blue),
        zenith=vary(rng, light.zenith, 14),
        haze=vary(rng, light.haze, 12),
        clouds=light.clouds * float(rng.uniform(0.1, 1.3)),
        fog=light.fog * float(rng.uniform(0.6, 1.5)),
        lit=light.lit,
    )


def _camera(rng: Rng, road: Road) -> Camera:
    own = int(rng.integers(road.lanes_right)) + 0.5
    return Camera(
        focal=float(rng.uniform(350, 470)),
        centre=CANVAS_WIDTH / 2 + float(rng.uniform(-60, 60)),
        horizon=CANVAS_HEIGHT * float(rng.uniform(0.4, 0.53)),
        height=float(rng.uniform(1.25, 1.9)),
        side=own * road.lane + float(rng.uniform(-0.4, 0.4)),
        curve=float(rng.choice([0.0, 1.0])) * float(rng.uniform(-0.0022, 0.0022)),
        roll=float(rng.uniform(-0.025, 0.025)),
    )


def _row(rng: Rng, side: int, wall: float, road: Road) -> list[House]:
    """Houses along one side, with gaps for side streets, yards and parks."""
    cross = next((c for c in road.crossroads if c.side == side), None)
    tall = float(rng.uniform(5, 17))
    houses: list[House] = []
    z = float(rng.uniform(2.0, 4.0))
    while z < 90:
        if rng.random() < 0.18:
            z += float(rng.uniform(5, 22))
        end = z + float(rng.uniform(6, 20))
        if cross and z < cross.end + 2 and end > cross.start - 2:
            if cross.start - 2 - z > 5:
                houses.append(_house(rng, side, wall, z, cross.start - 2, tall, houses))
            z = cross.end + 2
            continue
        houses.append(_house(rng, side, wall, z, end, tall, houses))
        z = end
    return houses


def _house(rng: Rng, side: int, wall: float, start: float, end: float, tall: float, row: list[House]) -> House:
    back = float(rng.choice([0.0, 0.0, 1.5])) * float(rng.uniform(0.3, 1.0))
    height = tall * float(rng.uniform(0.65, 1.4))
    depth = float(rng.uniform(8, 14))
    pitched = bool(rng.random() < 0.4 and tall < 12)
    front = wall + side * back
    before = row[-1] if row and row[-1].end == start else None
    joined = before is not None and before.height >= height and side * (front - before.wall) >= 0
    return House(side, front, start, end, height, depth, pitched, joined)


class Furniture:
    """All things in the street.

    `things` are unordered pairs of a distance and a function that paints the thing. `casts` are the sun's shadows on
    the ground, and `soft` are the places right under things, both as polygons (N, 2) in pixels.
    """

    def __init__(self, canvas: Canvas, rng: Rng, street: Street) -> None:
        self.canvas, self.rng, self.street = canvas, rng, street
        self.camera, self.light = street.camera, street.light
        self.things: list[tuple[float, Painter]] = []
        self.casts: list[Doubles] = []
        self.soft: list[Doubles] = []

    def place_houses(self) -> None:
        for house in self.street.houses:
            painter = partial(draw_house, self.canvas, self.rng, self.camera, self.light, house)
            self.things.append((house.end, painter))
            self._cast([(house.wall, house.start), (house.wall, house.end)], [house.height, house.height])

    def place_traffic(self) -> None:
        road, rng = self.street.road, self.rng
        spacing = float(rng.choice([9.0, 18.0, 35.0], p=[0.25, 0.45, 0.3]))
        for lane in range(-road.lanes_left, road.lanes_right):
            x = (lane + 0.5) * road.lane
            own = abs(x - self.camera.side) < 1.5
            z = float(rng.uniform(8 if own else 5, 30))
            while z < 95:
                if road.zebra is None or not road.zebra - 3 < z < road.zebra + 6:
                    turn = (np.pi if lane < 0 else 0.0) + float(rng.uniform(-0.03, 0.03))
                    self._car(x + float(rng.uniform(-0.25, 0.25)), z, turn)
                z += 6.5 + spacing * 3 * float(rng.random()) ** 2
        for cross in road.crossroads:
            if rng.random() < 0.45:
                x = cross.side * float(rng.uniform(abs(road.right) + 3, 16))
                self._car(x, (cross.start + cross.end) / 2 + float(rng.uniform(-2, 2)), cross.side * np.pi / 2)

    def place_parked(self, side: int) -> None:
        road, rng = self.street.road, self.rng
        edge, _ = self.street.walk(side)
        lanes = (road.lanes_left if side < 0 else road.lanes_right) * road.lane
        if abs(edge) - lanes < 2:
            return
        fullness = float(rng.uniform(0.3, 0.95))
        z = float(rng.uniform(4, 9))
        while z < 75:
            if rng.random() < fullness and not self.street.is_crossroad(side, z):
                turn = (np.pi if side < 0 else 0.0) + float(rng.uniform(-0.05, 0.05))
                self._car(edge - side * float(rng.uniform(1.0, 1.3)), z, turn)
            z += float(rng.uniform(5.2, 6.8))

    def place_trees(self, side: int) -> None:
        rng = self.rng
        kerb, wall = self.street.walk(side)
        spacing = float(rng.choice([9.0, 16.0, 40.0]))
        z = float(rng.uniform(5, 5 + spacing))
        while z < 85:
            if not self.street.is_crossroad(side, z):
                self._tree(kerb + side * float(rng.uniform(0.7, 1.2)), z, float(rng.uniform(4, 8.5)))
            z += spacing * float(rng.uniform(0.7, 1.4))
        built = [(h.start, h.end) for h in self.street.houses if h.side == side]
        for z in np.arange(6.0, 85.0, 3.0) + rng.uniform(-1, 1):
            free = not any(start - 1 < z < end + 1 for start, end in built)
            if free and not self.street.is_crossroad(side, float(z)):
                self._garden(wall + side * float(rng.uniform(0.5, 5)), float(z))

    def place_poles(self, side: int) -> None:
        rng = self.rng
        kerb, _ = self.street.walk(side)
        lamp, z = bool(rng.random() < 0.75), float(rng.uniform(6, 24))
        while lamp and z < 90:
            self._pole(kerb + side * 0.5, z, "lamp")
            z += float(rng.uniform(18, 26))
        for _ in range(int(rng.integers(0, 5))):
            self._pole(kerb + side * float(rng.uniform(0.3, 0.7)), float(rng.uniform(5, 50)), "sign")
        if rng.random() < 0.3:
            start = float(rng.uniform(5, 20))
            for z in np.arange(start, start + 14, 1.6):
                self._pole(kerb + side * 0.4, float(z), "bollard")
        for cross in self.street.road.crossroads:
            if rng.random() < 0.6:
                self._pole(kerb + side * 0.6, cross.start - 1.5, "signal")

    def place_people(self) -> None:
        rng, road = self.rng, self.street.road
        for _ in range(int(rng.integers(1, 8))):
            side = -1 if rng.random() < 0.5 else 1
            kerb, wall = self.street.walk(side)
            z = 5 + 50 * float(rng.random()) ** 2
            x = float(rng.uniform(min(kerb, wall), max(kerb, wall)))
            for _ in range(int(rng.choice([1, 2, 3], p=[0.6, 0.3, 0.1]))):
                self._person(x, z)
                x, z = x + float(rng.uniform(-0.7, 0.7)), z + float(rng.uniform(-0.6, 0.6))
        if road.zebra is not None:
            for _ in range(int(rng.integers(0, 5))):
                self._person(float(rng.uniform(road.left, road.right)), road.zebra + float(rng.uniform(0.3, 2.7)))
        if rng.random() < 0.25:
            self._person(float(rng.uniform(road.left, road.right)), float(rng.uniform(14, 45)))

    def _car(self, x: float, z: float, turn: float) -> None:
        car = Car(self.rng, x, z, turn)
        self.things.append((z, partial(car.draw, self.canvas, self.camera, self.light)))
        self.soft.append(car.footprint(self.camera))
        self._cast([(x, z - 2.0), (x, z + 2.0)], [1.3, 1.3])

    def _person(self, x: float, z: float) -> None:
        self.things.append((z, partial(draw_person, self.canvas, self.rng, self.camera, self.light, x, z)))
        self.soft.append(self._spot(x, z, 0.3))
        self._cast([(x - 0.2, z), (x + 0.2, z)], [1.6, 1.6])

    def _tree(self, x: float, z: float, height: float) -> None:
        painter = partial(draw_tree, self.canvas, self.rng, self.camera, self.light, x, z, height)
        self.things.append((z, painter))
        self._cast([(x - 0.15, z), (x + 0.15, z)], [height * 0.5, height * 0.5])
        sun = self.light.sun
        for _ in range(7):
            reach = height * float(self.rng.uniform(0.4, 0.95))
            spot = (x + sun[0] * reach + float(self.rng.uniform(-1, 1)), z + sun[1] * reach)
            self.casts.append(self._spot(*spot, float(self.rng.uniform(0.3, 1.1))))

    def _garden(self, x: float, z: float) -> None:
        if self.rng.random() < 0.3:
            self._tree(x, z, float(self.rng.uniform(4, 9)))
            return
        green = vary(self.rng, (76, 100, 54), 20)
        size = (float(self.rng.uniform(1.2, 2.4)), float(self.rng.uniform(0.6, 1.5)))
        bush = partial(draw_foliage, self.canvas, self.rng, self.camera, self.light, green)
        self.things.append((z, partial(bush, (x, size[1] * 0.8, z), size)))
        self.soft.append(self._spot(x, z, size[0]))

    def _pole(self, x: float, z: float, kind: str) -> None:
        painter = partial(draw_pole, self.canvas, self.rng, self.camera, self.light, x, z, kind)
        self.things.append((z, painter))
        self._cast([(x - 0.07, z), (x + 0.07, z)], [2.5, 2.5])

    def _spot(self, x: float, z: float, radius: float) -> Doubles:
        across, along = _CIRCLE
        return self.camera.project(x + radius * across, 0, np.maximum(z + radius * along, 1.0))

    def _cast(self, base: list[tuple[float, float]], heights: list[float]) -> None:
        """Adds the shadow of an upright rectangle that stands on `base`, two points (x, z)."""
        (x0, z0), (x1, z1) = base
        sun = self.light.sun
        x = np.array([x0, x1, x1 + sun[0] * heights[1], x0 + sun[0] * heights[0]])
        z = np.array([z0, z1, z1 + sun[1] * heights[1], z0 + sun[1] * heights[0]])
        self.casts.append(self.camera.project(x, 0, np.maximum(z, 1.0)))
