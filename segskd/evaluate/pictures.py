"""Draws masks: in the card's colours, over images, side by side, and as palette PNGs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from segskd.config import Size
from segskd.data.cards import Card, Colour
from segskd.data.pixels import Uint8

GAP = 4
CAPTION = 22
LEAST_HEIGHT = 160
MOST_SHOWN = 1024
IGNORED = (0, 0, 0)
FONT = cv2.FONT_HERSHEY_SIMPLEX
FONT_SCALE = 0.45


def palette_table(card: Card) -> npt.NDArray[np.uint8]:
    """RGB uint8 (256, 3) of each mask value, black for values that are no class."""
    table = np.full((256, 3), IGNORED, dtype=np.uint8)
    table[: len(card.palette)] = card.palette
    return table


def colourised(mask: Uint8, card: Card) -> Uint8:
    """A mask (H, W) in the card's colours, RGB (H, W, 3)."""
    return palette_table(card)[mask]


def overlay(image: Uint8, mask: Uint8, card: Card, opacity: float = 0.55) -> Uint8:
    """The coloured mask over its image, RGB (H, W, 3). Ignored pixels show the image alone."""
    mixed = (image * (1 - opacity) + colourised(mask, card) * opacity).astype(np.uint8)
    return np.where((mask < len(card.classes))[..., None], mixed, image)


def shown_size(size: Size) -> Size:
    """The (height, width) at which a picture of `size` is shown.

    Small pictures are enlarged by a whole number. Larger ones are shrunk so that no side exceeds MOST_SHOWN.
    """
    if max(size) > MOST_SHOWN:
        height, width = (max(1, side * MOST_SHOWN // max(size)) for side in size)
        return height, width
    scale = max(1, -(-LEAST_HEIGHT // size[0]))
    return size[0] * scale, size[1] * scale


def resized(image: Uint8, size: Size) -> Uint8:
    """A photograph resized to (height, width)."""
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


def enlarged(picture: Uint8, size: Size) -> Uint8:
    """A coloured mask resized to (height, width) without interpolation."""
    return cv2.resize(picture, size[::-1], interpolation=cv2.INTER_NEAREST).astype(np.uint8, copy=False)


def contact_sheet(
    rows: Sequence[Sequence[Uint8]], captions: Sequence[str], legend: Sequence[tuple[str, Colour]] = ()
) -> Uint8:
    """One RGB picture of rows of pictures (H, W, 3) of equal size, with a caption over each column and a legend
    below."""
    height, width = rows[0][0].shape[:2]
    total = len(captions) * (width + GAP) + GAP
    lines = _legend_lines(legend, total)
    sheet = np.full((CAPTION + len(rows) * (height + GAP) + CAPTION * len(lines), total, 3), 255, dtype=np.uint8)
    for column, caption in enumerate(captions):
        x = GAP + column * (width + GAP)
        _text(sheet, caption, x, CAPTION - 7)
        for row, pictures in enumerate(rows):
            y = CAPTION + row * (height + GAP)
            sheet[y : y + height, x : x + width] = pictures[column]
    for number, line in enumerate(lines):
        _draw_legend(sheet, line, sheet.shape[0] - CAPTION * (len(lines) - number))
    return sheet


def class_legend(card: Card) -> list[tuple[str, Colour]]:
    """The name and the colour of each class."""
    return list(zip(card.class_names, card.palette, strict=True))


def _legend_lines(legend: Sequence[tuple[str, Colour]], width: int) -> list[list[tuple[str, Colour]]]:
    """The legend broken into lines that fit `width` pixels."""
    lines: list[list[tuple[str, Colour]]] = []
    left = 0
    for entry in legend:
        if not lines or left + _entry_width(entry[0]) > width:
            lines.append([])
            left = GAP
        lines[-1].append(entry)
        left += _entry_width(entry[0])
    return lines


def _draw_legend(sheet: Uint8, legend: Sequence[tuple[str, Colour]], y: int) -> None:
    x = GAP
    for name, color in legend:
        cv2.rectangle(sheet, (x, y + 5), (x + 12, y + 16), color, cv2.FILLED)
        _text(sheet, name, x + 16, y + 15)
        x += _entry_width(name)


def _entry_width(name: str) -> int:
    return 16 + int(cv2.getTextSize(name, FONT, FONT_SCALE, 1)[0][0]) + 14


def _text(sheet: Uint8, text: str, x: int, y: int) -> None:
    cv2.putText(sheet, text, (x, y), FONT, FONT_SCALE, (30, 30, 30), 1, cv2.LINE_AA)


def write_png(rgb: Uint8) -> bytes:
    """An RGB picture (H, W, 3) as the bytes of a PNG file."""
    done, encoded = cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    if not done:
        raise RuntimeError(f"OpenCV could not encode a picture of shape {rgb.shape}")
    return encoded.tobytes()


def write_index_png(mask: Uint8, card: Card) -> bytes:
    """A mask (H, W) as the bytes of a palette PNG, whose values are the classes and whose colours are the card's."""
    image: Any = Image.fromarray(mask, mode="L")
    image = image.convert("P") if image.mode != "P" else image
    image.putpalette(palette_table(card).ravel().tolist())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
