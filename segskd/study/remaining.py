"""How long a study will go on, from the cells that it has finished."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


class Durations:
    """Wall seconds of the cells that finished, by method: cells see equally many images, methods cost differently."""

    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = {}

    def add(self, method: str, seconds: float) -> None:
        self._seconds.setdefault(method, []).append(seconds)

    def left(self, cells: Sequence[tuple[str, float]], jobs: int) -> str:
        """In words, for (method, seconds it has been worked on) of each cell that is left; "" when nothing is known.

        A method of which no cell has finished is taken to last as long as the mean of all others.
        """
        known = [seconds for some in self._seconds.values() for seconds in some]
        if not known or not cells:
            return ""
        mean = {method: statistics.fmean(seconds) for method, seconds in self._seconds.items()}
        usual = statistics.fmean(known)
        waits = [max(0.0, mean.get(method, usual) - spent) for method, spent in cells]
        return f"about {_in_words(max(sum(waits) / jobs, max(waits)))} left"


def _in_words(seconds: float) -> str:
    if seconds < 2 * 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"
