"""The pixel_counts: pixels by image and class, counted by hand."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segskd.data.cards import Card
from segskd.data.dataset import Pair, read_mask
from segskd.data.pixel_counts import PixelCounts, count_pixels, pixel_counts
from segskd.data.pixels import Uint8
from segskd.errors import UserError

CONTENT: dict[str, Any] = {
    "name": "three",
    "title": "three classes",
    "folder": "three",
    "classes": [{"name": name, "color": [i, i, i]} for i, name in enumerate(("ground", "wall", "rare"))],
    "splits": {"train": {"images": "{name}.png", "masks": "m/{name}.png"}},
    "ignore_index": 9,
}
CARD = Card.model_validate(CONTENT)
MASKS = {"a": [[0, 0, 1], [1, 1, 9]], "b": [[2, 0, 0], [0, 0, 0]], "c": [[9, 9, 9], [9, 9, 9]]}


def write(path: Path, mask: list[list[int]]) -> None:
    Image.fromarray(np.array(mask, dtype=np.uint8)).save(path)


@pytest.fixture
def pairs(tmp_path: Path) -> list[Pair]:
    made = [Pair(name, tmp_path / f"{name}.jpg", tmp_path / f"{name}.png") for name in MASKS]
    for pair in made:
        write(pair.mask, MASKS[pair.name])
    return made


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The masks that are read from here on."""
    names: list[str] = []

    def reading(path: Path, card: Card) -> Uint8:
        names.append(path.stem)
        return read_mask(path, card)

    monkeypatch.setattr("segskd.data.pixel_counts.read_mask", reading)
    return names


def test_pixels_of_each_class_and_ignored_ones_last(pairs: list[Pair], tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    found = pixel_counts(CARD, pairs, tmp_path / "kept", lambda done, total: told.append((done, total)))
    assert found.names == ("a", "b", "c")
    assert found.counts.dtype == np.int64
    assert found.counts.tolist() == [[2, 3, 0, 1], [5, 0, 1, 0], [0, 0, 0, 6]]
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert count_pixels(CARD, pairs).counts.tolist() == found.counts.tolist()


def test_images_and_shares_of_some(pairs: list[Pair]) -> None:
    found = count_pixels(CARD, pairs)
    assert found.images_with("abc").tolist() == [2, 1, 1]
    assert found.images_with(["c", "a"]).tolist() == [1, 1, 0]
    assert found.shares("abc").tolist() == [7 / 11, 3 / 11, 1 / 11]
    assert found.shares(["a"]).tolist() == [2 / 5, 3 / 5, 0]
    assert found.shares(["c"]).tolist() == found.shares([]).tolist() == found.images_with([]).tolist() == [0, 0, 0]
    assert found.of("cb").tolist() == [[0, 0, 0, 6], [5, 0, 1, 0]]
    with pytest.raises(KeyError):
        found.shares(["z"])


def test_what_is_kept_is_not_read_again(pairs: list[Pair], tmp_path: Path, read: list[str]) -> None:
    first = pixel_counts(CARD, pairs, tmp_path / "kept")
    assert sorted(read) == ["a", "b", "c"]
    again = pixel_counts(CARD, pairs, tmp_path / "kept", lambda done, total: pytest.fail("nothing to be done"))
    assert len(read) == 3
    assert (again.names, again.counts.tolist()) == (first.names, first.counts.tolist())


def test_it_holds_until_something_changes(pairs: list[Pair], tmp_path: Path, read: list[str]) -> None:
    def ask(card: Card = CARD, asked: list[Pair] = pairs) -> PixelCounts:
        read.clear()
        return pixel_counts(card, asked, tmp_path / "kept")

    ask()
    write(pairs[1].mask, [[1, 1, 1, 1]])
    assert ask().counts[1].tolist() == [0, 4, 0, 0]
    assert len(read) == 3
    # the same size in bytes, another time
    before = pairs[1].mask.stat()
    os.utime(pairs[1].mask, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    ask()
    assert len(read) == 3
    ask()
    assert read == []
    # another card, other images: neither takes the place of the first
    swapped = Card.model_validate(CONTENT | {"values": {0: 1, 1: 0, 2: 2, 9: 9}})
    assert ask(swapped).counts[0].tolist() == [3, 2, 0, 1]
    assert ask(asked=pairs[:2]).counts.tolist() == [[2, 3, 0, 1], [0, 4, 0, 0]]
    ask()
    ask(swapped)
    assert read == []


def test_masks_that_cannot_be_counted(pairs: list[Pair], tmp_path: Path) -> None:
    write(pairs[2].mask, [[0, 7]])
    with pytest.raises(UserError, match=r"c\.png has value 7, which card 'three' doesn't know"):
        pixel_counts(CARD, pairs, tmp_path / "kept")
    pairs[0].mask.unlink()
    with pytest.raises(UserError, match=r"can't read .*a\.png"):
        pixel_counts(CARD, pairs, tmp_path / "kept")
    assert not list((tmp_path / "kept").glob("*.npz"))
