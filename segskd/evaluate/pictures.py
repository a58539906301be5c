"""Pictures of masks: colours from the card, overlays, side-by-side sheets, palette PNGs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from segskd.config import Size
from segskd.data.cards import Card
from segskd.data.dataset import Uint8

GAP = 4
CAPTION = 22
IGNORED = (0, 0, 0)


def palette_table(card: Card) -> npt.NDArray[np.uint8]:
    """RGB of each of the 256 mask values; black for what is no class. (256, 3)"""
    table = np.full((256, 3), IGNORED, dtype=np.uint8)
    table[: len(card.palette)] = card.palette
    return table


def colourised(mask: Uint8, card: Card) -> Uint8:
    """A mask (H, W) in the card's colours, RGB (H, W, 3)."""
    return palette_table(card)[mask]


def overlay(image: Uint8, mask: Uint8, card: Card, opacity: float = 0.55) -> Uint8:
    """The coloured mask laid over its image, RGB (H, W, 3); ignored pixels show the image."""
    mixed = (image * (1 - opacity) + colourised(mask, card) * opacity).astype(np.uint8)
    return np.where((mask < len(card.classes))[..., None], mixed, image)


def resized(image: Uint8, size: Size) -> Uint8:
    """An image at (height, width), for looking at."""
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


def contact_sheet(rows: Sequence[Sequence[Uint8]], captions: Sequence[str]) -> Uint8:
    """Pictures of one size in rows, with a caption over each column. RGB."""
    height, width = rows[0][0].shape[:2]
    sheet = np.full((CAPTION + len(rows) * (height + GAP), len(captions) * (width + GAP) + GAP, 3), 255, dtype=np.uint8)
    for column, caption in enumerate(captions):
        x = GAP + column * (width + GAP)
        cv2.putText(sheet, caption, (x, CAPTION - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (30, 30, 30), 1, cv2.LINE_AA)
        for row, pictures in enumerate(rows):
            y = CAPTION + row * (height + GAP)
            sheet[y : y + height, x : x + width] = pictures[column]
    return sheet


def write_png(rgb: Uint8) -> bytes:
    """A picture (H, W, 3) as PNG."""
    done, encoded = cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    if not done:
        raise RuntimeError(f"OpenCV could not encode a picture of shape {rgb.shape}")
    return encoded.tobytes()


def write_index_png(mask: Uint8, card: Card) -> bytes:
    """A mask (H, W) as palette PNG: the values are the classes, the colours the card's."""
    image: Any = Image.fromarray(mask, mode="L")
    image = image.convert("P") if image.mode != "P" else image
    image.putpalette(palette_table(card).ravel().tolist())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
