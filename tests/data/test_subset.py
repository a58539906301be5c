"""Subsets: their sizes, and the same names on every machine."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from segskd.config import SubsetRule
from segskd.data.cards import Card
from segskd.data.dataset import Pair
from segskd.data.subset import class_shares, draw_subset, split_holdout, subset_size
from segskd.errors import UserError

CARD = Card.model_validate(
    {
        "name": "three",
        "title": "three classes",
        "folder": "three",
        "classes": [{"name": name, "color": [i, i, i]} for i, name in enumerate(("ground", "wall", "rare"))],
        "splits": {"train": {"images": "{name}.png", "masks": "m/{name}.png"}},
    }
)
RULES: list[SubsetRule] = ["random", "balanced"]


def by_sha256(names: list[str], seed: object) -> list[str]:
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).hexdigest())


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[Pair]:
    """Twenty masks of 4x4 pixels with more and more wall; "i13" alone has the rare class, in one pixel."""
    folder = tmp_path_factory.mktemp("masks")
    made = []
    for number in range(20):
        mask = (np.arange(16).reshape(4, 4) < number % 15).astype(np.uint8)
        mask[3, 3] = 2 if number == 13 else 255
        path = folder / f"i{number:02}.png"
        Image.fromarray(mask).save(path)
        made.append(Pair(path.stem, path, path))
    return made


def names_of(pairs: list[Pair]) -> list[str]:
    return [pair.name for pair in pairs]


@pytest.mark.parametrize(("fraction", "size"), [(0.1, 36), (0.2, 73), (0.3, 110), (0.4, 146), (1.0, 367), (None, 367)])
def test_fractions_of_camvid(fraction: float | None, size: int) -> None:
    assert subset_size(367, fraction, None) == size


def test_a_fraction_is_not_rounded_down_by_the_computer() -> None:
    # 0.29 · 100 is 28.999999999999996 in floating point
    assert subset_size(100, 0.29, None) == 29


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01, float("nan")])
def test_fractions_that_are_none(fraction: float) -> None:
    with pytest.raises(UserError, match=r"--fraction .* above 0 and at most 1"):
        subset_size(367, fraction, None)


def test_too_few_and_too_many() -> None:
    with pytest.raises(UserError, match=r"--fraction 0\.1 of 19 images leaves 1,.*at least 2"):
        subset_size(19, 0.1, None)
    with pytest.raises(UserError, match="--count 1 leaves 1"):
        subset_size(19, None, 1)
    with pytest.raises(UserError, match="--count 20 is more than the 19"):
        subset_size(19, None, 20)
    assert subset_size(20, 0.1, None) == subset_size(20, None, 2) == 2
    assert subset_size(19, None, 19) == 19


def test_random_is_the_beginning_of_the_hash_order(pairs: list[Pair]) -> None:
    chosen = names_of(draw_subset(pairs, 6, 5, "random", CARD))
    assert chosen == sorted(by_sha256(names_of(pairs), 5)[:6])
    assert chosen == ["i03", "i04", "i05", "i07", "i12", "i18"]


@pytest.mark.parametrize("rule", RULES)
def test_the_same_seed_gives_the_same_names_in_any_order_of_listing(pairs: list[Pair], rule: SubsetRule) -> None:
    chosen = draw_subset(pairs, 7, 0, rule, CARD)
    assert chosen == sorted(chosen)
    assert len({pair.name for pair in chosen}) == 7
    assert draw_subset(pairs[::-1], 7, 0, rule, CARD) == chosen
    assert draw_subset(pairs[5:] + pairs[:5], 7, 0, rule, CARD) == chosen
    assert draw_subset(pairs, 7, 1, rule, CARD) != chosen


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_smaller_subset_is_part_of_a_larger_one(pairs: list[Pair], rule: SubsetRule, seed: int) -> None:
    drawn = [set(names_of(draw_subset(pairs, size, seed, rule, CARD))) for size in (2, 3, 7, 12, 20)]
    assert [len(names) for names in drawn] == [2, 3, 7, 12, 20]
    assert all(small < large for small, large in pairwise(drawn))


@pytest.mark.parametrize("seed", [0, 1, 5, 6])
def test_balanced_brings_in_a_class_that_random_misses(pairs: list[Pair], seed: int) -> None:
    assert "i13" not in names_of(draw_subset(pairs, 5, seed, "random", CARD))
    assert "i13" in names_of(draw_subset(pairs, 5, seed, "balanced", CARD))
    assert "i13" in names_of(draw_subset(pairs, 2, seed, "balanced", CARD))


def test_class_shares(pairs: list[Pair]) -> None:
    # i13: thirteen pixels wall, two ground, one rare; i05: five wall, ten ground, one ignored
    assert class_shares(pairs[13], CARD).tolist() == [2 / 16, 13 / 16, 1 / 16]
    assert class_shares(pairs[5], CARD).tolist() == [10 / 16, 5 / 16, 0]


def test_the_holdout_is_a_fifth(pairs: list[Pair]) -> None:
    train, held = split_holdout(pairs, 3)
    assert names_of(held) == sorted(by_sha256(names_of(pairs), "holdout/3")[:4])
    assert names_of(train) == sorted(set(names_of(pairs)) - set(names_of(held)))
    assert len(train) == 16
    assert split_holdout(pairs[::-1], 3) == (train, held)
    assert split_holdout(pairs, 4)[1] != held


def test_the_holdout_of_few(pairs: list[Pair]) -> None:
    train, held = split_holdout(pairs[:3], 0)
    assert (len(train), len(held)) == (2, 1)
    with pytest.raises(UserError, match="2 images are too few"):
        split_holdout(pairs[:2], 0)
