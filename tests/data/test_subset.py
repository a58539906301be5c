"""Subsets: their sizes, and the same names on every machine."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from segskd.config import SubsetRule
from segskd.data.cards import Card
from segskd.data.dataset import Pair
from segskd.data.pixel_counts import PixelCounts
from segskd.data.subset import draw_subset, pick_subset, read_names, split_holdout, subset_order, subset_size
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


class Asked(NamedTuple):
    """What a teacher is said to make of the images."""

    names: list[str]
    features: npt.NDArray[np.float32]
    entropy: npt.NDArray[np.float32]


def listed(names: str) -> list[Pair]:
    return [Pair(name, Path(name), Path(name)) for name in names]


def asked(names: str, features: list[tuple[int, int]] | None = None, entropy: list[float] | None = None) -> Asked:
    shape = np.array(features or [(0, 0)] * len(names), dtype=np.float32)
    return Asked(list(names), shape, np.array(entropy or [0] * len(names), dtype=np.float32))


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


@pytest.mark.parametrize("seed", [0, 7])
def test_balanced_takes_the_largest_gain_by_hand(pairs: list[Pair], seed: int) -> None:
    # all twenty fit into the pool, so this is the plain greedy order of sum_c log(0.001 + shares so far)
    shares = {}
    for number, pair in enumerate(pairs):
        wall = min(number % 15, 15)
        rare = number == 13
        shares[pair.name] = np.array([15 - wall, wall, rare]) / 16
    left, total, order = by_sha256(names_of(pairs), seed), np.full(3, 1e-3), []
    while left:
        best = max(left, key=lambda name: np.log(total + shares[name]).sum())
        left.remove(best)
        order.append(best)
        total = total + shares[best]
    assert subset_order(pairs, "balanced", seed, CARD, 20) == order


def test_balanced_would_rather_have_a_little_of_every_class_than_much_of_two() -> None:
    # ln 0.941 + 2 ln 0.031 = -7.0 against 2 ln 0.501 + ln 0.001 = -8.3
    counted = PixelCounts(("x", "y"), np.array([[94, 3, 3, 0], [50, 50, 0, 0]]))
    assert subset_order(listed("xy"), "balanced", 0, CARD, 1, pixel_counts=counted) == ["x"]
    assert subset_order(listed("xy"), "balanced", 1, CARD, 1, pixel_counts=counted) == ["x"]


def test_balanced_uses_the_census_it_is_given() -> None:
    # no mask is there to be read: d alone has the rare class, then a and b even out the other two
    counted = PixelCounts(tuple("abcd"), np.array([[8, 1, 0, 0], [1, 8, 0, 0], [9, 0, 0, 9], [1, 1, 7, 0]]))
    assert subset_order(listed("abcd"), "balanced", 0, CARD, 1, pixel_counts=counted) == ["d"]
    assert names_of(draw_subset(listed("abcd"), 3, 0, "balanced", CARD, pixel_counts=counted)) == ["a", "b", "d"]


POINTS = [(0, 0), (10, 0), (0, 8), (1, 1), (5, 3), (10, 8)]


def test_diverse_is_the_k_centre_greedy_order_worked_out_by_hand() -> None:
    # The mean is (4.33, 3.33), so e begins. From e: c and f √50 (c by name), then f √50, a and b √34 (a by
    # name), b √34, and d, √2 from a, last.
    told = asked("abcdef", POINTS)
    assert subset_order(listed("abcdef"), "diverse", 0, CARD, 6, told) == list("ecfabd")
    # neither the seed nor the order of listing nor other images that were asked about change it
    more = asked("xfedcbay", [(99, 99), *POINTS[::-1], (-99, 0)])
    assert subset_order(listed("fbadce"), "diverse", 3, CARD, 6, more) == list("ecfabd")


def test_images_just_alike_are_taken_once_each() -> None:
    assert subset_order(listed("dbca"), "diverse", 0, CARD, 4, asked("abcd")) == list("abcd")


def test_hardest_is_falling_entropy_and_then_the_name() -> None:
    told = asked("cabd", entropy=[0.5, 0.5, 0.9, 0.1])
    assert subset_order(listed("abcd"), "hardest", 0, CARD, 4, told) == list("bacd")
    assert subset_order(listed("dcba"), "hardest", 9, CARD, 4, told) == list("bacd")
    letters = "abcdefghijklmnopqrstuvwxyz"
    level = asked(letters, entropy=[float(letter in "kx") for letter in letters])
    assert subset_order(listed(letters), "hardest", 0, CARD, 26, level) == list("kxabcdefghijlmnopqrstuvwyz")


@pytest.mark.parametrize("rule", ["diverse", "hardest"])
def test_what_the_teacher_chooses_is_nested(rule: SubsetRule) -> None:
    generator = np.random.default_rng(0)
    names = [f"i{number:02}" for number in range(40)]
    told = Asked(names, generator.normal(size=(40, 8)).astype(np.float32), generator.random(40).astype(np.float32))
    every = [Pair(name, Path(name), Path(name)) for name in names]
    whole = subset_order(every, rule, 0, CARD, 40, told)
    assert sorted(whole) == names
    for size in (1, 2, 7, 39):
        assert subset_order(every, rule, 0, CARD, size, told) == whole[:size]
        assert names_of(draw_subset(every, size, 0, rule, CARD, told)) == sorted(whole[:size])


def test_a_rule_that_asks_a_teacher_says_so() -> None:
    for rule in ("diverse", "hardest"):
        with pytest.raises(
            UserError, match=rf"rule {rule} needs a teacher.*--rule random or balanced, or .* --teacher"
        ):
            draw_subset(listed("abc"), 2, 0, rule, CARD)


def test_by_hand() -> None:
    assert names_of(pick_subset(listed("abcd"), ["d", "b"])) == ["b", "d"]
    with pytest.raises(UserError, match=r"no training image is named 'x', 'y', 'z' and 2 more: .*such as 'a'"):
        pick_subset(listed("ba"), ["x", "a", "y", "z", "u", "v"])
    with pytest.raises(UserError, match=r"is named 'x': name"):
        pick_subset(listed("ba"), ["x", "a"])
    with pytest.raises(ValueError, match="no order"):
        subset_order(listed("ab"), "hand", 0, CARD, 2)


def test_a_file_of_names(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes("\ufeffb one\r\n\n a/ä \n# held out for choosing\nc".encode())
    assert read_names(path) == ["b one", "a/ä", "c"]
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"names\.txt is no text"):
        read_names(path)
    with pytest.raises(UserError, match=r"can't read --names .*none\.txt: No such file"):
        read_names(tmp_path / "none.txt")


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
