"""Samples: the (image, view) pairs of a run, decoded and transformed on request by several threads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from segskd.data.cards import Card
from segskd.data.dataset import Pair, Uint8, read_image, read_mask
from segskd.data.transforms import ViewMaker
from segskd.data.unlabelled import Example

THREADS = 2
KEPT_IMAGES = 16


class Samples:
    """Numbered samples: number = view · images + image, so that a view's samples lie together.

    The mask of an image without one is the ignore index everywhere.
    """

    def __init__(self, pairs: Sequence[Pair | Example], views: int, make_view: ViewMaker, card: Card) -> None:
        self.pairs = list(pairs)
        self.views = views
        self.make_view = make_view
        self.card = card

        @lru_cache(maxsize=KEPT_IMAGES)
        def read(image: int) -> tuple[Uint8, Uint8]:
            pair = self.pairs[image]
            pixels = read_image(pair.image)
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
        """Images float32 (N, 3, h, w) and masks uint8 (N, h, w). Raises UserError for a file that can't be read."""
        with ThreadPoolExecutor(THREADS) as threads:
            made = list(threads.map(self._load_one, numbers))
        return torch.stack([image for image, _ in made]), torch.stack([mask for _, mask in made])

    def _load_one(self, number: int) -> tuple[Tensor, Tensor]:
        view, image = divmod(number, self.images)
        pixels, mask = self.make_view(*self._read(image), self.pairs[image].name, view)
        return pixels, mask.to(torch.uint8)
