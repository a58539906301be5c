"""Small pictures of a dataset's images, with or without their masks, as data URLs. They are cached in memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

import cv2
import numpy as np

from segskd.data.cards import UNKNOWN, Card
from segskd.data.dataset import Pair, decode_mask
from segskd.data.pixels import Uint8, displayed, read_image
from segskd.errors import UserError
from segskd.evaluate.pictures import overlay

from .dataurl import jpeg_url

WIDTH = 160
QUALITY = 82
MOST_AT_ONCE = 24
LIMIT_BYTES = 64 << 20
NO_CLASS = 255


class Thumbnails:
    """Draws thumbnails and caches the last ones, up to `limit` bytes."""

    def __init__(self, limit: int = LIMIT_BYTES) -> None:
        self._limit = limit
        self._cache: OrderedDict[tuple[object, ...], str] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def page(self, version: str, card: Card, pairs: Sequence[Pair], masks: bool) -> list[str | None]:
        """A data URL for each of the first MOST_AT_ONCE pairs; None where the image or mask can't be read.

        `version` is the dataset's; with another version thumbnails are drawn again.
        """
        return [self._one(version, card, pair, masks) for pair in pairs[:MOST_AT_ONCE]]

    def _one(self, version: str, card: Card, pair: Pair, masks: bool) -> str | None:
        try:
            changed = (pair.image.stat().st_mtime_ns, pair.mask.stat().st_mtime_ns)
            key = (version, pair, masks, changed)
            with self._lock:
                if key in self._cache:
                    self._cache.move_to_end(key)
                    return self._cache[key]
            url = jpeg_url(thumbnail(card, pair, masks), QUALITY)
        except (UserError, OSError):  # the check of the dataset reports what is wrong with the file
            return None
        self._add_to_cache(key, url)
        return url

    def _add_to_cache(self, key: tuple[object, ...], url: str) -> None:
        with self._lock:
            if key not in self._cache:
                self._bytes += len(url)
            self._cache[key] = url
            while self._bytes > self._limit:
                self._bytes -= len(self._cache.popitem(last=False)[1])


def thumbnail(card: Card, pair: Pair, masks: bool) -> Uint8:
    """The image RGB (h, w, 3), at most WIDTH pixels a side, with its mask over it if asked for.

    Raises UserError when a file can't be read.
    """
    image = displayed(read_image(pair.image, card))
    scale = min(1.0, WIDTH / max(image.shape[:2]))
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    if not masks:
        return small
    mask = decode_mask(pair.mask, card)
    known = np.where(mask == UNKNOWN, NO_CLASS, mask).astype(np.uint8)
    nearest = cv2.resize(known, size, interpolation=cv2.INTER_NEAREST_EXACT).astype(np.uint8, copy=False)
    return overlay(small, nearest, card)
