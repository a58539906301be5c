"""Counts the pixels of each class in each mask of a split."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from segskd.callbacks import OnProgress
from segskd.data.cache import cached
from segskd.data.cards import Card
from segskd.data.dataset import Pair, read_mask

Counts = npt.NDArray[np.int64]
MAX_THREADS = 8


@dataclass(frozen=True, eq=False)
class PixelCounts:
    """Pixels by image and class. `counts` is int64 (N, C+1), a row for each name; the last column has ignored
    pixels."""

    names: tuple[str, ...]
    counts: Counts

    def of(self, names: Iterable[str]) -> Counts:
        """The counts of these images: int64 (len(names), C+1). Raises KeyError for an unknown name."""
        rows = np.array([self._rows[name] for name in names], dtype=np.intp)
        return self.counts[rows]

    def images_with(self, names: Iterable[str]) -> Counts:
        """How many of these images hold each class: int64 (C,)."""
        return np.asarray(np.count_nonzero(self.of(names)[:, :-1], axis=0), dtype=np.int64)

    def shares(self, names: Iterable[str]) -> npt.NDArray[np.float64]:
        """The share (C,) that each class has of these images' pixels without ignored ones. The sum is 1, or 0 without
        any."""
        pixels = self.of(names)[:, :-1].sum(axis=0)
        return np.asarray(pixels / max(pixels.sum(), 1), dtype=np.float64)

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.names)}


def pixel_counts(card: Card, pairs: Sequence[Pair], folder: Path, report: OnProgress | None = None) -> PixelCounts:
    """Counts the pixels of the pairs' masks, and caches the result in `folder` until the card or a mask changes.

    `report` is called with the number of masks that are counted and of all masks. Raises UserError for a mask that
    can't be read or holds a value that the card doesn't know.
    """
    inputs = [card.model_dump_json(), *(pair.name for pair in pairs)]
    masks = [pair.mask for pair in pairs]
    arrays = cached(folder, "pixel_counts", inputs, masks, lambda: {"counts": count_pixels(card, pairs, report).counts})
    return PixelCounts(tuple(pair.name for pair in pairs), arrays["counts"])


def count_pixels(card: Card, pairs: Sequence[Pair], report: OnProgress | None = None) -> PixelCounts:
    """As `pixel_counts`, without the cache."""
    rows = []
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as threads:
        for row in threads.map(lambda pair: _count(pair, card), pairs):
            rows.append(row)
            if report:
                report(len(rows), len(pairs))
    return PixelCounts(tuple(pair.name for pair in pairs), np.stack(rows))


def _count(pair: Pair, card: Card) -> Counts:
    counts = np.bincount(read_mask(pair.mask, card).ravel(), minlength=256)
    return np.append(counts[: len(card.classes)], counts[card.ignore_index]).astype(np.int64)
