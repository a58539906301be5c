"""Curves that stay small however long a run is."""

from __future__ import annotations

Point = tuple[float, float]


class Curve:
    """Points (x, y) in rising x, never more than `limit` of them.

    When there are too many, neighbours are merged: y becomes their mean, x the later one's. Every point then
    stands for the same number of measurements, but for the last, which stands for those since.
    """

    def __init__(self, limit: int = 300) -> None:
        if limit < 2 or limit % 2:
            raise ValueError(f"limit {limit} must be even and at least 2")
        self._limit = limit
        self._whole: list[Point] = []
        self._waiting: list[Point] = []
        self._each = 1

    def add(self, x: float, y: float) -> None:
        """Adds one measurement."""
        self._waiting.append((x, y))
        if len(self._waiting) == self._each:
            self._whole.append(_merged(self._waiting))
            self._waiting = []
        if len(self._whole) == self._limit:
            self._whole = [_merged(self._whole[i : i + 2]) for i in range(0, self._limit, 2)]
            self._each *= 2

    def cut(self, x: float) -> None:
        """Forgets what lies beyond x: a resumed run measures it anew."""
        self._whole = [point for point in self._whole if point[0] <= x]
        self._waiting = [point for point in self._waiting if point[0] <= x]

    @property
    def points(self) -> list[Point]:
        """The curve as it is now."""
        return [*self._whole, _merged(self._waiting)] if self._waiting else list(self._whole)


def _merged(points: list[Point]) -> Point:
    return points[-1][0], sum(y for _, y in points) / len(points)
