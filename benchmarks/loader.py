"""Measures images per second of the data path, and of only decoding the same files.

    python benchmarks/loader.py [--dataset camvid] [--data DIR] [--views 4]

Four figures are measured in turns, in samples a second. `decode` reads image and mask with OpenCV in one thread, and
`decode, threads` does so in as many threads as the data path has. `views` is the whole data path: decoding, check of
the mask, augmentation, normalisation, tensors. `store` fills a feature store with the images and masks of all views.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import cv2
import torch
import tyro

from segskd.config import Size
from segskd.data.cards import data_folder, load_card
from segskd.data.dataset import Pair, list_pairs
from segskd.data.samples import THREADS, Samples
from segskd.data.transforms import ViewMaker
from segskd.distill.caching.contents import IMAGE_KEY, MASK_KEY
from segskd.distill.caching.store import FeatureComputer, FeatureStore

CHUNK = 8


@dataclass(frozen=True)
class Options:
    """What to time."""

    dataset: str = "camvid"
    """Name of a card, or the path of one."""
    data: str | None = None
    """Where datasets lie."""
    size: str = "192x256"
    """Height x width."""
    images: int = 64
    """Images of the training split."""
    views: int = 4
    """Views an image."""
    rounds: int = 5
    """How often each is measured."""


def main(options: Options) -> None:
    """Prints a Markdown table: the median of the rounds, the least and the most."""
    data = data_folder(options.data)
    card = load_card(options.dataset, data)
    pairs = list_pairs(card, data, "train")[: options.images]
    height, width = map(int, options.size.split("x"))

    def samples() -> Samples:
        return Samples(pairs, options.views, ViewMaker(card, (height, width)), card)

    ways: dict[str, tuple[int, Callable[[], object]]] = {
        "decode": (len(pairs), lambda: _decode(pairs)),
        f"decode, {THREADS} threads": (len(pairs), lambda: _decode_side_by_side(pairs)),
        "views": (len(pairs) * options.views, lambda: _make(samples())),
        "store": (len(pairs) * options.views, lambda: _fill(samples(), (height, width))),
    }
    speeds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(options.rounds + 1):  # the first turn warms up the cache of files
        for way, (count, work) in ways.items():
            started = time.perf_counter()
            work()
            if turn:
                speeds[way].append(count / (time.perf_counter() - started))
    print(f"{options.dataset}, {len(pairs)} images, {options.views} views, {options.size}\n")
    print("| way | samples/s | from | to |\n|---|---:|---:|---:|")
    for way, measured in speeds.items():
        print(f"| {way} | {statistics.median(measured):.0f} | {min(measured):.0f} | {max(measured):.0f} |")


def _decode(pairs: Sequence[Pair]) -> None:
    for pair in pairs:
        _read(pair)


def _decode_side_by_side(pairs: Sequence[Pair]) -> None:
    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(_read, pairs))


def _read(pair: Pair) -> None:
    cv2.imread(str(pair.image), cv2.IMREAD_COLOR)
    cv2.imread(str(pair.mask), cv2.IMREAD_UNCHANGED)


def _make(samples: Samples) -> None:
    for numbers in samples.image_by_image(CHUNK):
        samples.load(numbers.tolist())


def _fill(samples: Samples, size: Size) -> None:
    networks = FeatureComputer({}, size, torch.device("cpu"), torch.float32, nullcontext)
    with tempfile.TemporaryDirectory() as place:
        store = FeatureStore(samples, networks, "memory", Path(place), CHUNK)
        store.advance(frozenset({IMAGE_KEY, MASK_KEY}))
        store.close()


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
