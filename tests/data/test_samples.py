"""Samples: their numbers, and what loads under a number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from segskd.data.cards import load_card
from segskd.data.dataset import list_pairs
from segskd.data.samples import Samples
from segskd.data.transforms import ViewMaker

COUNT = 12


def make(data: Path, card_path: Path, views: int, size: tuple[int, int] = (64, 96)) -> Samples:
    card = load_card(card_path)
    return Samples(list_pairs(card, data, "train"), views, ViewMaker(card, size), card)


def test_a_views_samples_lie_together(data: Path, card_path: Path) -> None:
    samples = make(data, card_path, views=3)
    assert (len(samples), samples.images) == (3 * COUNT, COUNT)
    pixels, masks = samples.load([4, COUNT + 4, 5])
    assert torch.equal(pixels[1], pixels[0].flip(-1))
    assert torch.equal(masks[1], masks[0].flip(-1))
    truth = np.asarray(Image.open(data / "bands/train/masks/b04.png"))
    assert np.array_equal(masks[0].numpy(), truth)
    truth = np.asarray(Image.open(data / "bands/train/masks/b05.png"))
    assert np.array_equal(masks[2].numpy(), truth)


def test_shapes_and_types(data: Path, card_path: Path) -> None:
    pixels, masks = make(data, card_path, views=4, size=(45, 61)).load(range(5))
    assert (pixels.shape, pixels.dtype) == ((5, 3, 64, 64), torch.float32)
    assert (masks.shape, masks.dtype) == ((5, 64, 64), torch.uint8)


def test_threads_do_not_mix_the_views_up(data: Path, card_path: Path) -> None:
    samples = make(data, card_path, views=20)
    numbers = list(range(2 * COUNT, len(samples)))
    pixels, masks = samples.load(numbers)
    for place, number in enumerate(numbers):
        alone, mask = samples.load([number])
        assert torch.equal(pixels[place], alone[0])
        assert torch.equal(masks[place], mask[0])


def test_the_order_asked_for_is_the_order_given(data: Path, card_path: Path) -> None:
    samples = make(data, card_path, views=3)
    forward, backward = samples.load(range(30))[0], samples.load(range(29, -1, -1))[0]
    assert torch.equal(forward, backward.flip(0))
