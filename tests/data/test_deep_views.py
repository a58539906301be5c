"""Views of images that aren't RGB in 8 bits."""

from __future__ import annotations

from typing import Any

import albumentations as A
import numpy as np
import numpy.typing as npt
import pytest
import torch

from segskd.data.cards import Card
from segskd.data.transforms import BrightnessContrast, ViewMaker

Array = npt.NDArray[Any]
MASK = np.zeros((64, 64), np.uint8)


def make_card(channels: int) -> Card:
    content = {
        "name": "deep",
        "title": "deep images",
        "folder": "deep",
        "classes": [{"name": name, "color": [i, i, i]} for i, name in enumerate("ab")],
        "splits": {"train": {"images": "{name}.png", "masks": "m/{name}.png"}},
        "channels": channels,
        "mean": [0.25] * channels,
        "std": [0.5] * channels,
    }
    return Card.model_validate(content)


def smooth(channels: int) -> Array:
    """Ramps from 50 to 200 in several directions, uint8 (64, 64, channels)."""
    row = np.linspace(0, 1, 64)
    ramps = [row[None] + 0 * row[:, None], row[:, None] + 0 * row, (row + row[:, None]) / 2, 1 - row + 0 * row[:, None]]
    return (50 + 150 * np.stack(ramps[:channels], -1)).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bits_give_the_views_of_8(channels: int) -> None:
    """Up to the rounding to 8 bits after each step: some steps of 1/255, of which std makes twice as much."""
    image, make = smooth(channels), ViewMaker(make_card(channels), (32, 40), seed=1)
    for view in range(6):
        coarse, _ = make(image, MASK, "x", view)
        fine, _ = make(image.astype(np.float32) / 255, MASK, "x", view)
        assert coarse.shape == fine.shape == (channels, 32, 64)
        assert fine.dtype == torch.float32
        assert (coarse - fine).abs().max() < 2 * 4.5 / 255


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_view_0_by_hand(channels: int) -> None:
    image = np.full((64, 64, channels), 0.75, np.float32)
    pixels, _ = ViewMaker(make_card(channels), (32, 32))(image, MASK, "x", 0)
    assert torch.equal(pixels, torch.full((channels, 32, 32), 1.0))  # (0.75 - 0.25) / 0.5
    assert torch.equal(ViewMaker(make_card(channels), (32, 32)).image_only(image), pixels)


@pytest.mark.parametrize("channels", [1, 4])
def test_later_views_differ_in_brightness(channels: int) -> None:
    make = ViewMaker(make_card(channels), (32, 32))
    made = [make(np.full((64, 64, channels), 100, np.uint8), MASK, "x", view)[0].mean().item() for view in range(2, 12)]
    assert len(set(made)) > 5
    # 100 / 255 times 0.7 to 1.3; contrast changes nothing of a plain image
    assert all(2 * (0.69 * 100 / 255 - 0.25) < mean < 2 * (1.31 * 100 / 255 - 0.25) for mean in made)


@pytest.mark.parametrize("scale", [1, 255])
def test_brightness_and_contrast_are_colorjitters(scale: int) -> None:
    """Of a grey image, where albumentations' own takes one: the same factors in the same order, rounded otherwise."""
    image = smooth(1) if scale == 255 else smooth(1).astype(np.float32) / 255
    ours = BrightnessContrast((0.7, 1.3), (0.8, 1.2), 1.0)
    theirs = A.ColorJitter((0.7, 1.3), (0.8, 1.2), (1, 1), (0, 0), p=1.0)
    for brightness, contrast in ((0.7, 1.2), (1.3, 0.8), (1.1, 1.0)):
        for first in (True, False):
            order = [0, 1, 2, 3] if first else [1, 0, 2, 3]
            expected = theirs.apply(image, brightness, contrast, 1.0, 0.0, order)
            found = ours.apply(image, brightness, contrast, first)
            assert found.dtype == image.dtype
            assert np.abs(found.astype(float) - expected.astype(float)).max() <= (2.01 if scale == 255 else 1e-5)


def test_contrast_turns_about_the_mean_of_all_bands() -> None:
    image = np.stack([np.full((2, 2), value, np.float32) for value in (0.0, 0.2, 0.6, 0.8)], -1)  # mean 0.4
    found = BrightnessContrast((1, 1), (1, 1), 1.0).apply(image, 1.0, 0.5, True)
    assert found[0, 0].tolist() == pytest.approx([0.2, 0.3, 0.5, 0.6])
