"""Samples: the (image, view) pairs of a run. Several threads decode and transform them on request."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from segskd.data.cards import Card
from segskd.data.dataset import Pair, read_mask
from segskd.data.pixels import Uint8, read_image
from segskd.data.transforms import ViewMaker
from segskd.data.unlabelled import Example
from segskd.standalone.bands import Pixels

THREADS = 2
KEPT_IMAGES = 16


class Samples:
    """The samples of a run by number: sample `view · images + image` is that view of that image.

    The mask of an image without one holds the ignore index everywhere.
    """

    def __init__(self, pairs: Sequence[Pair | Example], views: int, make_view: ViewMaker, card: Card) -> None:
        self.pairs = list(pairs)
        self.views = views
        self.make_view = make_view
        self.card = card

        @lru_cache(maxsize=KEPT_IMAGES)
        def read(image: int) -> tuple[Pixels, Uint8]:
            pair = self.pairs[image]
            pixels = read_image(pair.image, card)
            if pair.mask is None:
                return pixels, np.full(pixels.shape[:2], card.ignore_index, np.uint8)
            return pixels, read_mask(pair.mask, card)

        self._read = read

    def __len__(self) -> int:
        return len(self.pairs) * self.views

    @property
    def images(self) -> int:
        return len(self.pairs)

    def load(self, numbers: Iterable[int]) -> tuple[Tensor, Tensor]:
        """Images float32 (N, C, h, w) and masks uint8 (N, h, w) of samples. Raises UserError for an unreadable file."""
        wanted = list(numbers)
        views: dict[int, set[int]] = {}  # by image, so that one thread decodes an image and makes all of its views
        for view, image in (divmod(number, self.images) for number in wanted):
            views.setdefault(image, set()).add(view)
        with ThreadPoolExecutor(THREADS) as threads:
            made = dict(chain.from_iterable(threads.map(self._load_views, views.items())))
        return torch.stack([made[number][0] for number in wanted]), torch.stack([made[number][1] for number in wanted])

    def image_by_image(self, chunk: int) -> list[Tensor]:
        """The numbers of all samples, int64, in chunks of `chunk`. The views of an image follow one another."""
        numbers = torch.arange(len(self)).view(self.views, self.images).T.flatten()
        return list(torch.split(numbers, chunk)) if len(numbers) else []

    def _load_views(self, wanted: tuple[int, Iterable[int]]) -> list[tuple[int, tuple[Tensor, Tensor]]]:
        """Samples of one image with their numbers; `wanted` is the image and its views."""
        image, views = wanted
        made = []
        for view in sorted(views):
            pixels, mask = self.make_view(*self._read(image), self.pairs[image].name, view)
            made.append((view * self.images + image, (pixels, mask.to(torch.uint8))))
        return made
