"""Datasets whose images are grey, of four bands or of 16 bits, and masks of two classes, as data add finds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import yaml
from PIL import Image

from segskd.data.adding import Added, add_folder
from segskd.data.cards import Card
from segskd.data.check import check
from segskd.data.dataset import list_pairs, read_mask
from segskd.errors import UserError

Array = npt.NDArray[Any]
TWO = np.array([[0, 1], [1, 0]], np.uint8)


def add(tmp_path: Path, images: list[Array], masks: list[Array] | None = None, suffix: str = "png") -> Added:
    """A dataset of these images, blue first, two pixels a side."""
    for kind, arrays in (("images", images), ("masks", masks or [TWO] * len(images))):
        folder = tmp_path / "data" / "mine" / kind
        folder.mkdir(parents=True)
        for number, array in enumerate(arrays):
            cv2.imwrite(str(folder / f"{number}.{suffix if kind == 'images' else 'png'}"), array)
    return add_folder(tmp_path / "data" / "mine", tmp_path / "data")


def plain(*values: Any, dtype: Any = np.uint8) -> Array:
    """Two by two pixels of one value, or of one each channel."""
    shape = (2, 2) if len(values) == 1 else (2, 2, len(values))
    return np.broadcast_to(np.array(values, dtype), shape).copy()


def test_grey_images(tmp_path: Path) -> None:
    card = add(tmp_path, [plain(0)] * 5 + [plain(255)] * 5).card
    assert (card.channels, card.white) == (1, None)
    assert (card.mean, card.std) == ((0.5,), (0.5,))
    content = yaml.safe_load((tmp_path / "data" / "mine.yaml").read_text())
    assert (content["channels"], content["mean"]) == (1, [0.5])


def test_colour_says_nothing_new(tmp_path: Path) -> None:
    added = add(tmp_path, [plain(1, 2, 3)] * 9 + [plain(7)])
    content = yaml.safe_load(added.place.read_text())
    assert not {"channels", "white", "mean", "std"} & content.keys()
    assert added.report.kinds == {"3 channels of 8 bits": 9, "1 channel of 8 bits": 1}
    assert added.report.problems == []


def test_a_fourth_band_that_varies(tmp_path: Path) -> None:
    card = add(tmp_path, [plain(51, 102, 153, 0)] * 5 + [plain(51, 102, 153, 255)] * 5).card
    assert card.channels == 4
    assert card.mean == (0.6, 0.4, 0.2, 0.5)  # red first
    assert card.std == (0.001, 0.001, 0.001, 0.5)


def test_an_alpha_that_is_the_same_everywhere(tmp_path: Path) -> None:
    assert add(tmp_path, [plain(1, 2, 3, 255)] * 6).card.channels == 3


@pytest.mark.parametrize(("largest", "white"), [(4095, 4095), (4096, None)])
def test_a_sensor_of_12_bits(tmp_path: Path, largest: int, white: int | None) -> None:
    images = [plain(1000, dtype=np.uint16)] * 5 + [plain(largest, dtype=np.uint16)]
    added = add(tmp_path, images, suffix="tif")
    assert (added.card.channels, added.card.white) == (1, white)
    share = (5 * 1000 + largest) / 6 / (white or 65535)
    assert added.card.mean == (pytest.approx(share, abs=1e-4),)
    assert added.report.kinds == {"1 channel of 16 bits": 6}


def test_files_that_disagree_are_named(tmp_path: Path) -> None:
    added = add(tmp_path, [plain(9, dtype=np.uint16)] * 5 + [plain(9)])
    assert added.card.white is None
    assert [(p.kind, Path(p.file).name) for p in added.report.problems] == [("bits differ", "5.png")]
    assert "has 8 bits a channel, and most others have 16" in added.report.problems[0].text
    Image.new("RGB", (2, 2), "red").save(tmp_path / "data" / "mine" / "images" / "0.png")
    found = check(added.card, tmp_path / "data").problems
    assert ("kind differs", "0.png") in [(p.kind, Path(p.file).name) for p in found]
    assert any("has colours, and its card says channels: 1" in p.text for p in found)


def test_pixels_that_white_cuts_off_are_named(tmp_path: Path) -> None:
    added = add(tmp_path, [plain(1000, dtype=np.uint16)] * 5 + [plain(4095, dtype=np.uint16)], suffix="tif")
    assert brighter(added.card, 4095, tmp_path) == {}
    found = brighter(added.card, 4094, tmp_path)
    assert list(found) == ["5.tif"]
    assert found["5.tif"].startswith("100 % of image ")
    assert found["5.tif"].endswith("5.tif is brighter than the card's white, 4094 (up to 4095)")


def test_neither_single_pixels_nor_an_alpha_are_too_bright(tmp_path: Path) -> None:
    lamp = np.full((10, 10, 4), 100, np.uint8)
    lamp[..., 3] = 255
    lamp[0, 0, 0] = 250
    added = add(tmp_path, [lamp] * 5, [np.tile(np.uint8([0, 1]), (10, 5))] * 5)
    assert brighter(added.card, 200, tmp_path) == {}
    assert list(brighter(added.card, 99, tmp_path)) == [f"{number}.png" for number in range(5)]


def brighter(card: Card, white: int, folder: Path) -> dict[str, str]:
    """What the check says of images that a card's white cuts off, by name."""
    found = check(card.model_copy(update={"white": white}), folder / "data").problems
    return {Path(one.file).name: one.text for one in sorted(found, key=str) if one.kind == "brighter than white"}


def masks_of(added: Added, tmp_path: Path) -> list[list[int]]:
    pairs = [pair for split in added.card.splits for pair in list_pairs(added.card, tmp_path / "data", split)]
    return [read_mask(pair.mask, added.card).ravel().tolist() for pair in sorted(pairs)]


@pytest.mark.parametrize(
    "mask",
    [TWO, TWO * 255, TWO.astype(np.uint16), TWO.astype(np.uint16) * 255, TWO.astype(np.uint16) * 65535],
    ids=["0/1", "0/255", "16 bits 0/1", "16 bits 0/255", "16 bits 0/65535"],
)
def test_masks_of_two_classes(tmp_path: Path, mask: Array) -> None:
    added = add(tmp_path, [plain(1, 2, 3)] * 5, [mask] * 5)
    assert len(added.card.classes) == 2
    assert added.card.ignore_index == 255
    assert masks_of(added, tmp_path) == [[0, 1, 1, 0]] * 5


@pytest.mark.parametrize("mode", ["1", "P"])
def test_masks_of_one_bit(tmp_path: Path, mode: str) -> None:
    folder = tmp_path / "data" / "mine"
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for number in range(5):
        Image.new("RGB", (2, 2)).save(folder / "images" / f"{number}.png")
        one = Image.fromarray(TWO.astype(bool))
        if mode == "P":
            one = Image.fromarray(TWO, mode="P")
            one.putpalette([0, 0, 0, 250, 0, 0])
            one.save(folder / "masks" / f"{number}.png", bits=1)
        else:
            one.save(folder / "masks" / f"{number}.png")
    added = add_folder(folder, tmp_path / "data")
    assert len(added.card.classes) == 2
    assert masks_of(added, tmp_path) == [[0, 1, 1, 0]] * 5


def test_numbers_of_16_bits_and_their_largest(tmp_path: Path) -> None:
    """Ids beyond 255 are classes; 65535 beside several is what 255 is in 8 bits."""
    mask = np.array([[0, 300], [7, 65535]], np.uint16)
    added = add(tmp_path, [plain(1, 2, 3)] * 5, [mask] * 5)
    assert added.card.values == {0: 0, 7: 1, 300: 2, 255: 255, 65535: 255}
    assert masks_of(added, tmp_path) == [[0, 2, 1, 255]] * 5


def test_masks_without_a_second_class(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a dataset needs two classes"):
        add(tmp_path, [plain(1, 2, 3)] * 5, [np.full((2, 2), 65535, np.uint16)] * 5)
