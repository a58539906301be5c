"""Views: deterministic augmentations of an image and its mask, ready for the network."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import albumentations as A
import cv2
import numpy as np
import torch
from torch import Tensor

from segskd.config import Size
from segskd.data.cards import Card
from segskd.data.pixels import Uint8
from segskd.errors import DataError
from segskd.standalone.bands import Pixels

SIZE_MULTIPLE = 32
RESIZE_FILTER = "INTER_AREA when shrinking, INTER_LINEAR when enlarging; masks INTER_NEAREST_EXACT"
CROP_SCALE = (0.4, 1.0)
BRIGHTNESS, CONTRAST, COLOUR_CHANCE = (0.7, 1.3), (0.8, 1.2), 0.8
_Chains = tuple[A.Compose, A.Compose, A.Compose]


def padded_size(size: Size) -> Size:
    """(height, width) rounded up to multiples of 32, which every network takes."""
    height, width = (-(-side // SIZE_MULTIPLE) * SIZE_MULTIPLE for side in size)
    return height, width


def unpad(logits: Tensor, size: Size) -> Tensor:
    """Cuts (N, C, H, W) back to the (height, width) it had before padding."""
    return logits[..., : size[0], : size[1]]


class ViewMaker:
    """Makes views of an image: view 0 is plain, view 1 is mirrored, and later ones are random crops in other colours.

    A view is resized to `size`, normalised with the card's mean and std, and padded at the bottom and right to a
    multiple of 32: the image with the mean colour, the mask with the ignore index.
    """

    def __init__(self, card: Card, size: Size, seed: int = 0) -> None:
        self.size = size
        self.padded = padded_size(size)
        self.seed = seed
        self._card = card
        self._plain = A.Compose([_resize(size)])
        # A chain holds the seed of the view that it makes, so each thread takes a chain that no other uses.
        self._idle: dict[bool, list[_Chains]] = {True: [], False: []}

    def __call__(self, image: Pixels, mask: Uint8, name: str, view: int) -> tuple[Tensor, Tensor]:
        """One view: float32 (C, h, w) and int64 (h, w) at the padded size. `image` (H, W, C) comes from `read_image`.

        The same name, view and seed always give the same tensors, on every machine with the same versions.
        Raises UserError when image and mask differ in size.
        """
        if image.shape[:2] != mask.shape:
            raise DataError(f"image '{name}' and its mask differ in size ('data check' finds all such files)")
        with self._chains(image.dtype == np.uint8) as chains:
            chain = chains[min(view, 2)]
            chain.set_random_seed(_view_seed(self.seed, name, view))
            made = chain(image=image, mask=mask)
        pixels = torch.from_numpy(np.ascontiguousarray(made["image"].transpose(2, 0, 1)))
        return pixels, torch.from_numpy(made["mask"].astype(np.int64))

    @contextmanager
    def _chains(self, bytes_: bool) -> Iterator[_Chains]:
        """Lends the transformations of view 0, view 1 and all others, for uint8 or float32, to one thread at a time."""
        try:
            chains = self._idle[bytes_].pop()
        except IndexError:
            chains = _make_chains(self.size, self._card, 255.0 if bytes_ else 1.0)
        try:
            yield chains
        finally:
            self._idle[bytes_].append(chains)

    def image_only(self, image: Pixels) -> Tensor:
        """View 0 of an image that has no mask: float32 (C, h, w)."""
        blank = np.zeros(image.shape[:2], dtype=np.uint8)
        return self(image, blank, "", 0)[0]

    def resized(self, image: Pixels) -> Pixels:
        """The image resized to `size`, (height, width, C), which view 0 normalises."""
        made: Pixels = self._plain(image=image)["image"]
        return made


class BrightnessContrast(A.ImageOnlyTransform):  # type: ignore[misc]
    """Changes brightness and contrast as ColorJitter does, in random order, for images with any number of channels.

    Brightness multiplies all values. Contrast moves all values away from the mean of all bands, or towards it. Images
    are uint8, or float32 from 0 to 1.
    """

    def __init__(self, brightness: tuple[float, float], contrast: tuple[float, float], p: float) -> None:
        super().__init__(p=p)
        self.brightness = brightness
        self.contrast = contrast

    def get_params(self) -> dict[str, Any]:
        """Draws both factors, and which change comes first."""
        draw = self.py_random.uniform
        return {
            "brightness": draw(*self.brightness),
            "contrast": draw(*self.contrast),
            "brightness_first": self.py_random.random() < 0.5,
        }

    def apply(self, img: Pixels, brightness: float, contrast: float, brightness_first: bool, **params: Any) -> Pixels:
        """The image with both changes."""
        steps = (_brighter, brightness), (_contrasted, contrast)
        for change, factor in steps if brightness_first else reversed(steps):
            img = change(img, factor)
        return img


def _brighter(image: Pixels, factor: float) -> Pixels:
    return _clipped(image.astype(np.float32) * factor, image.dtype)


def _contrasted(image: Pixels, factor: float) -> Pixels:
    return _clipped(image.astype(np.float32) * factor + float(image.mean()) * (1 - factor), image.dtype)


def _clipped(values: Pixels, dtype: np.dtype[Any]) -> Pixels:
    if dtype == np.uint8:
        return np.rint(values).clip(0, 255).astype(np.uint8)
    return values.clip(0, 1)


def _make_chains(size: Size, card: Card, white: float) -> _Chains:
    """The transformations of view 0, view 1 and all others. `white` is the pixel value that becomes 1.0."""
    finish = _finish(card, white)
    return (
        A.Compose([_resize(size), *finish]),
        A.Compose([_resize(size), A.HorizontalFlip(p=1.0), *finish]),
        A.Compose([*_random_changes(size), _colour_change(card), *finish]),
    )


def _resize(size: Size) -> A.Resize:
    return A.Resize(
        *size,
        interpolation=cv2.INTER_LINEAR,
        mask_interpolation=cv2.INTER_NEAREST_EXACT,
        area_for_downscale="image",
    )


def _random_changes(size: Size) -> Sequence[A.BasicTransform]:
    ratio = size[1] / size[0]
    return [
        A.RandomResizedCrop(
            size,
            scale=CROP_SCALE,
            ratio=(ratio * 0.9, ratio / 0.9),
            interpolation=cv2.INTER_LINEAR,
            mask_interpolation=cv2.INTER_NEAREST_EXACT,
            area_for_downscale="image",
        ),
        A.HorizontalFlip(p=0.5),
    ]


def _colour_change(card: Card) -> A.BasicTransform:
    if card.channels != 3:
        return BrightnessContrast(BRIGHTNESS, CONTRAST, COLOUR_CHANCE)
    return A.ColorJitter(BRIGHTNESS, CONTRAST, saturation=(0.8, 1.2), hue=(-0.02, 0.02), p=COLOUR_CHANCE)


def _finish(card: Card, white: float) -> list[A.BasicTransform]:
    return [
        A.Normalize(mean=card.mean, std=card.std, max_pixel_value=white),
        A.PadIfNeeded(
            min_height=None,
            min_width=None,
            pad_height_divisor=SIZE_MULTIPLE,
            pad_width_divisor=SIZE_MULTIPLE,
            position="top_left",
            border_mode=cv2.BORDER_CONSTANT,
            fill=0,
            fill_mask=card.ignore_index,
        ),
    ]


def _view_seed(seed: int, name: str, view: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{view}/{name}".encode()).digest()[:4], "big")
