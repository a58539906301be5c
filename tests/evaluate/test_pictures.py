"""Pictures of masks, read back with Pillow."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from segskd.data.cards import Card
from segskd.evaluate.pictures import (
    class_legend,
    colourised,
    contact_sheet,
    enlarged,
    overlay,
    palette_table,
    resized,
    shown_size,
    write_index_png,
    write_png,
)

MASK = np.array([[0, 1, 2], [255, 2, 0]], dtype=np.uint8)


@pytest.fixture
def card(make_card: Callable[..., Card]) -> Card:
    classes = [
        {"name": name, "color": color}
        for name, color in (("ground", [10, 20, 30]), ("wall", [200, 100, 0]), ("sky", [0, 0, 255]))
    ]
    return make_card(classes=classes)


def test_palette_is_black_where_there_is_no_class(card: Card) -> None:
    table = palette_table(card)
    assert (table.shape, table.dtype) == ((256, 3), np.uint8)
    assert table[:3].tolist() == [[10, 20, 30], [200, 100, 0], [0, 0, 255]]
    assert not table[3:].any()


def test_colourised(card: Card) -> None:
    assert colourised(MASK, card).tolist() == [
        [[10, 20, 30], [200, 100, 0], [0, 0, 255]],
        [[0, 0, 0], [0, 0, 255], [10, 20, 30]],
    ]


def test_overlay_mixes_and_shows_ignored_pixels_as_they_are(card: Card) -> None:
    image = np.full((2, 3, 3), 100, dtype=np.uint8)
    drawn = overlay(image, MASK, card, opacity=0.5)
    assert drawn.dtype == np.uint8
    assert drawn.tolist() == [
        [[55, 60, 65], [150, 100, 50], [50, 50, 177]],
        [[100, 100, 100], [50, 50, 177], [55, 60, 65]],
    ]
    assert np.array_equal(overlay(image, MASK, card, opacity=0.0), image)


def test_resized_takes_height_and_width() -> None:
    image = np.zeros((4, 6, 3), dtype=np.uint8)
    image[:2, :2] = 40
    small = resized(image, (2, 3))
    assert small.shape == (2, 3, 3)
    assert small[0, 0].tolist() == [40, 40, 40]
    assert small.sum() == 120


@pytest.mark.parametrize("legend", [False, True])
def test_sheet(card: Card, legend: bool) -> None:
    rows = [[np.full((30, 50, 3), 10 * row + column, dtype=np.uint8) for column in range(3)] for row in range(2)]
    sheet = contact_sheet(rows, ["one", "two", "three"], class_legend(card) if legend else ())
    # Captions of 22 pixels, gaps of 4; the legend of three classes takes two lines in so narrow a sheet
    assert sheet.shape == (22 + 2 * 34 + (44 if legend else 0), 3 * 54 + 4, 3)
    for row in range(2):
        for column in range(3):
            y, x = 22 + 34 * row, 4 + 54 * column
            assert (sheet[y : y + 30, x : x + 50] == 10 * row + column).all()
    assert (sheet[:22] != 255).any()
    assert (sheet[52:56] == 255).all()
    if legend:
        for color in card.palette:
            assert (sheet[-44:] == color).all(-1).sum() == 13 * 12  # a whole square: nothing is cut off


def test_legend_is_in_order(card: Card) -> None:
    assert class_legend(card) == [("ground", (10, 20, 30)), ("wall", (200, 100, 0)), ("sky", (0, 0, 255))]


def test_png_is_rgb() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    with Image.open(io.BytesIO(write_png(picture))) as image:
        assert image.mode == "RGB"
        assert np.array_equal(np.asarray(image), picture)


def test_index_png_holds_classes_and_colours(card: Card) -> None:
    mask = np.random.default_rng(0).choice(np.array([0, 1, 2, 255], dtype=np.uint8), size=(9, 5))
    with Image.open(io.BytesIO(write_index_png(mask, card))) as image:
        assert (image.mode, image.format) == ("P", "PNG")
        assert np.array_equal(np.asarray(image), mask)
        assert np.array_equal(np.asarray(image.convert("RGB"))[mask == 1][0], [200, 100, 0])
        assert np.array_equal(np.asarray(image.convert("RGB"))[mask == 255][0], [0, 0, 0])


def test_small_pictures_are_shown_enlarged() -> None:
    assert shown_size((96, 128)) == (192, 256)
    assert shown_size((192, 256)) == (192, 256)
    assert shown_size((50, 70)) == (200, 280)
    mask = np.zeros((1, 2, 3), dtype=np.uint8)
    mask[0, 1] = (200, 100, 0)
    large = enlarged(mask, (3, 6))
    assert (large[:, :3] == 0).all()
    assert (large[:, 3:] == (200, 100, 0)).all()
